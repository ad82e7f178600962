"""What depth costs: attention alone by dtype, and decode at depth 3968 beside depth 128.

The bound of the share that decode keeps: the bytes of weights a token reads, over those and the
keys and values at that depth. Caches are filled with random numbers, which change no time.
"""

import time

import numpy as np
import pytest

import bitnet
from bitnet.api.measure import bytes_per_token
from bitnet.compute import operands, ops
from bitnet.models.lm_head_screen import LogitsQuery
from bitnet.models.rope import inverse_frequencies
from bitnet.runtime import cpu, dispatch
from bitnet.runtime.kv_cache import PAGE, KVCache
from bitnet.runtime.pool import Pool

DEPTHS = (128, 3968)  # tokens before those decoded, for which a context of 4096 leaves room
N_DECODED = 4
THREADS = sorted({1, min(2, len(cpu.affinity())), cpu.threads()[0]})
HEADS, KV_HEADS, HEAD_DIM = 20, 5, 128  # of 2B-4T
N_ROWS = 64  # of a prompt


def fill(state, cache, depth):
    """Make a state hold ``depth`` positions, its keys and values, of about unit size, in cache."""
    dtype, r = cache.dtype, np.random.default_rng(0)
    n = 2 * cache.n_kv_heads * PAGE * cache.head_dim
    page = r.standard_normal(n).astype({"f32": np.float32}.get(dtype, np.float16))
    if dtype == "int8":
        codes, scales = r.integers(-127, 128, n).astype(np.int8), np.full(n // cache.head_dim, 0.01)
        page = np.concatenate([codes.view(np.uint8), scales.astype(np.float32).view(np.uint8)])
    for i in range(depth // PAGE):
        state.reserve(PAGE)
        for layer in range(cache.n_layers):
            cache.import_page(layer, i, page.view(np.uint8))
        state.advance(PAGE)
    return state


@pytest.fixture(params=cpu.supported())
def isa(request):
    yield dispatch.use(request.param)
    dispatch.use()


def attention_of(dtype, depth, n_rows):
    """A call of attention over one layer of a sequence, n_rows rows of which the last sees depth
    positions."""
    sizes = {"n_layers": 1, "n_kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    cache = KVCache(Pool(1 << 28), capacity=depth, dtype=dtype, **sizes)
    fill(cache, cache, depth - PAGE)
    partials = np.zeros(ops.partials_floats(HEADS, HEAD_DIM), np.float32)
    batch = operands.Batch(PAGE, 1, 1, partials=partials)
    cos_sin = np.zeros((2, PAGE + 1, HEAD_DIM // 2), np.float32)
    rope = operands.Rope(inverse_frequencies(HEAD_DIM, 500000.0), cos_sin, False, depth)
    shape = PAGE, (HEADS + 2 * KV_HEADS) * HEAD_DIM
    qkv = operands.Matrix(np.random.default_rng(1).standard_normal(shape, np.float32))
    out = operands.Matrix(np.zeros((PAGE, HEADS * HEAD_DIM), np.float32))
    for n in (PAGE - n_rows, n_rows):
        batch.set([(cache, n)])
        ops.store_kv(qkv, 0, batch)
        if n == PAGE - n_rows:
            cache.advance(n)
    return lambda: ops.attention(out, qkv, 0, rope, batch)


@pytest.mark.parametrize("n_rows", [1, N_ROWS])
@pytest.mark.parametrize("depth", [2048, 8192, 32768])
def test_attention_at_depth(isa, depth, n_rows, timed, figures):
    """Of a layer on one thread, int8 and f16 in turn: a token of decode, rows of a prompt. An
    operation is a multiplication or an addition. Time of that thread: a call of 30 ms on a core
    that others use is interrupted, and would show 145 G operations a second for 210."""
    calls = {dtype: attention_of(dtype, depth, n_rows) for dtype in ("f16", "int8")}

    def reference():
        begin = time.thread_time()
        calls["f16"]()
        return time.thread_time() - begin

    medians = timed(calls["int8"], reference, rounds=15, clock=time.thread_time)
    seconds = dict(zip(("int8", "f16"), medians, strict=True))
    n_operations = 4 * HEADS * HEAD_DIM * sum(range(depth - n_rows + 1, depth + 1))
    figures(
        f16_us_a_row=seconds["f16"] / n_rows * 1e6,
        int8_us_a_row=seconds["int8"] / n_rows * 1e6,
        f16_g_op_s=n_operations / seconds["f16"] / 1e9,
        int8_g_op_s=n_operations / seconds["int8"] / 1e9,
        ratio=seconds["f16"] / seconds["int8"],
    )


@pytest.fixture(params=THREADS, ids=lambda n: f"{n}t")
def n_threads(request):
    return request.param


@pytest.fixture(params=["f16", "int8"])
def model(synthetic_path, n_threads, request):
    with bitnet.load(synthetic_path, threads=n_threads, kv_dtype=request.param) as model:
        yield model


def test_decode_at_depth(model, timed, figures):
    transformer = model.scheduler.transformer
    dtype = model.scheduler.kv_dtype
    states = [transformer.new_state(dtype=dtype) for _ in DEPTHS]
    shallow, deep = (fill(s, s.parts["kv"].cache, n) for s, n in zip(states, DEPTHS, strict=True))
    token = np.zeros(1, np.int32)

    def decode(cache):
        length = cache.length
        for _ in range(N_DECODED):
            transformer.forward(token, [(cache, 1)], queries=[LogitsQuery(1)])
        cache.trim(length)

    def reference():
        begin = time.perf_counter()
        decode(shallow)
        return time.perf_counter() - begin

    decode(shallow)  # the first pass also looks for damaged weights
    at_depth, at_once = timed(lambda: decode(deep), reference, rounds=7)
    used = bytes_per_token(model.weights)
    kv = [cache.nbytes for cache in (shallow, deep)]
    figures(
        tokens_s_128=N_DECODED / at_once,
        tokens_s_3968=N_DECODED / at_depth,
        kept=at_once / at_depth,
        bound=(used + kv[0]) / (used + kv[1]),
        kv_gb_s=(kv[1] - kv[0]) * N_DECODED / (at_depth - at_once) / 1e9,
    )
    shallow.close()
    deep.close()
