/* What went wrong, in words that help, with what can be done about it. */

import {button, make} from "./dom.js";

/* kind of api.Problem: [title, text] */
const WORDS = {
  gone: ["The server is gone", "Nothing answers at this page's address. It may have been " +
    "stopped, or starts again: the page looks every few seconds. Nothing of the " +
    "conversation is lost."],
  key: ["The server needs a key", "It was started with one (--api-key, or BITNET_API_KEY): who " +
    "runs it knows the key."],
  full: ["The context is full", "The conversation no longer fits into what the model can see."],
  busy: ["The server is busy", ""],
  cut: ["The answer broke off", "The connection ended in the middle. What came is kept."],
  refused: ["The server refused this", ""],
};

/* An alert, which goes once one of its actions is taken: [[text, function]]. */
export function problemBox(problem, actions) {
  const [title, words] = WORDS[problem.kind] ?? ["Something went wrong", ""];
  const box = make("div", {className: `problem ${problem.kind ?? ""}`, role: "alert"},
    make("h2", {}, title));
  if (words) box.append(make("p", {className: "words"}, words));
  const {message, retryAfter} = problem;
  if (!words || problem.kind === "full") box.append(make("p", {className: "said"}, message));
  if (retryAfter) box.append(make("p", {className: "said"},
    `It asks for ${retryAfter} s of patience.`));
  const row = make("div", {className: "actions"});
  for (const [text, act] of actions) row.append(button(text, () => { box.remove(); act(); }));
  if (actions.length) box.append(row);
  return box;
}
