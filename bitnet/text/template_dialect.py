"""What templates use of Jinja2 and minijinja lacks: their source rewritten for its filters.

Rewritten are `{% generation %}`, methods of Python's strings, `text % values`, and `tojson` of what
may be a float, which a filter in Python would get as a whole number. Lines stay where they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..errors import TemplateError
from .template_renderer import METHODS

# Both are scopes of their own; transformers notes where the first one is, which only training asks.
TAGS = {"generation": "with", "endgeneration": "endwith"}

MAX_TEXT = 16384  # characters that an expression becomes at most: names may be repeated in it
MAX_TOKENS = 2048  # words, signs and strings of a tag, which are gone through for each use in it
MAX_USES = 2000  # places that may have to be rewritten; published templates have less than 100

_BEGIN = re.compile(r"\{[{%#]")
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
# A string without an end goes to the end of all: to look for one at each of its quotes took hours.
_STRING = r"'(?:[^'\\]|\\(?:.|\Z))*+(?:'|\Z)|\"(?:[^\"\\]|\\(?:.|\Z))*+(?:\"|\Z)"
_TOKEN = re.compile(
    rf"(?P<space>\s*)(?:(?P<string>{_STRING})"
    r"|(?P<number>0[xXbBoO]\w+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<end>[-+]?[%}]\})|(?P<operator>//|\*\*|[=!<>]=|\S))",
    re.S,
)
_USE = re.compile(rf"[^{{%]%[^}}%]|\|\s*tojson|\.\s*(?:{'|'.join(METHODS)})")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_KEYWORDS = {
    "and", "call", "do", "elif", "else", "filter", "for", "if", "in", "is", "not", "or", "print",
    "set", "with",
}  # fmt: skip


class _Token(NamedTuple):
    """kind: a group of _TOKEN, or "operand" for what is rewritten. space: what is in front."""

    kind: str
    text: str
    space: str

    @property
    def is_operand(self) -> bool:
        is_value = self.kind in ("string", "number", "name", "operand")
        return (is_value and self.text not in _KEYWORDS) or self.text in _PAIRS


def rewritten(source: str) -> str:
    """The source for minijinja; unchanged if it is damaged, which minijinja says better.

    TemplateError for an expression that is nested too deep or too long, or too many of them.
    """
    n_uses = len(_USE.findall(source))
    if n_uses > MAX_USES:
        limit = f"at most {MAX_USES}"
        raise TemplateError(f"chat template: {n_uses} times %, tojson or a method ({limit})")
    parts, at = [], 0
    try:
        while begin := _BEGIN.search(source, at):
            parts.append(source[at : begin.start()])
            tag, at = _tag(source, begin)
            parts.append(tag)
    except _Damaged:
        return source
    except RecursionError:
        raise TemplateError("chat template: an expression is nested too deep") from None
    return "".join(parts) + source[at:]


class _Damaged(Exception):
    pass


def _tag(source: str, begin: re.Match[str]) -> tuple[str, int]:
    """(a tag, comment or raw block rewritten, where it ends)."""
    if begin.group() == "{#":
        end = source.find("#}", begin.end())
        if end < 0:
            raise _Damaged
        return source[begin.start() : end + 2], end + 2
    at = begin.end() + source.startswith(("-", "+"), begin.end())
    head, tokens, depth = source[begin.start() : at], [], 0
    while match := _TOKEN.match(source, at):
        kind, space = str(match.lastgroup), match["space"]
        if kind == "end" and depth == 0:
            break
        if kind == "end":  # of dictionaries inside each other
            kind, text = "operator", match["end"][0]
        else:
            text = match[kind]
        at = match.end("space") + len(text)
        depth += (text in "([{") - (text in ")]}")
        tokens.append(_Token(kind, text, space))
        if len(tokens) > MAX_TOKENS:
            raise TemplateError(f"chat template: a tag of more than {MAX_TOKENS} words and signs")
    else:
        raise _Damaged
    name = tokens[0].text if tokens and begin.group() == "{%" else ""
    if name == "raw":
        end = _END_RAW.search(source, match.end())
        if end is None:
            raise _Damaged
        return source[begin.start() : end.end()], end.end()
    if name in TAGS:
        tokens[0] = tokens[0]._replace(text=TAGS[name])
    return head + _joined(_expression(tokens)) + match.group(), match.end()


def _joined(tokens: Sequence[_Token]) -> str:
    return "".join(token.space + token.text for token in tokens)


def _expression(tokens: list[_Token]) -> list[_Token]:
    """The tokens with every use of what minijinja lacks made one operand. From left to right, so
    that operands on the left are done."""
    tokens, i = list(tokens), 0
    while i < len(tokens):
        made = None
        following = tokens[i + 1].text if i + 1 < len(tokens) else ""
        if i > 0 and tokens[i - 1].is_operand:
            if tokens[i].text == "." and following in METHODS:
                made = _method(tokens, i)
            elif tokens[i].text == "|" and following == "tojson":
                made = _to_json_of(tokens, i)
            elif tokens[i].text == "%":
                made = _percent(tokens, i)
        if made is not None:
            begin, end, text = made
            if len(text) > MAX_TEXT:
                limit = f"at most {MAX_TEXT} characters, written out"
                raise TemplateError(f"chat template: an expression of {len(text)} ({limit})")
            space = tokens[begin].space
            n_lines = _joined(tokens[begin:end]).count("\n") - (space + text).count("\n")
            tokens[begin:end] = [_Token("operand", text, space + "\n" * n_lines)]
            i = begin
        i += 1
    return tokens


_Made = tuple[int, int, str] | None  # tokens from, to, and what stands for them


def _method(tokens: list[_Token], dot: int) -> _Made:
    """x.name(...) as a filter."""
    begin = _begin(tokens, dot - 1)
    if begin is None or dot + 2 >= len(tokens) or tokens[dot + 2].text != "(":
        return None
    end = _closing(tokens, dot + 2)
    arguments = _joined(_expression(tokens[dot + 3 : end]))
    value = _joined(tokens[begin:dot]).lstrip()
    return begin, end + 1, f"({value}|str_{tokens[dot + 1].text}({arguments}))"


def _to_json_of(tokens: list[_Token], pipe: int) -> _Made:
    """name|tojson(...) with a word about its type."""
    begin = _begin(tokens, pipe - 1)
    if begin is None or (begin and tokens[begin - 1].text == "|"):
        return None
    value = _joined(tokens[begin:pipe]).strip()
    if "(" in value or "{" in value:
        return None  # a call may do something, or costs
    end, arguments = pipe + 2, ""
    if end < len(tokens) and tokens[end].text == "(":
        close = _closing(tokens, end)
        arguments = _joined(_expression(tokens[end + 1 : close])).rstrip(", \n")
        end = close + 1
    more = f"{arguments}, " if arguments else ""
    return begin, end, f"{value}|tojson({more}is_float={value} is float)"


def _percent(tokens: list[_Token], sign: int) -> _Made:
    """text % values as the filter format; what may be a number stays as it is beside it."""
    begin, end = _begin(tokens, sign - 1), _end(tokens, sign + 1)
    while begin is not None and begin > 1 and tokens[begin - 1].text == "|":
        begin = _begin(tokens, begin - 2)
    if begin is None or end is None:
        return None
    left, right = tokens[begin:sign], tokens[sign + 1 : end]
    is_text = all(token.kind == "string" for token in left)
    before = tokens[begin - 1] if begin else None
    is_signed = (
        before is not None
        and before.text in ("-", "+")
        and not (begin > 1 and tokens[begin - 2].is_operand)
    )
    is_number = left[0].kind == "number" or left[0].text == "loop" or is_signed
    if is_number or (before is not None and before.text in ("*", "/", "//", "%", "**")):
        return None
    value = _joined(left).strip()
    right = _expression(right)
    operand = _joined(right).strip()
    arguments = operand
    if is_text and "%(" in value:
        arguments = f"**{operand}"
    elif right[0].text == "(" and _closing(right, 0) == len(right) - 1:
        is_tuple = len(right) == 2 or any(t.text == "," for t in _outer(right[1:-1]))
        arguments = _joined(right[1:-1]).rstrip().removesuffix(",") if is_tuple else operand
    made = f"({value}|format({arguments}))"
    if not is_text:
        made = f"({made} if ({value}) is string else ({value}) % {operand})"
    return begin, end, made


# where operands begin and end --------------------------------------------------------------------


def _begin(tokens: list[_Token], last: int) -> int | None:
    """Where the operand begins whose last token this is: a value, attributes, items and calls."""
    i = last
    while i >= 0:
        token = tokens[i]
        if token.text in _PAIRS:
            i = _opening(tokens, i)
            if tokens[i].text == "{" or i == 0 or not tokens[i - 1].is_operand:
                return i
            i -= 1
        elif not token.is_operand:
            return None
        elif i and tokens[i - 1].text == ".":
            i -= 2
        elif i and token.kind == tokens[i - 1].kind == "string":
            i -= 1
        else:
            return i
    return None


def _end(tokens: list[_Token], first: int) -> int | None:
    """Behind the operand with its filters that begins here; None if more belongs to it."""
    i = first + (first < len(tokens) and tokens[first].text in ("-", "+"))
    if i >= len(tokens):
        return None
    if tokens[i].text in _PAIRS.values():
        i = _closing(tokens, i)
    elif not tokens[i].is_operand:
        return None
    i += 1
    while i < len(tokens):
        text = tokens[i].text
        if text in ("(", "["):
            i = _closing(tokens, i) + 1
        elif text in (".", "|"):
            i += 2
        elif text in ("**", "is"):
            return None
        else:
            break
    return min(i, len(tokens))


def _closing(tokens: list[_Token], opening: int) -> int:
    depth = 0
    for i in range(opening, len(tokens)):
        depth += (tokens[i].text in _PAIRS.values()) - (tokens[i].text in _PAIRS)
        if depth == 0:
            return i
    raise _Damaged


def _opening(tokens: list[_Token], closing: int) -> int:
    depth = 0
    for i in range(closing, -1, -1):
        depth += (tokens[i].text in _PAIRS) - (tokens[i].text in _PAIRS.values())
        if depth == 0:
            return i
    raise _Damaged


def _outer(tokens: list[_Token]) -> Iterator[_Token]:
    """Those in no bracket."""
    depth = 0
    for token in tokens:
        depth += (token.text in _PAIRS.values()) - (token.text in _PAIRS)
        if depth == 0:
            yield token
