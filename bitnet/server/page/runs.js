/* The replies that are being written, one a conversation at most; a conversation that is not shown
   goes on. */

import {count} from "./api.js";
import {cuts, sent} from "./conversation.js";
import {painter} from "./dom.js";
import {ask} from "./reply.js";
import {sampling, stored} from "./settings.js";

const SAVE_MS = 2000; // what came is kept so often
const ROOM = 0.75; // of the context for what is sent, once the oldest is dropped
const DEFAULT_TEXT_TOKENS = 128; // of a continuation; the API's own is 16
const running = new Map(); // id of a conversation -> {controller, conversation}

export const isRunning = id => running.has(id);
export const runningOf = id => running.get(id)?.conversation;
export function stop(id) { running.get(id)?.controller.abort(); }
export const anyRunning = () => running.size > 0;

/* Write a reply and call onDraw(reply) as it comes, at most once a frame. onPiece(reply): takes
   each piece into the conversation. onSave(): keeps it. The reply; Problem, with what came as its
   reply. */
async function run(conversation, path, body, {onPiece, onDraw, onSave}) {
  const controller = new AbortController();
  running.set(conversation.id, {controller, conversation});
  let latest = null, saved = performance.now();
  const paint = painter(() => latest && onDraw(latest));
  try {
    return await ask(path, body, controller.signal, reply => {
      latest = reply;
      onPiece(reply);
      paint.request();
      if (performance.now() - saved < SAVE_MS) return;
      saved = performance.now();
      onSave();
    });
  } finally {
    paint.flush();
    running.delete(conversation.id);
  }
}

/* A reply to the conversation, or more of its last one (continues). */
export function writeReply(conversation, model, continues, events) {
  const body = {model: model.name, messages: sent(conversation), ...sampling(),
    reasoning_format: "auto"};
  if (continues) Object.assign(body, {continue_final_message: true, add_generation_prompt: false});
  if (stored("reasoning")) body.reasoning_effort = stored("reasoning");
  return run(conversation, "v1/chat/completions", body, events);
}

/* What comes behind the text. */
export function writeText(conversation, model, events) {
  const body = {model: model.name, max_tokens: DEFAULT_TEXT_TOKENS, ...sampling(),
    prompt: conversation.text.slice(conversation.start)};
  return run(conversation, "v1/completions", body, events);
}

/* Tokens of what would be sent. */
export function countSent(conversation, start = conversation.start) {
  if (conversation.kind === "text") return count({prompt: conversation.text.slice(start)});
  return count({messages: sent(conversation, start), add_generation_prompt: true});
}

/* Leave out as little of the beginning as gives a reply a quarter of the context; false if what is
   left cannot be that short. */
export async function dropOldest(conversation, context) {
  const fits = async start => await countSent(conversation, start) <= ROOM * context;
  if (conversation.kind === "text") return dropBeginning(conversation, fits);
  const candidates = cuts(conversation);
  let low = 0, high = candidates.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (await fits(candidates[middle])) high = middle;
    else low = middle + 1;
  }
  if (low === candidates.length) return false;
  conversation.start = candidates[low];
  return true;
}

/* A text is cut at a space, a quarter at a time. */
async function dropBeginning(conversation, fits) {
  const {text} = conversation;
  for (let start = conversation.start; start < text.length;) {
    const space = text.slice(start + Math.ceil((text.length - start) / 4)).search(/\s/);
    if (space < 0) return false;
    start += Math.ceil((text.length - start) / 4) + space;
    if (!await fits(start)) continue;
    conversation.start = start;
    return true;
  }
  return false;
}
