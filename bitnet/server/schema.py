"""What requests may hold: their fields with types and bounds, checked before anything is done.

parsing.py says what becomes of fields that are not here.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..generation.json_schema import JSONSchema
from ..generation.sampling_fields import SAMPLING_FIELDS, SamplingField
from .errors import ApiError

MAX_N = 16  # choices of a request
MAX_PROMPTS = 16  # prompts of a request for completions
MAX_MESSAGES = 4096  # messages of a conversation
MAX_INPUTS = 2048  # texts to embed in a request: OpenAI's limit
MAX_STOP_IDS = 1024  # token ids that end a text
MAX_TOOLS = 128  # functions of a request: OpenAI's limit
MAX_TOKENS_LISTED = 1 << 17  # token ids of a request or an answer: 128k, the longest contexts
MAX_TOP_LOGPROBS = 20  # likeliest tokens at each place: OpenAI's limit

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Tokens = Annotated[int, Meta(ge=-1, le=2**31 - 1)]  # -1: as many as the context has room for
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Meta(min_length=1, max_length=MAX_TOKENS_LISTED)]
StopText = Annotated[str, Meta(max_length=256)]  # an empty one stops nothing
Stops = Annotated[list[StopText], Meta(max_length=16)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TemplateValues = dict[str, Any]  # ChatTemplate.check_values says what they may be
Biases = Annotated[dict[TokenId, Bias], Meta(max_length=1024)]

# Bounds that HTTP has other than generation.sampling: OpenAI's seeds are signed, its top_p may be
# 0, and many clients write a top_k of -1 for "all".
OWN_BOUNDS: dict[str, dict[str, Any]] = {
    "seed": {"ge": -(2**63), "le": 2**63 - 1}, "top_k": {"ge": -1}, "top_p": {"gt": None, "ge": 0},
}  # fmt: skip


class Nested(Struct, forbid_unknown_fields=True):
    """An object inside a request; parsing.py sees to unknown fields.

    What clients send back of an answer, or send to others, and changes nothing is Ignored.
    """


Ignored = Any


Form = tuple[str, Any]  # what text follows: the arguments of generation.grammar.Grammars.of


class NamedSchema(Nested):
    schema: JSONSchema
    name: str | None = None
    description: str | None = None
    strict: bool | None = None  # ignored: schemas are always followed


class ResponseFormat(Nested):
    """What a reply is to be, as several servers take it.

    OpenAI has the schema in json_schema, llama.cpp's server in schema, the Hugging Face hub's
    client in value, with the type "json" as well; "regex" is the hub's too, "grammar" others'.
    """

    type: Literal["text", "json", "json_object", "json_schema", "regex", "grammar"]
    json_schema: NamedSchema | None = None
    schema: JSONSchema | UnsetType = UNSET
    value: JSONSchema | str | UnsetType = UNSET
    grammar: str | None = None
    name: Ignored = None
    strict: Ignored = None

    @property
    def form(self) -> Form | None:
        """What the reply has to follow, None for any text."""
        if self.type == "text":
            return None
        if self.type in ("regex", "grammar"):
            return self.type, self.grammar if self._given[0] is UNSET else self._given[0]
        return "json_schema", self._given[0] if self._given[0] is not UNSET else {"type": "object"}

    @property
    def _given(self) -> list[Any]:
        """The values that are given, [UNSET] where none is."""
        named = UNSET if self.json_schema is None else self.json_schema.schema
        given = [named, self.schema, self.value]
        return [value for value in given if value is not UNSET] or [UNSET]

    def __post_init__(self) -> None:
        first, *others = self._given
        if others:
            raise ValueError("json_schema, schema and value: one of them")
        is_text = self.type in ("regex", "grammar")
        if is_text and not isinstance(self.grammar if first is UNSET else first, str):
            raise ValueError(f"type {self.type}: needs a text as value")
        if self.type == "json_schema" and first is UNSET:
            raise ValueError("json_schema: missing")
        if not is_text and isinstance(first, str):
            raise ValueError("value: a JSON schema is needed")


class StructuredOutputs(Nested):
    """vLLM's structured_outputs."""

    json: JSONSchema | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Nested):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers: there is none


def _within_bounds(field: SamplingField) -> Any:
    """The type of a number, or null, within the bounds of a SamplingField."""
    bounds: dict[str, Any] = {"ge" if field.lower_allowed else "gt": field.lower, "le": field.upper}
    return Annotated[field.kind, Meta(**bounds | OWN_BOUNDS.get(field.name, {}))] | None


Repetition: Any = _within_bounds(
    next(field for field in SAMPLING_FIELDS if field.name == "repetition_penalty")
)


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
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    logit_bias: Biases | None = None
    repeat_penalty: Repetition = None  # llama.cpp's and Ollama's name of repetition_penalty
    cache_prompt: bool | None = None

    def __post_init__(self) -> None:
        if self.repetition_penalty is None:  # type: ignore[has-type]
            self.repetition_penalty = self.repeat_penalty
        elif self.repeat_penalty not in (None, self.repetition_penalty):
            raise ValueError("repeat_penalty: another than repetition_penalty")


class CompletionsRequest(GenerationRequest, kw_only=True):  # type: ignore[call-arg]
    """What chat and text completions have in common."""

    max_tokens: Tokens | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    echo: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    # of llama.cpp's server
    json_schema: JSONSchema | None = None
    grammar: str | None = None
    # of vLLM
    regex: str | None = None
    choice: list[str] | None = None
    guided_json: JSONSchema | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def form(self) -> tuple[str, Form] | None:
        """(field, what a text has to follow), None for any text. ApiError for several."""
        given = [(field, form) for field, form in self._forms() if form is not None]
        if len(given) > 1:
            field = given[1][0]
            raise ApiError(400, f"{field}: not together with {given[0][0]}", param=field)
        return given[0] if given else None

    def _forms(self) -> Iterator[tuple[str, Form | None]]:
        asked = self.response_format
        yield "response_format", None if asked is None else asked.form
        for field, kind in _FORM_FIELDS.items():
            value = getattr(self, field)
            yield field, None if value is None else (kind, _parsed(field, value, kind))
        outputs = self.structured_outputs
        if outputs is not None:
            if outputs.json_object:
                yield "structured_outputs.json_object", ("json_schema", {"type": "object"})
            for name, kind in _OUTPUT_FIELDS.items():
                field, value = f"structured_outputs.{name}", getattr(outputs, name)
                yield field, None if value is None else (kind, _parsed(field, value, kind))


_OUTPUT_FIELDS = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choices",
    "grammar": "grammar",
}
_FORM_FIELDS = {
    **{"json_schema": "json_schema", "grammar": "grammar", "regex": "regex"},
    "choice": "choices",
    **{f"guided_{name}": kind for name, kind in _OUTPUT_FIELDS.items()},
}


def _parsed(field: str, value: Any, kind: str) -> Any:
    """A schema may be written as a text of JSON. ApiError where it is none."""
    if kind != "json_schema" or not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict | bool):
        raise ApiError(400, f"{field}: a text that is no JSON schema", param=field)
    return parsed


class TextPart(Nested, tag_field="type", tag="text"):
    text: str
    cache_control: Ignored = None


# As OpenAI has it, and with the signs and the length of names that MCP's servers give their tools
FunctionName = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9_.:/-]{1,128}\Z")]


class Function(Nested):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # ignored: schemas are always followed

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        if not self.parameters:
            return {"type": "object", "additionalProperties": False}
        given = {"type": "object"} | self.parameters
        return given | {"type": "object"} if given["type"] is None else given

    def about(self) -> dict[str, Any]:
        """What a model is told."""
        return {"name": self.name, "description": self.description or "", "parameters": self.schema}


class Tool(Nested):
    function: Function
    type: Literal["function"] = "function"
    cache_control: Ignored = None


class FunctionOf(Nested):
    name: FunctionName


class NamedTool(Nested, tag_field="type", tag="function"):
    function: FunctionOf


class CalledFunction(Nested):
    name: FunctionName
    arguments: str | dict[str, Any] = "{}"  # JSON, as a text or, as Ollama has it, as an object

    @property
    def text(self) -> str:
        """The arguments as a text of JSON."""
        given = self.arguments
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


CallId = Annotated[str, Meta(min_length=1, max_length=128)]


class ToolCall(Nested):
    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
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
    images: None = None  # Ollama's
    reasoning: Ignored = None  # templates drop what an assistant thought in earlier turns
    reasoning_content: Ignored = None
    provider_specific_fields: Ignored = None

    def text(self, where: str) -> str:
        """The content as one text."""
        if self.content is None and self.role != "assistant":
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


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(CompletionsRequest):
    messages: Messages
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateValues | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None  # text.reasoning.FORMATS
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

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
    prompt_name: str | None = None


class TokenizeRequest(AnyRequest):
    prompt: str | UnsetType = UNSET
    messages: Messages | UnsetType = UNSET
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateValues | None = None


class DetokenizeRequest(AnyRequest):
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS_LISTED)]


def _joined(content: Any) -> str:
    """A message's content, a text or its parts, as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


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
