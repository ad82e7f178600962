/* A text that the model goes on with: for models without a chat template. */

import {$, speak} from "./dom.js";
import {problemBox} from "./problems.js";
import {dropOldest, isRunning, writeText} from "./runs.js";

export class TextView {
  #app; #conversation = null;

  /* app: main.js's, see there. */
  constructor(app) {
    this.#app = app;
    $("text").oninput = () => this.#typed();
    $("text").onkeydown = event => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.resume();
      }
    };
    $("take-back").onclick = () => this.#takeBack();
    $("again").onclick = () => { this.#takeBack(); this.resume(); };
  }

  show(conversation) {
    this.#conversation = conversation;
    $("text-problem").replaceChildren();
    this.#draw();
    $("text").scrollTop = $("text").scrollHeight;
  }

  #draw() {
    const {text, written, id} = this.#conversation, busy = isRunning(id);
    $("text").value = text;
    $("text").readOnly = busy;
    $("text").ariaBusy = busy ? "true" : null;
    $("take-back").disabled = $("again").disabled = busy || !written.length;
  }

  #typed() {
    const conversation = this.#conversation;
    conversation.text = $("text").value;
    conversation.written = conversation.written.filter(n => n <= conversation.text.length);
    conversation.start = Math.min(conversation.start, conversation.text.length);
    $("take-back").disabled = $("again").disabled = !conversation.written.length;
    this.#app.save(conversation);
  }

  #takeBack() {
    const conversation = this.#conversation;
    if (!conversation.written.length) return;
    conversation.text = conversation.text.slice(0, conversation.written.pop());
    this.#app.save(conversation);
    this.#draw();
    $("text").focus();
  }

  async resume(isSecondTry = false) {
    const conversation = this.#conversation;
    if (isRunning(conversation.id) || !conversation.text) return;
    const begin = conversation.text.length, isShown = () => conversation === this.#conversation;
    $("text-problem").replaceChildren();
    const writing = writeText(conversation, this.#app.model, {
      onPiece: reply => {
        if (!conversation.written.includes(begin)) conversation.written.push(begin);
        conversation.text = conversation.text.slice(0, begin) + reply.text;
      },
      onDraw: reply => isShown() && this.#drawMore(begin, reply),
      onSave: () => this.#app.save(conversation, {quietly: true}),
    });
    this.#draw();
    this.#app.changed(conversation);
    let problem = null, reply;
    try { reply = await writing; }
    catch (error) { problem = error; ({reply} = error); }
    this.#app.save(conversation);
    if (isShown()) {
      this.#draw();
      $("text").scrollTop = $("text").scrollHeight;
      speak(conversation.text.slice(begin));
    }
    this.#app.changed(conversation, reply);
    if (problem && isShown()) await this.#fail(conversation, problem, isSecondTry);
  }

  #drawMore(begin, reply) {
    const box = $("text"), follow = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    box.value = this.#conversation.text;
    if (follow) box.scrollTop = box.scrollHeight;
    this.#app.showRates(reply);
  }

  async #fail(conversation, problem, isSecondTry) {
    const drop = always => async () => {
      conversation.drops = always;
      const done = dropOldest(conversation, this.#app.model.context);
      if (await done.catch(() => false)) this.resume(true);
      else this.fail({kind: "full", message: "It cannot be cut at a space."}, []);
    };
    if (problem.kind === "full" && conversation.drops && !isSecondTry) return drop(true)();
    if (problem.kind === "full") this.#app.showFull();
    const actions = problem.kind === "full"
      ? [["New text", () => this.#app.begin("")], ["Drop the beginning", drop(false)],
        ["Always drop the beginning", drop(true)]]
      : [["Try again", () => this.resume()]];
    this.fail(problem, actions);
  }

  fail(problem, actions) {
    $("text-problem").replaceChildren(problemBox(problem, actions));
  }
}
