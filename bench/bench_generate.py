"""Generation as a user meets it: the small model's steps, drafts that hit and miss, loading.

bench_model.py measures the 2B-4T shape's forward pass at every depth and batch.
"""

import time
from functools import partial

import numpy as np
import pytest

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.compute import ops
from bitnet.runtime import cpu

N_DECODED = 200
OPERATIONS = [  # functions of ops that a step calls
    "embed",
    "rms_norm",
    "quantize",
    "linear",
    "rope",
    "store_kv",
    "attention",
    "gated_activation",
    "gather_rows",
    "head",
]
THREADS = sorted({1, min(2, len(cpu.affinity())), cpu.threads()[0]})
EDIT = (
    "def total(prices):\n    result = 0\n    for price in prices:\n        result += price\n"
    "    return result\n\ndef total_of_even(prices):\n"
)
PSALM = (
    "O give thanks unto the LORD; for he is good: for his mercy endureth for ever.\n"
    "O give thanks unto the God of gods: for his mercy endureth for ever.\n"
    "O give thanks to the Lord of lords: for his mercy endureth for ever.\n"
    "To him who alone doeth great wonders: for his mercy endureth for ever.\n"
)
TEXTS = {  # name: (prompt, settings)
    "code": (EDIT, {"temperature": 0.0}),
    "psalm": (PSALM, {"temperature": 0.0}),
    "psalm-sampled": (PSALM, {"temperature": 0.8, "seed": 1}),
    "novel-sampled": ("It was", {"temperature": 0.8, "seed": 1}),
}


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1, prefix_cache=False) as model:
        model.generate([1], max_tokens=1)  # the first pass also looks for damaged weights
        yield model


def endless(model, **options):
    """Options under which exactly N_DECODED tokens come."""
    ends = model.tokenizer.eos_ids
    bias = dict.fromkeys(ends, -float("inf"))
    return {"max_tokens": N_DECODED, "logit_bias": bias, **options}


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_a_token_beside_the_sum_of_its_operations(model, sampled, timed, figures):
    """The small model: what a generated token takes, and what the operations of a step alone do."""
    options = endless(model, temperature=0.8 if sampled else 0.0, seed=1)
    prompt = model.tokenizer.encode("It was")
    rates = []
    _, operations = timed(
        lambda: rates.append(model.generate(prompt, **options).generation_tps),
        lambda: sum_of_operations(model, N_DECODED // 2),
    )
    token = 1 / np.median(rates[1:])
    figures(us_a_token=token * 1e6, us_of_operations=operations * 1e6, ratio=token / operations)


def sum_of_operations(model, depth, repeat=20):
    """Seconds of one step's operations at a depth, each repeated by itself, the best of three."""
    calls = []
    with model.session() as session, pytest.MonkeyPatch.context() as patch:
        session.feed([1] * depth)
        for name in OPERATIONS:
            patch.setattr(ops, name, partial(record, calls, getattr(ops, name)))
        session.decode(1)
        patch.undo()
        session.trim(depth)
        model.scheduler.transformer.batch.set([(session._state.parts["kv"].cache, 1)])
        return sum(min(once(call, repeat) for _ in range(3)) for call in calls)


def record(calls, operation, *arguments, **keywords):
    calls.append(partial(operation, *arguments, **keywords))
    return calls[-1]()


def once(call, repeat):
    begin = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - begin) / repeat


@pytest.mark.parametrize("text", TEXTS)
def test_speculation(model, text, timed, figures):
    """Tokens a second with drafts and without, in turn; the texts are the same."""
    prompt, settings = TEXTS[text]
    options = endless(model, **settings)
    plain = model.generate(prompt, **options)
    drafted = model.generate(prompt, speculative="ngram", **options)
    assert plain.token_ids == drafted.token_ids

    def rate(**more):
        return model.generate(prompt, **options, **more).generation_tps

    rates = []
    _, without = timed(lambda: rates.append(rate(speculative="ngram")), rate)
    figures(
        tokens_s=np.median(rates[1:]),
        plain_tokens_s=without,
        gain=np.median(rates[1:]) / without,
        drafted=drafted.drafted_tokens,
        accepted=drafted.accepted_tokens,
    )


@pytest.fixture(params=["bundled", "2b-4t-shape"])
def path(request):
    if request.param == "bundled":
        return BUNDLED_MODEL
    return request.getfixturevalue("synthetic_path")


def test_load_to_first_token(path, timed, figures):
    """From a warm page cache, the tokenizer included."""

    def load():
        with bitnet.load(path, threads=max(THREADS)) as model:
            model.generate("And", max_tokens=1)

    figures(seconds=timed(load, rounds=3))
