"""Rows with scales of groups, on every instruction set: equal to NumPy, to the bit."""

import numpy as np
import pytest
from support import grouped_reference as reference
from support.guard import guarded

from bitnet.compute import grouped, operands, ops

KINDS = ["PQ2_0", "Q2_0_G64", "planes"]
# columns: whole quads, 1 to 3 blocks over, an odd number of 64s
SIZES = [(1, 512), (3, 1024), (65, 128), (130, 384), (5, 1280), (64, 640), (2, 2560)]
ODD_SIZES = [(3, 64), (66, 576), (5, 192), (2, 960)]


def rng(*seed):
    return np.random.default_rng(seed)


def batch(n, n_threads=1, n_bytes=0):
    """n_bytes: of a workspace for each thread, against a guard page."""
    made = operands.Batch(max(n, 1), 1, n_threads)
    if n_bytes:
        made.set_workspace(guarded(np.ones((n_threads, n_bytes), np.uint8)))
    return made.rows_only(n)


def matrix(array):
    return operands.Matrix(np.ascontiguousarray(array, np.float32))


def activations(n, n_cols, bits):
    dtypes = (np.int8, np.float32, np.int32)
    shapes = grouped.activation_shapes(n, n_cols, bits)
    arrays = [guarded(np.ones(s, d)) for s, d in zip(shapes, dtypes, strict=True)]
    return grouped.GroupedActivations(*arrays, bits)


def quantized(x, bits, n_threads=1):
    out = activations(*x.shape, bits)
    ops.quantize(out, matrix(x), batch(len(x), n_threads))
    return out


def linear(kind, q, scales, x, bits, n_threads=1, n_bytes=0):
    """ops.linear with every array against a guard page."""
    type_, data, apart = reference.matrix(kind, q, scales)
    apart = None if apart is None else guarded(apart)
    weights = grouped.GroupedLinear([(type_, guarded(data), apart)], q.shape[1])
    assert ops.scan_groups(weights, n_threads) is None
    out = matrix(np.full((len(x), len(q)), np.nan))
    ops.linear(out, weights, quantized(x, bits, n_threads), batch(len(x), n_threads, n_bytes))
    return out.array()


def some_scales(r, n_rows, n_groups):
    """Zeros, subnormal ones and the largest among them."""
    scales = r.lognormal(-3, 1, (n_rows, n_groups)).astype(np.float16).astype(np.float32)
    scales[r.random(scales.shape) < 0.1] = 0
    scales[r.random(scales.shape) < 0.05] = 6e-8
    scales[r.random(scales.shape) < 0.02] = 65504
    return scales.astype(np.float16).astype(np.float32)


def some_inputs(r, n, n_cols):
    """Outliers, ties, groups of zeros, tiny and huge ones."""
    x = r.standard_normal((n, n_cols)).astype(np.float32)
    x[:, r.integers(n_cols)] *= 40
    x[r.random(x.shape) < 0.1] = 0
    x[0, : min(128, n_cols)] = 0
    x[-1, -32:] = 1e-33
    x[-1, : min(32, n_cols)] *= np.float32(1e30)
    return x


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("n_cols", [512, 64, 576, 1000, 33, 2560])
def test_codes_equal_numpy(isa, n_cols, bits):
    x = some_inputs(rng(n_cols, bits), 5, n_cols)
    x[2, n_cols // 2] = np.nan
    x[3, 0] = -np.inf
    x[4] = r_ties(n_cols)
    want, scales = reference.quantize(x, bits)
    codes, got_scales, sums = quantized(x, bits, 2).arrays()
    np.testing.assert_array_equal(got_scales[:, : scales.shape[1]], scales)
    assert (got_scales[:, scales.shape[1] :] == 0).all()
    full = np.zeros((5, codes.shape[1] // (bits // 8)), np.int32)
    full[:, :n_cols] = want
    planes = codes.reshape(5, -1, bits // 8, 4, 2, 32).astype(np.int32)  # pair, p, f, b, j
    got = 256 * planes[:, :, 0] + planes[:, :, 1] if bits == 16 else planes[:, :, 0]
    np.testing.assert_array_equal(got.transpose(0, 1, 3, 4, 2).reshape(5, -1), full)
    if bits == 16:
        sums = sums.reshape(5, -1, 12)
        by_64 = full.reshape(5, -1, 64).sum(2)
        np.testing.assert_array_equal(sums[:, :, 4:].reshape(5, -1), by_64)
        np.testing.assert_array_equal(sums[:, :, :4].reshape(5, -1), by_64[:, ::2] + by_64[:, 1::2])
    else:
        np.testing.assert_array_equal(sums, full.reshape(5, -1, 32).sum(2))


def r_ties(n_cols):
    """Halves of a step, which are rounded to even."""
    x = np.arange(n_cols, dtype=np.float32) % 40 + np.float32(0.5)
    x[::32] = 127
    return x


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows, n_cols", SIZES + ODD_SIZES)
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 4, 5, 6, 7, 9])
def test_products_equal_numpy(isa, n_rows, n_cols, kind, bits, n_tokens):
    group = 64 if kind == "Q2_0_G64" or n_cols % 128 else 128
    if kind == "PQ2_0" and group == 64:
        pytest.skip("PQ2_0 has no groups of 64")
    r = rng(n_rows, n_cols, n_tokens)
    q = r.integers(-1, 2, (n_rows, n_cols)).astype(np.int8)
    q[:, : n_cols // 2][r.random((n_rows, n_cols // 2)) < 0.5] = 0
    scales = some_scales(r, n_rows, n_cols // group)
    x = some_inputs(r, n_tokens, n_cols)
    with np.errstate(over="ignore", invalid="ignore"):
        want = reference.linear(*reference.quantize(x, bits), q, scales, bits)
    for n_threads in (1, 2):
        got = linear(kind, q, scales, x, bits, n_threads)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_rows, n_cols", [(256, 128), (1537, 384), (301, 1152), (300, 576)])
@pytest.mark.parametrize("n_tokens", [10, 11, 26, 27, 48, 49, 65])
def test_many_tokens_equal_numpy(isa, n_rows, n_cols, kind, bits, n_tokens):
    """Beyond what tables are used from, whole sets of 16 tokens and those that are left."""
    if n_tokens > 33 and n_rows > 1000:
        pytest.skip("slow, and divided as fewer rows are")
    group = 64 if kind == "Q2_0_G64" or n_cols % 128 else 128
    if kind == "PQ2_0" and group == 64:
        pytest.skip("PQ2_0 has no groups of 64")
    n_bytes = grouped.grouped_workspace_bytes(n_rows)
    assert (n_bytes > 0) == (isa in ("avx2", "avxvnni"))
    r = rng(n_rows, n_cols, n_tokens)
    q = r.integers(-1, 2, (n_rows, n_cols)).astype(np.int8)
    scales = some_scales(r, n_rows, n_cols // group)
    x = some_inputs(r, n_tokens, n_cols)
    with np.errstate(over="ignore", invalid="ignore"):
        want = reference.linear(*reference.quantize(x, bits), q, scales, bits)
    for n_threads in (1, 2):
        got = linear(kind, q, scales, x, bits, n_threads, n_bytes)
        np.testing.assert_array_equal(got, want)
    if kind == "Q2_0_G64" and n_cols % 128 == 0:  # and where the halves of 128 are equal
        scales = np.repeat(scales[:, ::2], 2, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            want = reference.linear(*reference.quantize(x, bits), q, scales, bits)
        np.testing.assert_array_equal(linear(kind, q, scales, x, bits, 2, n_bytes), want)


@pytest.mark.parametrize("bits", [16, 8])
def test_tables_bear_the_largest_sums(isa, bits):
    most = reference.MOST[bits]
    for sign in (1, -1):
        q = np.full((256, 256), sign, np.int8)
        x = np.full((16, 256), most, np.float32)
        x[8:] = -most
        x[1, :] = -most + 127  # a low plane of -128
        got = linear("PQ2_0", q, np.ones((256, 2), np.float32), x, bits, 1, 1 << 20)
        inputs = reference.quantize(x, bits)
        want = reference.linear(*inputs, q, np.ones((256, 2), np.float32), bits)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("weight, sign", [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1)])
def test_the_largest_sums_are_exact(isa, weight, sign, bits):
    """Every code at an end of its range, low planes of -128 and 127 among them."""
    q = np.full((3, 1024), weight, np.int8)
    most = reference.MOST[bits]
    for code in (most, most - 1, 1, *((most - 127, most - 255, 128, 127) if bits == 16 else ())):
        x = np.full((2, 1024), sign * code, np.float32)
        x[:, ::32] = sign * most  # the scale is 1
        got = linear("PQ2_0", q, np.ones((3, 8), np.float32), x, bits)
        want = np.repeat(weight * x.sum(1, dtype=np.float64)[:, None], 3, 1)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_containers_of_the_same_weights_give_the_same_bits(isa, bits, n_tokens):
    r = rng(5)
    q = r.integers(-1, 2, (70, 1152)).astype(np.int8)
    q[3, 64:128] = 0  # of a half of zeros Q2_0 has no scale
    q[4, :64] = 0
    scales = some_scales(r, 70, 9)
    x = some_inputs(r, n_tokens, 1152)
    twice = np.repeat(scales, 2, 1)
    twice[3, 1] = twice[4, 0] = 0
    want = linear("PQ2_0", q, scales, x, bits)
    for kind, s in (("planes", scales), ("Q2_0_G64", twice), ("planes", twice)):
        np.testing.assert_array_equal(linear(kind, q, s, x, bits), want)


def test_the_unit_is_128_only_where_halves_have_one_scale():
    q = np.ones((130, 256), np.int8)
    scales = np.ones((130, 4), np.float32)

    def units(q, scales):
        weights = grouped.GroupedLinear([reference.matrix("Q2_0_G64", q, scales)] * 2, 256)
        assert weights.units == [64, 64]  # before anything is known
        assert ops.scan_groups(weights, 2) is None
        return weights.units

    assert units(q, scales) == [128, 128]
    other = scales.copy()
    other[129, 2] = 0  # a zero scale under weights counts as 0: not the other half's
    assert units(q, other) == [64, 64]
    zeros = q.copy()
    zeros[129, 128:192] = 0
    assert units(zeros, other) == [128, 128]
    other[129, 2] = 2  # larger than the other half's, though unused
    assert units(zeros, other) == [64, 64]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_stacked_matrices_add_to_columns(isa, n_threads):
    r = rng(3)
    q = [r.integers(-1, 2, (n, 640)).astype(np.int8) for n in (70, 5, 64)]
    scales = [some_scales(r, len(a), n) for a, n in zip(q, (5, 10, 5), strict=True)]
    kinds = ("PQ2_0", "Q2_0_G64", "planes")
    parts = [reference.matrix(k, a, s) for k, a, s in zip(kinds, q, scales, strict=True)]
    weights = grouped.GroupedLinear(parts, 640)
    assert ops.scan_groups(weights, n_threads) is None
    x = some_inputs(r, 3, 640)
    codes = quantized(x, 16)
    out = matrix(np.full((3, 150), 7))
    ops.linear(out, weights, codes, batch(3, n_threads), add=True, column=4)
    inputs = reference.quantize(x, 16)
    with np.errstate(over="ignore", invalid="ignore"):
        want = [reference.linear(*inputs, a, s, 16) for a, s in zip(q, scales, strict=True)]
        want = np.float32(7) + np.hstack(want)
    np.testing.assert_array_equal(out.array()[:, 4:143], want)
    assert (out.array()[:, [*range(4), *range(143, 150)]] == 7).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_illegal_is_found(isa, kind):
    r = rng(8)
    q = r.integers(-1, 2, (150, 640)).astype(np.int8)
    good = np.ones((150, 10 if kind == "Q2_0_G64" else 5), np.float32)

    def found(scales, code_3=()):
        type_, data, apart = reference.matrix(kind, q, scales)
        for row in code_3:
            data[row, -1] |= 0xC0
        weights = grouped.GroupedLinear([(type_, data, apart)], 640)
        return ops.scan_groups(weights, 2)

    assert found(good) is None
    assert found(good, [149, 70]) == (0, 70)
    q[80, :128] = 0
    for bad in (np.nan, np.inf, -np.inf, -1.0):
        scales = good.copy()
        scales[80, 0] = bad  # also where all codes are zero
        assert found(scales) == (0, 80)
    scales = good.copy()
    scales[5, 2] = -0.0
    assert found(scales) is None


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_embedded(isa, kind):
    r = rng(9)
    q = r.integers(-1, 2, (20, 384)).astype(np.int8)
    group = 64 if kind == "Q2_0_G64" else 128
    scales = some_scales(r, 20, 384 // group)
    type_, data, apart = reference.matrix(kind, q, scales)
    table = grouped.GroupedLinear([(type_, guarded(data), apart)], 384)
    ids = np.array([19, 0, 7], np.int32)
    out = matrix(np.full((3, 384), np.nan))
    ops.embed(out, table, ids, batch(3), scale=2.0)
    want = (q[ids].reshape(3, -1, group) * scales[ids][:, :, None]).reshape(3, -1)
    np.testing.assert_array_equal(out.array(), 2 * want)
    with pytest.raises(ValueError, match="token id 20"):
        ops.embed(out, table, np.array([0, 20, 1], np.int32), batch(3))


def test_a_group_that_is_not_finite_is_seen(isa):
    q = np.ones((4, 256), np.int8)
    x = np.ones((2, 256), np.float32)
    x[1, 200] = np.nan
    for bits in (16, 8):
        got = linear("PQ2_0", q, np.zeros((4, 2), np.float32), x, bits)
        assert (got[0] == 0).all() and np.isnan(got[1]).all()


def test_operands_are_checked():
    data = np.zeros((2, 68), np.uint8)
    for type_, array, scales, n_cols in (
        ("PQ2_0", data, None, 192), ("PQ2_0", data, None, 128), ("Q2_0_G64", data, None, 256),
        ("planes", np.zeros((2, 64), np.uint8), np.zeros((2, 6), np.uint8), 256),
        ("planes", np.zeros((2, 64), np.uint8), np.zeros((1, 4), np.uint8), 256),
        ("planes", np.zeros((2, 60), np.uint8), np.zeros((2, 4), np.uint8), 256),
        ("PQ2_0", data[:0], None, 256), ("other", data, None, 256), ("PQ2_0", data, None, 100),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            grouped.GroupedLinear([(type_, array, scales)], n_cols)
    weights = grouped.GroupedLinear([("PQ2_0", data, None)], 256)
    x = quantized(np.ones((1, 384), np.float32), 16)
    for out, n in ((matrix(np.zeros((1, 2))), 1), (matrix(np.zeros((3, 2))), 3)):
        with pytest.raises(ValueError):
            ops.linear(out, weights, x, batch(n))
    with pytest.raises(TypeError):
        ops.linear(
            matrix(np.zeros((1, 2))),
            weights,
            operands.QuantizedActivations(
                np.zeros((1, 256), np.int8), np.zeros(1, np.float32), np.zeros(1, np.int32)
            ),
            batch(1),
        )
    with pytest.raises(ValueError):
        ops.quantize(activations(1, 512, 16), matrix(np.zeros((1, 513))), batch(1))
    with pytest.raises(ValueError):
        grouped.GroupedActivations(*(a[:, :-1].copy() for a in x.arrays()), 16)
