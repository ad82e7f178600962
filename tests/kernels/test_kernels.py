"""Every instruction set this CPU has: integers equal NumPy, floats equal each other."""

import ctypes
import importlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from support import reference
from support.guard import guarded

import bitnet
from bitnet.compute import operands, ops
from bitnet.runtime import cpu, dispatch, self_test
from bitnet.runtime.kv_cache import KVCache
from bitnet.runtime.pool import Pool

SIZES = [(1, 128), (3, 128), (64, 256), (65, 384), (130, 640), (7, 2560), (33, 1000), (5, 1)]


def rng(*seed):
    return np.random.default_rng(seed)


def matrix(array):
    return operands.Matrix(np.ascontiguousarray(array, np.float32))


def rows(n, n_threads=1):
    return operands.Batch(max(n, 1), 1, n_threads).rows_only(n)


def codes(n, n_cols):
    padded = -(-n_cols // 128) * 128
    return operands.QuantizedActivations(
        guarded(np.zeros((n, padded), np.int8)), np.zeros(n, np.float32), np.zeros(n, np.int32)
    )


def ternary(x, q, scale=1.0, n_threads=1):
    """The result of ops.linear for float x, with weights and codes against a guard page."""
    out = matrix(np.full((len(x), len(q)), np.nan))
    weights = operands.Linear(
        [(guarded(reference.pack_i2_s(q)), np.array([[scale]], np.float32))], q.shape[1]
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


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_a_matrix_that_caches_need_not_keep(isa, n_tokens):
    """A megabyte and more: on AMD's CPUs it is read in another way."""
    r = rng(9)
    q = r.integers(-1, 2, (11001, 300)).astype(np.int8)
    x = r.integers(-127, 128, (n_tokens, 300)).astype(np.float32)
    x[:, 0] = 127
    want = x @ q.T.astype(np.float32)  # below 2^24: exact
    np.testing.assert_array_equal(ternary(x, q, n_threads=2), want)


def test_scales_stacking_and_adding(isa):
    r = rng(3)
    q = [r.integers(-1, 2, (n, 300)).astype(np.int8) for n in (70, 5, 64)]
    scales = [
        np.array([0.5], np.float32),
        r.random(5).astype(np.float32),
        np.array([2], np.float32),
    ]
    packed = [reference.pack_i2_s(a) for a in q]
    weights = operands.Linear([(p, s[:, None]) for p, s in zip(packed, scales, strict=True)], 300)
    x = r.standard_normal((3, 300)).astype(np.float32)
    want = np.hstack([reference.linear(x, a, s) for a, s in zip(q, scales, strict=True)])
    out, quantized, batch = matrix(np.ones((3, 139))), codes(3, 300), rows(3, 2)
    ops.quantize(quantized, matrix(x), batch)
    ops.linear(out, weights, quantized, batch, add=True)
    np.testing.assert_allclose(out.array(), 1 + want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_products_go_to_columns(isa, n_threads):
    r = rng(6)
    x = r.standard_normal((17, 300)).astype(np.float32)
    q = [r.integers(-1, 2, (n, 300)).astype(np.int8) for n in (70, 3)]
    out, quantized, batch = matrix(np.full((17, 80), 7)), codes(17, 300), rows(17, n_threads)
    ops.quantize(quantized, matrix(x), batch)
    for column, a in zip((5, 77), q, strict=True):
        weights = operands.Linear([(reference.pack_i2_s(a), np.ones((1, 1), np.float32))], 300)
        ops.linear(out, weights, quantized, batch, column=column)
    want = np.hstack([ternary(x, a) for a in q])
    np.testing.assert_array_equal(out.array()[:, [*range(5, 75), 77, 78, 79]], want)
    assert (out.array()[:, [*range(5), 75, 76]] == 7).all()


def test_code_3_is_found(isa):
    packed = np.zeros((200, 96), np.uint8)
    packed[...] = 0b10010010  # codes 2, 1, 0, 2
    good = operands.Linear([(packed, np.ones((1, 1), np.float32))], 384)
    assert ops.find_code_3(good, 2) is None
    for shift in range(0, 8, 2):
        bad = packed.copy()
        bad[157, 95] |= 3 << shift
        other = operands.Linear(
            [(packed, np.ones((1, 1), np.float32)), (bad, np.ones((1, 1), np.float32))], 384
        )
        assert ops.find_code_3(other, 1) == (1, 157)
        assert ops.find_code_3(other, 2) == (1, 157)


def quantized(x):
    out = codes(*x.shape)
    ops.quantize(out, operands.Matrix(guarded(x)), rows(len(x)))
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
    ops.rms_norm(out, operands.Norm(guarded(weight), 1e-5), operands.Matrix(guarded(x)), rows(5, 2))
    np.testing.assert_allclose(
        out.array(), reference.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-6
    )
    both = (r.standard_normal((5, 2 * n)) * 20).astype(np.float32)
    gate, up = both[:, :n].astype(np.float64), both[:, n:]
    ops.gated_activation(out, operands.Matrix(guarded(both)), "relu2", rows(5))
    np.testing.assert_allclose(out.array(), np.maximum(gate, 0) ** 2 * up, rtol=3e-7)
    ops.gated_activation(out, operands.Matrix(guarded(both)), "silu", rows(5))
    np.testing.assert_allclose(out.array(), reference.silu(gate) * up, rtol=1e-6, atol=1e-30)


def test_exp(isa):
    x = np.concatenate([np.linspace(-87.3, 88, 100_001), rng(1).standard_normal(999)]).astype(
        np.float32
    )
    np.testing.assert_allclose(ops.exp(guarded(x)), np.exp(x.astype(np.float64)), rtol=2.4e-7)
    special = ops.exp(np.array([-np.inf, -88, 0, -0.0, np.nan], np.float32))
    assert special[:4].tolist() == [0, 0, 1, 1] and np.isnan(special[4])


def gelu(x):
    """x / 2 (1 + tanh(u)) without the cancellation for x below 0."""
    return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gated(act, gate, up=1.0):
    """act(gate) * up, float32 (n,)."""
    both = np.concatenate([gate, np.full(len(gate), up)]).astype(np.float32)
    out = matrix(np.full((1, len(gate)), np.nan))
    ops.gated_activation(out, operands.Matrix(guarded(both.reshape(1, -1))), act, rows(1))
    return out.array()[0]


def test_gelu(isa):
    x = np.concatenate([np.linspace(-12, 12, 100_001), rng(1).standard_normal(99)])
    x = x.astype(np.float32)
    want = gelu(x.astype(np.float64))
    above = x > -3
    np.testing.assert_allclose(gated("gelu", x)[above], want[above], rtol=1e-6)
    np.testing.assert_allclose(gated("gelu", x)[~above], want[~above], rtol=0, atol=4e-9)
    np.testing.assert_array_equal(gated("gelu", x, -3), gated("gelu", x) * np.float32(-3))
    u = np.sqrt(2 / np.pi) * (want + 0.044715 * want**3)  # the form in which it is published
    np.testing.assert_allclose(gelu(want), 0.5 * want * (1 + np.tanh(u)), atol=1e-15)


def test_gelu_of_any_size_is_finite(isa):
    large = np.array([1e4, 1e13, 1e19, 1e20, 1e30, 3e38], np.float32)
    assert (gated("gelu", large) == large).all()
    assert (gated("gelu", -large) == 0).all()
    small = np.array([1e-30, 1e-45, 0, -0.0, -1e-45, -1e-30], np.float32)
    np.testing.assert_array_equal(gated("gelu", small), small / 2)
    assert np.isnan(gated("gelu", np.array([np.nan], np.float32))).all()


@pytest.mark.parametrize("head_dim", [1, 20, 64, 100])
@pytest.mark.parametrize("n_tokens, n_threads", [(1, 1), (3, 1), (200, 2)])
def test_norms_of_heads(isa, head_dim, n_tokens, n_threads):
    r = rng(head_dim, n_tokens)
    x = r.standard_normal((n_tokens, 7, head_dim)).astype(np.float32)
    weight = r.standard_normal(head_dim).astype(np.float32)
    norm = operands.Norm(guarded(weight), 1e-6)
    heads = operands.Matrix(guarded(x.reshape(n_tokens, -1)))
    ops.head_norm(heads, norm, 2, 4, rows(n_tokens, n_threads))
    one = matrix(np.zeros((4 * n_tokens, head_dim)))
    ops.rms_norm(one, norm, matrix(x[:, 2:6].reshape(-1, head_dim)), rows(4 * n_tokens))
    got = heads.array().reshape(x.shape)
    np.testing.assert_array_equal(got[:, 2:6], one.array().reshape(n_tokens, 4, head_dim))
    np.testing.assert_array_equal(got[:, [0, 1, 6]], x[:, [0, 1, 6]])


def test_float_kernels_give_the_same_bits_everywhere():
    """What each instruction set computes, compared byte by byte with the plain C kernels."""
    r = rng(9)
    x, both = (
        r.standard_normal((4, 1000)).astype(np.float32),
        r.standard_normal((4, 2000)).astype(np.float32),
    )
    found = {}
    for name in cpu.supported():
        dispatch.use(name)
        out, results = matrix(np.zeros((4, 1000))), [ops.exp(x.ravel())]
        for act in ("relu2", "silu", "gelu"):
            ops.gated_activation(out, matrix(both), act, rows(4))
            results.append(out.array().copy())
        ops.rms_norm(out, operands.Norm(x[0], 1e-5), matrix(x), rows(4))
        found[name] = b"".join(a.tobytes() for a in (*results, out.array()))
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


def test_every_instruction_set_gives_the_known_answer():
    for name in cpu.supported():
        module = importlib.import_module(f"bitnet.kernels.{name}")
        assert self_test.answer(module.capsule) == self_test.KNOWN_ANSWER, name


TABLE = (Path(bitnet.__file__).parent / "kernels" / "table.pxd").read_text()


@pytest.mark.parametrize("name", [n for n in re.findall(r"\(\*(\w+)\)", TABLE) if "group" in n])
def test_the_known_answer_is_also_of_kernels_for_scales_of_groups(name):
    nothing = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    place = re.findall(r"\(\*(\w+)\)", TABLE).index(name)

    def change(table):
        table[place] = ctypes.cast(nothing, ctypes.c_void_p).value

    assert self_test.answer(broken_kernels(change).capsule) != self_test.KNOWN_ANSWER


def exchange_gates(table):
    table[7], table[8] = table[8], table[7]  # relu2_gate and silu_gate


def broken_kernels(change=exchange_gates):
    """A module whose table was changed: by default it runs, and computes something else."""
    api = ctypes.pythonapi
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p] * 3
    generic = importlib.import_module("bitnet.kernels.generic")
    table = (ctypes.c_void_p * dispatch.n_kernels).from_address(
        api.PyCapsule_GetPointer(generic.capsule, b"bitnet.kernels")
    )
    copy = (ctypes.c_void_p * dispatch.n_kernels)(*table)
    change(copy)
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
    weights = operands.Linear([(mapped, np.ones((1, 1), np.float32))], 256)
    assert ops.find_code_3(weights) is None


def test_wrong_shapes_are_refused():
    one = np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="not rows of 64"):
        operands.Linear([(np.zeros((4, 60), np.uint8), one)], 256)
    with pytest.raises(ValueError, match="131072"):
        operands.Linear([(np.zeros((1, 1 << 16), np.uint8), one)], 1 << 18)
    with pytest.raises(ValueError, match="out is 2 x 8, not 3 x 8"):
        ops.rms_norm(
            matrix(np.zeros((2, 8))),
            operands.Norm(np.ones(8, np.float32), 1e-5),
            matrix(np.zeros((3, 8))),
            rows(3),
        )
    qkv, norm = matrix(np.zeros((2, 60))), operands.Norm(np.ones(10, np.float32), 1e-5)
    for first_head, n_heads in ((-1, 1), (0, -1), (4, 3), (7, 0), (2**61, 1), (1, 2**62)):
        with pytest.raises(ValueError, match=f"x is 2 x 60, not 2 x heads {first_head} to"):
            ops.head_norm(qkv, norm, first_head, n_heads, rows(2))
    with pytest.raises(ValueError, match="not 2 x heads 0 to 0 of 0"):
        ops.head_norm(qkv, operands.Norm(np.ones(0, np.float32), 1e-5), 0, 0, rows(2))
    linear = operands.Linear([(np.zeros((50, 32), np.uint8), one)], 128)
    quantized = codes(2, 128)
    ops.quantize(quantized, matrix(np.zeros((2, 128))), rows(2))
    for column in (-1, 11, 2**62):
        with pytest.raises(ValueError, match=f"not 2 x at least 50 from column {column}"):
            ops.linear(qkv, linear, quantized, rows(2), column=column)
    with pytest.raises(ValueError, match="act is 'tanh', not relu2, silu or gelu"):
        ops.gated_activation(matrix(np.zeros((2, 30))), qkv, "tanh", rows(2))
    cache = KVCache(Pool(1 << 20), n_layers=1, n_kv_heads=1, head_dim=20, capacity=8)
    batch, out = operands.Batch(1, 1).set([(cache, 1)]), matrix(np.zeros((1, 20)))
    rope = operands.Rope(np.ones(10, np.float32), np.zeros((2, 2, 10), np.float32), False, 8)
    with pytest.raises(ValueError, match="window is -1, limit: 0 or more"):
        ops.attention(out, qkv, 0, rope, batch, -1)
    for n_rows, half in ((1, 10), (2, 11)):
        rope = operands.Rope(
            np.ones(half, np.float32), np.zeros((2, n_rows, half), np.float32), False, 8
        )
        with pytest.raises(ValueError, match=f"cos_sin is {n_rows} x {half}, not 1 and 1 x 10"):
            ops.attention(out, qkv, 0, rope, batch)
    with pytest.raises(ValueError, match="cos_sin is 2 x 3 x 10, not 2 x rows x 9 frequencies"):
        operands.Rope(np.ones(9, np.float32), np.zeros((2, 3, 10), np.float32), False, 8)


def test_threads_are_really_there():
    assert ops.openmp
    assert ops.read_bandwidth(np.ones(1 << 20, np.uint8), 2) > 0
