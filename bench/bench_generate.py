"""Tokens a second of whole models beside their bound: what a plain read of the same weights allows.

Prefill is compute-bound, decode bandwidth-bound; only decode is held against the read.
"""
import numpy as np
import pytest

import bitnet
from bitnet import cpu, ops, weights
from bitnet.cli.bench import bytes_per_token, weight_runs
from bitnet.loading import BUNDLED_MODEL

N_DECODED = 32
THREADS = sorted({1, min(2, len(cpu.affinity())), cpu.threads()[0]})


@pytest.fixture(scope="module", params=["bundled", "2b-4t-shape"])
def path(request):
    if request.param == "bundled":
        return BUNDLED_MODEL
    return request.getfixturevalue("synthetic_path")


@pytest.fixture(scope="module", params=THREADS, ids=lambda n: f"{n}t")
def model(path, request):
    with bitnet.load(path, threads=request.param) as model:
        model.generate([1], max_tokens=1)       # the first pass also looks for damaged weights
        yield model


@pytest.fixture(scope="module")
def prompt(model):
    return np.random.default_rng(0).integers(0, model.config.vocab_size, 512).tolist()


def test_decode(model, prompt, timed, figures):
    """After a prompt of 128 tokens, greedy."""
    with weights.open(model.path) as files, model.session() as session:
        used, runs = bytes_per_token(files), weight_runs(files)
        session.feed(prompt[:128])

        def decode():
            session.trim(128)
            token = 0
            for _ in range(N_DECODED):
                token = int(session.decode(token).argmax())

        seconds, read = timed(
            decode, lambda: sum(ops.read_bandwidth(run, model.threads) for run in runs))
        read_bytes_s = sum(run.nbytes for run in runs) / read
    tokens_s = N_DECODED / seconds
    figures(tokens_s=tokens_s, bound_tokens_s=read_bytes_s / used, read_gb_s=read_bytes_s / 1e9,
            share=tokens_s * used / read_bytes_s, mb_a_token=used / 1e6)


@pytest.mark.parametrize("n_tokens", [128, 384])
def test_prefill(model, prompt, n_tokens, timed, figures):
    with model.session() as session:
        def prefill():
            session.trim(0)
            session.feed(prompt[:n_tokens])

        figures(tokens_s=n_tokens / timed(prefill, rounds=3))


def test_load_to_first_token(path, timed, figures):
    """From a warm page cache, the tokenizer included."""
    def load():
        with bitnet.load(path, threads=max(THREADS)) as model:
            model.generate("And", max_tokens=1)

    figures(seconds=timed(load, rounds=3))
