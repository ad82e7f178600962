"""POST /v1/completions: the continuations of texts or token ids."""

from functools import partial

from starlette.requests import Request
from starlette.types import ASGIApp

from .. import schema
from ..generate import generate, most_tokens
from ..openai_chunks import TextChunks
from ..service import Service

DEFAULT_MAX_TOKENS = 16  # tokens; OpenAI's own default


async def completions(service: Service, request: Request) -> ASGIApp:
    """``n`` continuations of each prompt, whole or as a stream."""
    body = await service.parse(request, schema.TextRequest)
    given = schema.sequences(body.prompt, "prompt", schema.MAX_PROMPTS)

    has_logprobs, decoder = body.logprobs is not None, service.model.tokenizer.stream
    echoes = bool(body.echo)
    reply = TextChunks(service.model_name, service.spell, has_logprobs, decoder, echoes)
    return await generate(
        service,
        request,
        body,
        reply,
        [partial(service.model.encode_prompt, prompt) for prompt in given],
        n_sequences=len(given) * (body.n or 1),
        max_tokens=most_tokens(service, body.max_tokens, DEFAULT_MAX_TOKENS),
        n_logprobs=body.logprobs,
    )
