"""Public calls while a step runs: of another thread they wait, of the same thread (a signal handler
between two layers, a finalizer, a callback) they are refused, or carried out at the step's end."""

import asyncio
import signal
import threading

import numpy as np
import pytest
from support.talker import TALKER, kv_bytes

import bitnet
from bitnet import Cancelled
from bitnet.api import evaluation
from bitnet.compute import ops

PROMPT = [5, 6, 7, 8]


@pytest.fixture
def model():
    with bitnet.load(TALKER, slots=2, threads=1, context=512) as loaded:
        yield loaded


def between_layers(model, action):
    """Run action() once, between the first two layers of the next forward pass."""
    layers = model.scheduler.transformer.layers
    plain = layers[1]

    def called(*arguments):
        layers[1] = plain
        action()
        plain(*arguments)

    layers[1] = called


def by_signal(action):
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def by_finalizer(action):
    class Resource:
        def __del__(self):
            action()

    Resource()


def directly(action):
    action()


HOW = [by_signal, by_finalizer, directly]


def outcome_of(call):
    """A function that calls, and a list of what came of it."""
    outcomes = []

    def action():
        try:
            outcomes.append(call())
        except BaseException as error:
            outcomes.append(error)

    return action, outcomes


COMPUTING = {
    "generate": lambda model, session, path: model.generate(PROMPT, max_tokens=2),
    "generate of several": lambda model, session, path: model.generate([PROMPT, PROMPT]),
    "stream": lambda model, session, path: list(model.stream(PROMPT, max_tokens=2)),
    "astream": lambda model, session, path: asyncio.run(anext(model.astream(PROMPT))),
    "agenerate": lambda model, session, path: asyncio.run(model.agenerate(PROMPT, max_tokens=2)),
    "aloglikelihood": lambda model, session, path: asyncio.run(model.aloglikelihood([1], [2])),
    "chat": lambda model, session, path: model.chat([{"role": "user", "content": "a"}]),
    "request": lambda model, session, path: model.request(PROMPT),
    "logits": lambda model, session, path: model.logits(PROMPT),
    "loglikelihood": lambda model, session, path: model.loglikelihood(PROMPT, PROMPT),
    "threads": lambda model, session, path: setattr(model, "threads", 2),
    "feed": lambda model, session, path: session.feed(PROMPT),
    "best": lambda model, session, path: session.best(PROMPT),
    "decode": lambda model, session, path: session.decode(1),
    "trim": lambda model, session, path: session.trim(0),
    "fork": lambda model, session, path: session.fork(),
    "save": lambda model, session, path: session.save(path),
    "restore": lambda model, session, path: session.restore(path),
    "step": lambda model, session, path: model.scheduler.step(),
}
RUNNING = {
    "generate": lambda model, session: model.generate(PROMPT, max_tokens=9, temperature=0).text,
    "feed": lambda model, session: session.fork().feed([9, 10, 11]).tobytes(),
    "logits": lambda model, session: model.logits([9, 10, 11]).tobytes(),
}


@pytest.mark.parametrize("running", RUNNING)
@pytest.mark.parametrize("name", COMPUTING)
def test_what_computes_is_refused_inside_a_step(model, tmp_path, name, running):
    with model.session() as session:
        session.feed(PROMPT)
        session.save(tmp_path / "s")
        expected = RUNNING[running](model, session)
        for how in HOW:
            call, outcomes = outcome_of(lambda: COMPUTING[name](model, session, tmp_path / "s"))
            between_layers(model, lambda how=how, call=call: how(call))
            assert RUNNING[running](model, session) == expected
            (error,) = outcomes
            assert isinstance(error, RuntimeError) and "inside one of its own steps" in str(error)
            assert session.token_ids == PROMPT
        session.feed([9])
        assert session.token_ids == [*PROMPT, 9]


def test_what_only_looks_is_answered_inside_a_step(model):
    with model.session() as session:
        session.feed(PROMPT)
        seen = []

        def look():
            seen.extend([session.length, session.token_ids, session.nbytes > 0, model.threads])
            seen.extend([model.tokenizer.encode("a") != [], model.memory().pool.limit > 0])
            with model.session() as other:
                seen.append(other.length)

        between_layers(model, look)
        assert model.generate(PROMPT, max_tokens=3).completion_tokens == 3
        assert seen == [4, PROMPT, True, 1, True, True, 0]


@pytest.mark.parametrize("how", HOW)
def test_a_model_closed_inside_a_step_closes_at_its_end(model, how):
    session = model.session()
    expected = model.logits(PROMPT)[-1]

    def close():
        model.close()
        assert session.length == 0  # not yet
        model.close()

    between_layers(model, lambda: how(close))
    logits = session.feed(PROMPT)
    assert np.array_equal(logits, expected)  # the pool's memory lives as long as they do
    for use in (lambda: session.feed([1]), lambda: model.generate(PROMPT)):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(BufferError):
        model.close()
    del logits
    model.close()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "run",
    [
        lambda model: model.generate(PROMPT, max_tokens=9),
        lambda model: model.generate([PROMPT, [3, 4]], max_tokens=9),
        lambda model: list(model.stream(PROMPT, max_tokens=9)),
    ],
)
def test_generation_ends_with_the_model_it_closes(model, how, run):
    between_layers(model, lambda: how(model.close))
    with pytest.raises(Cancelled, match="its model closed"):
        run(model)
    with pytest.raises(ValueError, match="the model is closed"):
        model.generate(PROMPT)


def test_an_interrupt_after_closing_goes_on(model):
    """What a handler of SIGTERM does: close, then leave."""

    def leave():
        model.close()
        raise SystemExit(3)

    between_layers(model, lambda: by_signal(leave))
    with pytest.raises(SystemExit):
        model.generate(PROMPT)
    with pytest.raises(ValueError, match="the model is closed"):
        model.generate(PROMPT)


@pytest.mark.parametrize("how", HOW)
def test_a_session_or_stream_closed_inside_a_step_closes_at_its_end(model, how):
    session, stream = model.session(), model.stream(PROMPT, max_tokens=9)
    next(stream)
    between_layers(model, lambda: (how(session.close), how(stream.close)))
    session.feed(PROMPT)
    with pytest.raises(ValueError, match="closed"):
        session.feed([1])
    assert list(stream) == []
    model.scheduler.prefix_cache.clear()
    assert kv_bytes(model) == 0


@pytest.mark.parametrize(
    "act",
    [
        lambda model, session, path: session.close(),
        lambda model, session, path: session.fork().close(),
        lambda model, session, path: session.trim(0),
        lambda model, session, path: session.restore(path),
        lambda model, session, path: session.save(path),
        lambda model, session, path: model.close(),
        lambda model, session, path: setattr(model, "threads", 2),
    ],
    ids=["close", "fork", "trim", "restore", "save", "close the model", "threads"],
)
def test_other_threads_wait_for_a_step(model, tmp_path, act):
    session = model.session()
    session.feed(PROMPT)
    session.save(tmp_path / "s")
    with session.fork() as twin:
        expected = twin.feed([9, 10]).copy()
    is_inside, may_go, logits = threading.Event(), threading.Event(), []
    between_layers(model, lambda: (is_inside.set(), may_go.wait(10)))
    feeding = threading.Thread(target=lambda: logits.append(session.feed([9, 10]).copy()))
    feeding.start()
    assert is_inside.wait(10)
    acting = threading.Thread(target=act, args=(model, session, tmp_path / "s"))
    acting.start()
    acting.join(0.05)
    waited = acting.is_alive()
    may_go.set()
    for thread in (feeding, acting):
        thread.join(10)
        assert not thread.is_alive()
    assert waited
    assert np.array_equal(logits[0], expected)


def test_threads_that_close_fork_and_trim_what_others_feed(model, tmp_path):
    """Whatever comes first, each call does what it says or says that the session is closed."""
    errors = []

    def often(call):
        for _ in range(60):
            try:
                call()
            except ValueError as error:
                if "closed" not in str(error):
                    errors.append(error)
            except BaseException as error:
                errors.append(error)

    session = model.session()
    session.feed(PROMPT)
    session.save(tmp_path / "s")
    calls = [
        lambda: session.feed([1, 2, 3]),
        lambda: session.trim(0),
        lambda: session.fork().close(),
        lambda: session.restore(tmp_path / "s"),
        lambda: model.generate(PROMPT, max_tokens=2),
    ]
    threads = [threading.Thread(target=often, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    threads[0].join()
    session.close()
    for thread in threads:
        thread.join()
    assert not errors


def test_best_looks_at_its_own_logits(model, monkeypatch):
    """Other threads' steps, which write logits into the same memory, come before or after."""
    session, other = model.session(), model.session()
    expected = {}
    for token in (5, 9):
        with model.session() as alone:
            expected[token] = alone.best([token])
    assert expected[5] != expected[9]
    plain, threads = ops.argmax, []

    def argmax(logits):
        threads.append(threading.Thread(target=other.feed, args=([9],)))
        threads[0].start()
        threads[0].join(0.1)
        return plain(logits)

    monkeypatch.setattr(ops, "argmax", argmax)
    assert session.best([5]) == expected[5]
    threads[0].join()


def test_a_stream_of_a_loop_whose_model_is_closed(model):
    async def run():
        deltas = model.astream(PROMPT, max_tokens=200)
        await anext(deltas)
        model.close()
        async for _ in deltas:
            pass

    with pytest.raises(Cancelled, match="its model closed"):
        asyncio.run(run())


def test_a_comparison_holds_neither_model(model, monkeypatch):
    """Two threads that compare two models, each the other way round, would wait for each other."""
    plain = evaluation.compare_rows

    def rows(*arguments):
        assert not model.scheduler.is_inside and not other.scheduler.is_inside
        return plain(*arguments)

    monkeypatch.setattr(evaluation, "compare_rows", rows)
    with bitnet.load(TALKER, threads=1, context=512) as other:
        assert bitnet.compare(model, other, PROMPT * 8, context=16).kl == 0
