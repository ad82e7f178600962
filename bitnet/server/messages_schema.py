"""What /v1/messages takes, Anthropic's protocol, and the chat request that says the same."""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

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
from .responses_schema import MAX_TOOL_ENTRIES
from .schema import (
    MAX_MESSAGES,
    MAX_TOOLS,
    AnyRequest,
    ChatRequest,
    Count,
    Ignored,
    NamedTool,
    Nested,
    SamplingRequest,
    Stops,
    TemplateValues,
    Tool,
)

# Tools that Anthropic runs itself, by what their dated types begin with
HOSTED = (
    "advisor", "code_execution", "mcp_toolset", "tool_search_tool", "web_fetch", "web_search",
)  # fmt: skip
# Fields of blocks and tools; of some, what they say changes nothing here
BLOCK_FIELDS = {
    "text": {"text", "citations"}, "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"}, "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "document": {"source", "title", "context", "citations"},
}  # fmt: skip
TOOL_FIELDS = {
    "type", "name", "description", "input_schema", "strict", "cache_control", "allowed_callers",
    "defer_loading", "eager_input_streaming", "input_examples",
}  # fmt: skip
# What Claude Code puts in front of its system prompt; it changes with every request and tells a
# model nothing, and no prompt would begin like another
ATTRIBUTION = "x-anthropic-billing-header:"
# fields of a chat request -> what they are called here; see Conversation.renamed
NAMES = {
    r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].input_schema",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
    "response_format": "output_config.format",
    "max_completion_tokens": "max_tokens",
    "stop$": "stop_sequences",
}


class Turn(Nested):
    role: Literal["user", "assistant", "system"]
    content: str | list[Any]


class JSONFormat(Nested, tag_field="type", tag="json_schema"):
    schema: JSONSchema


class OutputConfig(Nested):
    format: JSONFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    task_budget: Ignored = None


class Thinking(Nested):
    """budget_tokens: nothing here counts them apart; max_tokens is of both."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Ignored = None
    display: Ignored = None


class PromptRequest(SamplingRequest, AnyRequest):  # type: ignore[misc]
    """What both endpoints read, beside the numbers of Sampling."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[Any] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOL_ENTRIES)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JSONFormat | None = None
    chat_template_kwargs: TemplateValues | None = None
    max_tokens: Count | None = None
    stop_sequences: Stops | None = None
    stream: bool | None = None
    container: None = None  # of tools that are not run here
    mcp_servers: Annotated[list[Any], Meta(max_length=0)] | None = None
    # what changes nothing here: accounts, caches, and what a client does with its own context
    betas: Ignored = None
    cache_control: Ignored = None
    context_management: Ignored = None
    diagnostics: Ignored = None
    fallbacks: Ignored = None
    inference_geo: Ignored = None
    speed: Ignored = None


class MessagesRequest(PromptRequest, kw_only=True):
    max_tokens: Count


def chat_request(body: PromptRequest, conversation: Conversation) -> ChatRequest:
    """The ChatRequest of a request, whose messages are added to the conversation. ApiError."""
    tools, is_left_out = _tools(body, conversation)
    choice, parallel = _choice(body, tools, is_left_out)
    if body.system is not None and (system := _system(body.system, conversation)):
        conversation.say("system", system, "system")
    for i, turn in enumerate(body.messages):
        _add(turn, conversation, f"messages[{i}]")
    given = body.output_format or (body.output_config and body.output_config.format)
    names = [field for field in SamplingRequest.__struct_fields__ if field != "model"]
    return ChatRequest(
        messages=conversation.some("messages"),
        model=body.model,
        stream=body.stream,
        stop=body.stop_sequences,
        tools=tools or None,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        max_completion_tokens=body.max_tokens,
        response_format=schema_format(given.schema) if given else None,
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=_effort(body),
        continue_final_message=_continues(conversation),
        **{name: getattr(body, name) for name in names},
    )


def _continues(conversation: Conversation) -> bool:
    """Whether the reply goes on with the assistant's last text, as it does in this protocol."""
    last = conversation.messages[-1] if conversation.messages else None
    return last is not None and last.role == "assistant" and not last.tool_calls


def _effort(body: PromptRequest) -> str | None:
    if body.thinking is not None and body.thinking.type == "disabled":
        return "none"
    return body.output_config.effort if body.output_config else None


def _system(content: str | list[Any], conversation: Conversation) -> str:
    if isinstance(content, str):
        return content
    text = conversation.texts(content, ("text",), "system")
    if text.startswith(ATTRIBUTION):
        text = text.partition("\n")[2]
    return text


def _tools(body: PromptRequest, conversation: Conversation) -> tuple[list[Tool], bool]:
    """(the functions, whether any tool is left out)."""
    tools: list[Tool] = []
    is_left_out = False
    for i, tool in enumerate(body.tools or ()):
        where, kind = f"tools[{i}]", tool.get("type")
        if kind in (None, "custom"):
            if tool.get("input_schema") is None:
                raise refused(f"{where}.input_schema", "missing")
            conversation.check(tool, TOOL_FIELDS, where)
            tools.append(function_tool(tool, "input_schema", where))
            continue
        hosted = next((name for name in HOSTED if str(kind).startswith(name)), None)
        if hosted is None:
            raise refused(f"{where}.type", f"{str(kind)[:80]!r} is not supported")
        conversation.leave_out(hosted, where)
        is_left_out = True
    if len(tools) > MAX_TOOLS:
        raise refused("tools", f"{len(tools)} functions (at most {MAX_TOOLS})")
    return tools, is_left_out


def _choice(body: PromptRequest, tools: list[Tool], is_left_out: bool) -> tuple[Any, bool | None]:
    """(the tool_choice of a chat, its parallel_tool_calls)."""
    given = body.tool_choice
    if given is None:
        return None, None
    kind = given.get("type")
    parallel = False if given.get("disable_parallel_tool_use") is True else None
    if kind == "tool":
        function = function_of(given.get("name"), "tool_choice")
        if is_left_out and function.name not in [tool.function.name for tool in tools]:
            raise refused("tool_choice", f"{function.name!r} is not run here")
        return NamedTool(function=function), parallel
    if kind not in ("auto", "any", "none"):
        raise refused("tool_choice.type", f"{str(kind)[:80]!r} is not supported")
    if kind == "any" and not tools:
        raise refused("tool_choice", "no tools that can be called here")
    return ("required" if kind == "any" else kind), parallel


# ---------------------------------------------------------------------------------------- messages
def _add(turn: Turn, conversation: Conversation, where: str) -> None:
    """The messages of a chat for one turn: each result of a tool is one of its own."""
    if isinstance(turn.content, str):
        conversation.say(turn.role, turn.content, where)
        return
    adders = {"user": _Results, "assistant": _Calls, "system": _Blocks}
    adder = adders[turn.role](conversation, turn.role)
    for i, block in enumerate(turn.content):
        adder.add(block, f"{where}.content[{i}]")
    adder.end(where)


class _Blocks:
    """The blocks of one turn: text."""

    def __init__(self, conversation: Conversation, role: str) -> None:
        self._conversation, self._role = conversation, role
        self._texts: list[str] = []
        self._has_other = False
        self._readers: dict[str, Callable[[dict[str, Any], str], None]] = {"text": self._text}

    def add(self, block: Any, where: str) -> None:
        kind = block.get("type") if isinstance(block, dict) else None
        reader = self._readers.get(kind) if isinstance(kind, str) else None
        if reader is None:
            raise refused(f"{where}.type", f"{str(kind)[:80]!r} is not supported")
        assert isinstance(kind, str)
        self._conversation.check(block, BLOCK_FIELDS[kind] | {"type", "cache_control"}, where)
        reader(block, where)

    def end(self, where: str) -> None:
        """What is left becomes a message; a turn of no block is an empty one."""
        if self._texts or not self._has_other:
            self._conversation.say(self._role, "\n".join(self._texts), where)
        self._texts = []

    def _text(self, block: dict[str, Any], where: str) -> None:
        self._texts.append(converted(block, _Text, where).text)


class _Results(_Blocks):
    """Of a user's turn: text, documents of plain text, results of tools."""

    def __init__(self, conversation: Conversation, role: str) -> None:
        super().__init__(conversation, role)
        self._readers |= {"tool_result": self._result, "document": self._document}

    def _result(self, block: dict[str, Any], where: str) -> None:
        if self._texts:
            self.end(where)
        content, field = block.get("content"), f"{where}.content"
        text = self._conversation.texts(content, ("text",), field, is_result=True)
        if block.get("is_error") is True:
            text = f"Error: {text}"
        self._conversation.answer(block.get("tool_use_id"), text, where, "tool_use_id")
        self._has_other = True

    def _document(self, block: dict[str, Any], where: str) -> None:
        source = block.get("source")
        if not isinstance(source, dict) or source.get("type") != "text":
            raise refused(f"{where}.source", "only documents of plain text are supported")
        self._texts.append(converted({"text": source.get("data")}, _Text, f"{where}.source").text)


class _Calls(_Blocks):
    """Of an assistant's turn: text, thoughts, calls."""

    def __init__(self, conversation: Conversation, role: str) -> None:
        super().__init__(conversation, role)
        self._readers |= {
            "thinking": self._thinking, "redacted_thinking": self._redacted,
            "tool_use": self._call,
        }  # fmt: skip

    def _thinking(self, block: dict[str, Any], where: str) -> None:
        text = converted({"text": block.get("thinking")}, _Text, where).text
        self._conversation.think(text)
        self._has_other = True

    def _redacted(self, block: dict[str, Any], where: str) -> None:
        self._has_other = True  # others can read it

    def _call(self, block: dict[str, Any], where: str) -> None:
        if self._texts:
            self.end(where)
        given = block.get("input")
        if not isinstance(given, dict):
            raise refused(f"{where}.input", "expected an object")
        arguments = json.dumps(given, ensure_ascii=False)
        self._conversation.call(block.get("id"), block.get("name"), arguments, where)
        self._has_other = True


class _Text(Struct):
    text: str
