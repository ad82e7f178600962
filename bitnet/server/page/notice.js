/* A line at the bottom about what just happened, with a way back. It stays until it is closed or
   another one comes: nobody has to be quick. */

import {$, button, make} from "./dom.js";

/* undo: what takes it back, if anything can. */
export function notice(text, undo = null) {
  const box = $("notice");
  box.replaceChildren(make("span", {}, text));
  if (undo) box.append(button("Undo", () => { close(); undo(); }));
  box.append(button("×", close, {label: "Close this notice", className: "quiet"}));
  box.hidden = false;
}

function close() {
  const had = $("notice").contains(document.activeElement);
  $("notice").hidden = true;
  $("notice").replaceChildren();
  if (had) $("log").focus({preventScroll: true}); // the button is gone
}

export { close as closeNotice };
