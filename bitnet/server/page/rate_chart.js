/* Tokens a second over the time of a reply, as a line. */

import {$, perSecond} from "./dom.js";

const WIDTH = 96, HEIGHT = 20, MAX_POINTS = 48; // units of the drawing

const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

/* rates: tokens/s of equal pieces of time. */
export function showRates(rates, last) {
  const box = $("rate");
  box.hidden = !rates.length && !last;
  if (box.hidden) return;
  $("rate-text").textContent = `${perSecond(last ?? rates.at(-1))} tokens/s`;
  const points = thinned(rates), top = Math.max(...points) * 1.1;
  const line = points.map((rate, i) => `${(i * WIDTH / (points.length - 1 || 1)).toFixed(1)},` +
    (HEIGHT - HEIGHT * rate / top).toFixed(1)).join(" ");
  $("chart").replaceChildren();
  if (points.length > 1) $("chart").append(
    svg("polygon", {points: `0,${HEIGHT} ${line} ${WIDTH},${HEIGHT}`}),
    svg("polyline", {points: line}));
  $("chart").classList.toggle("empty", points.length < 2);
  if (!rates.length) return;
  const least = perSecond(Math.min(...rates)), most = perSecond(Math.max(...rates));
  box.title = `${least} to ${most} tokens/s over the reply`;
  $("chart").setAttribute("aria-label", `Tokens a second: ${least} to ${most} over the reply`);
}

/* At most MAX_POINTS means of neighbours. */
function thinned(rates) {
  const n = Math.ceil(rates.length / MAX_POINTS), found = [];
  for (let i = 0; i < rates.length; i += n) {
    const some = rates.slice(i, i + n);
    found.push(some.reduce((a, b) => a + b) / some.length);
  }
  return found;
}
