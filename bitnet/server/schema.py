"""What requests may hold: their fields with types and bounds, checked before anything is done.

Fields that change nothing are ignored, known ones that this server cannot honour are refused unless
their value asks for nothing, and unknown ones are refused.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..generation.sampling import SAMPLING_FIELDS
from .errors import ApiError, of_json

MAX_BODY = 4 << 20  # bytes of a body: a text of 128k tokens eight times
MAX_BODIES = 64 << 20  # bytes of all bodies that are being read: 16 of the largest
MAX_N = 16  # choices of a request
MAX_PROMPTS = 16  # prompts of a request for completions
MAX_MESSAGES = 4096  # messages of a conversation
MAX_INPUTS = 256  # texts to embed in a request
MAX_TOOLS = 128  # functions of a request: OpenAI's limit
MAX_DESCRIPTION = 4096  # characters of a function's description
MAX_TOKENS_LISTED = 1 << 17  # token ids of a request or an answer: 128k, the longest contexts
MAX_TOP_LOGPROBS = 20  # likeliest tokens at each place: OpenAI's limit

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_TOKENS_LISTED)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Annotated[list[StopText], Meta(max_length=16)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Biases = Annotated[dict[TokenId, Bias], Meta(max_length=1024)]

# Bounds that HTTP has other than generation.sampling: OpenAI's seeds are signed, and many clients
# write a top_k of -1 for "all".
OWN_BOUNDS = {"seed": {"ge": -(2**63), "le": 2**63 - 1}, "top_k": {"ge": -1}}

# Fields of OpenAI's that do not touch the result of a request
IGNORED = {
    "metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
}  # fmt: skip
# Fields that are not supported, with the values that ask for nothing, beside null
REFUSED = {
    "audio": (), "background": (False,), "best_of": (1,), "chat_template": (),
    "chat_template_kwargs": ({},), "conversation": (), "echo": (False,),
    "function_call": ("none", "auto"), "functions": ([],), "grammar": (), "guided_json": (),
    "guided_regex": (), "include": ([],), "json_schema": (), "max_tool_calls": (),
    "modalities": (["text"],), "parallel_tool_calls": (True, False), "previous_response_id": (),
    "reasoning": ({},), "reasoning_effort": (), "response_format": ({"type": "text"},),
    "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],), "top_logprobs": (0,),
    "truncation": ("disabled",), "verbosity": (), "web_search_options": (),
}  # fmt: skip


class TextFormat(Struct, tag_field="type", tag="text"):
    schema = None


class ObjectFormat(Struct, tag_field="type", tag="json_object"):
    @property
    def schema(self):
        return {"type": "object"}


class JSONSchema(Struct):
    schema: dict[str, Any] | bool
    name: str | None = None
    description: str | None = None
    strict: bool | None = None  # always


class SchemaFormat(Struct, tag_field="type", tag="json_schema"):
    json_schema: JSONSchema

    @property
    def schema(self):
        return self.json_schema.schema


class StreamOptions(Struct):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers: there is none


def _within_bounds(field):
    """The type of a number, or null, within the bounds of a SamplingField."""
    bounds = {"ge" if field.lower_allowed else "gt": field.lower, "le": field.upper}
    return Annotated[field.kind, Meta(**bounds | OWN_BOUNDS.get(field.name, {}))] | None


SamplingSettings = msgspec.defstruct(
    "SamplingSettings",
    [(field.name, _within_bounds(field), None) for field in SAMPLING_FIELDS],
    kw_only=True,
)


class Settings(SamplingSettings, kw_only=True):
    """What everything that generates has in common; the numbers are generation.sampling's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopText | Stops | None = None
    logit_bias: Biases | None = None


class Sampled(Settings, kw_only=True):
    """What chat and text completions have in common."""

    max_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None


class TextPart(Struct, tag_field="type", tag="text"):
    text: str


FunctionName = Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class Function(Struct):
    name: FunctionName
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # always

    @property
    def schema(self):
        """Of the arguments."""
        return self.parameters or {"type": "object", "additionalProperties": False}

    def about(self):
        """What a model is told."""
        return {"name": self.name, "description": self.description or "", "parameters": self.schema}


class Tool(Struct, tag_field="type", tag="function"):
    function: Function


class FunctionOf(Struct):
    name: FunctionName


class NamedTool(Struct, tag_field="type", tag="function"):
    function: FunctionOf


class CalledFunction(Struct):
    name: FunctionName
    arguments: str  # JSON


CallId = Annotated[str, Meta(min_length=1, max_length=128)]


class ToolCall(Struct, tag_field="type", tag="function"):
    id: CallId
    function: CalledFunction


class Message(Struct):
    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None
    function_call: Any = None

    def text(self, where):
        """The content as one text."""
        if self.content is None and not self.tool_calls:
            raise ApiError(400, f"{where}.content: missing", param=f"{where}.content")
        return _joined(self.content or "")

    def as_dict(self, where):
        """What a chat template takes, without calls."""
        if self.function_call:
            field = f"{where}.function_call"
            raise ApiError(400, f"{field}: not supported", param=field)
        if self.tool_calls and self.role != "assistant":
            field = f"{where}.tool_calls"
            raise ApiError(400, f"{field}: of an assistant only", param=field)
        message = {"role": self.role, "content": self.text(where)}
        return message if self.name is None else message | {"name": self.name}


Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]


class ChatRequest(Sampled):
    messages: Messages
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    format_field = "response_format"


class TextRequest(Sampled):
    prompt: (
        str
        | Annotated[
            list[str | TokenId | TokenIds], Meta(min_length=1, max_length=MAX_TOKENS_LISTED)
        ]
    )
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class InputText(Struct, tag_field="type", tag="input_text"):
    text: str


class OutputText(Struct, tag_field="type", tag="output_text"):
    text: str


class InputMessage(Struct):
    """Of /v1/responses. type: of what OpenAI has beside messages, nothing is supported."""

    role: str
    content: str | list[InputText | OutputText]
    type: Literal["message"] = "message"

    def as_dict(self):
        """What a chat template takes; templates call a developer system."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": _joined(self.content)}


class FlatSchemaFormat(JSONSchema, tag_field="type", tag="json_schema"):
    pass


class TextOptions(Struct):
    """``text`` of /v1/responses."""

    format: TextFormat | ObjectFormat | FlatSchemaFormat | None = None
    verbosity: None = None

    def shown(self):
        """The format as a response tells it."""
        return msgspec.to_builtins(self.format or TextFormat())


class ResponsesRequest(Settings):
    input: str | Annotated[list[InputMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextOptions | None = None

    n, format_field = 1, "text.format"

    @property
    def response_format(self):
        return self.text and self.text.format

    def messages(self):
        """What a chat template takes."""
        if self.instructions is not None:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
        else:
            yield from (message.as_dict() for message in self.input)


class EmbeddingRequest(Struct):
    input: (
        str
        | Annotated[
            list[str | TokenId | TokenIds], Meta(min_length=1, max_length=MAX_TOKENS_LISTED)
        ]
    )
    model: str | None = None
    encoding_format: str | None = None
    dimensions: Count | None = None


class TokenizeRequest(Struct):
    model: str | None = None
    prompt: str | UnsetType = UNSET
    messages: Messages | UnsetType = UNSET
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(Struct):
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS_LISTED)]
    model: str | None = None


def _joined(content):
    """A message's content, a text or its parts, as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def parse(body, kind):
    """A request of this kind from bytes of JSON. ApiError that names the field at fault."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        _check_others(fields.keys() - set(kind.__struct_fields__), fields)
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise of_json(error) from None


def _check_others(names, fields):
    for name in sorted(names - IGNORED):
        value = msgspec.json.decode(fields[name])
        if value is None:
            continue
        if name not in REFUSED:
            raise ApiError(400, f"{name[:80]}: unknown field", param=name[:80])
        if not any(type(value) is type(v) and value == v for v in REFUSED[name]):
            raise ApiError(400, f"{name}: not supported by this server", param=name)


def sequences(value, field, max_entries):
    """[text or list of ids] from a text, a list of texts, ids, or a list of lists of ids.

    ApiError, naming the field, for a mixture of these or more than max_entries.
    """
    if isinstance(value, str):
        return [value]
    types = {type(entry) for entry in value}
    if types == {int}:
        return [value]
    if len(types) != 1:
        raise ApiError(400, f"{field}: texts and token ids are mixed", param=field)
    if len(value) > max_entries:
        message = f"{field}: {len(value)} entries (at most {max_entries})"
        raise ApiError(400, message, param=field)
    return value
