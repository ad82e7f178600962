/* Asks for the API key, once for all requests that need it, when one of them does. */

import {key} from "./api.js";
import {$} from "./dom.js";

let asking = null;

/* Whether a key was given; false where the user closed the dialog. problem: why the server refused
   the one there is. */
export function askKey(problem = null) {
  const isWrong = Boolean(problem && key.value);
  asking ??= new Promise(resolve => {
    const dialog = $("key-dialog");
    $("key-error").textContent = isWrong ? "The server did not take this key." : "";
    $("key").setAttribute("aria-invalid", String(isWrong));
    $("key").value = key.value;
    $("key-form").onsubmit = () => { key.value = $("key").value.trim(); };
    $("key-later").onclick = () => dialog.close("");
    dialog.onclose = () => {
      asking = null;
      resolve(dialog.returnValue === "use" && key.value !== "");
    };
    dialog.returnValue = "";
    dialog.showModal();
    $("key").select();
  });
  return asking;
}
