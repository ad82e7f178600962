"""POST /v1/embeddings: embeddings of texts or token ids, of a model that is made for them."""

import base64
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from .. import schema
from ..errors import JSON, ApiError, ClientGone, to_api_error
from ..response_stream import watched, while_connected
from ..service import Service


async def embeddings(service: Service, request: Request) -> Response:
    """One embedding for each input, as floats or as base64 of little-endian float32."""
    body = await service.parse(request, schema.EmbeddingRequest)
    service.check_kind(body.model, embeds=True)
    encoding = body.encoding_format or "float"
    _check(service, body, encoding)
    inputs = schema.sequences(body.input, "input", schema.MAX_INPUTS)
    with service.reservation(1):
        ids = await while_connected(request, _token_ids(service, inputs))
        embedded = await _embed(service, request, ids, encoding)
    data = [
        {"object": "embedding", "index": index, "embedding": embedding}
        for index, embedding in enumerate(embedded)
    ]
    n = sum(map(len, ids))
    usage = {"prompt_tokens": n, "total_tokens": n}
    return JSON({"object": "list", "data": data, "model": service.embedder_name, "usage": usage})


def _check(service: Service, body: schema.EmbeddingRequest, encoding: str) -> None:
    config = service.embedder.config
    if config.pooling is None:
        raise ApiError(400, f"model: {service.embedder_name} is no embedding model", param="model")
    if encoding not in ("float", "base64"):
        raise ApiError(400, "encoding_format: float or base64", param="encoding_format")
    if body.dimensions not in (None, config.hidden_size):
        raise ApiError(400, f"dimensions: always {config.hidden_size}", param="dimensions")


async def _token_ids(service: Service, inputs: Sequence[str | list[int]]) -> list[list[int]]:
    model = service.embedder
    encode = partial(model.tokenizer.encode, add_eos=True, limit=model.context)
    return [
        await service.in_prompt_thread(encode, one) if isinstance(one, str) else one
        for one in inputs
    ]


async def _embed(
    service: Service, request: Request, ids: list[list[int]], encoding: str
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
            embedded += [_encoded(row, encoding) for row in rows]
    return embedded


def _encoded(row: NDArray[np.float32], encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    shown: list[float] = row.tolist()
    return shown
