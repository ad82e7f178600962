"""What a kernel reaches on each instruction set, beside a plain read of the same bytes.

Shapes are those of 2B-4T. Arrays that a token streams from memory are larger than any cache here.
"""

import itertools

import numpy as np
import pytest
from support.bounds import seconds_of

from bitnet.compute import grouped, operands, ops
from bitnet.models.rope import inverse_frequencies
from bitnet.runtime import cpu, dispatch
from bitnet.runtime.kv_cache import KVCache
from bitnet.runtime.pool import Pool

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM = 2560, 6912, 20, 5, 128
N_LAYERS = 16  # layers with a gate and an up projection: 142 MB of packed weights
THREADS = sorted({1, min(2, len(cpu.affinity())), cpu.threads()[0]})


@pytest.fixture(params=cpu.supported())
def isa(request):
    yield dispatch.use(request.param)
    dispatch.use()


@pytest.fixture(params=THREADS, ids=lambda n: f"{n}t")
def n_threads(request):
    return request.param


def zeros(shape, dtype):
    """Aligned to 64 bytes, as the pool's arrays are: codes 16 bytes off cost AVX2 a quarter."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(n_bytes + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:n_bytes].view(dtype).reshape(shape)


@pytest.fixture(scope="module")
def packed():
    """I2_S codes, uint8 (N_LAYERS, rows, row bytes), without code 3."""
    digits = itertools.product(range(3), repeat=4)
    valid = np.array([a << 6 | b << 4 | c << 2 | d for a, b, c, d in digits], np.uint8)
    draws = np.random.default_rng(0).integers(0, 81, (N_LAYERS, 2 * FFN, HIDDEN // 4), np.uint8)
    codes = zeros(draws.shape, np.uint8)
    codes[...] = valid[draws]
    return codes


def linear(codes):
    return operands.Linear([(codes, np.ones((1, 1), np.float32))], HIDDEN)


def activations(n_tokens, n_threads):
    """(codes of random activations, output, batch) for a matrix of gate and up."""
    rng = np.random.default_rng(1)
    batch = operands.Batch(n_tokens, 1, n_threads).rows_only(n_tokens)
    codes = operands.QuantizedActivations(
        zeros((n_tokens, HIDDEN), np.int8),
        np.zeros(n_tokens, np.float32),
        np.zeros(n_tokens, np.int32),
    )
    x = rng.standard_normal((n_tokens, HIDDEN), np.float32)
    ops.quantize(codes, operands.Matrix(x), batch)
    return codes, operands.Matrix(zeros((n_tokens, 2 * FFN), np.float32)), batch


@pytest.fixture(scope="module")
def blocks():
    """The same number of weights as PQ2_0, uint8 (N_LAYERS, rows, row bytes), all scales 1/64."""
    codes = np.random.default_rng(0).integers(
        0, 81, (N_LAYERS, 2 * FFN, HIDDEN // 128, 34), np.uint8
    )
    digits = itertools.product(range(3), repeat=4)
    codes = np.array([a << 6 | b << 4 | c << 2 | d for a, b, c, d in digits], np.uint8)[codes]
    codes[..., :2] = np.frombuffer(np.float16(1 / 64).tobytes(), np.uint8)
    rows = zeros((N_LAYERS, 2 * FFN, HIDDEN // 128 * 34), np.uint8)
    rows[...] = codes.reshape(rows.shape)
    return rows


def grouped_activations(n_tokens, n_threads, bits):
    batch = operands.Batch(n_tokens, 1, n_threads).rows_only(n_tokens)
    shapes = grouped.activation_shapes(n_tokens, HIDDEN, bits)
    dtypes = (np.int8, np.float32, np.int32)
    codes = grouped.GroupedActivations(
        *(zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)), bits
    )
    x = np.random.default_rng(1).standard_normal((n_tokens, HIDDEN), np.float32)
    ops.quantize(codes, operands.Matrix(x), batch)
    return codes


def with_workspace(batch, n_tokens, n_threads, n_bytes):
    if not n_bytes:
        return batch
    workspace = zeros((n_threads, n_bytes), np.uint8)
    return operands.Batch(n_tokens, 1, n_threads, workspace=workspace).rows_only(n_tokens)


def beside_read(rows, layers, codes, out, batch, n_threads, timed, figures):
    """One token times all layers, whose bytes are rows, beside a plain read of them."""

    def run():
        for layer in layers:
            ops.linear(out, layer, codes, batch)

    seconds, read = timed(run, lambda: ops.read_bandwidth(rows.reshape(-1), n_threads))
    figures(
        packed_gb_s=rows.nbytes / seconds / 1e9,
        read_gb_s=rows.nbytes / read / 1e9,
        share=read / seconds,
    )


@pytest.mark.parametrize("bits", [16, 8])
def test_grouped_matvec(isa, n_threads, bits, blocks, timed, figures):
    """One token times blocks of 128 weights with a scale, in place."""
    layers = [grouped.GroupedLinear([("PQ2_0", rows, None)], HIDDEN) for rows in blocks]
    codes = grouped_activations(1, n_threads, bits)
    _, out, batch = activations(1, n_threads)
    beside_read(blocks, layers, codes, out, batch, n_threads, timed, figures)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("n_tokens", [2, 4, 8, 16, 32, 128])
def test_grouped_matmul(isa, n_threads, n_tokens, bits, blocks, packed, timed, figures):
    """Scales of groups beside one scale a matrix, each in the way that a prompt takes."""
    layer = grouped.GroupedLinear([("PQ2_0", blocks[0], None)], HIDDEN)
    plain = linear(packed[0])
    codes = grouped_activations(n_tokens, n_threads, bits)
    plain_codes, out, batch = activations(n_tokens, n_threads)
    n_bytes = max(ops.workspace_bytes(2 * FFN), grouped.grouped_workspace_bytes(2 * FFN))
    batch = with_workspace(batch, n_tokens, n_threads, n_bytes)
    seconds, of_plain = timed(
        lambda: ops.linear(out, layer, codes, batch),
        lambda: seconds_of(lambda: ops.linear(out, plain, plain_codes, batch)),
    )
    n_products = plain.n_rows * plain.n_cols * n_tokens
    figures(
        g_weights_tokens_s=n_products / seconds / 1e9,
        per_tensor=n_products / of_plain / 1e9,
        ratio=of_plain / seconds,
    )


def test_ternary_matvec(isa, n_threads, packed, timed, figures):
    layers = [linear(codes) for codes in packed]
    codes, out, batch = activations(1, n_threads)
    beside_read(packed, layers, codes, out, batch, n_threads, timed, figures)


@pytest.mark.parametrize("n_tokens", [1, 2, 4, 8, 16, 32, 128])
def test_ternary_matmul(isa, n_threads, n_tokens, packed, timed, figures):
    layer = linear(packed[0])
    codes, out, batch = activations(n_tokens, n_threads)
    seconds = timed(lambda: ops.linear(out, layer, codes, batch))
    figures(g_weights_tokens_s=layer.n_rows * layer.n_cols * n_tokens / seconds / 1e9)


@pytest.mark.parametrize("n_tokens", [32, 128])
def test_ternary_tables(isa, n_threads, n_tokens, packed, timed, figures):
    """Tables, which prompts use on some instruction sets, beside tiles of the same tokens."""
    n_bytes = ops.workspace_bytes(2 * FFN)
    if not n_bytes:
        pytest.skip(f"{isa}: tiles are as fast")
    layer = linear(packed[0])
    codes, out, batch = activations(n_tokens, n_threads)
    with_tables = with_workspace(batch, n_tokens, n_threads, n_bytes)
    seconds, tiles = timed(
        lambda: ops.linear(out, layer, codes, with_tables),
        lambda: seconds_of(lambda: ops.linear(out, layer, codes, batch)),
    )
    n_products = layer.n_rows * layer.n_cols * n_tokens
    figures(
        g_weights_tokens_s=n_products / seconds / 1e9,
        of_tiles=n_products / tiles / 1e9,
        ratio=tiles / seconds,
    )


@pytest.mark.parametrize("type", list(operands.ROW_TYPES))
def test_head(isa, n_threads, type, timed, figures):
    n_rows = 160 * 2**20 // operands.row_bytes(type, HIDDEN)
    shape = n_rows, operands.row_bytes(type, HIDDEN)
    data = np.random.default_rng(2).integers(0, 60, shape, np.uint8)
    x = operands.Matrix(np.ones((1, HIDDEN), np.float32))
    out = operands.Matrix(np.zeros((1, n_rows), np.float32))
    rows, batch = (
        operands.QuantizedRows(data, type, HIDDEN),
        operands.Batch(1, 1, n_threads).rows_only(1),
    )
    seconds, read = timed(
        lambda: ops.head(out, rows, x, batch),
        lambda: ops.read_bandwidth(data.reshape(-1), n_threads),
    )
    figures(
        gb_s=data.nbytes / seconds / 1e9, read_gb_s=data.nbytes / read / 1e9, share=read / seconds
    )


@pytest.mark.parametrize("dtype", ["f16", "int8", "f32"])
@pytest.mark.parametrize("n_positions", [128, 1024, 4096])
def test_attention(isa, n_threads, n_positions, dtype, timed, figures):
    """One decode step of 16 layers, whose keys and values do not lie in a cache, and of one layer,
    whose do (of 1024 positions at most, in L2)."""
    cache = KVCache(
        Pool(1 << 29),
        n_layers=N_LAYERS,
        n_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=n_positions + 1,
        dtype=dtype,
    )
    partials = np.zeros(ops.partials_floats(HEADS, HEAD_DIM), np.float32)
    batch = operands.Batch(128, 1, n_threads, partials=partials)
    frequencies = inverse_frequencies(HEAD_DIM, 500000.0)
    cos_sin = np.zeros((2, 129, HEAD_DIM // 2), np.float32)
    rope = operands.Rope(frequencies, cos_sin, False, 4096)
    rng = np.random.default_rng(3)
    qkv = operands.Matrix(rng.standard_normal((128, (HEADS + 2 * KV_HEADS) * HEAD_DIM), np.float32))
    for _ in range(n_positions // 128):
        batch.set([(cache, 128)])
        for layer in range(N_LAYERS):
            ops.store_kv(qkv, layer, batch)
        cache.advance(128)
    out = operands.Matrix(np.zeros((1, HEADS * HEAD_DIM), np.float32))
    others = np.ones(1 << 26, np.uint8)
    batch.set([(cache, 1)])

    def near():
        return seconds_of(lambda: ops.attention(out, qkv, 0, rope, batch))

    def step():
        for layer in range(N_LAYERS):
            ops.attention(out, qkv, layer, rope, batch)

    def reference():
        near()
        seconds = near()
        ops.read_bandwidth(others, n_threads)  # more than the last cache holds
        return seconds

    seconds, cached = timed(step, reference, rounds=20)
    figures(
        us_a_layer=seconds / N_LAYERS * 1e6,
        kv_gb_s=cache.nbytes / seconds / 1e9,
        us_cached=cached * 1e6,
    )
