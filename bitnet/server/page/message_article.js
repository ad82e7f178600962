/* One message on the page: its text, what was thought before it, and what can be done with it. */

import {button, copy, grow, make, perSecond} from "./dom.js";
import {MarkdownView} from "./markdown.js";

const NAMES = {user: "You", assistant: "Model", system: "System prompt"};

export class MessageArticle {
  #message; #number; #act; #body; #row; #text = null; #thought = null;

  /* number: of the message, for screen readers. act: {edit, regenerate, resume, answer}. */
  constructor(message, number, act) {
    this.#message = message;
    this.#number = number;
    this.#act = act;
    this.#body = make("div", {className: "body"});
    this.#row = make("div", {className: "actions"});
    this.element = make("article", {className: message.role},
      make("h2", {}, NAMES[message.role]), this.#body, this.#row);
    this.draw(true);
  }

  /* Show what the message is by now. */
  draw(isWhole) {
    const {role, content, reasoning} = this.#message;
    if (role === "system") return this.#drawSystem();
    if (role === "user")
      return this.#body.replaceChildren(make("div", {className: "plain"}, content));
    if (reasoning) this.#drawThought(reasoning, isWhole);
    if (!this.#text) {
      const element = this.#body.appendChild(make("div", {className: "prose"}));
      this.#text = new MarkdownView(element);
    }
    this.#text.update(content, isWhole);
  }

  #drawSystem() {
    this.#body.replaceChildren(make("details", {},
      make("summary", {}, this.#message.content.slice(0, 80).replace(/\s+/g, " ")),
      make("div", {className: "plain"}, this.#message.content)));
  }

  #drawThought(text, isWhole) {
    if (!this.#thought) {
      const summary = make("summary"), body = make("div", {className: "prose"});
      this.#body.prepend(make("details", {className: "reasoning"}, summary, body));
      this.#thought = {summary, view: new MarkdownView(body)};
    }
    const busy = !isWhole && !this.#message.content;
    const n = text.split(/\s+/).length;
    this.#thought.summary.textContent = busy ? `Thinking… ${n} words` : `Reasoning, ${n} words`;
    this.#thought.view.update(text, isWhole || !busy);
  }

  set busy(is) {
    this.element.classList.toggle("busy", is);
    this.element.ariaBusy = is ? "true" : null;
  }

  /* The buttons. isLast: of the conversation. isBusy: whether a reply is being written. */
  actions(isLast, isBusy) {
    const {role, content, reason} = this.#message, act = this.#act;
    const one = (text, f, always = false) => {
      const made = button(text, f, {label: `${text} message ${this.#number}`});
      made.disabled = isBusy && !always;
      this.#row.append(made);
      return made;
    };
    this.#row.replaceChildren();
    if (role !== "system") {
      const made = one("Copy", () => copy(content, made), true);
    }
    one("Edit", () => this.edit());
    if (isLast && role === "assistant") {
      one("Regenerate", act.regenerate);
      if (reason === "length" || reason === "stopped") one("Continue", act.resume);
    }
    if (isLast && role === "user" && !isBusy) one("Get an answer", act.answer);
    this.#row.append(...figures(this.#message));
  }

  /* The text in a field; what comes of it is act.edit's matter. */
  edit() {
    const {role, content} = this.#message;
    const box = make("textarea", {value: content, className: "edit", rows: 1,
      "aria-label": `Text of message ${this.#number}`});
    const done = how => { this.#act.edit(box.value, how); };
    const cancel = () => this.#act.edit(null);
    const row = make("div", {className: "actions"});
    if (role === "user") row.append(button("Send", () => done("send"), {className: "main"}));
    else row.append(button("Save", () => done("save"), {className: "main"}));
    if (role === "assistant") row.append(button("Save and continue", () => done("continue")));
    row.append(button("Cancel", cancel));
    box.oninput = () => grow(box);
    box.onkeydown = event => {
      if (event.key === "Escape") { event.stopPropagation(); cancel(); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) row.firstChild.click();
    };
    this.#body.replaceChildren(box);
    this.#row.replaceWith(row);
    this.#row = row;
    this.element.classList.add("editing");
    grow(box);
    box.focus();
  }
}

function figures({stats, reason}) {
  const words = [];
  if (stats) words.push(`${stats.tokens} tokens`, `${perSecond(stats.rate)} a second`,
    `first after ${Math.round(stats.first)} ms`);
  if (stats?.cached) words.push(`${stats.cached} of ${stats.prompt} prompt tokens cached`);
  if (reason === "length") words.push("cut: no tokens left");
  if (reason === "stopped") words.push("stopped");
  return words.length ? [make("span", {className: "figures"}, words.join(", "))] : [];
}
