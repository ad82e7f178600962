"""The operations of layers with a state: equal to NumPy in the same order, for every instruction
set, any number of threads and however a sequence is cut; and close to the chunked form."""

import numpy as np
import pytest
from support import delta_net as reference

from bitnet.compute import ops
from bitnet.compute.delta_net import DeltaShape
from bitnet.compute.operands import Batch, Matrix
from bitnet.runtime.kv_cache import KVCache
from bitnet.runtime.pool import Pool


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def floats(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def batch_of(lengths, n_threads=1, max_tokens=300):
    """A batch of new sequences of these lengths."""
    pool = Pool(1 << 24)
    caches = [KVCache(pool, n_layers=1, n_kv_heads=1, head_dim=2, capacity=512) for _ in lengths]
    return Batch(max_tokens, len(lengths), n_threads).set(list(zip(caches, lengths, strict=True)))


def rows_only(n, n_threads=1):
    return Batch(300, 1, n_threads).rows_only(n)


@pytest.mark.parametrize(("n_taps", "n_channels"), [(2, 16), (4, 53), (8, 160)])
def test_convolution(isa, rng, n_taps, n_channels):
    w = floats(rng, n_taps, n_channels)
    lengths = [1, n_taps - 1, 9, 40]
    x = [floats(rng, n, n_channels + 3, scale=3) for n in lengths]
    before = [floats(rng, n_taps - 1, n_channels) for _ in lengths]
    for n_threads in (1, 2):
        states = [b.copy().ravel() for b in before]
        out = np.zeros((sum(lengths), n_channels), np.float32)
        batch = batch_of(lengths, n_threads)
        ops.causal_conv(Matrix(out), Matrix(np.concatenate(x)), w, states, batch)
        at = 0
        for n, inputs, old, new in zip(lengths, x, before, states, strict=True):
            expected, kept = reference.conv(inputs[:, :n_channels], w, old)
            assert out[at : at + n].tobytes() == expected.tobytes()
            assert new.tobytes() == np.ascontiguousarray(kept).tobytes()
            at += n


@pytest.mark.parametrize("n_heads", [1, 16, 50])
def test_gates(isa, rng, n_heads):
    alpha, beta = floats(rng, 4, n_heads, scale=8), floats(rng, 4, n_heads, scale=4)
    alpha[0, 0], alpha[1, 0], beta[1, 0] = 90, -90, -90
    a, dt = -np.exp(floats(rng, n_heads)), floats(rng, n_heads)
    out = np.zeros((4, 2 * n_heads), np.float32)
    ops.delta_gates(Matrix(out), Matrix(alpha), Matrix(beta), a, dt, rows_only(4))
    decays, rates = reference.gates(alpha, beta, a, dt)
    assert out.tobytes() == np.concatenate([decays, rates], 1).tobytes()
    wide = (alpha + dt).astype(np.float64)
    exact = np.exp(a * np.logaddexp(0, wide))
    assert np.abs(out[:, :n_heads] - exact).max() < 1e-5
    assert np.abs(out[:, n_heads:] - 1 / (1 + np.exp(-beta.astype(np.float64)))).max() < 1e-6


def inputs_of(rng, n, shape):
    """qkv with unit keys and queries, and gates."""
    keys = shape.n_key_heads * shape.key_dim
    qkv = floats(rng, n, shape.n_channels)
    heads = qkv[:, : 2 * keys].reshape(n, -1, shape.key_dim)
    heads /= np.linalg.norm(heads, axis=-1, keepdims=True)
    decays = np.exp(-rng.random((n, shape.n_heads)) * 0.3)
    rates = rng.random((n, shape.n_heads))
    return qkv, np.concatenate([decays, rates], 1).astype(np.float32)


def columns(state):
    """(n_heads, head_dim / 16, key_dim, 16) as (n_heads, key_dim, head_dim)"""
    return state.swapaxes(1, 2).reshape(len(state), state.shape[2], -1)


def heads_of(qkv, shape):
    """Per head (q, k, v), by what DeltaShape says."""
    keys = shape.n_key_heads * shape.key_dim
    for j in range(shape.n_heads):
        ratio = shape.n_heads // shape.n_key_heads
        i = j % shape.n_key_heads if shape.tiled else j // ratio
        one = slice(i * shape.key_dim, (i + 1) * shape.key_dim)
        value = slice(2 * keys + j * shape.head_dim, 2 * keys + (j + 1) * shape.head_dim)
        yield qkv[:, :keys][:, one], qkv[:, keys : 2 * keys][:, one], qkv[:, value]


SHAPES = [(1, 1, 4, 16, False), (2, 4, 20, 32, False), (2, 6, 64, 48, True)]


@pytest.mark.parametrize("sizes", SHAPES)
def test_recurrence(isa, rng, sizes):
    shape = DeltaShape(*sizes)
    lengths = [1, 23, 2]
    qkv, gates = inputs_of(rng, sum(lengths), shape)
    before = [floats(rng, *shape.delta_shape) for _ in lengths]
    width = shape.n_heads * shape.head_dim
    found = []
    for n_threads in (1, 2):
        states = [b.copy() for b in before]
        out = np.zeros((sum(lengths), 5 + width), np.float32)
        batch = batch_of(lengths, n_threads)
        flat = [state.reshape(-1) for state in states]
        ops.delta_rule(Matrix(out), 5, Matrix(qkv), Matrix(gates), flat, shape, batch)
        found.append((out.tobytes(), [state.tobytes() for state in states]))
    assert found[0] == found[1] and not out[:, :5].any()
    at = 0
    for n, old, new in zip(lengths, before, states, strict=True):
        part = slice(at, at + n)
        for j, (q, k, v) in enumerate(heads_of(qkv[part], shape)):
            state = columns(old)[j]
            for t in range(n):
                decay, rate = gates[at + t, j], gates[at + t, shape.n_heads + j]
                o, state = reference.step(state, q[t], k[t], v[t], decay, rate)
                got = out[at + t, 5 + j * shape.head_dim : 5 + (j + 1) * shape.head_dim]
                assert got.tobytes() == o.tobytes()
            assert columns(new)[j].tobytes() == state.tobytes()
        at += n


def test_a_sequence_may_be_cut_anywhere(rng):
    shape = DeltaShape(*SHAPES[2])
    qkv, gates = inputs_of(rng, 150, shape)
    width = shape.n_heads * shape.head_dim
    found = set()
    for cuts in ([], [1], [63, 64, 65], list(range(1, 150))):
        state, out = np.zeros(width * shape.key_dim, np.float32), np.zeros((150, width), np.float32)
        for begin, end in zip([0, *cuts], [*cuts, 150], strict=True):
            ops.delta_rule(
                Matrix(out[begin:end]), 0, Matrix(qkv[begin:end]), Matrix(gates[begin:end]),
                [state], shape, batch_of([end - begin]),
            )  # fmt: skip
        found.add((out.tobytes(), state.tobytes()))
    assert len(found) == 1


def test_recurrence_is_the_chunked_form(rng):
    shape = DeltaShape(*SHAPES[1])
    qkv, gates = inputs_of(rng, 150, shape)
    state = np.zeros(shape.delta_shape, np.float32)
    out = np.zeros((150, shape.n_heads * shape.head_dim), np.float32)
    ops.delta_rule(
        Matrix(out), 0, Matrix(qkv), Matrix(gates), [state.reshape(-1)], shape, batch_of([150])
    )
    for j, (q, k, v) in enumerate(heads_of(qkv.astype(np.float64), shape)):
        wide = gates.astype(np.float64)
        start = np.zeros((shape.key_dim, shape.head_dim))
        o, end = reference.chunked(
            start, q, k, v, np.log(wide[:, j]), wide[:, shape.n_heads + j], size=64
        )
        ours = out[:, j * shape.head_dim : (j + 1) * shape.head_dim]
        assert np.abs(ours - o).max() < 1e-5 and np.abs(columns(state)[j] - end).max() < 1e-5


@pytest.mark.parametrize("n_threads", [1, 2])
def test_gated_heads(isa, rng, n_threads):
    n, n_heads, head_dim, n_rest = 40, 3, 20, 24
    projected = floats(rng, n, 2 * n_heads * head_dim + n_rest)
    qkv = np.zeros((n, n_heads * head_dim + n_rest), np.float32)
    batch = rows_only(n, n_threads)
    ops.split_queries(Matrix(qkv), Matrix(projected), n_heads, head_dim, batch)
    pairs = projected[:, : 2 * n_heads * head_dim].reshape(n, n_heads, 2, head_dim)
    queries = pairs[:, :, 0].reshape(n, -1)
    assert (qkv == np.concatenate([queries, projected[:, -n_rest:]], 1)).all()
    x = floats(rng, n, n_heads * head_dim)
    expected = reference.sigmoid(np.ascontiguousarray(pairs[:, :, 1]).reshape(n, -1)) * x
    ops.gate_heads(Matrix(x), Matrix(projected), n_heads, head_dim, batch)
    assert x.tobytes() == expected.tobytes()


def test_what_does_not_fit_is_refused():
    for sizes in ((2, 3, 16, 16), (0, 1, 16, 16), (1, 1, 18, 16), (1, 1, 16, 24)):
        with pytest.raises(ValueError, match="limit"):
            DeltaShape(*sizes, False)
    shape = DeltaShape(1, 1, 16, 16, False)
    x, gates = Matrix(np.zeros((2, 48), np.float32)), Matrix(np.zeros((2, 2), np.float32))
    out, state = Matrix(np.zeros((2, 16), np.float32)), np.zeros(256, np.float32)
    batch = batch_of([2])
    for changed in (
        (out, 1, x, gates, [state], shape), (out, 0, out, gates, [state], shape),
        (out, 0, x, x, [state], shape), (out, 0, x, gates, [state[:255]], shape),
        (out, 0, x, gates, [], shape),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            ops.delta_rule(*changed, batch)
    w = np.zeros((3, 48), np.float32)
    for weight, states in ((w[:1], [state[:0]]), (w, [state[:95]]), (w[:, :40], [state[:80]])):
        with pytest.raises(ValueError):
            ops.causal_conv(x, x, np.ascontiguousarray(weight), states, batch)
