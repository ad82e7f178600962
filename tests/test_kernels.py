"""Every instruction set this CPU has: integers equal NumPy, floats equal each other."""

import ctypes
import importlib
import sys
import types

import numpy as np
import pytest
import reference
from bitnet.cache import KVCache
from bitnet.memory import Pool
from guard import guarded

from bitnet import arrays, cpu, dispatch, ops
from bitnet.formats import packing
from bitnet.rope import rope_tables

SIZES = [(1, 128), (3, 128), (64, 256), (65, 384), (130, 640), (7, 2560), (33, 1000), (5, 1)]


@pytest.fixture(params=cpu.supported())
def isa(request):
    yield dispatch.use(request.param)
    dispatch.use()


def rng(*seed):
    return np.random.default_rng(seed)


def matrix(array):
    return arrays.Matrix(np.ascontiguousarray(array, np.float32))


def rows(n, n_threads=1):
    return arrays.Batch(max(n, 1), 1, n_threads).rows_only(n)


def codes(n, n_cols):
    padded = -(-n_cols // 128) * 128
    return arrays.Codes(
        guarded(np.zeros((n, padded), np.int8)), np.zeros(n, np.float32), np.zeros(n, np.int32)
    )


def ternary(x, q, scale=1.0, n_threads=1):
    """The result of ops.linear for float x, with weights and codes against a guard page."""
    out = matrix(np.full((len(x), len(q)), np.nan))
    weights = arrays.Linear(
        [(guarded(reference.pack_i2_s(q)), np.array([scale], np.float32))], q.shape[1]
    )
    quantized = codes(len(x), q.shape[1])
    batch = rows(len(x), n_threads)
    ops.quantize(quantized, matrix(x), batch)
    ops.linear(out, weights, quantized, batch)
    return out.array()


@pytest.mark.parametrize("n_rows, n_cols", SIZES)
@pytest.mark.parametrize("n_tokens", [1, 2, 4, 5, 17])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_ternary_products_equal_numpy(isa, n_rows, n_cols, n_tokens, n_threads):
    r = rng(n_rows, n_cols, n_tokens)
    q = r.integers(-1, 2, (n_rows, n_cols)).astype(np.int8)
    x = r.integers(-127, 128, (n_tokens, n_cols)).astype(np.float32)
    x[:, 0] = 127  # scale 1: the codes are x itself
    np.testing.assert_array_equal(
        ternary(x, q, n_threads=n_threads), x.astype(int) @ q.T.astype(int)
    )


@pytest.mark.parametrize(
    "weight, activation", [(1, 127), (1, -127), (-1, 127), (-1, -127), (0, 127)]
)
@pytest.mark.parametrize("n_cols", [8192, 6912, 128 * 33])
def test_the_largest_sums_are_exact(isa, weight, activation, n_cols):
    q = np.full((6, n_cols), weight, np.int8)
    x = np.full((5, n_cols), activation, np.float32)
    assert (ternary(x, q) == weight * activation * n_cols).all()


def test_scales_stacking_and_adding(isa):
    r = rng(3)
    q = [r.integers(-1, 2, (n, 300)).astype(np.int8) for n in (70, 5, 64)]
    scales = [
        np.array([0.5], np.float32),
        r.random(5).astype(np.float32),
        np.array([2], np.float32),
    ]
    packed = [reference.pack_i2_s(a) for a in q]
    weights = arrays.Linear(list(zip(packed, scales, strict=True)), 300)
    x = r.standard_normal((3, 300)).astype(np.float32)
    want = np.hstack([reference.linear(x, a, s) for a, s in zip(q, scales, strict=True)])
    out, quantized, batch = matrix(np.ones((3, 139))), codes(3, 300), rows(3, 2)
    ops.quantize(quantized, matrix(x), batch)
    ops.linear(out, weights, quantized, batch, add=True)
    np.testing.assert_allclose(out.array(), 1 + want, rtol=1e-6, atol=1e-5)


def test_code_3_is_found(isa):
    packed = np.zeros((200, 96), np.uint8)
    packed[...] = 0b10010010  # codes 2, 1, 0, 2
    good = arrays.Linear([(packed, np.ones(1, np.float32))], 384)
    assert ops.find_code_3(good, 2) is None
    for shift in range(0, 8, 2):
        bad = packed.copy()
        bad[157, 95] |= 3 << shift
        other = arrays.Linear(
            [(packed, np.ones(1, np.float32)), (bad, np.ones(1, np.float32))], 384
        )
        assert ops.find_code_3(other, 1) == (1, 157)
        assert ops.find_code_3(other, 2) == (1, 157)


def quantized(x):
    out = codes(*x.shape)
    ops.quantize(out, arrays.Matrix(guarded(x)), rows(len(x)))
    return out.arrays()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 127, 128, 640, 1000])
def test_quantize_equals_numpy(isa, n):
    x = (rng(n).standard_normal((7, n)) * np.logspace(-8, 30, 7)[:, None]).astype(np.float32)
    x[3] = 0
    got, inv_scale, sums = quantized(x)
    want, want_scale = reference.quantize(x)
    np.testing.assert_array_equal(got[:, :n], want)
    np.testing.assert_array_equal(got[:, n:], 0)
    np.testing.assert_array_equal(inv_scale, want_scale)
    np.testing.assert_array_equal(sums, want.sum(1, dtype=int))


def test_quantize_rounds_half_to_even(isa):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5] + [3.5] * 16], np.float32)
    got, _, _ = quantized(x)
    assert got[0, :10].tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -126, 4]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 20])
def test_a_row_that_is_not_finite_cannot_pass_unseen(isa, bad, at):
    x = np.ones((3, 21), np.float32)
    x[1, at] = bad
    got, inv_scale, sums = quantized(x)
    assert np.isnan(inv_scale).tolist() == [False, True, False]
    assert not got[1].any() and sums[1] == 0


@pytest.mark.parametrize("n", [1, 16, 40, 96, 2560])
def test_norm_and_gates_are_near_numpy(isa, n):
    r = rng(n)
    x, weight = (
        r.standard_normal((5, n)).astype(np.float32),
        r.standard_normal(n).astype(np.float32),
    )
    out = matrix(np.zeros((5, n)))
    ops.rms_norm(out, arrays.Norm(guarded(weight), 1e-5), arrays.Matrix(guarded(x)), rows(5, 2))
    np.testing.assert_allclose(
        out.array(), reference.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-6
    )
    both = (r.standard_normal((5, 2 * n)) * 20).astype(np.float32)
    gate, up = both[:, :n].astype(np.float64), both[:, n:]
    ops.gate(out, arrays.Matrix(guarded(both)), "relu2", rows(5))
    np.testing.assert_allclose(out.array(), np.maximum(gate, 0) ** 2 * up, rtol=3e-7)
    ops.gate(out, arrays.Matrix(guarded(both)), "silu", rows(5))
    np.testing.assert_allclose(out.array(), reference.silu(gate) * up, rtol=1e-6, atol=1e-30)


def test_exp(isa):
    x = np.concatenate([np.linspace(-87.3, 88, 100_001), rng(1).standard_normal(999)]).astype(
        np.float32
    )
    np.testing.assert_allclose(ops.exp(guarded(x)), np.exp(x.astype(np.float64)), rtol=2.4e-7)
    special = ops.exp(np.array([-np.inf, -88, 0, -0.0, np.nan], np.float32))
    assert special[:4].tolist() == [0, 0, 1, 1] and np.isnan(special[4])


@pytest.mark.parametrize(
    "type, n_cols",
    [
        ("F32", 40),
        ("F16", 40),
        ("F16", 2560),
        ("BF16", 100),
        ("Q8_0", 96),
        ("Q8_0", 2560),
        ("Q6_K", 256),
        ("Q6_K", 2560),
    ],
)
def test_embedding_and_head_rows(isa, type, n_cols):
    r = rng(n_cols)
    n_rows, n_bytes = 71, arrays.row_bytes(type, n_cols)
    if type in ("F32", "F16", "BF16"):
        values = r.standard_normal((n_rows, n_cols)).astype(np.float32)
        half = (values.view(np.uint32) >> 16).astype(np.uint16)
        data = {"F32": values, "F16": values.astype(np.float16), "BF16": half}[type]
        data = data.view(np.uint8).reshape(n_rows, n_bytes)
    else:  # any bytes, but scales of moderate size
        block = {"Q8_0": 34, "Q6_K": 210}[type]
        data = r.integers(0, 256, (n_rows, n_bytes)).astype(np.uint8)
        scales = r.standard_normal((n_rows, n_bytes // block)).astype(np.float16)
        at = 0 if type == "Q8_0" else 208
        data.reshape(n_rows, -1, block)[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    table = arrays.Rows(guarded(data), type, n_cols)
    values = packing.dequantize(type, data, n_cols)
    ids = r.integers(0, n_rows, 5).astype(np.int32)
    out = matrix(np.zeros((5, n_cols)))
    ops.embed(out, table, ids, rows(5))
    np.testing.assert_array_equal(out.array(), values[ids])
    x = r.standard_normal((3, n_cols)).astype(np.float32)
    logits = matrix(np.zeros((3, n_rows)))
    ops.head(logits, table, arrays.Matrix(guarded(x)), rows(3, 2), last_only=False)
    want = x.astype(np.float64) @ values.T.astype(np.float64)
    bound = 4e-7 * (np.abs(x).astype(np.float64) @ np.abs(values.T).astype(np.float64))
    assert (np.abs(logits.array() - want) <= bound).all()


def tables(n, head_dim, theta=10000.0):
    return [matrix(t) for t in rope_tables(n, head_dim, theta)]


@pytest.mark.parametrize("head_dim", [2, 10, 64, 100, 128])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(isa, head_dim, interleaved):
    cache = KVCache(Pool(1 << 24), n_layers=1, n_kv_heads=1, head_dim=head_dim, capacity=500)
    cache.reserve(300)
    cache.advance(300)
    batch = arrays.Batch(4, 1).set([(cache, 4)])
    x = rng(head_dim).standard_normal((4, 3 * head_dim)).astype(np.float32)
    got = arrays.Matrix(guarded(x))
    ops.rope(got, *tables(500, head_dim), 2, interleaved, batch)
    want = reference.rope(
        x[:, : 2 * head_dim].reshape(4, 2, head_dim), range(300, 304), 10000, interleaved
    )
    np.testing.assert_allclose(got.array()[:, : 2 * head_dim], want.reshape(4, -1), atol=2e-6)
    np.testing.assert_array_equal(got.array()[:, 2 * head_dim :], x[:, 2 * head_dim :])


@pytest.mark.parametrize(
    "head_dim, n_kv_heads, group", [(64, 2, 4), (128, 1, 5), (100, 2, 1), (32, 3, 2)]
)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_attention_over_pages(isa, head_dim, n_kv_heads, group, dtype, n_threads):
    """A sequence longer than two pages, written in chunks; then a fork that goes its own way."""
    r, n = rng(head_dim, group), 290
    n_heads = n_kv_heads * group
    width = (n_heads + 2 * n_kv_heads) * head_dim
    qkv = r.standard_normal((n, width)).astype(np.float32)
    cache = KVCache(
        Pool(1 << 26),
        n_layers=2,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        capacity=300,
        dtype=dtype,
    )
    out = matrix(np.zeros((n, n_heads * head_dim)))
    got, begin = [], 0
    for end in (1, 2, 130, 131, 256, n):
        batch = arrays.Batch(n, 1, n_threads).set([(cache, end - begin)])
        part = matrix(qkv[begin:end])
        ops.store_kv(part, 1, batch)
        ops.attention(out, part, 1, batch)
        cache.advance(end - begin)
        got.append(out.array()[: end - begin].copy())
        begin = end
    q, k, v = np.split(qkv, [n_heads * head_dim, (n_heads + n_kv_heads) * head_dim], axis=1)
    k, v = (
        t.astype(np.float16 if dtype == "f16" else np.float32).reshape(n, n_kv_heads, head_dim)
        for t in (k, v)
    )
    want = [
        reference.attention(q[t].reshape(n_heads, head_dim), k[: t + 1], v[: t + 1])
        for t in range(n)
    ]
    np.testing.assert_allclose(np.concatenate(got), np.stack(want).reshape(n, -1), atol=3e-6)


def test_the_page_layout_is_what_the_cache_reads(isa):
    """store_kv writes where KVCache.read looks, in both dtypes, whatever the head_dim."""
    for dtype, head_dim in (("f32", 20), ("f16", 20), ("f16", 64)):
        cache = KVCache(
            Pool(1 << 24), n_layers=2, n_kv_heads=3, head_dim=head_dim, capacity=200, dtype=dtype
        )
        qkv = rng(head_dim).standard_normal((150, 9 * head_dim)).astype(np.float32)
        batch = arrays.Batch(150, 1).set([(cache, 150)])
        ops.store_kv(matrix(qkv), 1, batch)
        kv = qkv[:, 3 * head_dim :].astype(np.float16 if dtype == "f16" else np.float32)
        kv = kv.reshape(150, 2, 3, head_dim)
        for position in range(150):
            np.testing.assert_array_equal(cache.read(1, position), kv[position])


def test_float_kernels_give_the_same_bits_everywhere():
    """What each instruction set computes, compared byte by byte with the plain C kernels."""
    r = rng(9)
    x, both = (
        r.standard_normal((4, 1000)).astype(np.float32),
        r.standard_normal((4, 2000)).astype(np.float32),
    )
    head = arrays.Rows(r.standard_normal((9, 1000)).astype(np.float16).view(np.uint8), "F16", 1000)
    found = {}
    for name in cpu.supported():
        dispatch.use(name)
        out, logits = matrix(np.zeros((4, 1000))), matrix(np.zeros((4, 9)))
        results = [ops.exp(x.ravel())]
        for act in ("relu2", "silu"):
            ops.gate(out, matrix(both), act, rows(4))
            results.append(out.array().copy())
        ops.rms_norm(out, arrays.Norm(x[0], 1e-5), matrix(x), rows(4))
        ops.head(logits, head, matrix(x), rows(4), last_only=False)
        found[name] = b"".join(a.tobytes() for a in (*results, out.array(), logits.array()))
    dispatch.use()
    assert all(value == found["generic"] for value in found.values())


def test_choice_of_instruction_set(monkeypatch):
    assert dispatch.isa in cpu.supported()
    with pytest.raises(ValueError, match="cannot run 'vax'; it can run"):
        dispatch.use("vax")
    monkeypatch.setenv("BITNET_ISA", "generic")
    assert dispatch.use() == "generic"
    monkeypatch.delenv("BITNET_ISA")
    assert dispatch.use() == next(n for n in cpu.supported() if n not in cpu.UNPROVEN)


def broken_kernels():
    """A module whose table has the two gates exchanged: it runs, and computes something else."""
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p] * 3
    generic = importlib.import_module("bitnet.kernels.generic")
    table = (ctypes.c_void_p * 13).from_address(
        api.PyCapsule_GetPointer(generic.capsule, b"bitnet.kernels")
    )
    copy = (ctypes.c_void_p * 13)(*table)
    copy[7], copy[8] = copy[8], copy[7]  # relu2_gate and silu_gate
    name = ctypes.create_string_buffer(b"bitnet.kernels")
    capsule = api.PyCapsule_New(ctypes.addressof(copy), ctypes.addressof(name), None)
    return types.SimpleNamespace(capsule=capsule, keep_alive=(copy, name))


def test_kernels_that_fail_their_self_test_are_not_used(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "bitnet.kernels.broken", broken_kernels())
    monkeypatch.setattr(dispatch, "supported", lambda: ["broken", "generic"])
    monkeypatch.delenv("BITNET_ISA", raising=False)
    try:
        assert dispatch.use() == dispatch.isa == "generic"
        assert "kernels of broken fail their self-test" in caplog.text
        with pytest.raises(RuntimeError, match="broken fail"):
            dispatch.use("broken")
    finally:
        monkeypatch.undo()
        dispatch.use()


def test_weights_may_be_a_read_only_map(isa, tmp_path):
    packed = reference.pack_i2_s(np.ones((4, 256), np.int8))
    packed.tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.uint8, "r", shape=packed.shape)
    weights = arrays.Linear([(mapped, np.ones(1, np.float32))], 256)
    assert ops.find_code_3(weights) is None


def test_wrong_shapes_are_refused():
    one = np.ones(1, np.float32)
    with pytest.raises(ValueError, match="not rows of 64"):
        arrays.Linear([(np.zeros((4, 60), np.uint8), one)], 256)
    with pytest.raises(ValueError, match="131072"):
        arrays.Linear([(np.zeros((1, 1 << 16), np.uint8), one)], 1 << 18)
    with pytest.raises(ValueError, match="blocks of 256"):
        arrays.Rows(np.zeros((4, 210), np.uint8), "Q6_K", 100)
    with pytest.raises(ValueError, match=r"not in 0\.\.3"):
        ops.embed(
            matrix(np.zeros((1, 8))),
            arrays.Rows(np.zeros((4, 16), np.uint8), "F16", 8),
            np.array([4], np.int32),
            rows(1),
        )
    with pytest.raises(ValueError, match="out is 2 x 8, not 3 x 8"):
        ops.rms_norm(
            matrix(np.zeros((2, 8))),
            arrays.Norm(np.ones(8, np.float32), 1e-5),
            matrix(np.zeros((3, 8))),
            rows(3),
        )


def test_threads_are_really_there():
    assert ops.openmp
    assert ops.read_bandwidth(np.ones(1 << 20, np.uint8), 2) > 0
