/* Markdown to elements. markdown-it reads it, with HTML off; what it finds becomes elements of a
   fixed list of kinds, never a text of HTML. */

import MarkdownIt from "./vendor/markdown-it.js";
import {make} from "./dom.js";
import {CodeBlock} from "./code_block.js";
import {addMath} from "./math.js";

const MAX_INLINE = 10000; // characters of a paragraph: markup in longer ones takes quadratic time
const parser = new MarkdownIt({html: false, linkify: true, breaks: true});
parser.linkify.set({fuzzyLink: false, fuzzyEmail: false}); // "main.py" is no host
addMath(parser);
parser.core.ruler.at("inline", state => {
  for (const token of state.tokens) {
    if (token.type !== "inline") continue;
    if (token.content.length > MAX_INLINE) {
      const text = new state.Token("text", "", 0);
      text.content = token.content;
      token.children.push(text);
    } else state.md.inline.parse(token.content, state.md, state.env, token.children);
  }
});

const TOP_HEADING = 3; // of a reply, below the page's own two
const TAGS = new Set(["p", "blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th",
  "td", "strong", "em", "s"]);

/* A text that grows. Blocks that are complete are left alone: what is read again with each piece
   is the last one. */
export class MarkdownView {
  #element; #settled = 0; #tail = []; #open = null; #env = {}; #shown = "";

  constructor(element) { this.#element = element; }

  /* text: all of it, which begins with what was there before. isWhole: whether it has ended. */
  update(text, isWhole) {
    if (this.#shown === `${isWhole} ${text.length}`) return;
    this.#shown = `${isWhole} ${text.length}`;
    text = text.replace(/\r\n?/g, "\n");
    if (isWhole && Object.keys(this.#env.references ?? {}).length) this.#reset(); // used before
    const rest = isWhole ? text.slice(this.#settled) : withoutHalfLine(text.slice(this.#settled));
    const tokens = parser.parse(rest, this.#env);
    const starts = tokens.flatMap((token, i) => token.level === 0 && token.nesting >= 0 ? [i] : []);
    const last = starts.at(-1) ?? 0;
    if (!isWhole && starts.length === 1 && this.#open?.grow(tokens[last])) return;
    for (const old of this.#tail) old.remove();
    this.#open = null;
    if (starts.length > 1) {
      this.#element.append(...this.#built(tokens.slice(0, last), true));
      this.#settled += offsetOfLine(rest, tokens[last].map[0]);
    }
    this.#tail = this.#built(tokens.slice(last), isWhole);
    this.#element.append(...this.#tail);
  }

  #reset() {
    this.#settled = 0;
    this.#tail = [];
    this.#element.replaceChildren();
  }

  #built(tokens, isClosed) {
    const top = document.createDocumentFragment();
    for (const token of tokens.filter(token => token.type === "heading_open"))
      token.meta = this.#env.topHeading ??= levelOf(token);
    build(tokens, top, token => {
      const block = new CodeBlock(token, isClosed);
      if (!isClosed) this.#open = block;
      return block.element;
    });
    return [...top.childNodes];
  }
}

/* What a line will be that has only begun is not known: "-" under a text is a heading, "- a" is
   not. */
function withoutHalfLine(text) { return text.replace(/(^|\n)[ \t>]*[-=+*#`~|:\d.)]*$/, "$1"); }

function offsetOfLine(text, n) {
  let at = 0;
  for (let line = 0; line < n; line++) at = text.indexOf("\n", at) + 1;
  return at;
}

function build(tokens, top, codeBlock) {
  const stack = [top];
  for (const token of tokens) {
    const parent = stack.at(-1);
    if (token.nesting < 0) stack.pop();
    else if (token.nesting > 0) stack.push(token.hidden ? parent : open(token, parent));
    else if (token.type === "inline") build(token.children, parent, codeBlock);
    else if (token.type === "fence" || token.type === "code_block") parent.append(codeBlock(token));
    else parent.append(leaf(token));
  }
}

/* The element that what follows goes into, appended to its parent. */
function open(token, parent) {
  if (token.type === "link_open") return parent.appendChild(link(token.attrGet("href")));
  if (token.tag === "table") parent = parent.appendChild(make("div", {className: "wide-table",
    tabIndex: 0, role: "group", "aria-label": "Table"}));
  if (token.type === "heading_open") return parent.appendChild(heading(token));
  const element = parent.appendChild(make(TAGS.has(token.tag) ? token.tag : "span"));
  if (token.tag === "ol" && token.attrGet("start")) element.start = Number(token.attrGet("start"));
  const align = /^text-align:(left|right|center)$/.exec(token.attrGet("style") ?? "");
  if (align) element.className = align[1];
  return element;
}

const levelOf = token => Number(token.tag[1]);

/* None is left out on the way down, as far as the text leaves none out; they look as written. */
function heading(token) {
  const below = Math.min(6 - TOP_HEADING, Math.max(0, levelOf(token) - token.meta));
  return make(`h${TOP_HEADING + below}`, {className: token.tag});
}

/* Where it leads is there to read before it is followed; the page's address stays here. */
function link(address) {
  if (!/^(https?:|mailto:)/i.test(address ?? "")) return make("span");
  return make("a", {href: address, title: address, target: "_blank", rel: "noopener noreferrer"});
}

function leaf(token) {
  switch (token.type) {
    case "code_inline": return make("code", {}, token.content);
    case "math": return make("code", {className: "math"}, token.content);
    case "math_block": return make("pre", {className: "math", tabIndex: 0}, token.content);
    case "softbreak": case "hardbreak": return make("br");
    case "hr": return make("hr");
    case "image": return image(token);
    default: return document.createTextNode(token.content);
  }
}

/* Nothing is loaded from elsewhere: an image is a link to it. */
function image(token) {
  const element = link(token.attrGet("src"));
  element.append(`[image: ${token.content || token.attrGet("src")}]`);
  return element;
}
