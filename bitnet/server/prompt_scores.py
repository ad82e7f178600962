"""Log probabilities of the tokens of prompts, for `echo` with logprobs and `prompt_logprobs`."""

from collections.abc import Sequence

from starlette.requests import Request

from ..generation.scoring import TokenScore, token_scores
from .errors import ApiError, ClientGone, to_api_error
from .response_stream import watched
from .service import Service

MAX_ENTRIES = 1 << 18  # log probabilities of a request: 16 MB of JSON


async def score_prompts(
    service: Service, request: Request, prompts: Sequence[Sequence[int]], n_best: int, field: str
) -> list[list[TokenScore]]:
    """The scores of each prompt's tokens but the first. ApiError, ClientGone.

    A few tokens at a time, between steps of the model, so that others' streams go on. field: of the
    request, which errors name.
    """
    n_entries = sum(map(len, prompts)) * (n_best + 1)
    if n_entries > MAX_ENTRIES:
        message = f"{field}: {n_entries} log probabilities (at most {MAX_ENTRIES})"
        raise ApiError(400, message, param=field)
    scores: list[list[TokenScore]] = []
    async with watched(request) as gone:
        for ids in prompts:
            scores.append([])
            parts = token_scores(service.model.scheduler, ids, n_best)
            try:
                while (part := await service.worker.call(next, parts, None)) is not None:
                    if gone.is_set():
                        raise ClientGone
                    scores[-1] += part
            except Exception as error:
                raise to_api_error(error, field) or error from None
            finally:
                await service.worker.call(parts.close)
    return scores
