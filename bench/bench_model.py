"""Tokens a second of a model of 2B-4T's shape, at every depth, prompt and batch, with its bounds.

The bounds are nobody's kernels: (a) a plain read of the weights a token needs, from the same map
with the same threads, right before; (b) for AVX2, 15 vector operations for 128 ternary weights at
four a cycle of the measured clock. --largest N leaves out what needs more than N tokens.
"""

import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from support.bounds import Bounds, seconds_of

import bitnet
from bitnet.compute import ops
from bitnet.models.lm_head_screen import LogitsQuery
from bitnet.runtime import cpu

N_DECODED = 8
THREADS = sorted({1, min(2, len(cpu.affinity())), cpu.threads()[0]})
DEPTHS = [1, 128, 512, 1024, 2048, 4088]
PROMPTS = [32, 64, 128, 256, 512, 1024, 2048]
BATCHES = [1, 2, 4, 8, 16]
ROWS = [1, 2, 3, 4, 5, 7, 9, 17]


@pytest.fixture(scope="module", params=THREADS, ids=lambda n: f"{n}t")
def model(synthetic_path, request):
    with bitnet.load(synthetic_path, threads=request.param, slots=max(BATCHES)) as model:
        model.generate([1], max_tokens=1)  # the first pass also looks for damaged weights
        yield model


@pytest.fixture(scope="module")
def deep(model):
    """A session that is fed as far as a test needs, and trimmed by it."""
    with model.session() as session:
        yield session


@pytest.fixture(scope="module")
def prompt(model):
    return np.random.default_rng(0).integers(0, model.config.vocab_size, 4096).tolist()


@pytest.fixture(scope="module")
def bounds(model):
    with Bounds(model) as bounds:
        yield bounds


@contextmanager
def fed(model, token_ids):
    with model.session() as session:
        session.feed(token_ids)
        yield session


def feed_to(session, prompt, depth):
    session.trim(min(session.length, depth))
    if session.length < depth:
        session.feed(prompt[session.length : depth])


@pytest.mark.parametrize("depth", DEPTHS)
def test_decode(model, deep, prompt, depth, bounds, timed, figures, fits):
    fits(depth)
    feed_to(deep, prompt, depth)

    def decode():
        deep.trim(depth)
        token = 0
        for _ in range(N_DECODED):
            token = deep.best([token])

    seconds, measured = timed(decode, bounds.measure)
    figures(**bounds.figures(measured, N_DECODED / seconds))


@pytest.mark.parametrize("n_tokens", PROMPTS)
def test_prefill(model, prompt, n_tokens, timed, figures, fits):
    fits(n_tokens)
    with model.session() as session:

        def prefill():
            session.trim(0)
            session.best(prompt[:n_tokens])  # the likeliest token after it, as `generate` does

        figures(tokens_s=n_tokens / timed(prefill, rounds=5 if n_tokens <= 512 else 2))


@pytest.mark.parametrize("is_busy", [False, True], ids=["free", "busy"])
def test_threads(model, prompt, is_busy, timed, figures):
    """All threads beside one; busy: with a loop of another process on the last of our cores."""
    n_threads = model.threads
    if n_threads == 1:
        pytest.skip("one thread")
    loop = [sys.executable, "-c", "import os\nos.sched_setaffinity(0, {%d})\nwhile True: pass"]
    loop[2] %= cpu.affinity()[-1]
    with model.session() as session:

        def decode(n, n_tokens=32):
            model.threads = n
            feed_to(session, prompt, 128)
            for _ in range(n_tokens):
                session.best([1])

        other = subprocess.Popen(loop) if is_busy else None
        try:
            decode(n_threads)  # learns which cores are ours
            seconds, one = timed(
                lambda: decode(n_threads), lambda: seconds_of(lambda: decode(1)), rounds=7
            )
        finally:
            model.threads = n_threads
            if other:
                other.kill()
                other.wait()
        figures(tokens_s=32 / seconds, tokens_s_of_one=32 / one, ratio=one / seconds)


@pytest.mark.parametrize("n_sequences", BATCHES)
def test_batch(model, prompt, n_sequences, timed, figures):
    """Tokens a second of all sequences together, each 128 tokens deep: the likeliest token of each,
    as decoding does; beside steps that give all logits."""
    with fed(model, prompt[:128]) as session, model.scheduler.alone():
        engine_model = model.scheduler.transformer
        states = [session._state.fork() for _ in range(n_sequences)]
        tokens = np.arange(n_sequences, dtype=np.int32)

        def step(queries):
            for state in states:
                state.trim(128)
            for _ in range(N_DECODED):
                sequences = [(state, 1) for state in states]
                logits = engine_model.forward(tokens, sequences, queries=queries)
                tokens[:] = [ops.argmax(row) for row in logits]

        queries = [LogitsQuery(1)] * n_sequences
        seconds, whole = timed(lambda: step(queries), lambda: seconds_of(lambda: step(None)))
        n_tokens = n_sequences * N_DECODED
        figures(tokens_s=n_tokens / seconds, tokens_s_all_logits=n_tokens / whole)
        for state in states:
            state.close()


@pytest.mark.parametrize("n_rows", ROWS)
def test_verification(model, prompt, n_rows, timed, figures):
    """A step over n rows of one sequence with the likeliest token of each, beside a step over one.

    cost: how many plain steps it takes. A draft of n - 1 tokens pays where more than cost - 1 of
    them are right.
    """
    with fed(model, prompt[:128]) as session, model.scheduler.alone():
        engine_model = model.scheduler.transformer
        state, tokens = session._state, np.arange(n_rows, dtype=np.int32)

        def step(n):
            engine_model.forward(tokens[:n], [(state, n)], logits=[n], queries=[LogitsQuery(1)] * n)
            state.trim(128)

        def plain():
            return seconds_of(lambda: step(1))

        seconds, one = timed(lambda: step(n_rows), plain, rounds=9)
        figures(ms=seconds * 1e3, cost=seconds / one)
