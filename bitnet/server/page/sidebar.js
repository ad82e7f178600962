/* The list of conversations: open, rename, delete, export, import. */

import {isEmpty, titleOf} from "./conversation.js";
import {$, button, make} from "./dom.js";
import {notice} from "./notice.js";
import {isRunning} from "./runs.js";
import * as store from "./store.js";
import {load, save} from "./transfer.js";

const MAX_TITLE = 200; // characters

export class Sidebar {
  #app; #menu = $("menu"); #chosen = null;

  /* app: main.js's, see there. */
  constructor(app) {
    this.#app = app;
    $("rename").onclick = () => this.#rename(this.#closeMenu());
    $("export").onclick = () => { const one = this.#closeMenu(); save([one], titleOf(one)); };
    $("delete").onclick = () => this.#remove(this.#closeMenu());
    $("export-all").onclick = async () => save(await store.all(), "bitnet-conversations");
    $("import").onclick = () => $("file").click();
    $("file").onchange = () => this.#import($("file").files[0]);
    $("open-list").onclick = () => this.toggle(true);
    $("close-list").onclick = () => this.toggle(false);
    $("shade").onclick = () => this.toggle(false);
    $("sidebar").addEventListener("keydown", event => {
      if (event.key === "Escape" && $("sidebar").classList.contains("open")) this.toggle(false);
    });
  }

  /* Show or hide it, where it lies over the rest. */
  toggle(isOpen) {
    const was = $("sidebar").classList.contains("open");
    $("sidebar").classList.toggle("open", isOpen);
    $("shade").hidden = !isOpen;
    $("page").inert = isOpen;
    $("open-list").setAttribute("aria-expanded", String(isOpen));
    if (isOpen) $("close-list").focus();
    else if (was) $("open-list").focus();
  }

  async draw() {
    const all = await store.all(), current = this.#app.conversation;
    const focused = document.activeElement?.closest("#list li")?.dataset.id;
    $("list").replaceChildren(...all.map(one => this.#item(one, one.id === current?.id)));
    if (focused) $("list").querySelector(`[data-id="${focused}"] button`)?.focus();
    $("no-list").hidden = all.length > 0;
    $("export-all").disabled = !all.length;
    $("title").textContent = current && !isEmpty(current) ? titleOf(current) : this.#app.newTitle;
    document.title = `${$("title").textContent} · ${this.#app.model?.name ?? "bitnet"}`;
  }

  #item(one, isCurrent) {
    const title = titleOf(one);
    const open = button(title, () => this.#app.open(one.id), {className: "open"});
    if (isCurrent) open.setAttribute("aria-current", "true");
    if (isRunning(one.id)) open.append(make("span", {className: "writing"}, " (writing)"));
    const more = button("⋯", () => this.#openMenu(one, more),
      {label: `Rename, export or delete “${title}”`, className: "more quiet"});
    more.setAttribute("aria-haspopup", "dialog");
    const item = make("li", {}, open, more);
    item.dataset.id = one.id;
    return item;
  }

  #openMenu(one, more) {
    this.#chosen = {one, more};
    $("menu-title").textContent = titleOf(one);
    this.#menu.showPopover();
    const {bottom, left} = more.getBoundingClientRect(), {offsetHeight, offsetWidth} = this.#menu;
    this.#menu.style.top = `${Math.max(8, Math.min(bottom, innerHeight - offsetHeight - 8))}px`;
    this.#menu.style.left = `${Math.max(8, Math.min(left, innerWidth - offsetWidth - 8))}px`;
    $("rename").focus();
  }

  #closeMenu() {
    this.#menu.hidePopover();
    this.#chosen.more.focus();
    return this.#chosen.one;
  }

  #rename(one) {
    const item = $("list").querySelector(`[data-id="${one.id}"]`);
    const box = make("input", {value: titleOf(one), maxLength: MAX_TITLE,
      "aria-label": "Name of the conversation"});
    let isDone = false;
    const done = async keep => {
      if (isDone) return;
      isDone = true;
      if (keep) await this.#app.change(one.id, found => {
        found.title = box.value.trim();
        found.named = found.title !== "";
      });
      await this.draw();
      $("list").querySelector(`[data-id="${one.id}"] button`)?.focus();
    };
    box.onkeydown = event => {
      if (event.key === "Enter") done(true);
      if (event.key === "Escape") { event.stopPropagation(); done(false); }
    };
    box.onblur = () => done(true);
    item.replaceChildren(box);
    box.select();
  }

  async #remove(one) {
    const found = await store.get(one.id);
    this.#app.stop(one.id);
    await store.remove(one.id);
    if (this.#app.conversation?.id === one.id) this.#app.begin("");
    await this.draw();
    $("new").focus();
    notice(`Deleted “${titleOf(one)}”`, async () => {
      await store.put(found);
      await this.draw();
    });
  }

  async #import(file) {
    $("file").value = "";
    if (!file) return;
    try {
      const found = await load(file);
      await store.put(...found);
      await this.draw();
      notice(`${found.length} ${found.length === 1 ? "conversation" : "conversations"} imported`);
    } catch (error) { notice(`Not imported: ${file.name}: ${error.message}`); }
  }
}
