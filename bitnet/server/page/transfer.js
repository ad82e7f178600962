/* Conversations to a file and back. A file is checked whole before anything of it is kept. */

import {newId} from "./conversation.js";
import {make} from "./dom.js";

const FORMAT = "bitnet-conversations", VERSION = 1;
const MAX_BYTES = 64 << 20, MAX_CONVERSATIONS = 10000, MAX_MESSAGES = 4096, MAX_TITLE = 200;
const ROLES = ["system", "user", "assistant"];

export function save(conversations, name) {
  const text = JSON.stringify({format: FORMAT, version: VERSION, conversations}, null, 1);
  const address = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  make("a", {href: address, download: `${fileName(name)}.json`}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function fileName(text) {
  return text.replace(/[^\p{L}\p{N}_-]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "chat";
}

/* The conversations of a File, as new ones. Error that names the place, and what it should be. */
export async function load(file) {
  if (file.size > MAX_BYTES)
    throw new Error(`the file has ${file.size} bytes (at most ${MAX_BYTES})`);
  let data;
  try { data = JSON.parse(await file.text()); }
  catch (error) { throw new Error(`not JSON: ${error.message}`); }
  return checked(data);
}

export function checked(data) {
  const {format, version, conversations} = object(data, "file");
  if (format !== FORMAT) throw new Error(`format: expected "${FORMAT}"`);
  if (version !== VERSION) throw new Error(`version: expected ${VERSION}`);
  return list(conversations, "conversations", MAX_CONVERSATIONS).map(conversation);
}

function conversation(given, i) {
  const where = `conversations[${i}]`, one = object(given, where);
  const head = {id: newId(), kind: choice(one.kind, ["chat", "text"], `${where}.kind`),
    title: string(one.title ?? "", `${where}.title`).slice(0, MAX_TITLE),
    named: Boolean(one.named) && Boolean(one.title), created: time(one.created, `${where}.created`),
    updated: time(one.updated, `${where}.updated`)};
  if (head.kind === "text") {
    const text = string(one.text, `${where}.text`);
    const written = list(one.written ?? [], `${where}.written`, MAX_MESSAGES)
      .map((n, k) => whole(n, `${where}.written[${k}]`, text.length));
    return {...head, text, written};
  }
  const messages = list(one.messages, `${where}.messages`, MAX_MESSAGES)
    .map((given, k) => message(given, `${where}.messages[${k}]`, k));
  const start = whole(one.start ?? 0, `${where}.start`, messages.length);
  return {...head, messages, start, drops: Boolean(one.drops)};
}

/* Figures of a reply are left behind: they are of another machine. */
function message(given, where, index) {
  const one = object(given, where);
  const role = choice(one.role, ROLES, `${where}.role`);
  if (role === "system" && index) throw new Error(`${where}.role: "system" is the first one only`);
  const found = {role, content: string(one.content, `${where}.content`)};
  if (role === "assistant" && one.reasoning !== undefined)
    found.reasoning = string(one.reasoning, `${where}.reasoning`);
  return found;
}

function object(value, where) {
  if (value === null || typeof value !== "object" || Array.isArray(value))
    throw new Error(`${where}: expected an object`);
  return value;
}

function list(value, where, most) {
  if (!Array.isArray(value)) throw new Error(`${where}: expected a list`);
  if (value.length > most) throw new Error(`${where}: ${value.length} entries (at most ${most})`);
  return value;
}

function string(value, where) {
  if (typeof value !== "string") throw new Error(`${where}: expected a text`);
  return value;
}

function whole(value, where, most) {
  if (!Number.isInteger(value) || value < 0 || value > most)
    throw new Error(`${where}: expected a whole number from 0 to ${most}`);
  return value;
}

function time(value, where) { return whole(value ?? Date.now(), where, 8.64e15); }

function choice(value, known, where) {
  if (!known.includes(value)) throw new Error(`${where}: expected one of ${known.join(", ")}`);
  return value;
}
