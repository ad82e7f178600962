/* The settings dialog. Its fields are the API's, with the bounds that the server tells
   (page/fields.json); a value out of them is neither stored nor sent. */

import {$, make} from "./dom.js";

/* name: [label, what none means, a hint] */
const NUMBERS = {
  temperature: ["Temperature", "the model's", "0 takes the likeliest token"],
  top_p: ["Top p", "the model's", "from the likeliest that reach this probability"],
  top_k: ["Top k", "the model's", "from so many likeliest; 0 is all"],
  min_p: ["Min p", "0", "at least so likely, relative to the likeliest"],
  repetition_penalty: ["Repetition penalty", "1", "above 1: what occurred is less likely"],
  presence_penalty: ["Presence penalty", "0", "off what was written, once"],
  frequency_penalty: ["Frequency penalty", "0", "off what was written, each time"],
  seed: ["Seed", "random", "the same one gives the same text"],
  max_tokens: ["Most tokens", "no limit", "of one reply"],
  min_tokens: ["Fewest tokens", "0", "before it may end"],
};
const TEXTS = {
  stop: ["Stop at", "one text a line", "a reply ends before any of them"],
  logit_bias: ["Token bias", "token id: number, one a line", "-100 forbids a token"],
};
const SAMPLERS = [...Object.keys(NUMBERS), ...Object.keys(TEXTS)];
let bounds = {};

/* What is stored, checked or not; "" for nothing. */
export function stored(name) { return localStorage.getItem(`bitnet.${name}`) ?? ""; }

/* The API's fields that are set. */
export function sampling() {
  const fields = {};
  for (const name of SAMPLERS) {
    const [value, error] = parsed(name, stored(name));
    if (value !== undefined && !error) fields[name] = value;
  }
  return fields;
}

export function applyTheme() { document.documentElement.dataset.theme = stored("theme"); }

export async function begin() {
  bounds = await (await fetch("page/fields.json")).json();
  for (const [name, [label, none, hint]] of Object.entries(NUMBERS))
    field($("numbers"), name, label, hint, make("input", {type: "text", inputMode: "decimal",
      placeholder: none, autocomplete: "off"}));
  for (const [name, [label, none, hint]] of Object.entries(TEXTS))
    field($("texts"), name, label, hint, make("textarea", {rows: 2, placeholder: none}));
  for (const name of ["system", "theme", "reasoning"]) {
    $(name).value = stored(name);
    $(name).addEventListener("input", () => store(name, $(name).value));
  }
  $("settings").addEventListener("cancel", drop);
  $("settings-form").onsubmit = event => {
    const wrong = $("settings").querySelector("[aria-invalid=true]");
    if (!wrong) return;
    event.preventDefault();
    wrong.focus();
  };
  $("reset").onclick = reset;
}

/* thinks: whether the model can reason. */
export function show(thinks) {
  $("reasoning-label").hidden = !thinks;
  for (const name of SAMPLERS) $(name).value = stored(name);
  drop();
  $("settings").showModal();
}

/* Fields that are wrong show again what is stored. */
function drop() {
  for (const name of SAMPLERS) {
    if ($(name).getAttribute("aria-invalid") === "true") $(name).value = stored(name);
    complain(name, "");
  }
}

function reset() {
  for (const name of SAMPLERS) {
    $(name).value = "";
    complain(name, "");
    store(name, "");
  }
}

function field(parent, name, label, hint, control) {
  control.id = name;
  control.setAttribute("aria-describedby", `${name}-hint ${name}-error`);
  control.addEventListener("input", () => {
    const text = control.value.trim();
    const [, error] = parsed(name, text);
    complain(name, error);
    if (!error) store(name, text);
  });
  parent.append(make("div", {className: "field"},
    make("label", {htmlFor: name}, label), control,
    make("p", {id: `${name}-hint`, className: "hint"}, hint),
    make("p", {id: `${name}-error`, className: "wrong", role: "alert"})));
}

function complain(name, error) {
  $(name).setAttribute("aria-invalid", String(Boolean(error)));
  $(`${name}-error`).textContent = error;
}

function store(name, text) {
  localStorage.setItem(`bitnet.${name}`, text);
  if (name === "theme") applyTheme();
}

/* [value as the API takes it, what is wrong with it]; undefined where there is none. */
function parsed(name, text) {
  const bound = bounds[name];
  if (text === "" || !bound) return [undefined, ""];
  if (name === "stop") return stops(text, bound);
  if (name === "logit_bias") return biases(text, bound);
  const value = Number(text.replace(",", "."));
  const {type, minimum, exclusiveMinimum, maximum = Infinity} = bound;
  const lower = Math.max(minimum ?? exclusiveMinimum ?? -Infinity, -Number.MAX_SAFE_INTEGER);
  const upper = Math.min(maximum, Number.MAX_SAFE_INTEGER);
  const open = exclusiveMinimum !== undefined;
  if (Number.isNaN(value) || value > upper || value < lower || (open && value === lower) ||
      (type === "integer" && !Number.isInteger(value)))
    return [value, `${type === "integer" ? "a whole number" : "a number"}, ` +
      `${open ? "above" : "from"} ${lower} to ${upper}`];
  return [value, ""];
}

function stops(text, {maxItems, items}) {
  const lines = text.split("\n").filter(line => line);
  const long = lines.find(line => line.length > items.maxLength);
  if (lines.length > maxItems) return [lines, `at most ${maxItems} lines`];
  return [lines, long ? `at most ${items.maxLength} characters a line` : ""];
}

function biases(text, {maxProperties, additionalProperties: {minimum, maximum}}) {
  const found = {}, lines = text.split("\n").filter(line => line.trim());
  for (const line of lines) {
    const match = /^\s*(\d{1,9})\s*[:=]\s*(-?\d*\.?\d+)\s*$/.exec(line);
    if (!match || Number(match[2]) < minimum || Number(match[2]) > maximum)
      return [found, `"${line.trim().slice(0, 20)}": id: number from ${minimum} to ${maximum}`];
    found[match[1]] = Number(match[2]);
  }
  return [found, lines.length > maxProperties ? `at most ${maxProperties} lines` : ""];
}
