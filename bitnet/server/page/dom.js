/* Elements. Text is always text: nothing in this page writes HTML (Trusted Types forbid it). */

export const $ = id => document.getElementById(id);

/* An element. properties: its own, or attributes where the name has a "-" or is "role". */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/* A button with a text. label: what a screen reader says, if the text alone does not tell. */
export function button(text, onclick, {label, className = ""} = {}) {
  const one = make("button", {type: "button", className, onclick}, text);
  if (label) one.setAttribute("aria-label", label);
  return one;
}

/* Say something to those who do not see it. */
export function speak(text) { $("spoken").textContent = text; }

/* Let a button copy a text, and say whether it did. There is no clipboard on plain http, but for
   localhost. */
export async function copy(text, one) {
  const before = one.textContent;
  let done = true;
  try { await navigator.clipboard.writeText(text); }
  catch { done = copyBySelection(text); one.focus(); }
  one.textContent = done ? "Copied" : "No access";
  speak(one.textContent);
  setTimeout(() => one.textContent = before, 1500);
}

function copyBySelection(text) {
  const box = document.body.appendChild(make("textarea", {className: "hidden", value: text}));
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  return done;
}

/* Draw at most once a frame, and for at most a fifth of the time, so that what comes is read. */
export function painter(draw) {
  let handle = 0, next = 0;
  const run = () => {
    handle = 0;
    const start = performance.now();
    if (start < next) return request();
    draw();
    next = start + 5 * (performance.now() - start);
  };
  const request = () => { handle ||= requestAnimationFrame(run); };
  const flush = () => { cancelAnimationFrame(handle); handle = 0; draw(); };
  return {request, flush};
}

/* As high as its text, within what the style allows. */
export function grow(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

export function bytes(n) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (n >= size) return `${(n / size).toFixed(1)} ${unit}`;
  return `${n} B`;
}

export function perSecond(n) { return n.toFixed(n < 100 ? 1 : 0); }
