"""What the endpoints that generate text share: from a parsed request to the HTTP response."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp

from ..generation.request import Request
from ..generation.sampling import N_SEEDS, SAMPLING_FIELDS, draw_seed
from .errors import JSON, ApiError
from .grammar import Constraint
from .reply_protocol import Reply
from .response_stream import ResponseStream, while_connected
from .schema import GenerationRequest
from .service import Service
from .tools import Tools


async def generate(
    service: Service,
    request: HttpRequest,
    body: GenerationRequest,
    reply: Reply,
    prompts: Sequence[Callable[[], list[int]]],
    *,
    n_sequences: int,
    max_tokens: int,
    n_logprobs: int | None = None,
    tools: Tools | None = None,
) -> ASGIApp:
    """An ASGI response with all sequences of a request, whole or as a stream. ApiError, ClientGone.

    body: the parsed body of the request. reply: see reply_protocol. prompts: give the
    token ids of each prompt; called in the thread of prompts. n_sequences: choices of all prompts.
    n_logprobs: how many of the likeliest tokens get their log probability; None for no logprobs.
    """
    service.check_kind(body.model, embeds=False)
    capacity = service.worker.capacity
    if n_sequences > capacity:
        message = f"n: {n_sequences} sequences (at most {capacity} may run or wait)"
        raise ApiError(400, message, param="n")

    async def prepared() -> tuple[list[Request], list[int]]:
        make = await _constraint_maker(service, body, tools)
        ids = [await service.in_prompt_thread(prompt) for prompt in prompts[:-1]]
        last = prompts[-1]  # with it at once what comes then: most requests have one prompt
        return await service.in_prompt_thread(
            lambda: _requests(service, body, [*ids, last()], max_tokens, n_logprobs, make)
        )

    with service.reservation(n_sequences) as reservation:
        requests, prompt_indices = await while_connected(request, prepared())
        generation = service.worker.start(requests, prompt_indices)
        reservation.hand_over()  # each sequence gives its own back when it ends
    stream = ResponseStream(request, generation, reply, service.metrics)
    if not body.stream:
        return JSON(await stream.whole())
    has_usage = body.stream_options is not None and body.stream_options.include_usage
    return await stream.stream(has_usage)


def _requests(
    service: Service,
    body: GenerationRequest,
    prompts: Sequence[list[int]],
    max_tokens: int,
    n_logprobs: int | None,
    make_constraint: Callable[[], Constraint] | None,
) -> tuple[list[Request], list[int]]:
    """(the requests for every choice of every prompt, the index of the prompt of each)."""
    seed = draw_seed() if body.seed is None else body.seed
    options = _options(body)
    requests, prompt_indices = [], []
    for index, ids in enumerate(prompts):
        for choice in range(body.n or 1):
            request = service.model.request(
                ids,
                n_logprobs=n_logprobs,
                constraint=make_constraint and make_constraint(),
                max_tokens=max_tokens,
                seed=(seed + choice) % N_SEEDS,
                **options,
            )
            requests.append(request)
            prompt_indices.append(index)
    return requests, prompt_indices


def _options(body: GenerationRequest) -> dict[str, Any]:
    """The keywords of Model.generate that a request gives, but the seed and max_tokens."""
    numbers = [field.name for field in SAMPLING_FIELDS if field.name != "seed"]
    names = [*numbers, "logit_bias", "stop"]
    options = {name: value for name in names if (value := getattr(body, name)) is not None}
    if options.get("top_k") == -1:  # what others write for "all"
        options["top_k"] = 0
    if options.get("top_p") == 0:  # the likeliest token alone
        options |= {"top_p": 1.0, "top_k": 1}
    return options


async def _constraint_maker(
    service: Service, body: GenerationRequest, tools: Tools | None
) -> Callable[[], Constraint] | None:
    """A function that makes the constraint of one choice; None where any text may come."""
    schema = getattr(getattr(body, "response_format", None), "schema", None)
    grammars, run = service.grammars, service.in_grammar_thread
    if tools is not None and tools.may_call:
        return await run(grammars.of_tools, tools, schema)
    if schema is not None:
        return await run(grammars.of_schema, schema, body.format_field)
    return None
