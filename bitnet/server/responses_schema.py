"""What /v1/responses takes: its fields and items, and the chat request that says the same."""

import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from ..generation.json_schema import JSONSchema
from .conversation import (
    Conversation,
    converted,
    function_of,
    function_tool,
    refused,
    schema_format,
)
from .schema import (
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    ChatRequest,
    Count,
    Effort,
    GenerationRequest,
    Ignored,
    NamedSchema,
    NamedTool,
    Nested,
    ResponseFormat,
    TemplateValues,
    Tool,
)

MAX_ITEMS = 8192  # items of an input: a call and its result are two
MAX_TOOL_ENTRIES = 256  # tools of a request with those that are left out
TEXT_PARTS = ("input_text", "output_text", "text")
# Tools that OpenAI runs itself, or has a client run by rules of its own
HOSTED = {
    "apply_patch", "code_interpreter", "computer", "computer_use_preview", "file_search",
    "image_generation", "local_shell", "mcp", "programmatic_tool_calling", "shell", "tool_search",
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
}  # fmt: skip
# What a response may have more of, beside what comes with tools of HOSTED
LOGPROBS = "message.output_text.logprobs"
INCLUDES = {
    LOGPROBS, "reasoning.encrypted_content", "code_interpreter_call.outputs",
    "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "web_search_call.action.sources", "web_search_call.results",
}  # fmt: skip
# Fields of items and tools; of some, what they say changes nothing here
ITEM_FIELDS = {
    "message": {"role", "content", "phase"},
    "reasoning": {"content", "summary", "encrypted_content"},
    "function_call": {"call_id", "name", "arguments", "namespace", "caller"},
    "custom_tool_call": {"call_id", "name", "input", "namespace", "caller"},
    "function_call_output": {"call_id", "output", "caller"},
    "custom_tool_call_output": {"call_id", "output", "caller"},
    "item_reference": set[str](),
}
FUNCTION_FIELDS = {
    "type", "name", "description", "parameters", "strict", "allowed_callers", "defer_loading",
    "output_schema",
}  # fmt: skip
CUSTOM_FIELDS = {"type", "name", "description", "format", "allowed_callers", "defer_loading"}
NAMESPACE_FIELDS = {"type", "name", "description", "tools"}
# fields of a chat request -> what they are called here; see Conversation.renamed
NAMES = {
    r"tools\[(\d+)\]\.function": r"tools[\1]", "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
}  # fmt: skip


class TextFormat(Nested, tag_field="type", tag="text"):
    pass


class ObjectFormat(Nested, tag_field="type", tag="json_object"):
    schema: ClassVar[JSONSchema] = {"type": "object"}


class FlatSchemaFormat(NamedSchema, tag_field="type", tag="json_schema"):
    pass


class TextOptions(Nested):
    """``text``."""

    format: TextFormat | ObjectFormat | FlatSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Nested):
    """``reasoning``. summary, generate_summary: what a model thinks is told whole."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Ignored = None
    context: Ignored = None


class ResponsesRequest(GenerationRequest):
    input: str | Annotated[list[Any], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextOptions | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOL_ENTRIES)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    previous_response_id: Annotated[str, Meta(max_length=128)] | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    chat_template_kwargs: TemplateValues | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None
    client_metadata: Ignored = None
    max_tool_calls: Ignored = None  # of tools of HOSTED
    context_management: Ignored = None  # by the client here, or by truncation
    prompt_cache_options: Ignored = None

    n: ClassVar[int] = 1

    @property
    def has_logprobs(self) -> bool:
        """Whether they are asked for."""
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)


class TurnsRequest(ChatRequest):
    """A ChatRequest with what chats do not have. truncates: see truncation.py."""

    truncates: bool = False  # type: ignore[misc]


class Names:
    """What functions are to the client. custom: those whose one argument is a text."""

    def __init__(self) -> None:
        self.custom: set[str] = set()
        self.namespaced: dict[str, tuple[str, str]] = {}  # function -> (namespace, name there)

    def function(self, namespace: object, name: object) -> object:
        """The function that the client calls so."""
        for function, pair in self.namespaced.items():
            if pair == (namespace, name):
                return function
        return name


def chat_request(
    body: ResponsesRequest,
    conversation: Conversation,
    output: list[dict[str, Any]],
    find_item: Callable[[str, str], Any],
) -> tuple[ChatRequest, Names]:
    """The ChatRequest of a request, and what its functions are called. ApiError.

    conversation: what came before, to which the request's items are added. output: the items of the
    response to it. find_item: gives the item of an id that an item_reference names; its other
    argument is the field.
    """
    for name in set(body.include or ()) - INCLUDES:
        raise refused("include", f"{name[:80]!r} is not supported")
    names = Names()
    tools, is_left_out = _tools(body, names, conversation)
    choice, tools = _choice(body, tools, names, is_left_out)
    items = _Items(conversation, names, find_item)
    items.add(output, "previous_response_id")
    items.add(body.input, "input")
    if body.instructions is not None:
        conversation.begin("system", body.instructions, "instructions")
    same = ("parallel_tool_calls", "chat_template_kwargs", "reasoning_format")
    fields: dict[str, Any] = {
        name: getattr(body, name) for name in (*GenerationRequest.__struct_fields__, *same)
    }
    fields["stream_options"] = None
    fields["verbosity"] = body.text.verbosity if body.text else None
    if body.has_logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    fields["reasoning_effort"] = body.reasoning.effort if body.reasoning else None
    return TurnsRequest(
        messages=conversation.some("input"),
        response_format=_format(body),
        max_completion_tokens=body.max_output_tokens,
        tools=tools or None,
        tool_choice=choice,
        truncates=body.truncation == "auto",
        **fields,
    ), names


def _format(body: ResponsesRequest) -> ResponseFormat | None:
    given = body.text.format if body.text else None
    if given is None or isinstance(given, TextFormat):
        return None
    return schema_format(given.schema)


# ------------------------------------------------------------------------------------------- tools
def _tools(
    body: ResponsesRequest, names: Names, conversation: Conversation
) -> tuple[list[Tool], bool]:
    """(the functions, whether any tool is left out)."""
    tools: list[Tool] = []
    is_left_out = False
    for i, tool in enumerate(body.tools or ()):
        where, kind = f"tools[{i}]", tool.get("type")
        if kind == "function":
            conversation.check(tool, FUNCTION_FIELDS, where)
            tools.append(function_tool(tool, "parameters", where))
        elif kind == "custom":
            conversation.check(tool, CUSTOM_FIELDS, where)
            tools.append(_custom_tool(tool, where))
            names.custom.add(tools[-1].function.name)
        elif kind == "namespace":
            conversation.check(tool, NAMESPACE_FIELDS, where)
            tools += _of_namespace(tool, names, where, conversation)
        elif isinstance(kind, str) and kind in HOSTED:
            conversation.leave_out(kind, where)
            is_left_out = True
        else:
            raise refused(f"{where}.type", f"{str(kind)[:80]!r} is not supported")
    if len(tools) > MAX_TOOLS:
        raise refused("tools", f"{len(tools)} functions (at most {MAX_TOOLS})")
    return tools, is_left_out


def _custom_tool(tool: dict[str, Any], where: str) -> Tool:
    """A function with one text, that a client takes as it is."""
    about = str(tool.get("description") or "")
    shape = tool.get("format")
    if isinstance(shape, dict) and shape.get("type") == "grammar":
        about += f"\nThe input follows this grammar ({shape.get('syntax')}):\n"
        about += str(shape.get("definition"))
    inner = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    described = {"name": tool.get("name"), "description": about, "parameters": inner}
    return function_tool(described, "parameters", where)


def _of_namespace(
    tool: dict[str, Any], names: Names, where: str, conversation: Conversation
) -> list[Tool]:
    """The functions of a namespace, whose names get its own in front."""
    inner = tool.get("tools")
    if not isinstance(inner, list):
        raise refused(f"{where}.tools", "expected a list")
    found, space = [], str(tool.get("name"))
    for i, one in enumerate(inner):
        inside = f"{where}.tools[{i}]"
        if not isinstance(one, dict) or one.get("type") != "function":
            raise refused(f"{inside}.type", "only functions are supported in a namespace")
        conversation.check(one, FUNCTION_FIELDS, inside)
        long = f"{space.rstrip('_')}__{one.get('name')}"
        found.append(function_tool(one | {"name": long[:64]}, "parameters", inside))
        names.namespaced[found[-1].function.name] = (space, str(one.get("name")))
    return found


def _choice(
    body: ResponsesRequest, tools: list[Tool], names: Names, is_left_out: bool
) -> tuple[Any, list[Tool]]:
    """(the tool_choice of a chat, the functions that may be called)."""
    choice = body.tool_choice
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind in ("function", "custom"):
            name = names.function(choice.get("namespace"), choice.get("name"))
            return NamedTool(function=function_of(name, "tool_choice")), tools
        if kind != "allowed_tools" or not isinstance(choice.get("tools"), list):
            raise refused("tool_choice.type", f"{str(kind)[:80]!r} is not supported")
        allowed = [
            names.function(one.get("namespace"), one.get("name"))
            for one in choice["tools"]
            if isinstance(one, dict)
        ]
        tools = [tool for tool in tools if tool.function.name in allowed]
        choice = choice.get("mode") or "auto"
        if choice not in ("auto", "required"):
            raise refused("tool_choice.mode", "auto or required")
    if choice == "required" and not tools and is_left_out:
        raise refused("tool_choice", "none of the tools can be called here")
    return choice, tools


# ------------------------------------------------------------------------------------------- items
class _Message(Struct):
    role: str
    content: Any


class _Items:
    """Adds the items of an input to a conversation."""

    def __init__(
        self, conversation: Conversation, names: Names, find_item: Callable[[str, str], Any]
    ) -> None:
        self._conversation, self._names, self._find_item = conversation, names, find_item
        self._referred: set[str] = set()
        self._adders: dict[str, Callable[[dict[str, Any], str], None]] = {
            "message": self._message,
            "reasoning": self._reasoning,
            "function_call": self._function_call,
            "custom_tool_call": self._custom_call,
            "function_call_output": self._output,
            "custom_tool_call_output": self._output,
            "item_reference": self._reference,
        }

    def add(self, items: str | list[Any], where: str) -> None:
        if isinstance(items, str):
            self._conversation.say("user", items, where)
            return
        for i, item in enumerate(items):
            self._add(item, f"{where}[{i}]")

    def _add(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise refused(where, "expected an object")
        kind = item.get("type") or "message"
        adder = self._adders.get(kind) if isinstance(kind, str) else None
        if adder is None:
            raise refused(f"{where}.type", f"{str(kind)[:80]!r} is not supported")
        assert isinstance(kind, str)
        self._conversation.check(item, ITEM_FIELDS[kind] | {"type", "id", "status"}, where)
        adder(item, where)

    def _message(self, item: dict[str, Any], where: str) -> None:
        message = converted(item, _Message, where)
        field = f"{where}.content"
        if isinstance(message.content, list):
            message.content = [
                part | {"type": "text", "text": part["refusal"]}
                if isinstance(part, dict) and "refusal" in part
                else part
                for part in message.content
            ]
        text = self._conversation.texts(message.content, TEXT_PARTS, field)
        self._conversation.say(message.role, text, where)

    def _reasoning(self, item: dict[str, Any], where: str) -> None:
        content = item.get("content") or item.get("summary") or []
        kinds = ("reasoning_text", "summary_text", "text")
        self._conversation.think(self._conversation.texts(content, kinds, f"{where}.content"))

    def _function_call(self, item: dict[str, Any], where: str) -> None:
        name = self._names.function(item.get("namespace"), item.get("name"))
        arguments = converted({"arguments": item.get("arguments")}, _Arguments, where).arguments
        self._conversation.call(item.get("call_id"), name, arguments or "{}", where)

    def _custom_call(self, item: dict[str, Any], where: str) -> None:
        arguments = json.dumps({"input": item.get("input")}, ensure_ascii=False)
        self._conversation.call(item.get("call_id"), item.get("name"), arguments, where)

    def _output(self, item: dict[str, Any], where: str) -> None:
        output, field = item.get("output"), f"{where}.output"
        text = self._conversation.texts(output, TEXT_PARTS, field, is_result=True)
        self._conversation.answer(item.get("call_id"), text, where, "call_id")

    def _reference(self, item: dict[str, Any], where: str) -> None:
        item_id = str(item.get("id"))
        if item_id in self._referred:  # a few bytes would stand for a long text again and again
            raise refused(f"{where}.id", f"{item_id[:80]!r} is referred to twice")
        self._referred.add(item_id)
        found = self._find_item(item_id, f"{where}.id")
        if isinstance(found, dict) and found.get("type") != "item_reference":
            self._add(found, where)


class _Arguments(Struct):
    arguments: str
