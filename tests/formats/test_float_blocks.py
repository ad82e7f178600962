"""The float layouts: each equals a scalar reader written from its description, the stored arrays of
another writer, and the gguf package where there is one; quantising loses no more than it must."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.paths import DATA

from bitnet.formats import float_blocks

STORED = DATA / "packing.npz"
IN_BLOCKS = [name for name, (n, _) in float_blocks.BLOCKS.items() if n > 1]
QUANTIZED = list(float_blocks.MAX_ABS)


def rng(*seed):
    return np.random.default_rng(seed)


def normal(*shape, seed=0):
    return rng(seed, *shape).standard_normal(shape).astype(np.float32)


def any_rows(type, n_rows, n_cols):
    """Any bytes but those of a scale that is not finite: uint8 (n_rows, row_bytes)."""
    n, n_bytes = float_blocks.BLOCKS[type]
    data = rng(n_rows, n_cols).integers(0, 256, (n_rows, n_cols // n * n_bytes), np.uint8)
    return data & 0xBF  # bit 14 of an f16, 30 of an f32: below 2


# a slow reader: one value at a time, from the bytes of one block ----------------------------------


def f16(block, at):
    return np.float32(struct.unpack_from("<e", block, at)[0])


def nibble(data, j):
    """Of 16 bytes: the low ones, then the high ones."""
    return data[j % 16] >> 4 * (j // 16) & 15


def fifth(block, at, j):
    return (struct.unpack_from("<I", block, at)[0] >> j & 1) << 4


def k_scales(block, i):
    """s and m, six bits each, of values 32 i to 32 i + 31."""
    s = block[4:16]
    if i < 4:
        return s[i] & 63, s[i + 4] & 63
    return s[i + 4] & 15 | s[i - 4] >> 6 << 4, s[i + 4] >> 4 | s[i] >> 6 << 4


def k_value(block, nibbles, j, high):
    i = j // 32
    s, m = (np.float32(n) for n in k_scales(block, i))
    q = np.float32((block[nibbles + 32 * (i // 2) + j % 32] >> 4 * (i % 2) & 15) + high)
    return f16(block, 0) * s * q - f16(block, 2) * m


def q6_k_value(block, j):
    h, k, i = j // 128, j // 32 % 4, j % 32
    low = block[64 * h + 32 * (k % 2) + i] >> 4 * (k // 2) & 15
    high = block[128 + 32 * h + i] >> 2 * k & 3
    scale = f16(block, 208) * np.float32(np.uint8(block[192 + j // 16]).view(np.int8))
    return scale * np.float32((low | high << 4) - 32)


IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
SLOW = {
    "Q8_0": lambda b, j: f16(b, 0) * np.float32(np.uint8(b[2 + j]).view(np.int8)),
    "Q4_0": lambda b, j: f16(b, 0) * np.float32(nibble(b[2:], j) - 8),
    "Q4_1": lambda b, j: f16(b, 0) * np.float32(nibble(b[4:], j)) + f16(b, 2),
    "Q5_0": lambda b, j: f16(b, 0) * np.float32((nibble(b[6:], j) | fifth(b, 2, j)) - 16),
    "Q5_1": lambda b, j: f16(b, 0) * np.float32(nibble(b[8:], j) | fifth(b, 4, j)) + f16(b, 2),
    "IQ4_NL": lambda b, j: f16(b, 0) * np.float32(IQ4_NL[nibble(b[2:], j)]),
    "Q4_K": lambda b, j: k_value(b, 16, j, 0),
    "Q5_K": lambda b, j: k_value(b, 48, j, (b[16 + j % 32] >> j // 32 & 1) << 4),
    "Q6_K": q6_k_value,
}


@pytest.mark.parametrize("type", IN_BLOCKS)
def test_dequantize_equals_a_slow_reader(type):
    n, n_bytes = float_blocks.BLOCKS[type]
    data = any_rows(type, 3, 2 * n)
    blocks = data.reshape(-1, n_bytes)
    want = np.array([[SLOW[type](bytes(b), j) for j in range(n)] for b in blocks], np.float32)
    got = float_blocks.dequantize(type, data, 2 * n)
    assert got.dtype == np.float32 and got.shape == (3, 2 * n)
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q4_0", "Q6_K"])
def test_dequantize_equals_stored_arrays(type):
    with np.load(STORED, allow_pickle=False) as stored:
        data, want = stored[f"float_{type.lower()}"], stored[f"float_{type.lower()}_values"]
    np.testing.assert_array_equal(float_blocks.dequantize(type, data.reshape(8, -1), 512), want)


@pytest.mark.parametrize("type", float_blocks.ROW_TYPES)
def test_dequantize_equals_the_gguf_package(type):
    pytest.importorskip("gguf")
    from gguf import GGMLQuantizationType, quants

    data = any_rows(type, 7, 768)
    want = quants.dequantize(data, GGMLQuantizationType[type]).astype(np.float32)
    assert float_blocks.dequantize(type, data, 768).tobytes() == want.tobytes()


@pytest.mark.parametrize("type", float_blocks.ROW_TYPES)
def test_rows_may_be_read_only_and_at_any_address(type):
    data = any_rows(type, 4, 256)
    moved = np.zeros(data.nbytes + 1, np.uint8)
    moved[1:] = data.reshape(-1)
    moved.flags.writeable = False
    got = float_blocks.dequantize(type, moved[1:].reshape(data.shape), 256)
    np.testing.assert_array_equal(got, float_blocks.dequantize(type, data, 256))
    some = float_blocks.dequantize(type, data[[3, 1]], 256)
    np.testing.assert_array_equal(some, got[[3, 1]])


@pytest.mark.parametrize("type", IN_BLOCKS)
def test_a_scale_that_is_not_finite(type):
    """Neither a warning nor a number."""
    n, n_bytes = float_blocks.BLOCKS[type]
    for bad in (np.nan, np.inf):
        block = np.zeros((1, n_bytes), np.uint8)
        at = 208 if type == "Q6_K" else 0
        block[0, at : at + 2] = np.array([bad], "<f2").view(np.uint8)
        assert not np.isfinite(float_blocks.dequantize(type, block, n)).any()


# quantize -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0"])
def test_quantize_gives_the_bytes_of_the_gguf_package(type):
    pytest.importorskip("gguf")
    from gguf import GGMLQuantizationType, quants

    rows = normal(40, 512) * np.logspace(-12, 4, 40, dtype=np.float32)[:, None]
    rows[0], rows[1, :32] = 0, 0
    rows[2] = np.rint(rows[2] * 20) / 2
    rows[2, ::32] = 127  # the scale is 1, and ties are ties
    want = np.ascontiguousarray(quants.quantize(rows, GGMLQuantizationType[type])).view(np.uint8)
    np.testing.assert_array_equal(float_blocks.quantize(type, rows), want)


def test_q8_0_rounds_half_away_from_zero():
    row = np.zeros((1, 32), np.float32)
    row[0, :9] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 0.49999997]
    data = float_blocks.quantize("Q8_0", row)
    assert data[0, :2].view("<f2") == 1
    assert data[0, 2:11].view(np.int8).tolist() == [127, 1, 2, 3, -1, -2, -3, 127, 0]


def relative_error(type, rows):
    back = float_blocks.dequantize(type, float_blocks.quantize(type, rows), rows.shape[1])
    return np.sqrt(((back - rows) ** 2).sum() / (rows**2).sum())


@pytest.mark.parametrize(
    "type, limit", [("F32", 0), ("F16", 2.2e-4), ("BF16", 1.7e-3), ("Q8_0", 5.5e-3)]
)
def test_error_of_gaussian_rows(type, limit):
    assert relative_error(type, normal(200, 512)) <= limit


def test_error_of_q6_k():
    """llama.cpp's own search, which weighs errors by the square of the value, comes to 0.0177 here;
    the largest value as -32 or 31, without any search, to 0.0183."""
    assert relative_error("Q6_K", normal(400, 512)) <= 0.0172
    with np.load(STORED, allow_pickle=False) as stored:
        data, want = stored["float_f16_values"], stored["float_q6_k_values"]
    other = np.sqrt(((want - data) ** 2).sum() / (data**2).sum())
    assert relative_error("Q6_K", data) < other


@pytest.mark.parametrize("type", QUANTIZED)
def test_what_is_stored_exactly_stays(type):
    """Codes times powers of two survive the round trip, and zeros are zeros."""
    rows = np.zeros((3, 512), np.float32)
    rows[1] = rng(1).integers(-31, 32, 512)
    rows[1, ::16] = -32  # of each 16 the largest: the scale is 1
    rows[2, :256] = rows[1, :256] / 64
    if type == "Q8_0":
        rows[1:, ::32] = rows[1:, ::32] * (127 / 32)
    back = float_blocks.dequantize(type, float_blocks.quantize(type, rows), 512)
    np.testing.assert_array_equal(back, rows)


@given(
    hnp.arrays(np.float32, (2, 256), elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    st.sampled_from(["Q8_0", "Q6_K"]),
)
def test_no_value_moves_far(rows, type):
    """Half a step of the scale of its block, and what rounding the scales to f16 and int8 adds."""
    back = float_blocks.dequantize(type, float_blocks.quantize(type, rows), 256)
    size = {"Q8_0": 32, "Q6_K": 256}[type]
    peak = np.abs(rows.reshape(-1, size)).max(axis=1).repeat(size).reshape(rows.shape)
    relative, absolute = {"Q8_0": (0.5 / 127 + 2**-10, 4e-6), "Q6_K": (0.07, 2e-4)}[type]
    assert (np.abs(back - rows) <= peak * relative + absolute).all()


@pytest.mark.parametrize("type", QUANTIZED)
def test_values_of_any_size(type):
    limit = float_blocks.MAX_ABS[type]
    for peak in (limit, 1e-7, 1e-36, 1e-45):
        rows = np.full((2, 256), min(peak, limit), np.float32)
        rows[1, ::2] *= -1
        back = float_blocks.dequantize(type, float_blocks.quantize(type, rows), 256)
        assert np.isfinite(back).all()
        if peak == limit:
            np.testing.assert_allclose(back, rows, rtol=5e-3)
    assert float_blocks.quantize(type, rows[:0]).shape == (
        0,
        256 // float_blocks.BLOCKS[type][0] * float_blocks.BLOCKS[type][1],
    )


@pytest.mark.parametrize("type", QUANTIZED)
def test_what_cannot_be_stored_is_refused(type):
    rows = np.zeros((2, 256), np.float32)
    with np.errstate(over="ignore"):  # F32: what comes behind is infinity
        too_large = np.nextafter(np.float32(float_blocks.MAX_ABS[type]), np.float32(np.inf))
    for bad in (np.nan, np.inf, -np.inf, too_large, -too_large):
        rows[1, 77] = bad
        with pytest.raises(ValueError, match=rf"{type}: \|value\| .*, limit: "):
            float_blocks.quantize(type, rows)


def test_wrong_arguments_are_refused():
    rows = np.zeros((2, 48), np.float32)
    with pytest.raises(ValueError, match="row of 48 Q8_0, limit: a multiple of 32"):
        float_blocks.quantize("Q8_0", rows)
    with pytest.raises(ValueError, match="quantize to Q4_0, limit: one of F32, F16, BF16, Q8_0"):
        float_blocks.quantize("Q4_0", rows)
    with pytest.raises(ValueError, match="row of 48 Q6_K, limit: a multiple of 256"):
        float_blocks.dequantize("Q6_K", rows.view(np.uint8), 48)
    with pytest.raises(ValueError, match="type I2_S, limit: one of F32"):
        float_blocks.dequantize("I2_S", rows.view(np.uint8), 48)
    with pytest.raises(ValueError, match="row of 32 Q8_0: 35 bytes, limit: 34"):
        float_blocks.dequantize("Q8_0", np.zeros((2, 35), np.uint8), 32)
