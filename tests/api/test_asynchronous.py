"""Asynchronous methods: the same text as the others, a free event loop, cancelling, errors."""

import asyncio
import inspect
import threading
import time

import pytest
from support.paths import DATA
from support.talker import TALKER, kv_bytes

import bitnet
from bitnet import Cancelled, ContextFull
from bitnet.text.tokenizer import Tokenizer

PROMPT = "A ternary weight has"
TALK = [{"role": "user", "content": "Who is there?"}]
SAMPLED = {"temperature": 4.0, "top_p": 0.99, "max_tokens": 30, "seed": 5}
PAIRS = [(f"The king came {i}", f" and went {i}") for i in range(24)]
# A text that takes seconds on the fastest machine.
LONG = {
    "temperature": 0, "max_tokens": 10_000, "ignore_eos": True,
    "logits_processors": [lambda token_ids, logits: time.sleep(0.01) or logits],
}  # fmt: skip
TEXTS = ["one", "and something longer " * 12, "three", "four", "five"]


@pytest.fixture(scope="module")
def model(no_limit):
    with bitnet.load(TALKER, slots=3, threads=1, prefix_cache=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def talking(no_limit):
    with bitnet.load(threads=1, context=512) as loaded:  # it has a chat template
        yield loaded


@pytest.fixture(scope="module")
def embedding(no_limit):
    with bitnet.load(DATA / "hf_embedding_qwen3", threads=1) as loaded:
        yield loaded


@pytest.fixture
def steps(model, monkeypatch):
    """[number of sequences] of every forward pass."""
    counts, forward = [], model.scheduler.transformer.forward

    def counted(token_ids, sequences, **options):
        counts.append(len(sequences))
        return forward(token_ids, sequences, **options)

    monkeypatch.setattr(model.scheduler.transformer, "forward", counted)
    return counts


async def ticks_during(work):
    """(what the work gives, how often another task had its turn meanwhile)."""
    n = 0

    async def tick():
        nonlocal n
        while True:
            await asyncio.sleep(0)
            n += 1

    ticker = asyncio.create_task(tick())
    try:
        return await work, n
    finally:
        ticker.cancel()


def test_the_same_as_the_others(model, talking, embedding):
    prompts = [PROMPT, "x", [5, 6, 7]]

    async def everything():
        return (
            await model.agenerate(PROMPT, **SAMPLED),
            await model.agenerate(prompts, **SAMPLED),
            await talking.achat(TALK, **SAMPLED),
            await model.aloglikelihood(*PAIRS[0]),
            await model.aloglikelihood(PAIRS),
            (await embedding.aembed("one")).tobytes(),
            (await embedding.aembed(TEXTS, prompt="q: ")).tobytes(),
        )

    one, several, reply, *others = asyncio.run(everything())
    assert one.text == model.generate(PROMPT, **SAMPLED).text
    assert [c.text for c in several] == [c.text for c in model.generate(prompts, **SAMPLED)]
    assert reply.text == talking.chat(TALK, **SAMPLED).text
    assert others == [
        model.loglikelihood(*PAIRS[0]),
        model.loglikelihood(PAIRS),
        embedding.embed("one").tobytes(),
        embedding.embed(TEXTS, prompt="q: ").tobytes(),
    ]


def test_the_event_loop_goes_on(model, talking, embedding):
    for work, n_pieces in (
        (model.agenerate(PROMPT, **SAMPLED), 30),
        (talking.achat(TALK, max_tokens=20, ignore_eos=True), 20),
        (model.aloglikelihood(PAIRS), 3),
        (embedding.aembed(TEXTS), len(TEXTS)),
    ):
        _, ticks = asyncio.run(ticks_during(work))
        assert ticks >= n_pieces


def test_prompts_are_encoded_outside_of_the_event_loop(model, monkeypatch):
    threads, encode = [], Tokenizer.encode

    def watched(*arguments, **keywords):
        threads.append(threading.current_thread())
        return encode(*arguments, **keywords)

    monkeypatch.setattr(Tokenizer, "encode", watched)

    async def run():
        await model.agenerate(PROMPT, max_tokens=1)
        async for _ in model.astream(PROMPT, max_tokens=1):
            pass
        await model.aloglikelihood("a b", " c")

    asyncio.run(run())
    assert len(threads) >= 4 and threading.main_thread() not in threads


def test_several_at_once_share_the_slots(model, steps):
    prompts = [PROMPT, "The", "One row"]
    expected = [model.generate(prompt, **SAMPLED).text for prompt in prompts]
    n_alone, steps[:] = len(steps), []

    async def stream(prompt):
        return "".join([delta async for delta in model.astream(prompt, **SAMPLED)])

    async def run():
        first, second = (model.agenerate(prompt, **SAMPLED) for prompt in prompts[:2])
        return await asyncio.gather(first, second, stream(prompts[2]))

    first, second, third = asyncio.run(run())
    assert [first.text, second.text, third] == expected
    assert max(steps) == 3 and len(steps) < n_alone / 2


def test_a_generation_goes_on_beside_a_scoring(model, steps):
    expected = model.generate(PROMPT, **SAMPLED).text, model.loglikelihood(PAIRS)
    steps.clear()

    async def run():
        order = []
        scoring = asyncio.create_task(model.aloglikelihood(PAIRS * 20))
        scoring.add_done_callback(lambda task: order.append("scored"))
        done = await model.agenerate(PROMPT, **SAMPLED | {"max_tokens": 2})
        order.append("generated")
        return done.text, await scoring, order

    text, scores, order = asyncio.run(run())
    assert expected[0].startswith(text) and scores == expected[1] * 20
    assert order == ["generated", "scored"]


def cancelled(model, make, steps):
    """Cancel a task behind its third step; what it ends in, and steps that came afterwards."""

    async def run():
        task = asyncio.create_task(make())
        while len(steps) < 3:
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            n_steps = len(steps)
            assert kv_bytes(model) == 0  # freed when the task is over
            await asyncio.sleep(0.05)
            return len(steps) - n_steps
        raise AssertionError("the task was not cancelled")

    return asyncio.run(run())


@pytest.mark.parametrize(
    "make",
    [
        lambda model: model.agenerate(PROMPT, temperature=0, max_tokens=10_000),
        lambda model: model.agenerate([PROMPT, "x", "y", "z"], temperature=0, max_tokens=10_000),
        lambda model: model.aloglikelihood(PAIRS * 50),
    ],
    ids=["one", "several", "scoring"],
)
def test_cancelling_ends_the_work_and_frees_its_memory(model, steps, make):
    assert cancelled(model, lambda: make(model), steps) == 0
    steps.clear()
    text = asyncio.run(model.agenerate(PROMPT, **SAMPLED)).text
    assert text == model.generate(PROMPT, **SAMPLED).text


def test_a_time_that_is_up_and_one_of_a_group_that_fails(model):
    async def times_out():
        await asyncio.wait_for(model.agenerate(PROMPT, **LONG), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(times_out())
    assert kv_bytes(model) == 0

    async def group():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(model.agenerate(PROMPT, **LONG))
            tasks.create_task(model.agenerate([1] * 100_000))

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(group())
    assert [type(error) for error in raised.value.exceptions] == [ContextFull]
    assert kv_bytes(model) == 0


def test_errors_come_through(model, talking):
    def fails(token_ids, logits):
        raise ZeroDivisionError("of a caller")

    for make, error, text in (
        (lambda: model.agenerate([1] * 100_000), ContextFull, "100000 tokens"),
        (lambda: model.agenerate(PROMPT, temperature=-1), ValueError, "temperature: -1"),
        (lambda: model.agenerate(PROMPT, errors="hide"), ValueError, "errors"),
        (lambda: model.agenerate(PROMPT, logits_processors=[fails]), ZeroDivisionError, "caller"),
        (lambda: talking.achat([{"role": "nobody"}]), ValueError, "content|role"),
        (lambda: model.aloglikelihood("a", ""), ValueError, "0 of continuation"),
        (lambda: model.aembed("a"), ValueError, "no embedding model"),
    ):
        with pytest.raises(error, match=text):
            asyncio.run(make())
        assert kv_bytes(model) == 0
    wrong, right = asyncio.run(
        model.agenerate([[1] * 100_000, PROMPT], errors="return", max_tokens=2)
    )
    assert isinstance(wrong, ContextFull) and right.completion_tokens == 2


def test_a_model_that_is_closed(no_limit):
    async def run(model):
        task = asyncio.create_task(model.agenerate(PROMPT, **LONG))
        scoring = asyncio.create_task(model.aloglikelihood(PAIRS * 500))
        await asyncio.sleep(0.05)
        model.close()
        return await asyncio.gather(task, scoring, return_exceptions=True)

    model = bitnet.load(TALKER, slots=3, threads=1)
    generated, scored = asyncio.run(run(model))
    assert isinstance(generated, Cancelled)
    assert isinstance(scored, ValueError) and str(scored) == "the model is closed"
    with pytest.raises(ValueError, match="the model is closed"):
        asyncio.run(model.agenerate(PROMPT))


@pytest.mark.skipif(not hasattr(inspect, "markcoroutinefunction"), reason="since Python 3.12")
def test_they_are_known_as_coroutine_functions():
    for name in ("agenerate", "achat", "aloglikelihood", "aembed"):
        assert inspect.iscoroutinefunction(getattr(bitnet.Model, name)), name
