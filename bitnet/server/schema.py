"""What requests may hold: their fields with types and bounds, checked before anything is done.

Fields that change nothing are ignored, known ones that this server cannot honour are refused unless
their value asks for nothing, and unknown ones are refused.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..generation.sampling import SAMPLING_FIELDS, SamplingField
from .errors import ApiError, json_error

MAX_N = 16  # choices of a request
MAX_PROMPTS = 16  # prompts of a request for completions
MAX_MESSAGES = 4096  # messages of a conversation
MAX_INPUTS = 256  # texts to embed in a request
MAX_TOOLS = 128  # functions of a request: OpenAI's limit
MAX_DESCRIPTION = 16 << 10  # characters of a function's description
MAX_TOKENS_LISTED = 1 << 17  # token ids of a request or an answer: 128k, the longest contexts
MAX_TOP_LOGPROBS = 20  # likeliest tokens at each place: OpenAI's limit

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_TOKENS_LISTED)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Annotated[list[StopText], Meta(max_length=16)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TemplateValues = dict[str, Any]  # ChatTemplate.check_values says what they may be
Biases = Annotated[dict[TokenId, Bias], Meta(max_length=1024)]

# Bounds that HTTP has other than generation.sampling: OpenAI's seeds are signed, its top_p may be
# 0, and many clients write a top_k of -1 for "all".
OWN_BOUNDS: dict[str, dict[str, Any]] = {
    "seed": {"ge": -(2**63), "le": 2**63 - 1}, "top_k": {"ge": -1}, "top_p": {"gt": None, "ge": 0},
}  # fmt: skip

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
    "reasoning": ({},), "response_format": ({"type": "text"},),
    "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],), "top_logprobs": (0,),
    "truncation": ("disabled",), "verbosity": (), "web_search_options": (),
}  # fmt: skip


JSONSchema = dict[str, Any] | bool
SCHEMA_FIELDS = ("schema", "value", "parameters")  # whose value is one


class Nested(Struct, forbid_unknown_fields=True):
    """An object inside a request. Unknown fields are refused here too, unless they are null.

    What clients send back of an answer, or send to others, and changes nothing is Ignored.
    """


Ignored = Any


class TextFormat(Nested, tag_field="type", tag="text"):
    @property
    def schema(self) -> JSONSchema | None:
        return None


class ObjectFormat(Nested, tag_field="type", tag="json_object"):
    """given, value: what llama.cpp's server and the Hugging Face hub's client call a schema."""

    given: JSONSchema | UnsetType = msgspec.field(name="schema", default=UNSET)
    value: JSONSchema | UnsetType = UNSET

    @property
    def schema(self) -> JSONSchema | None:
        if self.given is not UNSET:
            return self.given
        return {"type": "object"} if self.value is UNSET else self.value

    def __post_init__(self) -> None:
        if self.given is not UNSET and self.value is not UNSET:
            raise ValueError("schema and value: one of them")


class NamedSchema(Nested):
    schema: JSONSchema
    name: str | None = None
    description: str | None = None
    strict: bool | None = None  # ignored: schemas are always followed


class SchemaFormat(Nested, tag_field="type", tag="json_schema"):
    json_schema: NamedSchema

    @property
    def schema(self) -> JSONSchema | None:
        return self.json_schema.schema


class StreamOptions(Nested):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers: there is none


def _within_bounds(field: SamplingField) -> Any:
    """The type of a number, or null, within the bounds of a SamplingField."""
    bounds: dict[str, Any] = {"ge" if field.lower_allowed else "gt": field.lower, "le": field.upper}
    return Annotated[field.kind, Meta(**bounds | OWN_BOUNDS.get(field.name, {}))] | None


class AnyRequest(Struct, kw_only=True):
    """What all requests have in common."""

    model: str | None = None


SamplingRequest: Any = msgspec.defstruct(
    "SamplingRequest",
    [(field.name, _within_bounds(field), None) for field in SAMPLING_FIELDS],
    bases=(AnyRequest,),
    kw_only=True,
)


class GenerationRequest(SamplingRequest, kw_only=True):  # type: ignore[misc, call-arg]
    """What all requests that generate have in common, beside the numbers of Sampling."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopText | Stops | None = None
    logit_bias: Biases | None = None


class CompletionsRequest(GenerationRequest, kw_only=True):  # type: ignore[call-arg]
    """What chat and text completions have in common."""

    max_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None


class TextPart(Nested, tag_field="type", tag="text"):
    text: str
    cache_control: Ignored = None


FunctionName = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9_-]{1,64}\Z")]


class Function(Nested):
    name: FunctionName
    description: Annotated[str, Meta(max_length=MAX_DESCRIPTION)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # ignored: schemas are always followed

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        if not self.parameters:
            return {"type": "object", "additionalProperties": False}
        return {"type": "object"} | self.parameters

    def about(self) -> dict[str, Any]:
        """What a model is told."""
        return {"name": self.name, "description": self.description or "", "parameters": self.schema}


class Tool(Nested, tag_field="type", tag="function"):
    function: Function
    cache_control: Ignored = None


class FunctionOf(Nested):
    name: FunctionName


class NamedTool(Nested, tag_field="type", tag="function"):
    function: FunctionOf


class CalledFunction(Nested):
    name: FunctionName
    arguments: str  # JSON


CallId = Annotated[str, Meta(min_length=1, max_length=128)]


class ToolCall(Nested, tag_field="type", tag="function"):
    id: CallId
    function: CalledFunction
    index: Ignored = None


class Message(Nested):
    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None
    function_call: Any = None
    id: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: None = None
    reasoning: Ignored = None  # templates drop what an assistant thought in earlier turns
    reasoning_content: Ignored = None
    provider_specific_fields: Ignored = None

    def text(self, where: str) -> str:
        """The content as one text."""
        if self.content is None and not self.tool_calls:
            raise ApiError(400, f"{where}.content: missing", param=f"{where}.content")
        return _joined(self.content or "")

    def as_dict(self, where: str) -> dict[str, str]:
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


class ChatRequest(CompletionsRequest):
    messages: Messages
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateValues | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None  # text.reasoning.FORMATS
    reasoning_effort: str | None = None  # see thinking.py

    format_field: ClassVar[str] = "response_format"
    truncates: ClassVar[bool] = False  # see truncation.py


class TextRequest(CompletionsRequest):
    prompt: (
        str
        | Annotated[
            list[str | TokenId | TokenIds], Meta(min_length=1, max_length=MAX_TOKENS_LISTED)
        ]
    )
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class EmbeddingRequest(AnyRequest):
    input: (
        str
        | Annotated[
            list[str | TokenId | TokenIds], Meta(min_length=1, max_length=MAX_TOKENS_LISTED)
        ]
    )
    encoding_format: str | None = None
    dimensions: Count | None = None


class TokenizeRequest(AnyRequest):
    prompt: str | UnsetType = UNSET
    messages: Messages | UnsetType = UNSET
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: TemplateValues | None = None


class DetokenizeRequest(AnyRequest):
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS_LISTED)]


def _joined(content: Any) -> str:
    """A message's content, a text or its parts, as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


R = TypeVar("R", bound=AnyRequest)


def parse(body: bytes, kind: type[R]) -> R:
    """A request of this kind from bytes of JSON. ApiError that names the field at fault."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        _check_others(fields.keys() - set(kind.__struct_fields__), fields)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            if "unknown field" not in str(error):
                raise
            values = {
                name: _without_nulls(msgspec.json.decode(raw)) for name, raw in fields.items()
            }
            return msgspec.convert(values, kind, str_keys=True)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise json_error(error) from None


def _without_nulls(value: Any) -> Any:
    """JSON without the fields that are null, known or not, but for those inside schemas.

    Clients send back all fields of an answer, also those that came with their newest version.
    """
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        name: entry if name in SCHEMA_FIELDS else _without_nulls(entry)
        for name, entry in value.items()
        if entry is not None
    }


def _check_others(names: Iterable[str], fields: dict[str, msgspec.Raw]) -> None:
    for name in sorted(set(names) - IGNORED):
        if bytes(fields[name]) == b"null":
            continue
        if name not in REFUSED:
            raise ApiError(400, f"{name[:80]}: unknown field", param=name[:80])
        value = msgspec.json.decode(fields[name])
        if not any(type(value) is type(v) and value == v for v in REFUSED[name]):
            raise ApiError(400, f"{name}: not supported by this server", param=name)


def sequences(value: str | list[Any], field: str, max_entries: int) -> list[str | list[int]]:
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
