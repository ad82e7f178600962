"""Function calls: how a model is told of tools, and what becomes of calls and results.

Where the model's template knows tools it writes them, in the form it was trained on. Elsewhere a
call is `<tool_call>{"name": NAME, "arguments": {...}}</tool_call>`, as the first system message
says. In both a constraint sees to it that calls have the form, and arguments the function's schema.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..generation.grammar import Grammars, Maker
from ..generation.json_schema import Note
from ..text.chat_template import Marked
from ..text.tool_calls import CallReader
from ..text.tool_forms import OURS, ToolForm, call_of
from .errors import ApiError
from .schema import Form, Function, FunctionOf, Message
from .tool_grammar import MAX_CALLS, compile_reply, is_text

ABOUT = (
    "You can call functions. To call one, answer with nothing but\n"
    '<tool_call>{"name": NAME, "arguments": {...}}</tool_call>\n'
    "once or several times. Results come in <tool_response>. The functions:\n"
)
# What begins a mark of calls and results, also as a model may read it
_MARK = re.compile(r"<(?=\s*+/?+\s*+tool_(?:call|response)\b)", re.I)  # no way back: linear


class Tools:
    """The functions of one request.

    choice: "none", "auto", "required", or which function is to be called. parallel: whether a reply
    may have several calls. form: of the model's calls.
    """

    def __init__(
        self,
        functions: Sequence[Function],
        choice: str | FunctionOf,
        parallel: bool,
        form: ToolForm = OURS,
    ) -> None:
        self._functions, self._choice, self._parallel = functions, choice, parallel
        self.form = form
        self.thoughts: str | None = None  # see tool_grammar; settled by the prompt
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

    def tell(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages with what a model has to know, unless its template tells it."""
        messages = list(messages)
        if self.form.is_templates:
            return messages
        text = ABOUT + "\n".join(json.dumps(f.about(), ensure_ascii=False) for f in self._functions)
        if messages and messages[0]["role"] in ("system", "developer"):
            first = messages.pop(0)
            return [first | {"content": f"{first['content']}\n\n{text}"}, *messages]
        return [{"role": "system", "content": text}, *messages]

    @property
    def told(self) -> list[dict[str, Any]]:
        """The tools as a template takes them; none where it does not know any."""
        if not self.form.is_templates:
            return []
        return [{"type": "function", "function": f.about()} for f in self._functions]

    def constraint(self, grammars: Grammars, note: Note, field: str, text: Form | None) -> Maker:
        """What makes the constraint of a reply. text: what one without calls follows, of a field of
        the request; None for any. GrammarError."""
        named = self._choice.name if isinstance(self._choice, FunctionOf) else None
        chosen = [(i, f) for i, f in enumerate(self._functions) if named in (None, f.name)]
        return compile_reply(
            grammars,
            self.form,
            chosen,
            MAX_CALLS if self._parallel and named is None else 1,
            named is not None or self._choice == "required",
            note,
            None if text is None else (field, text),
            self.thoughts,
        )

    def reader(self) -> CallReader:
        """What reads the calls of one reply."""
        texts = {f.name: frozenset(_texts_of(f)) for f in self._functions}
        return CallReader(self.form, texts)


def _texts_of(function: Function) -> Iterator[str]:
    """The parameters that the XML form writes as they are."""
    properties = function.schema.get("properties")
    for name, schema in (properties if isinstance(properties, dict) else {}).items():
        if is_text(schema):
            yield name


class Calls:
    """The deltas of one choice, as OpenAI's chat has them, from its text as it comes."""

    def __init__(self, reader: CallReader | None = None) -> None:
        self._reader = reader or CallReader()

    @property
    def are_whole(self) -> bool:
        """Whether there are calls, and the last one has all of its arguments."""
        return self._reader.are_whole

    def push(self, text: str, is_last: bool) -> Iterator[dict[str, Any]]:
        """Yield the deltas of more text: {"content": text} or {"tool_calls": [...]}."""
        for kind, value in self._reader.push(text, is_last):
            if kind == "content":
                yield {"content": value}
                continue
            call: dict[str, Any] = {"index": self._reader.n_calls - 1}
            if kind == "call":
                call |= {"id": "call_" + secrets.token_hex(12), "type": "function"}
                call["function"] = {"name": value, "arguments": ""}
            else:
                call["function"] = {"arguments": value}
            yield {"tool_calls": [call]}


def history(messages: Sequence[Message], form: ToolForm = OURS) -> list[dict[str, Any]]:
    """Messages for a template from schema.Messages with calls and results in them.

    A user cannot write a result: `<` of a mark becomes `&lt;` in a text, and in JSON the escape
    that means the same. Where the template does not know tools, calls and results are text, and
    results that follow each other one message of the user, as templates that want turns to
    alternate take it. ApiError for a result without its call.
    """
    plain: list[dict[str, Any]] = []
    names: dict[str | None, str] = {}
    is_result = False
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if message.role != "tool":
            is_result = False
            plain.append(unmarked(message.as_dict(where)))
            names |= {call.id: call.function.name for call in message.tool_calls or ()}
            if message.tool_calls:
                _add_calls(plain[-1], message, form)
            continue
        if message.tool_call_id not in names:
            field = f"{where}.tool_call_id"
            text = f"{field}: {message.tool_call_id!r} is of no call before it"
            raise ApiError(400, text, param=field)
        name, content = names[message.tool_call_id], message.text(where)
        if form.is_templates:
            about = {"name": name, "tool_call_id": message.tool_call_id}
            plain.append({"role": "tool", "content": _MARK.sub("&lt;", content)} | about)
            continue
        result = {"name": name, "content": content}
        written = _escaped(json.dumps(result, ensure_ascii=False))
        text = f"<tool_response>{written}</tool_response>"
        if is_result:
            text = f"{plain.pop()['content']}\n{text}"
        plain.append({"role": "user", "content": Marked(text)})
        is_result = True
    return plain


def _add_calls(plain: dict[str, Any], message: Message, form: ToolForm) -> None:
    """The calls of an assistant's message, as the template takes them or as text."""
    calls = [(call.id, call.function) for call in message.tool_calls or ()]
    if form.is_templates:
        plain["tool_calls"] = [
            call_of(form, call_id, function.name, _object(function.text))
            for call_id, function in calls
        ]
        return
    for _, function in calls:
        written = form.head(function.name) + _escaped(function.text) + "}"
        plain["content"] += f"{form.before}{written}{form.after}"


def _object(arguments: str) -> Any:
    """The arguments as templates take them; the text where they are no JSON object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def unmarked(message: Mapping[str, Any]) -> dict[str, Any]:
    """A plain message; a user's spells no mark of calls and results."""
    if message["role"] != "user":
        return dict(message)
    return {**message, "content": _MARK.sub("&lt;", message["content"])}


def _escaped(text: str) -> str:
    """JSON that spells no mark."""
    return _MARK.sub(r"\\u003c", text)
