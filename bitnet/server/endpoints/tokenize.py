"""POST /tokenize, /detokenize: text or messages to token ids, and ids to text."""

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from ...errors import ContextFull
from ...text.tokenizer import Tokenizer
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
        encoded = service.in_prompt_thread(_token_ids, model.tokenizer, body)
        ids = await while_connected(request, encoded)
    return JSON({"tokens": ids, "count": len(ids), "max_model_len": model.context})


def _token_ids(tokenizer: Tokenizer, body: schema.TokenizeRequest) -> list[int]:
    limit = schema.MAX_TOKENS_LISTED
    try:
        if isinstance(body.prompt, str):
            return tokenizer.encode(body.prompt, add_bos=body.add_special_tokens, limit=limit)
        messages = history(body.messages or ())
        values = body.chat_template_kwargs
        return tokenizer.chat(messages, body.add_generation_prompt, limit, values)
    except ContextFull as error:
        field = "prompt" if isinstance(body.prompt, str) else "messages"
        message = f"{field}: {error.requested} tokens or more (at most {limit})"
        raise ApiError(400, message, param=field) from None


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
