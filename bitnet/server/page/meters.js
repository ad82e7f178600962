/* How full the context is, and the server's memory: the pool by purpose, against its limit. */

import {call} from "./api.js";
import {$, bytes, make, speak} from "./dom.js";

const WARN = 0.8, FULL = 0.95; // of the context
const N_COLOURS = 6; // of purposes
const LEAST_SHOWN = 0.01; // of the limit: less is no bar
let level = 0;

/* used: tokens of the conversation so far, null where nobody knows. */
export function showContext(used, context) {
  const box = $("context");
  box.hidden = used === null || !context;
  if (box.hidden) return;
  const share = Math.min(1, used / context), now = share >= FULL ? 2 : share >= WARN ? 1 : 0;
  box.className = ["", "near", "full"][now];
  $("context-bar").value = share;
  $("context-text").textContent = `${Math.min(used, context)} / ${context}` +
    ["", " · nearly full", " · full"][now];
  box.title = `The conversation has ${Math.min(used, context)} of the ${context} tokens that the ` +
    `server keeps of one (${Math.round(100 * share)} %)`;
  if (now > level) speak(now === 1 ? "The context is nearly full." : "The context is full.");
  level = now;
}

/* Read /metrics and show the pool; nothing where it cannot be read. */
export async function showMemory() {
  let text;
  try { text = await (await call("metrics")).text(); } catch { return; }
  const pool = poolOf(text);
  if (!pool.limit) return;
  const used = pool.purposes.reduce((sum, [, n]) => sum + n, 0);
  $("memory").hidden = false;
  $("memory-text").textContent = `${bytes(used)} of ${bytes(pool.limit)}`;
  $("memory-bar").value = used / pool.limit;
  $("memory-bar").hidden = used < LEAST_SHOWN * pool.limit; // of a limit that is the machine's
  const share = percent(used / pool.limit);
  $("pool-summary").textContent = `${bytes(used)} in use of the pool's limit of ` +
    `${bytes(pool.limit)} (${share}); ${bytes(pool.reserved)} taken from the system.`;
  const largest = pool.purposes.filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  $("pool-bar").setAttribute("aria-label", `${share} of the limit in use`);
  $("pool-bar").replaceChildren(...largest.map(([, n], i) => bar(i, n / pool.limit)));
  $("pool-purposes").replaceChildren(...largest.map(([purpose, n], i) =>
    make("li", {}, make("span", {className: "what"}, purpose.replaceAll("_", " ")),
      make("span", {className: "amount"}, bytes(n)),
      make("span", {className: "track"}, bar(i, n / largest[0][1])))));
}

function bar(i, share) {
  const element = make("span", {className: `part colour-${i % N_COLOURS}`});
  element.style.width = `${100 * share}%`;
  return element;
}

function percent(share) { return `${(100 * share).toFixed(share < 0.1 ? 2 : 0)} %`; }

/* {limit, reserved, purposes: [[name, bytes]]} of Prometheus's text; models are added up. */
export function poolOf(text) {
  const sums = {limit: 0, reserved: 0}, purposes = new Map();
  for (const [, name, labels, value] of
    text.matchAll(/^bitnet_pool_(bytes|limit_bytes|reserved_bytes)(?:\{(.*)\})? (\S+)/gm)) {
    if (name !== "bytes") { sums[name.split("_")[0]] += Number(value); continue; }
    const purpose = /(?:^|,)purpose="([^"]*)"/.exec(labels ?? "")?.[1] ?? "other";
    purposes.set(purpose, (purposes.get(purpose) ?? 0) + Number(value));
  }
  return {...sums, purposes: [...purposes]};
}
