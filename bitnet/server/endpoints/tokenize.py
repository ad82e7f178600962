"""POST /tokenize, /detokenize: text or messages to token ids, and ids to text."""

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ...errors import ContextFull, TemplateError
from ...text.tokenizer import Tokenizer
from ...text.tool_forms import OURS, ToolForm
from .. import schema
from ..errors import JSON, ApiError
from ..response_stream import while_connected
from ..service import Service
from ..tools import history


async def tokenize(service: Service, request: Request) -> Response:
    """The token ids of ``prompt``, or of ``messages`` in the model's template."""
    body = await service.parse(request, schema.TokenizeRequest)
    if (body.prompt is UNSET) == (body.messages is UNSET):
        raise ApiError(400, "prompt or messages: one of them is needed", param="prompt")
    with service.reservation(1):
        model = service.named(body.model)
        has_calls = any(m.role == "tool" or m.tool_calls for m in body.messages or ())
        form = await service.tool_form() if has_calls and model is service.model else OURS
        encoded = service.in_prompt_thread(_token_ids, model.tokenizer, body, form)
        ids = await while_connected(request, encoded)
    return JSON({"tokens": ids, "count": len(ids), "max_model_len": model.context})


def _token_ids(tokenizer: Tokenizer, body: schema.TokenizeRequest, form: ToolForm) -> list[int]:
    limit = schema.MAX_TOKENS_LISTED
    try:
        if isinstance(body.prompt, str):
            if not body.add_special_tokens and (edge := _edge(tokenizer, body.prompt)) is not None:
                return [edge]
            return tokenizer.encode(body.prompt, add_bos=body.add_special_tokens, limit=limit)
        try:
            return _chat_ids(tokenizer, body, form, limit)
        except TemplateError:  # it may drop calls where no tools are given
            if not form.is_templates:
                raise
            return _chat_ids(tokenizer, body, OURS, limit)
    except ContextFull as error:
        field = "prompt" if isinstance(body.prompt, str) else "messages"
        message = f"{field}: {error.requested} tokens or more (at most {limit})"
        raise ApiError(400, message, param=field) from None


def _chat_ids(
    tokenizer: Tokenizer, body: schema.TokenizeRequest, form: ToolForm, limit: int
) -> list[int]:
    messages, values = history(body.messages or (), form), body.chat_template_kwargs
    continues = bool(body.continue_final_message)
    return tokenizer.chat(messages, body.add_generation_prompt, limit, values, continues=continues)


async def detokenize(service: Service, request: Request) -> Response:
    """The text of ``tokens``."""
    body = await service.parse(request, schema.DetokenizeRequest)
    model = service.named(body.model)
    size = model.config.vocab_size
    if max(body.tokens, default=0) >= size:
        raise ApiError(400, f"tokens: an id outside of 0 to {size - 1}", param="tokens")
    with service.reservation(1):
        text = await service.in_prompt_thread(model.tokenizer.decode, body.tokens)
    return JSON({"prompt": text})


def _edges(tokenizer: Tokenizer) -> tuple[int | None, int | None]:
    """The token that prompts begin with, and the one that ends a text; None where there is none."""
    return next(iter(tokenizer.encode("")), None), next(iter(tokenizer.eos_ids), None)


def _edge(tokenizer: Tokenizer, name: str) -> int | None:
    """The one of these tokens that has this name, None for another text.

    Harnesses ask for the ids of the names in tokenizer_info, to put one in front of a text without
    context. So such a name and nothing else is the token; within a text it is text.
    """
    edges = [token_id for token_id in _edges(tokenizer) if token_id is not None]
    return next((token_id for token_id in edges if tokenizer.token(token_id) == name), None)


async def tokenizer_info(service: Service, request: Request) -> Response:
    """What evaluation harnesses ask of the tokenizer: its template and special tokens."""
    tokenizer = service.model.tokenizer
    template = tokenizer.chat_template
    begin, end = (None if i is None else tokenizer.token(i) for i in _edges(tokenizer))
    return JSON(
        {
            "tokenizer_class": "bitnet",
            "bos_token": begin,
            "eos_token": end,
            "pad_token": None,
            "chat_template": None if template is None else template.source,
            "model_max_length": service.model.context,
        }
    )
