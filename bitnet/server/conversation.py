"""From other protocols' turns to the messages of a chat: what /v1/responses and /v1/messages share.

Both say in items and blocks what a chat says in messages; both become a schema.ChatRequest, so that
templates, tools, grammars and limits are the same whatever a client speaks.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from ..generation.json_schema import JSONSchema
from .errors import ApiError, json_error
from .parsing import Passed
from .schema import (
    MAX_TOOLS,
    CalledFunction,
    CallId,
    Function,
    FunctionOf,
    Message,
    NamedSchema,
    ResponseFormat,
    Tool,
    ToolCall,
)

MAX_CONVERSATION = 8192  # messages that a request's turns, items or blocks may become
# Fields of a part of text; what some of them say changes nothing here
TEXT_FIELDS = {
    "type", "text", "annotations", "cache_control", "citations", "logprobs", "refusal",
    "prompt_cache_breakpoint",
}  # fmt: skip
NO_IMAGE = "[an image, which this model cannot see]"  # in the result of a tool

T = TypeVar("T")

_ANY_INDEX = re.compile(r"\[\d+\]")
_INDEX = re.compile(r"messages\[(\d+)\]")


class Conversation:
    """Messages, and where in the request each of them came from, for what is wrong with one.

    passed: is told of what is passed over.
    """

    def __init__(self, earlier: Iterable[Message] = (), passed: Passed | None = None) -> None:
        self._passed = passed or Passed()
        self.messages = list(earlier)
        self.origins = ["previous_response_id"] * len(self.messages)
        self._called = {c.id for m in self.messages for c in m.tool_calls or ()}
        self._thought = ""  # of the assistant's next message

    def some(self, field: str) -> list[Message]:
        """The messages. ApiError that names the request's field where it has said none."""
        if not self.messages:
            raise refused(field, "there is no message in it")
        return self.messages

    def check(self, value: Mapping[str, Any], known: Collection[str], where: str) -> None:
        """Tell of the fields of an object that are not known. ApiError where they are refused."""
        for name in sorted(value.keys() - known):
            if value[name] is not None:
                self._passed.field(f"{_ANY_INDEX.sub('[]', where)}.{name}")

    def leave_out(self, kind: str, where: str) -> None:
        """Tell of a tool that is not there: others run it on their servers. ApiError where that is
        refused."""
        self._passed.part(f"{where}.type", f"{kind} (run by no server of ours)")

    def texts(
        self, content: object, kinds: Sequence[str], where: str, *, is_result: bool = False
    ) -> str:
        """The text of a content: a text, or a list of parts of these kinds. ApiError for others.

        is_result: of a tool, whose images are replaced by words: a conversation that has one once
        would be refused for ever.
        """
        if content is None and is_result:
            return ""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise refused(where, "expected a text or a list of parts")
        found = []
        for i, part in enumerate(content):
            inside = f"{where}[{i}]"
            kind: Any = part.get("type") if isinstance(part, dict) else None
            if kind in kinds:
                self.check(part, TEXT_FIELDS, inside)
                found.append(converted({"text": part.get("text")}, _Text, inside).text)
            elif is_result and kind in ("input_image", "image"):
                found.append(NO_IMAGE)
            else:
                raise refused(f"{inside}.type", f"{str(kind)[:80]!r} is not supported")
        return "\n".join(found)

    def say(self, role: str, text: str, where: str) -> None:
        """A message of text."""
        self._add(Message(role=role, content=text), where)

    def begin(self, role: str, text: str, where: str) -> None:
        """The same in front of all others."""
        self.messages.insert(0, Message(role=role, content=text))
        self.origins.insert(0, where)

    def think(self, text: str) -> None:
        """What the assistant thought before what it says next."""
        self._thought += text

    def call(self, call_id: object, name: object, arguments: str, where: str) -> None:
        """A call of the assistant's; of its last message, if nobody has answered that yet."""
        function = converted({"name": name, "arguments": arguments}, CalledFunction, where)
        call = ToolCall(id=_call_id(call_id, where), function=function)
        self._called.add(call.id)
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == "assistant" and not self._thought:
            if len(last.tool_calls or ()) >= MAX_TOOLS:
                raise refused(where, f"too many calls in one message (at most {MAX_TOOLS})")
            self.messages[-1] = msgspec.structs.replace(
                last, tool_calls=[*(last.tool_calls or ()), call]
            )
        else:
            self._add(Message(role="assistant", tool_calls=[call]), where)

    def answer(self, call_id: object, text: str, where: str, field: str) -> None:
        """The result of a call. ApiError, naming the field, where nobody made that call."""
        field = f"{where}.{field}"
        known = _call_id(call_id, field)
        if known not in self._called:
            raise refused(field, f"{known!r} is of no call before it")
        self._add(Message(role="tool", content=text, tool_call_id=known), where)

    def _add(self, message: Message, where: str) -> None:
        if self._thought and message.role == "assistant":
            message = msgspec.structs.replace(message, reasoning_content=self._thought)
        self._thought = ""
        if len(self.messages) >= MAX_CONVERSATION:
            raise refused(where, f"too many messages and results (at most {MAX_CONVERSATION})")
        self.messages.append(message)
        self.origins.append(where)

    def renamed(self, error: ApiError, names: Mapping[str, str]) -> ApiError:
        """An error about the chat request as one about the client's own fields.

        names: {begin of a field of the chat request: what the client calls it}.
        """
        old = error.param or ""
        new = _INDEX.sub(lambda m: self._origin(int(m[1])), old)
        for chat_name, own_name in names.items():
            new = re.sub(rf"^{chat_name}", own_name, new)
        if new == old:
            return error
        message = error.message
        if message.startswith(f"{old}:"):
            message = new + message[len(old) :]
        return ApiError(error.status, message, param=new, code=error.code, headers=error.headers)

    def _origin(self, index: int) -> str:
        return self.origins[index] if index < len(self.origins) else f"messages[{index}]"


def function_tool(value: Mapping[str, Any], schema_field: str, where: str) -> Tool:
    """A tool of a chat from one whose fields lie flat. schema_field: what its schema is called."""
    fields = {"name": value.get("name"), "description": value.get("description")}
    try:
        parameters = value.get(schema_field)
        return Tool(function=converted(fields | {"parameters": parameters}, Function, where))
    except ApiError as error:
        raise Conversation().renamed(
            error, {re.escape(f"{where}.parameters"): f"{where}.{schema_field}"}
        ) from None


def function_of(name: object, where: str) -> FunctionOf:
    """A function by its name."""
    return converted({"name": name}, FunctionOf, where)


def schema_format(schema: JSONSchema) -> ResponseFormat:
    """A response_format that follows a schema."""
    return ResponseFormat(type="json_schema", json_schema=NamedSchema(schema=schema))


class _Text(msgspec.Struct):
    text: str


def converted(value: object, kind: type[T], where: str) -> T:
    """JSON's value as a struct. ApiError that names the field within ``where``."""
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise within(json_error(error), where) from None


def within(error: ApiError, where: str) -> ApiError:
    """An error about a value as one about the field ``where`` that has it."""
    param = where
    if error.param:
        param += error.param if error.param.startswith("[") else f".{error.param}"
    text = error.message.removeprefix(f"{error.param}: ")
    return ApiError(error.status, f"{param}: {text}", param=param, code=error.code)


def refused(field: str, text: str) -> ApiError:
    """400, with the field at fault."""
    return ApiError(400, f"{field}: {text}", param=field)


def _call_id(value: object, where: str) -> str:
    return converted({"id": value}, _Id, where).id


class _Id(msgspec.Struct):
    id: CallId
