"""POST /v1/embeddings: embeddings of texts or token ids, of a model that is made for them."""

import base64
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from ...api.model import Model
from ...generation.embedding import normalized
from .. import schema
from ..errors import JSON, ApiError, ClientGone, to_api_error
from ..metrics import Counts
from ..response_stream import watched, while_connected
from ..service import Service


async def embeddings(service: Service, request: Request) -> Response:
    """One embedding for each input, as floats or as base64 of little-endian float32."""
    body = await service.parse(request, schema.EmbeddingRequest)
    service.check_kind(body.model, embeds=True)
    encoding = body.encoding_format or "float"
    _check(service, body, encoding)
    inputs = schema.sequences(body.input, "input", schema.MAX_INPUTS)
    if not all(isinstance(one, str) for one in inputs):
        _check_ids(service, body)
    prompt = service.embedder.prompts[body.prompt_name] if body.prompt_name else ""
    with service.reservation(1):
        ids = await while_connected(request, _token_ids(service, inputs, prompt))
        embedded = await _embed(service, request, ids, encoding, body.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": embedding}
        for index, embedding in enumerate(embedded)
    ]
    n = sum(map(len, ids))
    record = request.state.record
    record.counts, record.model = Counts(prompt=n), service.embedder_name
    service.embedder_metrics.count(record.counts)
    usage = {"prompt_tokens": n, "total_tokens": n}
    return JSON({"object": "list", "data": data, "model": service.embedder_name, "usage": usage})


def _check(service: Service, body: schema.EmbeddingRequest, encoding: str) -> None:
    config = service.embedder.config
    if config.pooling is None:
        raise ApiError(400, f"model: {service.embedder_name} is no embedding model", param="model")
    if encoding not in ("float", "base64"):
        raise ApiError(400, "encoding_format: float or base64", param="encoding_format")
    if body.dimensions is not None and body.dimensions > config.hidden_size:
        message = f"dimensions: {body.dimensions} (at most {config.hidden_size})"
        raise ApiError(400, message, param="dimensions")
    if body.prompt_name and body.prompt_name not in service.embedder.prompts:
        known = ", ".join(service.embedder.prompts) or "none"
        message = f"prompt_name: {body.prompt_name[:80]!r} (the model has {known})"
        raise ApiError(400, message, param="prompt_name")


def _check_ids(service: Service, body: schema.EmbeddingRequest) -> None:
    """ApiError for token ids that another model's tokenizer made, as far as the request says so.

    LangChain sends by default those of tiktoken, for the model that it names.
    """
    if body.prompt_name:
        raise ApiError(400, "prompt_name: for texts, not for token ids", param="prompt_name")
    if body.model is not None and body.model not in service.embedder_names:
        raise _foreign(
            f"token ids of {body.model[:80]!r}, but the model is {service.embedder_name!r}"
        )


def _foreign(reason: str) -> ApiError:
    advice = "send texts (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
    return ApiError(400, f"input: {reason}; {advice}", param="input")


async def _token_ids(
    service: Service, inputs: Sequence[str | list[int]], prompt: str
) -> list[list[int]]:
    model = service.embedder
    encode = partial(model.tokenizer.encode, add_eos=True, limit=model.context)
    return [
        await service.in_prompt_thread(encode, prompt + one)
        if isinstance(one, str)
        else await service.in_prompt_thread(_whole, model, one)
        for one in inputs
    ]


def _whole(model: Model, ids: list[int]) -> list[int]:
    """A text's own token ids with those in front and behind that a text gets. ApiError for ids that
    are not how this model writes any text: another tokenizer's."""
    if max(ids) >= model.config.vocab_size:
        message = f"input: an id outside of 0 to {model.config.vocab_size - 1}"
        raise _foreign(message.removeprefix("input: "))
    text = model.tokenizer.decode(ids)
    own = model.tokenizer.encode(text, add_eos=True, limit=model.context)
    if _inner(model, own) != _inner(model, ids):
        raise _foreign("token ids that are not this model's own of any text")
    return own


def _inner(model: Model, ids: list[int]) -> list[int]:
    """The ids that stand for text."""
    return [i for i in ids if model.tokenizer.token_bytes(i)]


async def _embed(
    service: Service,
    request: Request,
    ids: list[list[int]],
    encoding: str,
    dimensions: int | None,
) -> list[str | list[float]]:
    """The embedding of each list of ids, encoded. ClientGone, between two forward passes."""
    n = service.worker.slots
    embedded: list[str | list[float]] = []
    async with watched(request) as gone:
        for group in (ids[i : i + n] for i in range(0, len(ids), n)):
            if gone.is_set():
                raise ClientGone
            try:
                rows = await service.worker.call(service.embedder.embed_tokens, group)
            except Exception as error:
                raise to_api_error(error, "input") or error from None
            if dimensions is not None:  # the first of them, of length 1 again
                rows = [normalized(row[:dimensions]) for row in rows]
            embedded += [_encoded(row, encoding) for row in rows]
    return embedded


def _encoded(row: NDArray[np.float32], encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    shown: list[float] = row.tolist()
    return shown
