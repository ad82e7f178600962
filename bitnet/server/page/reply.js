/* One reply as it comes: its text, what was thought before it, and how fast. */

import {stream} from "./api.js";

const SAMPLE_MS = 100; // a point of the chart

/* Ask, and call onChange(reply) with each piece. The reply has text, reasoning, reason (why it
   ended: "stop", "length", "stopped" by the user), rates ([tokens/s], of SAMPLE_MS each), usage and
   timings, null unless it came to its end. Problem, with the reply as its field, if it did not. */
export async function ask(path, body, signal, onChange) {
  const reply = {text: "", reasoning: "", reason: "", rates: [], usage: null, timings: null};
  const rate = new Rate(reply.rates);
  try {
    for await (const chunk of stream(path, body, signal)) {
      if (chunk.usage) ({usage: reply.usage, timings: reply.timings} = chunk);
      const choice = chunk.choices[0];
      reply.reason = choice?.finish_reason ?? reply.reason;
      const text = choice?.text ?? choice?.delta?.content ?? "";
      const thought = choice?.delta?.reasoning_content ?? "";
      if (!text && !thought) continue;
      reply.text += text;
      reply.reasoning += thought;
      rate.add();
      onChange(reply);
    }
  } catch (error) {
    if (error.name !== "AbortError") throw Object.assign(error, {reply});
    reply.reason = "stopped";
  }
  rate.end(reply.usage?.completion_tokens);
  return reply;
}

/* Counts pieces, which are tokens but for those that have no text of their own. */
class Rate {
  #rates; #n = 0; #all = 0; #since = 0;

  constructor(rates) { this.#rates = rates; }

  add() {
    const now = performance.now();
    this.#since ||= now;
    this.#n += 1;
    this.#all += 1;
    if (now - this.#since < SAMPLE_MS) return;
    this.#rates.push(1000 * this.#n / (now - this.#since));
    this.#n = 0;
    this.#since = now;
  }

  /* With the number of tokens that the server counted. */
  end(nTokens) {
    if (!nTokens || !this.#all) return;
    for (const i of this.#rates.keys()) this.#rates[i] *= nTokens / this.#all;
  }
}
