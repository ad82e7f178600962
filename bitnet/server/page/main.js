/* The page: what is shown, and what its parts ask of each other.

   app: {model {name, context, template} or null, conversation that is shown, newTitle; open(id),
   begin(text) a new one with this in the field, save(conversation), change(id, f),
   changed(conversation, reply) when a reply begins or ends, stop(id), atEnd(), toEnd(),
   showRates(reply), showFull() that the context is}. */

import * as api from "./api.js";
import {ChatView} from "./chat_view.js";
import {isEmpty, newChat, newText} from "./conversation.js";
import {$, grow, make} from "./dom.js";
import {askKey} from "./key_dialog.js";
import {showContext, showMemory} from "./meters.js";
import {closeNotice, notice} from "./notice.js";
import {showRates} from "./rate_chart.js";
import * as runs from "./runs.js";
import * as settings from "./settings.js";
import {Sidebar} from "./sidebar.js";
import * as store from "./store.js";
import {TextView} from "./text_view.js";

const POLL_MS = 4000; // while the server is gone
const NEAR_END = 60; // pixels
const MEMORY_MS = 5000; // while the memory's panel is open
const THINKS = /enable_thinking|<think>/; // of a template whose model can reason

const app = {
  model: null,
  conversation: null,
  get newTitle() { return app.isChat ? "New chat" : "New text"; },
  get isChat() { return app.model === null || app.model.template !== null; },

  begin(text) {
    const one = app.isChat ? newChat(settings.stored("system").trim()) : newText();
    show(one);
    if (one.kind === "text") $("text").value = text;
    else fillPrompt(text);
    ($(one.kind === "text" ? "text" : "prompt")).focus();
  },

  async open(id) {
    const one = runs.runningOf(id) ?? await store.get(id);
    if (one) show(one);
    sidebar.toggle(false);
    ($("composer").hidden ? $(one?.kind === "text" ? "text" : "log") : $("prompt")).focus();
  },

  async save(one, {quietly = false} = {}) {
    if (isEmpty(one)) return;
    one.updated = Date.now();
    await store.put(one).catch(error => notice(`Not kept: ${error.message}`));
    if (!quietly) sidebar.draw();
  },

  async change(id, f) {
    const shown = app.conversation?.id === id ? app.conversation : null;
    const one = runs.runningOf(id) ?? shown ?? await store.get(id);
    f(one);
    await store.put(one);
  },

  changed(one, reply) {
    if (one === app.conversation) {
      drawButtons();
      if (reply) {
        showRates(reply.rates, reply.timings?.predicted_per_second);
        if (reply.usage) showContext(reply.usage.total_tokens, app.model.context);
      }
    }
    sidebar.draw();
    showMemory();
  },

  stop: runs.stop,
  showRates: reply => showRates(reply.rates),
  showFull: () => showContext(app.model.context, app.model.context),
  atEnd: () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < NEAR_END,
  toEnd: () => { $("log").scrollTop = $("log").scrollHeight; },
};

const chat = new ChatView(app), text = new TextView(app), sidebar = new Sidebar(app);
const view = () => app.conversation.kind === "text" ? text : chat;

function show(one) {
  app.conversation = one;
  const isText = one.kind === "text", canWrite = isText || app.isChat;
  $("chat").hidden = isText;
  $("text-view").hidden = !isText;
  $("composer").hidden = !canWrite || isText;
  $("text-actions").hidden = !isText;
  closeNotice();
  showRates([]);
  showContext(null);
  view().show(one);
  if (!canWrite) chat.refuse("This model has no chat template: it goes on with a text, and takes " +
    "no messages.", "Go on as a text", () => { app.begin(""); asText(one); });
  drawButtons();
  sidebar.draw();
  countTokens();
}

function asText(one) {
  $("text").value = one.messages.map(m => `${m.role}: ${m.content}`).join("\n\n");
  $("text").dispatchEvent(new Event("input"));
}

/* What a conversation takes of the context that was opened, not written here. */
async function countTokens() {
  const one = app.conversation;
  if (isEmpty(one) || runs.isRunning(one.id) || !app.model) return;
  const n = await runs.countSent(one).catch(() => null);
  if (one === app.conversation && !runs.isRunning(one.id)) showContext(n, app.model.context);
}

function drawButtons() {
  const busy = runs.isRunning(app.conversation.id);
  $("send").textContent = busy ? "Stop" : "Send";
  $("resume").textContent = busy ? "Stop" : "Continue";
}

function fillPrompt(text) {
  $("prompt").value = text;
  grow($("prompt"));
}

function send() {
  const text = $("prompt").value.trim();
  if (!text || runs.isRunning(app.conversation.id)) return;
  fillPrompt("");
  closeNotice();
  if (app.model) chat.send(text);
  else begin().then(found => found ? chat.send(text) : fillPrompt(text));
}

/* Learn of the model; whether that worked. */
async function begin() {
  try { app.model = await api.about(); }
  catch (problem) {
    view().fail(problem, [[problem.kind === "key" ? "Enter the key" : "Try again", begin]]);
    return false;
  }
  $("name").textContent = app.model.name;
  for (const old of document.querySelectorAll(".problem")) old.remove();
  $("new-text").textContent = app.newTitle;
  if (isEmpty(app.conversation)) {
    const typed = $("prompt").value;
    show(app.isChat ? newChat(settings.stored("system").trim()) : newText());
    if (typed && app.isChat) fillPrompt(typed);
    ($(app.isChat ? "prompt" : "text")).focus();
  } else show(app.conversation);
  showMemory();
  return true;
}

let poll = 0;

function gone(isGone) {
  if ($("gone").hidden !== isGone) return;
  $("gone").hidden = !isGone;
  clearInterval(poll);
  if (isGone) poll = setInterval(async () => {
    if (document.hidden) return;
    const response = await fetch("health").catch(() => null);
    if (!response?.ok) return;
    gone(false);
    for (const box of document.querySelectorAll(".problem.gone")) {
      box.querySelector("h2").textContent = "The server is back";
      box.querySelector(".words")?.remove();
    }
    if (!app.model) begin();
  }, POLL_MS);
}

let memoryPoll = 0;

function wire() {
  $("form").onsubmit = event => {
    event.preventDefault();
    if (runs.isRunning(app.conversation.id)) runs.stop(app.conversation.id);
    else send();
  };
  $("prompt").oninput = () => grow($("prompt"));
  $("prompt").onkeydown = event => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  $("resume").onclick = () => {
    if (runs.isRunning(app.conversation.id)) runs.stop(app.conversation.id);
    else text.resume();
  };
  $("new").onclick = () => { sidebar.toggle(false); app.begin(""); };
  $("open-settings").onclick = () => settings.show(THINKS.test(app.model?.template ?? ""));
  $("change-key").onclick = async () => {
    $("settings").close();
    if (await askKey()) begin();
  };
  $("settings").onclose = () => {
    const system = settings.stored("system").trim();
    if (app.conversation.kind === "chat" && isEmpty(app.conversation)) {
      app.conversation.messages = system ? [{role: "system", content: system}] : [];
      chat.show(app.conversation);
    }
  };
  $("log").onscroll = () => { $("to-end").hidden = app.atEnd(); };
  new ResizeObserver(() => { $("to-end").hidden = app.atEnd(); }).observe($("messages"));
  $("to-end").onclick = () => { app.toEnd(); $("log").focus({preventScroll: true}); };
  $("pool").addEventListener("toggle", event => {
    clearInterval(memoryPoll);
    if (event.newState === "open") memoryPoll = setInterval(showMemory, MEMORY_MS);
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape" && !document.querySelector("dialog[open], :popover-open"))
      runs.stop(app.conversation.id);
    if (event.key.toLowerCase() === "o" && event.ctrlKey && event.shiftKey) {
      event.preventDefault();
      app.begin("");
    }
  });
  window.addEventListener("beforeunload", event => {
    if (runs.anyRunning()) event.preventDefault();
  });
}

settings.applyTheme();
api.watch({gone, key: askKey});
wire();
const [isKept] = await Promise.all([store.open(), settings.begin()]);
store.onChange(() => sidebar.draw());
show(newChat(""));
if (!isKept) $("empty").append(make("p", {}, "This browser keeps nothing for this page: " +
  "conversations are gone when it is closed."));
await begin();
