/* Formulas stay as they were written, instead of being read as Markdown: $...$, $$...$$, \(...\)
   and \[...\]. */

const INLINE = [/\\\((.+?)\\\)/sy, /\\\[(.+?)\\\]/sy, /\$\$(.+?)\$\$/sy,
  /\$(?![\s$])([^$\n]*[^\s$\\])\$(?!\d)/y]; // "$5 and $10" is no formula
const MAX_LENGTH = 2000; // characters of one
const BLOCKS = [["$$", "$$"], ["\\[", "\\]"]];

export function addMath(parser) {
  parser.inline.ruler.before("escape", "math", inline);
  parser.block.ruler.before("fence", "math_block", block,
    {alt: ["paragraph", "blockquote", "list"]});
}

function inline(state, silent) {
  const first = state.src[state.pos];
  if (first !== "$" && first !== "\\") return false;
  const near = state.src.slice(state.pos, state.pos + MAX_LENGTH);
  for (const pattern of INLINE) {
    pattern.lastIndex = 0;
    const found = pattern.exec(near);
    if (!found) continue;
    if (!silent) state.push("math", "", 0).content = found[0];
    state.pos += found[0].length;
    return true;
  }
  return false;
}

/* From a line that begins with a mark to one that ends with its counterpart. */
function block(state, startLine, endLine, silent) {
  const line = n => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]);
  if (state.sCount[startLine] - state.blkIndent >= 4) return false;
  const marks = BLOCKS.find(([open]) => line(startLine).startsWith(open));
  if (!marks) return false;
  for (let n = startLine; n < endLine && n < startLine + 100; n++) {
    const text = line(n).trimEnd();
    if (n > startLine && (state.isEmpty(n) || state.sCount[n] < state.blkIndent)) return false;
    if (!text.endsWith(marks[1]) || (n === startLine && text.length < 5)) continue;
    if (silent) return true;
    const token = state.push("math_block", "", 0);
    token.content = state.getLines(startLine, n + 1, state.blkIndent, false).trim();
    token.map = [startLine, n + 1];
    state.line = n + 1;
    return true;
  }
  return false;
}
