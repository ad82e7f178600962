"""Function calls: how a model is told of tools, which grammar its calls follow, and their deltas.

A call is `<tool_call>{"name": NAME, "arguments": {...}}</tool_call>`, whatever the model; a
constraint sees to it that nothing else begins with `<tool_call>` and that the arguments follow the
function's schema.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..text.chat_template import Marked
from .errors import ApiError
from .schema import Function, FunctionOf, JSONSchema, Message
from .schema_bounds import bounded

BEGIN, END = "<tool_call>", "</tool_call>"
MAX_CALLS = 16  # calls of a reply, so that it ends
ABOUT = (
    "You can call functions. To call one, answer with nothing but\n"
    f'{BEGIN}{{"name": NAME, "arguments": {{...}}}}{END}\n'
    "once or several times. Results come in <tool_response>. The functions:\n"
)
# What begins a mark of calls and results, also as a model may read it
_MARK = re.compile(r"<(?=\s*+/?+\s*+tool_(?:call|response)\b)", re.I)  # no way back: linear
_ANY_TEXT = rf"TEXT: /(?s:.*)/ & ~/(?s:{BEGIN}.*)/"
_HEAD = re.compile(BEGIN + r'\{"name": "([\w-]+)", "arguments": ')  # what head() writes


def head(name: str) -> str:
    """A call's JSON up to its arguments. Names need no escapes: schema.FunctionName."""
    return f'{{"name": "{name}", "arguments": '


class Tools:
    """The functions of one request.

    choice: "none", "auto", "required", or which function is to be called. parallel: whether a reply
    may have several calls.
    """

    def __init__(
        self, functions: Sequence[Function], choice: str | FunctionOf, parallel: bool
    ) -> None:
        self._functions, self._choice, self._parallel = functions, choice, parallel
        names = [function.name for function in functions]
        for i, function in enumerate(functions):
            where = f"tools[{i}].function"
            if names.index(function.name) != i:
                raise ApiError(400, f"{where}.name: {function.name} twice", param=f"{where}.name")
            if function.schema.get("type") != "object":
                where = f"{where}.parameters"
                raise ApiError(400, f"{where}: its type must be object", param=where)
        if isinstance(choice, FunctionOf) and choice.name not in names:
            message = f"tool_choice: no function {choice.name!r} in tools"
            raise ApiError(400, message, param="tool_choice")

    @property
    def may_call(self) -> bool:
        """Whether a reply may have calls."""
        return self._choice != "none"

    def tell(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The messages with what a model has to know in the first of them, a system message."""
        text = ABOUT + "\n".join(json.dumps(f.about(), ensure_ascii=False) for f in self._functions)
        messages = list(messages)
        if messages and messages[0]["role"] in ("system", "developer"):
            first = messages.pop(0)
            return [first | {"content": f"{first['content']}\n\n{text}"}, *messages]
        return [{"role": "system", "content": text}, *messages]

    def grammar(self, style: Mapping[str, Any], schema: JSONSchema | None = None) -> str:
        """The grammar of a reply in llguidance's Lark.

        style: how JSON is written, see grammar.py. schema: of a reply that is no call. ApiError for
        schemas beyond their bounds.
        """
        named = self._choice.name if isinstance(self._choice, FunctionOf) else None
        functions = {i: f for i, f in enumerate(self._functions) if named in (None, f.name)}
        must_call = named is not None or self._choice == "required"
        max_calls = MAX_CALLS if self._parallel and named is None else 1
        rules = [
            "start: calls" if must_call else "start: text | calls",
            f"calls: call{{1,{max_calls}}}",
            f'call: "{BEGIN}" ({" | ".join(f"f{i}" for i in functions)}) "{END}"',
        ]
        for i, function in functions.items():
            begin = json.dumps(head(function.name))
            where = f"tools[{i}].function.parameters"
            arguments = _json(_closed(function.schema), style, where)
            rules += [f'f{i}: {begin} a{i} "}}"', f"a{i}: {arguments}"]
        if not must_call:
            rules += (
                ["text: TEXT", _ANY_TEXT]
                if schema is None
                else [f"text: {_json(schema, style, 'response_format')}"]
            )
        return "\n".join(rules)


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Where a schema only lists properties, no others are written: it is what its author means."""
    is_list = schema.keys() <= {"type", "properties", "required", "title", "description"}
    return schema | {"additionalProperties": False} if is_list else schema


def _json(schema: JSONSchema, style: Mapping[str, Any], field: str) -> str:
    return f"%json {json.dumps(bounded(schema, field) | {'x-guidance': style})}"


class Calls:
    """The deltas of one choice: from its text, as it comes, content or calls."""

    def __init__(self) -> None:
        self._text = ""  # text that is in no delta yet
        self._is_text: bool | None = None  # whether the reply is text; None: not known yet
        self.n_calls = 0
        self._depth = 0  # open braces of the arguments being read; 0: not in arguments
        self._in_string = self._escaped = False

    @property
    def are_whole(self) -> bool:
        """Whether there are calls, and the last one has all of its arguments."""
        return self.n_calls > 0 and not self._depth

    def push(self, text: str, is_last: bool) -> Iterator[dict[str, Any]]:
        """Yield the deltas of more text: {"content": text} or {"tool_calls": [...]}."""
        self._text += text
        if self._is_text is None:
            begins = self._text.startswith(BEGIN)
            if not begins and BEGIN.startswith(self._text) and not is_last:
                return
            self._is_text = not begins
        if self._is_text:
            if self._text:
                yield {"content": self._text}
            self._text = ""
            return
        while True:
            if not self._depth:
                match = _HEAD.search(self._text)  # behind the end of the call before
                if match is None or len(self._text) == match.end():
                    return
                self._text, self._depth = self._text[match.end() + 1 :], 1  # without its brace
                self.n_calls += 1
                function: dict[str, Any] = {"name": match[1], "arguments": ""}
                about: dict[str, Any] = {"id": "call_" + secrets.token_hex(12), "type": "function"}
                yield self._delta(about | {"function": function})
                yield self._delta({"function": {"arguments": "{"}})
            end = self._end_of_arguments()
            arguments, self._text = self._text[:end], self._text[end:]
            if arguments:
                yield self._delta({"function": {"arguments": arguments}})
            if self._depth:
                return

    def _delta(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": self.n_calls - 1} | call]}

    def _end_of_arguments(self) -> int:
        """Where in the text the arguments end, or the text."""
        for i, character in enumerate(self._text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{}":
                self._depth += 1 if character == "{" else -1
                if not self._depth:
                    return i + 1
        return len(self._text)


def history(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Plain messages for a template from schema.Messages with calls and results in them.

    Results that follow each other become one message of the user, as templates that want turns to
    alternate take it. A user cannot write one: `<` of a mark becomes `&lt;` in a text, and in JSON
    the escape that means the same. ApiError for a result without its call.
    """
    plain: list[dict[str, str]] = []
    names, is_result = {}, False
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.role != "tool":
            is_result = False
            plain.append(unmarked(message.as_dict(where)))
            for call in message.tool_calls or ():
                names[call.id] = call.function.name
                written = head(call.function.name) + _escaped(call.function.arguments) + "}"
                plain[-1]["content"] += f"{BEGIN}{written}{END}"
            continue
        if message.tool_call_id not in names:
            field = f"{where}.tool_call_id"
            text = f"{field}: {message.tool_call_id!r} is of no call before it"
            raise ApiError(400, text, param=field)
        result = {"name": names[message.tool_call_id], "content": message.text(where)}
        written = _escaped(json.dumps(result, ensure_ascii=False))
        text = f"<tool_response>{written}</tool_response>"
        if is_result:
            text = f"{plain.pop()['content']}\n{text}"
        plain.append({"role": "user", "content": Marked(text)})
        is_result = True
    return plain


def unmarked(message: dict[str, str]) -> dict[str, str]:
    """A plain message; a user's spells no mark of calls and results."""
    if message["role"] != "user":
        return message
    return message | {"content": _MARK.sub("&lt;", message["content"])}


def _escaped(text: str) -> str:
    """JSON that spells no mark."""
    return _MARK.sub(r"\\u003c", text)
