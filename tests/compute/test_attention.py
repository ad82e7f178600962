"""Rotary positions, KV pages and attention: NumPy's results, and one result on every CPU."""

import numpy as np
import pytest
from support import reference
from support.guard import guarded

from bitnet.compute import operands, ops
from bitnet.models.rope import inverse_frequencies
from bitnet.runtime.kv_cache import KVCache
from bitnet.runtime.pool import Pool

DTYPES = ["f32", "f16", "int8"]
# From attention over what the pages hold, of the largest value: weights have 13 bits, those for
# int8 15 of the largest one in a page, as queries of their largest number.
BOUND = {"f32": 1e-6, "f16": 2.0**-14 + 1e-6, "int8": 2.0**-14 + 1e-6}


def rng(*seed):
    return np.random.default_rng(seed)


def matrix(array):
    return operands.Matrix(np.ascontiguousarray(array, np.float32))


def cache_of(capacity, *, head_dim, n_kv_heads=1, n_layers=1, **options):
    sizes = {"n_layers": n_layers, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
    return KVCache(Pool(1 << 26), capacity=capacity, **sizes, **options)


def rope_of(head_dim, *, n_rows=1100, interleaved=False, theta=10000.0, n_trained=1 << 20):
    frequencies = guarded(inverse_frequencies(head_dim, theta))
    cos_sin = np.zeros((2, n_rows, head_dim // 2), np.float32)
    return operands.Rope(frequencies, cos_sin, interleaved, n_trained)


def attend(cache, qkv, n_heads, window=0, n_threads=1, chunk=100, rope=None, layer=0):
    """store_kv and attention of rows fed in chunks, float32 (n, n_heads * head_dim)."""
    rope = rope or rope_of(cache.head_dim)
    out, got, begin = matrix(np.zeros((chunk, n_heads * cache.head_dim))), [], 0
    while begin < len(qkv):
        part = qkv[begin : begin + cache.reservable(min(chunk, len(qkv) - begin))]
        partials = guarded(np.zeros(ops.partials_floats(n_heads, cache.head_dim), np.float32))
        batch = operands.Batch(chunk, 1, n_threads, partials=partials).set([(cache, len(part))])
        rows = matrix(part)
        ops.rope_table(rope, batch)
        ops.store_kv(rows, layer, batch)
        ops.attention(out, rows, layer, rope, batch, window=window)
        cache.advance(len(part))
        got.append(out.array()[: len(part)].copy())
        begin += len(part)
    return np.concatenate(got)


def held(cache, layer, n):
    """Keys and values of the first n positions as they were rounded, (n, n_kv_heads, head_dim)."""
    found = [cache.read(layer, position) for position in range(n)]
    return tuple(np.stack(arrays) for arrays in zip(*found, strict=True))


def shortened(q, dtype):
    """q as kernels multiply it with float16 keys: with 13 significant bits."""
    bits = q.view(np.int32)
    return q if dtype != "f16" else (bits + 0x3FF + (bits >> 11 & 1) & ~0x7FF).view(np.float32)


# ---------------------------------------------------------------------------------------- rotation


@pytest.mark.parametrize("head_dim", [2, 10, 64, 100, 128])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(isa, head_dim, interleaved):
    cache = cache_of(500, head_dim=head_dim)
    cache.reserve(300)
    cache.advance(300)
    batch, rope = operands.Batch(4, 1).set([(cache, 4)]), rope_of(head_dim, interleaved=interleaved)
    x = rng(head_dim).standard_normal((4, 3 * head_dim)).astype(np.float32)
    got = operands.Matrix(guarded(x))
    ops.rope_table(rope, batch)
    ops.rope(got, rope, 2, batch)
    want = reference.rope(
        x[:, : 2 * head_dim].reshape(4, 2, head_dim), range(300, 304), 10000, interleaved
    )
    np.testing.assert_allclose(got.array()[:, : 2 * head_dim], want.reshape(4, -1), atol=2e-6)
    np.testing.assert_array_equal(got.array()[:, 2 * head_dim :], x[:, 2 * head_dim :])


@pytest.mark.parametrize("position, n_trained", [(0, 9), (4095, 4096), (4096, 4096), (1 << 20, 9)])
def test_cosines_and_sines_are_correctly_rounded_nearly_always(isa, position, n_trained):
    """Of angles rounded to float32 in the trained length, of exact ones beyond."""
    frequencies, cos_sin = inverse_frequencies(4000, 10000.0), np.zeros((2, 2, 2000), np.float32)
    cache = cache_of(300, head_dim=1, sinks=1)
    while cache.length < position:
        n = cache.reservable(position - cache.length)
        cache.reserve(n)
        cache.advance(n)
    rope = operands.Rope(frequencies, cos_sin, False, n_trained)
    ops.rope_table(rope, operands.Batch(1, 1).set([(cache, 1)]))
    angles = np.float64(position) * frequencies.astype(np.float64)
    if position < n_trained:
        angles = (np.float32(position) * frequencies).astype(np.float64)
    for ours, theirs in zip(cos_sin[:, 0], (np.cos(angles), np.sin(angles)), strict=True):
        assert np.abs(ours - theirs).max() <= 6.1e-8
        assert (ours == theirs.astype(np.float32)).mean() > 0.999


# --------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    "head_dim, n_kv_heads, group", [(64, 2, 4), (128, 1, 5), (100, 2, 1), (32, 3, 2)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_attention_over_pages(isa, head_dim, n_kv_heads, group, dtype, n_threads):
    """A sequence longer than two pages, written in chunks."""
    r, n, n_heads = rng(head_dim, group), 290, n_kv_heads * group
    qkv = r.standard_normal((n, (n_heads + 2 * n_kv_heads) * head_dim)).astype(np.float32)
    cache = cache_of(300, head_dim=head_dim, n_kv_heads=n_kv_heads, n_layers=2, dtype=dtype)
    ends, got = (1, 2, 130, 131, 256, n), []
    for begin, end in zip((0, *ends), ends, strict=False):
        got.append(attend(cache, qkv[begin:end], n_heads, 0, n_threads, n, layer=1))
    q = shortened(qkv[:, : n_heads * head_dim].reshape(n, n_heads, head_dim), dtype)
    k, v = held(cache, 1, n)
    want = [reference.attention(q[t], k[: t + 1], v[: t + 1]) for t in range(n)]
    want = np.stack(want).reshape(n, -1)
    np.testing.assert_allclose(np.concatenate(got), want, atol=BOUND[dtype] * np.abs(v).max())


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 127, 128, 129, 200, 256, 399, 400, 2**62])
def test_attention_through_a_window(isa, window):
    """Windows that begin on every side of a page's border."""
    n, n_heads, head_dim = 400, 2, 32
    qkv = rng(window % 1000).standard_normal((n, 4 * head_dim)).astype(np.float32)
    cache = cache_of(n, head_dim=head_dim, dtype="f32")
    got = attend(cache, qkv, n_heads, window, n_threads=2)
    q, k, v = np.split(qkv, [n_heads * head_dim, (n_heads + 1) * head_dim], axis=1)
    k, v = k[:, None], v[:, None]
    for t in range(n):
        first = max(t - window + 1, 0)
        want = reference.attention(q[t].reshape(n_heads, -1), k[first : t + 1], v[first : t + 1])
        np.testing.assert_allclose(got[t], want.reshape(-1), atol=3e-6, err_msg=str(t))


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_and_threads_change_no_bit(isa, dtype):
    """Rows are taken together, up to 24 queries: as many as chunks and threads leave. With 1 row a
    chunk it is decode."""
    qkv = rng(4).standard_normal((700, 4 * 32)).astype(np.float32)
    whole = [(0, 700, 1), (700, 7, 2), (2**40, 100, 1), (0, 256, 5), (0, 1, 1)]
    for windows in whole, [(200, 700, 1), (200, 1, 2), (200, 30, 1)], [(3, 700, 1), (3, 9, 1)]:
        found = set()
        for window, chunk, n_threads in windows:
            cache = cache_of(700, head_dim=32, dtype=dtype)
            found.add(attend(cache, qkv, 2, window, n_threads, chunk).tobytes())
        assert len(found) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim, n_heads", [(10, 24), (40, 7), (100, 30), (1024, 5)])
def test_shapes_of_tiles_change_no_bit(isa, dtype, head_dim, n_heads):
    """Heads that fill tiles, leave a rest, or have no room beside each other; a rest of lanes."""
    qkv = rng(head_dim).standard_normal((150, (n_heads + 2) * head_dim)).astype(np.float32)
    found = set()
    for chunk in (150, 1):
        cache = cache_of(150, head_dim=head_dim, dtype=dtype)
        found.add(attend(cache, qkv, n_heads, 0, 1, chunk).tobytes())
    assert len(found) == 1
    k, v = held(cache, 0, 150)
    q = shortened(qkv[-1, : n_heads * head_dim], dtype).reshape(n_heads, -1)
    want, got = reference.attention(q, k, v).reshape(-1), np.frombuffer(found.pop(), np.float32)
    np.testing.assert_allclose(got[-want.size :], want, atol=BOUND[dtype] * np.abs(v).max())


@pytest.mark.parametrize("head_dim", [512, 1024])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_int8(isa, head_dim, sign):
    """All codes at their limits: sums of scores reach 2.1e9, those of values 5.3e8 a page."""
    qkv = np.full((257, 3 * head_dim), sign, np.float32)
    qkv[:, head_dim : 2 * head_dim] = 1 / 32  # scores of one size, so that no weight is small
    got = attend(cache_of(257, head_dim=head_dim, dtype="int8"), qkv, 1)
    np.testing.assert_allclose(got, qkv[:, 2 * head_dim :], rtol=1e-6)
    q, k = np.ones((1, head_dim), np.float32), np.float32([[1] * head_dim, [-1] * head_dim])
    rows = np.concatenate([np.repeat(q, 2, 0), k / 32, [[1] * head_dim, [0] * head_dim]], 1)
    got = attend(cache_of(2, head_dim=head_dim, dtype="int8"), rows.astype(np.float32), 1)
    score = np.sqrt(head_dim) / 32  # of the first key, - score of the second
    np.testing.assert_allclose(got[1], 1 / (1 + np.exp(-2 * score)), rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sinks", [0, 4])
def test_threads_that_share_positions_change_no_bit(isa, dtype, sinks):
    """Three splits, and the sinks; also where there is no room for partial results."""
    n, n_heads, head_dim, found = 1500, 12, 128, set()
    qkv = rng(5).standard_normal((n, 18 * head_dim)).astype(np.float32)
    sizes = {"head_dim": head_dim, "n_kv_heads": 3}
    whole = cache_of(1400 if sinks else n, **sizes, dtype=dtype, sinks=sinks)
    attend(whole, qkv[:-4], n_heads, n_threads=2)
    out, rope = matrix(np.zeros((4, n_heads * head_dim))), rope_of(head_dim)
    for n_threads, n_splits in ((1, 33), (2, 33), (5, 33), (2, 0)):
        partials = np.zeros(n_splits * n_heads * (head_dim + 2), np.float32)
        cache, batch = whole.fork(), operands.Batch(4, 1, n_threads, partials=partials)
        for chunk in (1, 2, 1):
            batch.set([(cache, chunk)])
            part = matrix(qkv[cache.length : cache.length + chunk])
            ops.rope_table(rope, batch)
            ops.store_kv(part, 0, batch)
            ops.attention(out, part, 0, rope, batch)
            cache.advance(chunk)
        found.add(out.array().tobytes())
    assert len(found) == 1
    if not sinks:
        k, v = held(cache, 0, n)
        q = shortened(qkv[-1, : n_heads * head_dim], dtype).reshape(n_heads, -1)
        want = reference.attention(q, k, v)
        bound = BOUND[dtype] * np.abs(v).max()
        np.testing.assert_allclose(out.array()[0], want.reshape(-1), atol=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_sinks_and_a_moving_window(isa, dtype, interleaved):
    """Keys rotated where they stood; the sinks are seen as if they stood right before the window:
    so says a reference that rotates everything anew at each position."""
    n, n_heads, head_dim, capacity, sinks = 900, 2, 16, 300, 4
    raw = rng(7).standard_normal((n, 4, head_dim)).astype(np.float32)
    rotate = {"theta": 10000.0, "interleaved": interleaved}
    qkv = raw.copy()
    qkv[:, :3] = reference.rope(raw[:, :3], range(n), **rotate)
    cache = cache_of(capacity, head_dim=head_dim, dtype=dtype, sinks=sinks)
    rope = rope_of(16, **rotate)
    kept, got, begin = {}, [], 0
    rows = qkv.reshape(n, -1)
    while begin < n:
        end = begin + cache.reservable(n - begin)
        got.append(attend(cache, rows[begin:end], n_heads, n_threads=2, chunk=n, rope=rope))
        kept |= {p: cache.read(0, p) for p in range(begin, end)}
        begin = end
    got = np.concatenate(got).reshape(n, n_heads, head_dim)
    for t in (299, 300, 383, 384, 511, 512, 640, 899):
        start = 0 if t < capacity else (t // 128 - 1) * 128
        seen = [*range(sinks if start else 0), *range(start, t + 1)]
        at = [p + start - sinks if p < start else p for p in seen]
        k, v = (np.stack([kept[p][i] for p in seen]) for i in (0, 1))
        turned = reference.rope(k, np.array(at) - np.array(seen), **rotate)
        want = reference.attention(qkv[t, :n_heads], turned, v)
        np.testing.assert_allclose(got[t], want, atol=1e-4, err_msg=str(t))


# ------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [10, 20, 64])
def test_the_page_layout_is_what_the_cache_reads(isa, dtype, head_dim):
    """store_kv writes where KVCache.read looks, and rounds as KVCache.write does."""
    cache = cache_of(200, head_dim=head_dim, n_kv_heads=3, n_layers=2, dtype=dtype)
    other = cache_of(200, head_dim=head_dim, n_kv_heads=3, n_layers=2, dtype=dtype)
    qkv = rng(head_dim).standard_normal((150, 9 * head_dim)).astype(np.float32)
    batch = operands.Batch(150, 1).set([(cache, 150)])
    ops.store_kv(matrix(qkv), 1, batch)
    kv = qkv[:, 3 * head_dim :].reshape(150, 2, 3, head_dim)
    other.reserve(150)
    for position in range(150):
        other.write(1, position, *kv[position])
        found = np.stack(cache.read(1, position))
        np.testing.assert_array_equal(found, np.stack(other.read(1, position)))
        if dtype != "int8":
            item = np.float16 if dtype == "f16" else np.float32
            np.testing.assert_array_equal(found, kv[position].astype(item))
        else:  # half a step of a head's own scale
            steps = np.abs(kv[position]).max(-1, keepdims=True) / 127
            assert (np.abs(found - kv[position]) <= 0.5001 * steps).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("of", ["query", "key", "value"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_cannot_pass_unseen(isa, bad, of, dtype):
    """Nor does a row before it see it, though rows are taken together."""
    qkv = np.ones((20, 4 * 32), np.float32)
    qkv[7, {"query": 40, "key": 2 * 32 + 5, "value": 3 * 32 + 5}[of]] = bad
    got = attend(cache_of(30, head_dim=32, dtype=dtype), qkv, 2)
    assert np.isfinite(got[:7]).all()
    if of == "query":
        assert np.isnan(got[7, 32:]).all() and np.isfinite(got[8:]).all()
        assert np.isfinite(got[7, :32]).all()
    elif dtype == "int8":
        assert np.isnan(got[7:]).all()
    elif of == "value":
        assert not np.isfinite(got[7:, [5, 37]]).any()


def test_zeros_and_tiny_numbers_in_int8(isa):
    qkv = np.zeros((4, 3 * 32), np.float32)
    qkv[2:] = 1e-38
    assert np.isfinite(attend(cache_of(10, head_dim=32, dtype="int8"), qkv, 1)).all()
