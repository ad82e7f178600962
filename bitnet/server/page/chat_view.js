/* The messages of a conversation, and what the user does with them. */

import {cuts} from "./conversation.js";
import {$, button, make, speak} from "./dom.js";
import {MessageArticle} from "./message_article.js";
import {notice} from "./notice.js";
import {problemBox} from "./problems.js";
import {dropOldest, isRunning, writeReply} from "./runs.js";

export class ChatView {
  #app; #conversation = null; #articles = new Map();

  /* app: main.js's, see there. */
  constructor(app) { this.#app = app; }

  show(conversation) {
    this.#conversation = conversation;
    this.#articles.clear();
    $("messages").replaceChildren();
    this.#drawAll();
    this.#app.toEnd();
  }

  /* Articles of messages that are the same stay as they are. */
  #drawAll() {
    const {messages, start} = this.#conversation, elements = [];
    $("empty").hidden = messages.some(m => m.role !== "system");
    const gone = [...this.#articles.keys()].filter(old => !messages.includes(old));
    for (const old of gone) this.#articles.delete(old);
    messages.forEach((message, i) => {
      if (i === start && messages.slice(0, i).some(m => m.role !== "system"))
        elements.push(make("p", {className: "divider"},
          "What stands above is not sent any more: the context was full"));
      const {element} = this.#articleOf(message, i + 1);
      element.classList.toggle("unsent", message.role !== "system" && i < start);
      elements.push(element);
    });
    arrange($("messages"), elements);
    this.#drawActions();
  }

  #articleOf(message, number) {
    const conversation = this.#conversation;
    const found = this.#articles.get(message);
    if (found) return found;
    const made = new MessageArticle(message, number, {
      edit: (text, how) => this.#edited(message, text, how),
      regenerate: () => this.#regenerate(),
      resume: () => this.#write(conversation, true),
      answer: () => this.#write(conversation, false),
    });
    this.#articles.set(message, made);
    return made;
  }

  #drawActions() {
    const {messages, id} = this.#conversation, busy = isRunning(id);
    messages.forEach((message, i) => {
      const isLast = i === messages.length - 1;
      this.#articles.get(message).actions(isLast, busy);
      this.#articles.get(message).busy = busy && isLast && message.role === "assistant";
    });
  }

  send(text) {
    const conversation = this.#conversation;
    conversation.messages.push({role: "user", content: text});
    this.#write(conversation, false);
  }

  #edited(message, text, how) {
    const conversation = this.#conversation, {messages} = conversation;
    const index = messages.indexOf(message);
    this.#articles.delete(message);
    if (text !== null && !isRunning(conversation.id)) {
      const before = structuredClone({messages, start: conversation.start});
      const undo = () => this.#restore(conversation, before);
      messages[index] = {...messages[index], content: text};
      if (how !== "save") {
        const n = messages.length - index - 1;
        messages.length = index + 1;
        conversation.start = Math.min(conversation.start, index);
        const words = n === 1 ? "A later message is replaced" : `${n} later ones are replaced`;
        if (n) notice(words, undo);
        return this.#write(conversation, how === "continue");
      }
      if (messages[0].role === "system" && !messages[0].content.trim()) messages.shift();
      this.#app.save(conversation);
      notice("The message is changed", undo);
    }
    this.#drawAll();
    $("log").focus({preventScroll: true}); // the button is gone
  }

  #regenerate() {
    const conversation = this.#conversation;
    const before = structuredClone({messages: conversation.messages, start: conversation.start});
    conversation.messages.pop();
    notice("The last reply is replaced", () => this.#restore(conversation, before));
    $("log").focus({preventScroll: true});
    this.#write(conversation, false);
  }

  #restore(conversation, before) {
    this.#app.stop(conversation.id);
    Object.assign(conversation, before);
    this.#app.save(conversation);
    if (conversation === this.#conversation) this.#drawAll();
  }

  /* Let the model write. continues: more of its last message. */
  async #write(conversation, continues, isSecondTry = false) {
    const {messages} = conversation;
    const message = continues ? messages.at(-1) : {role: "assistant", content: ""};
    const isShown = () => conversation === this.#conversation;
    const beginning = message.content;
    const writing = writeReply(conversation, this.#app.model, continues, {
      onPiece: reply => {
        message.content = beginning + reply.text;
        if (reply.reasoning) message.reasoning = reply.reasoning;
      },
      onDraw: reply => isShown() && this.#draw(message, reply),
      onSave: () => this.#app.save(conversation, {quietly: true}),
    });
    if (!continues) messages.push(message);
    delete message.reason;
    if (isShown()) {
      this.#drawAll();
      this.#app.toEnd();
    }
    this.#app.changed(conversation);
    let problem = null, reply;
    try { reply = await writing; }
    catch (error) { problem = error; ({reply} = error); }
    if (messages !== conversation.messages) return this.#app.changed(conversation); // undone
    if (reply && !problem) {
      message.reason = reply.reason;
      if (reply.timings) message.stats = statsOf(reply);
    } else if (message.content) message.reason = "stopped";
    const isNothing = !message.content && !message.reasoning && reply?.reason !== "stop";
    if (isNothing && !continues) messages.pop();
    this.#app.save(conversation);
    if (isShown()) {
      this.#articles.get(message)?.draw(true);
      const follow = this.#app.atEnd();
      this.#drawAll();
      if (follow) this.#app.toEnd();
      speak(message.content || "The reply is empty.");
    }
    this.#app.changed(conversation, reply);
    const {context} = this.#app.model;
    if (!problem && reply.reason === "length" && reply.usage?.total_tokens >= context)
      problem = {kind: "full", message: "The reply is cut where the context ends.", cut: true};
    if (problem) await this.#fail(conversation, problem, continues, isSecondTry);
  }

  #draw(message, reply) {
    const follow = this.#app.atEnd();
    this.#articles.get(message)?.draw(false);
    if (follow) this.#app.toEnd();
    this.#app.showRates(reply);
  }

  async #fail(conversation, problem, continues, isSecondTry) {
    const again = () => this.#write(conversation, continues);
    if (!problem.kind) console.error(problem); // a mistake of ours
    if (problem.kind === "full") {
      if (conversation.drops && !isSecondTry && await this.#drop(conversation))
        return problem.cut ? undefined : this.#write(conversation, continues, true);
      return this.#fullBox(conversation, problem, continues);
    }
    const actions = [["Try again", again]];
    if (problem.kind === "cut" && conversation.messages.at(-1).role === "assistant")
      actions.splice(0, 1, ["Continue", () => this.#write(conversation, true)]);
    if (problem.kind === "key") actions[0][0] = "Enter the key";
    this.#box(conversation, problem, actions);
  }

  #fullBox(conversation, problem, continues) {
    const drop = always => async () => {
      conversation.drops = always;
      if (await this.#drop(conversation))
        return this.#write(conversation, problem.cut || continues);
      this.#box(conversation, {kind: "full", message: "The last message alone is too long: " +
        "edit it, and send it again."}, [["New chat", () => this.#app.begin("")]]);
    };
    const last = conversation.messages.findLast(m => m.role === "user")?.content ?? "";
    const actions = [["New chat with this message", () => this.#app.begin(last)]];
    if (conversation === this.#conversation) this.#app.showFull();
    if (!cuts(conversation).length) actions.unshift(["Edit the message", () =>
      this.#articles.get(conversation.messages.findLast(m => m.role === "user"))?.edit()]);
    else actions.push(["Drop the oldest messages", drop(false)],
      ["Always drop the oldest", drop(true)]);
    this.#box(conversation, problem, actions);
  }

  /* Whether the oldest messages could be left out. */
  async #drop(conversation) {
    try {
      const done = await dropOldest(conversation, this.#app.model.context);
      this.#app.save(conversation);
      if (conversation === this.#conversation) this.#drawAll();
      return done;
    } catch (problem) {
      this.#box(conversation, problem, []);
      return false;
    }
  }

  #box(conversation, problem, actions) {
    if (conversation !== this.#conversation) return;
    for (const old of $("messages").querySelectorAll(".problem")) old.remove();
    const box = problemBox(problem, actions);
    $("messages").append(box);
    $("empty").hidden = true;
    this.#app.toEnd();
  }

  /* A problem that is of no message. */
  fail(problem, actions) { this.#box(this.#conversation, problem, actions); }

  /* Instead of messages that cannot be sent: why, and what can be done. */
  refuse(text, actionText, act) {
    $("messages").append(make("article", {className: "problem"}, make("h2", {}, "Only to be read"),
      make("p", {className: "words"}, text),
      make("div", {className: "actions"}, button(actionText, act))));
  }
}

function statsOf({usage, timings}) {
  return {tokens: usage.completion_tokens, rate: timings.predicted_per_second,
    first: timings.first_token_ms, prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0};
}

/* Let a parent have these children, without taking out those that it keeps. */
function arrange(parent, elements) {
  for (const old of [...parent.children]) if (!elements.includes(old)) old.remove();
  elements.forEach((element, i) => {
    if (parent.children[i] !== element) parent.insertBefore(element, parent.children[i] ?? null);
  });
}
