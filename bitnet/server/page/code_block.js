/* A block of code: its language, a button that copies it, its colours. */

import {button, copy, make} from "./dom.js";

const MAX_COLOURED = 30000; // characters; more of them would take too long
let highlighter = null; // loaded with the first block that has a language

export class CodeBlock {
  #code = make("code"); #text = ""; #info; #element;

  /* token: markdown-it's. isClosed: no more comes. */
  constructor(token, isClosed) {
    this.#info = token.info ?? "";
    const name = /^[\w+#.-]{1,30}/.exec(this.#info.trim())?.[0] ?? "";
    const one = button("Copy", () => copy(this.#text, one), {label: "Copy code"});
    this.#element = make("figure", {className: "code"},
      make("figcaption", {}, make("span", {}, name || "text"), one),
      make("pre", {tabIndex: 0}, this.#code));
    this.#show(token.content);
    if (isClosed && name && this.#text.length <= MAX_COLOURED) this.#colour(name.toLowerCase());
  }

  get element() { return this.#element; }

  /* Take more text of the same block; false if the token is of another one. */
  grow(token) {
    if (token.type !== "fence" || token.info !== this.#info) return false;
    if (!token.content.startsWith(this.#text)) return false;
    const news = token.content.slice(this.#text.length);
    this.#text = token.content;
    if (this.#code.lastChild) this.#code.lastChild.appendData(news);
    else this.#code.append(news);
    return true;
  }

  #show(text) {
    this.#text = text;
    this.#code.replaceChildren(document.createTextNode(text));
  }

  async #colour(language) {
    highlighter ??= import("./vendor/highlight.js").then(module => module.default);
    const known = await highlighter.catch(() => null);
    if (!known?.getLanguage(language)) return;
    const found = known.highlight(this.#text, {language, ignoreIllegals: true});
    this.#code.replaceChildren(...elements(found._emitter.rootNode.children));
  }
}

/* highlight.js's tree as elements, where it would write HTML itself. */
function elements(nodes) {
  return nodes.map(node => typeof node === "string" ? document.createTextNode(node)
    : make("span", {className: classOf(node.scope)}, ...elements(node.children)));
}

function classOf(scope) { return scope ? `hl-${scope.split(".")[0]}` : ""; }
