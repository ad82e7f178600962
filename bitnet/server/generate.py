"""What the endpoints that generate text share: from a parsed request to the HTTP response."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp

from ..generation.grammar import Maker
from ..generation.request import Request
from ..generation.sampling import draw_seed
from ..generation.sampling_fields import N_SEEDS, SAMPLING_FIELDS
from ..generation.scoring import TokenScore
from .clients import CLIENT
from .errors import JSON, ApiError
from .prompt_scores import score_prompts
from .reply_protocol import Prompt, Reply
from .response_stream import ResponseStream, while_connected
from .schema import GenerationRequest, TextRequest
from .service import Service
from .tools import Tools


def most_tokens(service: Service, *given: int | None) -> int:
    """The first number of tokens that is given; -1, and none, is what the context has room for."""
    n = next((n for n in given if n is not None), -1)
    return service.model.context if n == -1 else n


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
    max_tokens: 0 to read the prompts and write nothing.
    n_logprobs: how many of the likeliest tokens get their log probability; None for no logprobs.
    """
    service.check_kind(body.model, embeds=False)
    capacity = service.worker.capacity
    if n_sequences > capacity:
        message = f"n: {n_sequences} sequences (at most {capacity} may run or wait)"
        raise ApiError(400, message, param="n")

    client = CLIENT.get()

    async def prepared() -> tuple[list[Request], list[int]]:
        if tools is not None and tools.thoughts:  # the prompt says where their grammar begins
            ids = [await service.in_prompt_thread(prompt) for prompt in prompts]
            make = await _constraint_maker(service, body, tools)
            given = (service, body, ids, max_tokens, n_logprobs, make, client)
            return await service.in_prompt_thread(_requests, *given)
        make = await _constraint_maker(service, body, tools)
        ids = [await service.in_prompt_thread(prompt) for prompt in prompts[:-1]]
        last = prompts[-1]  # with it at once what comes then: most requests have one prompt
        return await service.in_prompt_thread(
            lambda: _requests(service, body, [*ids, last()], max_tokens, n_logprobs, make, client)
        )

    with service.reservation(n_sequences) as reservation:
        requests, prompt_indices = await while_connected(request, prepared())
        told = _tell_prompts(service, request, body, reply, requests, prompt_indices, n_logprobs)
        are_scored = await told
        generation = service.worker.start(requests, prompt_indices, service.model_metrics)
        generation.are_prompts_read = are_scored
        record = request.state.record
        record.generation, record.model = generation, service.model_name
        reservation.hand_over()  # each sequence gives its own back when it ends
    stream = ResponseStream(request, generation, reply, max_tokens == 0)
    if not body.stream:
        return JSON(await stream.whole())
    has_usage = body.stream_options is not None and body.stream_options.include_usage
    return await stream.stream(has_usage)


async def _tell_prompts(
    service: Service,
    request: HttpRequest,
    body: GenerationRequest,
    reply: Reply,
    requests: Sequence[Request],
    prompt_indices: Sequence[int],
    n_logprobs: int | None,
) -> bool:
    """Let the reply have the prompts, scored where that is asked for: then True, as all of their
    tokens were read for that. ApiError, ClientGone."""
    n_best, echo = getattr(body, "prompt_logprobs", None), bool(getattr(body, "echo", None))
    field = "prompt_logprobs"
    if n_best is None and echo and isinstance(body, TextRequest):
        n_best, field = n_logprobs, "logprobs"
    if n_best is None and not echo:
        return False
    if body.stream and field == "prompt_logprobs" and n_best is not None:
        raise ApiError(400, "prompt_logprobs: not in a stream", param="prompt_logprobs")
    ids = {i: r.tokens[: r.n_prompt] for r, i in zip(requests, prompt_indices, strict=True)}
    scores: Sequence[list[TokenScore] | None] = [None] * len(ids)
    if n_best is not None:
        given = [ids[i] for i in sorted(ids)]
        scores = await score_prompts(service, request, given, n_best, field)
    decode = service.model.tokenizer.decode
    texts = {i: await service.in_prompt_thread(decode, ids[i]) for i in ids}
    reply.prompts([Prompt(ids[i], texts[i], scores[i]) for i in prompt_indices])
    return n_best is not None


def _requests(
    service: Service,
    body: GenerationRequest,
    prompts: Sequence[list[int]],
    max_tokens: int,
    n_logprobs: int | None,
    make_constraint: Maker | None,
    client: str,
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
                cache_prompt=body.cache_prompt is not False,
                client=client,
                max_tokens=max(1, max_tokens),
                seed=(seed + choice) % N_SEEDS,
                **options,
            )
            requests.append(request)
            prompt_indices.append(index)
    return requests, prompt_indices


def _options(body: GenerationRequest) -> dict[str, Any]:
    """The keywords of Model.generate that a request gives, but the seed and max_tokens."""
    numbers = [field.name for field in SAMPLING_FIELDS if field.name != "seed"]
    names = [*numbers, "logit_bias", "min_tokens", "ignore_eos", "stop_token_ids"]
    options = {name: value for name in names if (value := getattr(body, name)) is not None}
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    options["stop"] = [text for text in stops if text]
    if options.get("top_k") == -1:  # what others write for "all"
        options["top_k"] = 0
    if options.get("top_p") == 0:  # the likeliest token alone
        options |= {"top_p": 1.0, "top_k": 1}
    return options


async def _constraint_maker(
    service: Service, body: GenerationRequest, tools: Tools | None
) -> Maker | None:
    """A function that makes the constraint of one choice; None where any text may come."""
    asked = body.form
    field, form = asked if asked is not None else ("", None)
    grammars, note, run = service.model.grammars, service.passed.part, service.in_grammar_thread
    if tools is not None and tools.may_call:
        return await run(tools.constraint, grammars, note, field, form)
    if form is None:
        return None
    return await run(grammars.of, *form, field, note)
