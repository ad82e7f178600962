"""Other engines on the same shape, each in turn with ours, round by round, in one run.

On 2B-4T's shape: the Python packages of support/peers.py, and any engine with a llama-bench
program by its path in LLAMA_BENCH, on the file LLAMA_BENCH_MODEL (without it the I2_S file of these
benchmarks). On Ternary Bonsai's: llama-cpp-python, on the file of groups of 64 that we read. What
is not installed or cannot run is skipped with the reason, and so are prompts that would take
minutes.
"""

import os

import numpy as np
import pytest
from support import peers, synthetic
from support.bounds import Bounds

import bitnet
from bitnet.runtime import cpu

N_DECODED, N_CONTEXT = 16, 128  # tokens decoded after so many
SHORT = 16  # tokens of the prompt that tells how fast a peer is
PATIENCE = 30  # seconds that a prompt may take
THREADS = sorted({1, min(2, len(cpu.affinity()))})
CASES = [("2b-4t", None, name) for name in peers.PEERS]
CASES += [("bonsai", activations, "llama-cpp-python") for activations in ("int16", "int8")]


@pytest.fixture(scope="module")
def tq2_0_path(tmp_path_factory, large_files):
    path = tmp_path_factory.mktemp("peer") / "tq2_0.gguf"
    large_files.write(path, synthetic.Shape(), 0, "bitnet", "TQ2_0")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def bonsai_path(request, tmp_path_factory, large_files):
    name = f"bonsai-{request.config.getoption('--bonsai')}"
    path = tmp_path_factory.mktemp("bonsai") / "q2_0_g64.gguf"
    tied = name not in synthetic.UNTIED
    large_files.write(path, synthetic.SHAPES[name], 0, "qwen3", "Q2_0_G64", tied)
    yield path
    path.unlink()


@pytest.fixture(scope="module", params=THREADS, ids=lambda n: f"{n}t")
def n_threads(request):
    return request.param


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: "-".join(part for part in case if part)
)
def pair(request, n_threads):
    """(our model, the peer, its seconds a token of a short prompt)."""
    shape, activations, name = request.param
    for module in peers.PEERS[name].MODULES:
        pytest.importorskip(module, exc_type=ImportError)
    path = their_path = request.getfixturevalue(
        "bonsai_path" if shape == "bonsai" else "synthetic_path"
    )
    if name == "llama-bench":
        their_path = os.environ.get("LLAMA_BENCH_MODEL", path)
    elif name == "llama-cpp-python" and shape == "2b-4t":
        their_path = request.getfixturevalue("tq2_0_path")
    try:
        peer = peers.PEERS[name](their_path, n_threads)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"{name}: {error}")
    with bitnet.load(path, threads=n_threads, context=1024, activations=activations) as model:
        model.generate([1], max_tokens=1)  # the first pass also looks for damaged weights
        yield model, peer, peer.prefill(SHORT) / SHORT
    peer.close()


def figures_of(model, tokens_s, peer_tokens_s, peer):
    bits = model.weights.activation_bits
    return {
        "peer_tokens_s": peer_tokens_s,
        "ratio": tokens_s / peer_tokens_s,
        "activations": f"int{bits} in groups" if bits else "int8 with one scale a token",
        "peer": peer.about,
    }


def test_decode(pair, timed, figures):
    model, peer, pace = pair
    n_context = N_CONTEXT if pace * N_CONTEXT < PATIENCE else SHORT
    with model.session() as session, Bounds(model) as bounds:
        peer.prefill(n_context)
        session.feed([*range(1, n_context + 1)])
        n_decoded = N_DECODED if peer.decode(1) * N_DECODED < PATIENCE / 6 else 2

        def decode():
            session.trim(n_context)
            for token in range(1, n_decoded + 1):
                session.best([token])

        def reference():
            return np.array([peer.decode(n_decoded), *bounds.measure()])

        seconds, (other, *measured) = timed(decode, reference)
        tokens_s = n_decoded / seconds
        found = figures_of(model, tokens_s, n_decoded / other, peer)
        figures(**bounds.figures(measured, tokens_s), **found)


@pytest.mark.parametrize("n_tokens", [SHORT, 128, 512])
def test_prefill(pair, n_tokens, timed, figures):
    model, peer, pace = pair
    if n_tokens > SHORT and pace * n_tokens > PATIENCE:
        pytest.skip(f"a prompt of {n_tokens} would take {pace * n_tokens:.0f} s: {peer.about}")
    with model.session() as session:

        def prefill():
            session.trim(0)
            session.best([*range(1, n_tokens + 1)])  # and the likeliest token after them

        rounds = 5 if n_tokens <= 128 else 2  # of 20 s
        seconds, other = timed(prefill, lambda: peer.prefill(n_tokens), rounds)
        tokens_s = n_tokens / seconds
        figures(tokens_s=tokens_s, **figures_of(model, tokens_s, n_tokens / other, peer))
