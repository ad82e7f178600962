"""The grammar of a reply that may call functions, in llguidance's Lark."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import GrammarError
from ..generation.grammar import STYLE, Grammars, Maker
from ..generation.json_schema import JSONSchema, Note, prepared
from ..text.reasoning import BEGIN, END
from ..text.tool_forms import ToolForm
from .schema import Form, Function

# Where a reply may think, or the prompt has begun that, its grammar holds behind the thoughts.
MAY_THINK, THINKS = "may think", "thinks"
MAX_SPACE = 4  # characters between thoughts and what follows: a model could write them for ever
MAX_CALLS = 16  # calls of a reply, so that it ends
MAX_BLAMED = 32  # functions of which the one at fault is looked for: 5 ms each


def compile_reply(
    grammars: Grammars,
    form: ToolForm,
    functions: Sequence[tuple[int, Function]],
    max_calls: int,
    must_call: bool,
    note: Note,
    text: tuple[str, Form] | None,
    thoughts: str | None = None,
) -> Maker:
    """What makes the constraint of a reply. GrammarError, which names the function at fault.

    functions: that may be called, each with its place in the request. text: (field, form) of what
    a reply without calls follows, None for any text. note: see json_schema.prepared. thoughts: what
    comes in front of both: None, MAY_THINK for thoughts or nothing, THINKS where the prompt has
    begun them.
    """
    lark = "\n".join(rules(form, functions, max_calls, must_call, note, text, thoughts))
    try:
        return grammars.of_grammar(lark, "tools")
    except GrammarError as error:
        _blame(grammars, functions, error)
        raise


def _blame(
    grammars: Grammars, functions: Sequence[tuple[int, Function]], error: GrammarError
) -> None:
    """GrammarError of the function alone whose schema is refused, if it is one."""
    if error.reason.startswith("takes ") or len(functions) > MAX_BLAMED:
        return  # each of them might take as long
    for i, function in functions:
        try:
            grammars.of_schema(function.schema, "tools", lambda field, what: None)
        except GrammarError as own:
            field = f"tools[{i}].function.parameters"
            raise GrammarError(field, f"tool {function.name!r}: {own.reason}") from None


def rules(
    form: ToolForm,
    functions: Sequence[tuple[int, Function]],
    max_calls: int,
    must_call: bool,
    note: Note,
    text: tuple[str, Form] | None,
    thoughts: str | None = None,
) -> Iterator[str]:
    """Yield the lines of the grammar, see compile_reply."""
    if thoughts is None:
        yield "start: reply"
    else:  # up to the first end of thoughts, and some white space behind it
        yield "start: THOUGHTS reply" if thoughts == THINKS else "start: reply | THOUGHTS reply"
        some = ("" if thoughts == THINKS else _escaped(BEGIN)) + rf"(?s:.*){_escaped(END)}"
        yield rf"THOUGHTS: /{some}\s{{0,{MAX_SPACE}}}/ & ~/{some}\s*\S(?s:.*)/"
    mark = json.dumps(form.mark)
    rest = json.dumps(form.before.removeprefix(form.mark)) if form.before else ""
    after = json.dumps(form.after) if form.after else ""
    more = ""
    if form.between is not None and max_calls > 1:
        more = f"({json.dumps(form.between)} call){{0,{max_calls - 1}}}"
    calls = f"{rest} call {more} {after}"
    yield "call: " + " | ".join(f"f{i}" for i, _ in functions)
    if form.has_text:
        if must_call:
            yield f"reply: {mark} {calls}"
        else:
            yield f"reply: text | head {calls}"
            # A lazy lexeme ends with the first mark: what is in front of it is free.
            if text is None:
                yield f"BEFORE: /(?s:.*)/{_not_thoughts(thoughts)}"
            yield f"head[lazy]: {'BEFORE ' if text is None else ''}{mark}"
    else:
        yield f"reply: {calls}" if must_call else f"reply: text | {calls}"
    if not must_call:
        yield from _text_rules(form, text, note, thoughts)
    for i, function in functions:
        yield from _function_rules(form, i, function, note)


def _not_thoughts(thoughts: str | None) -> str:
    """Behind an expression: nothing that begins as thoughts do is meant."""
    return "" if thoughts is None else rf" & ~/\s*{_escaped(BEGIN)}(?s:.*)/"


def _text_rules(
    form: ToolForm, text: tuple[str, Form] | None, note: Note, thoughts: str | None
) -> Iterator[str]:
    if text is None:
        # of a reply behind thoughts the white space in front is nobody's
        anywhere = "(?s:.*)" if form.has_text else "" if thoughts is None else r"\s*"
        mark = _escaped(form.mark)
        yield "text: TEXT"
        yield rf"TEXT: /(?s:.*)/ & ~/{anywhere}{mark}(?s:.*)/{_not_thoughts(thoughts)}"
        return
    field, (kind, value) = text
    if kind != "json_schema":
        raise GrammarError(field, f"{kind}: not beside tools, a JSON schema is")
    yield f"text: {_json(value, field, note)}"


def _function_rules(form: ToolForm, i: int, function: Function, note: Note) -> Iterator[str]:
    field, about = f"tools[{i}].function.parameters", f"tool {function.name!r}: "
    head = json.dumps(form.head(function.name))
    if form.key is not None:
        yield f'f{i}: {head} a{i} "}}"'
        yield f"a{i}: {_json(function.schema, field, note, about)}"
        return
    schema = prepared(function.schema, field, note, about)
    required, parts = schema.get("required", []), []
    for j, (name, value) in enumerate(schema.get("properties", {}).items()):
        if value is False:  # it may not be there
            continue
        parts.append(f"p{i}_{j}" + ("" if name in required else "?"))
        begin = json.dumps(f"<parameter={name}>\n", ensure_ascii=False)
        yield f"p{i}_{j}: {begin} v{i}_{j}"
        if not is_text(value):
            one = ({} if value is True else value) | {
                name: schema[name] for name in ("$defs", "definitions") if name in schema
            }
            yield f'v{i}_{j}: j{i}_{j} "\\n</parameter>\\n"'
            yield f"j{i}_{j}: %json {json.dumps(one | {'x-guidance': STYLE})}"
        elif "enum" in value or "const" in value:
            words = " | ".join(json.dumps(word) for word in value.get("enum", [value.get("const")]))
            yield f'v{i}_{j}: ({words}) "\\n</parameter>\\n"'
        else:
            for name in sorted(value.keys() & {"pattern", "format", "minLength", "maxLength"}):
                note(field, f"{name} of a text in this model's form of calls")
            yield f'v{i}_{j}[suffix="\\n</parameter>\\n"]: /(?s:.*)/'
    yield f'f{i}: {head} {" ".join(parts)} "</function>"'


def is_text(schema: Any) -> bool:
    """Whether values are strings only, which the XML form writes as they are."""
    if not isinstance(schema, dict):
        return False
    if isinstance(schema.get("enum"), list):
        return all(isinstance(value, str) for value in schema["enum"])
    return schema.get("type") == "string" or isinstance(schema.get("const"), str)


def _json(schema: JSONSchema, field: str, note: Note, about: str = "") -> str:
    return f"%json {json.dumps(prepared(schema, field, note, about) | {'x-guidance': STYLE})}"


def _escaped(text: str) -> str:
    """A text in an expression between slashes."""
    return "".join(rf"\{c}" if c in r'/\.+*?()|[]{}^$"' else c for c in text)
