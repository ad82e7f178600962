"""Rows of an embedding and a head, in every type and on every instruction set: decoded they equal
float_blocks.dequantize, and their dot products are near NumPy's and the same bits everywhere."""

import numpy as np
import pytest
from support.guard import guarded

from bitnet.compute import operands, ops
from bitnet.formats import float_blocks, ggml_types
from bitnet.runtime import cpu, dispatch

IN_BLOCKS = [name for name, (n, _) in float_blocks.BLOCKS.items() if n > 1]
F16_AT = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def rng(*seed):
    return np.random.default_rng(seed)


def matrix(array):
    return operands.Matrix(np.ascontiguousarray(array, np.float32))


def batch(n, n_threads=1):
    return operands.Batch(n, 1, n_threads).rows_only(n)


def with_scales(type, data, scales):
    """The blocks of data with these f16 scales, drawn in turn: uint8, like data."""
    n_bytes = float_blocks.BLOCKS[type][1]
    blocks = data.reshape(-1, n_bytes).copy()
    for at in F16_AT.get(type, (0,)):
        drawn = np.resize(np.asarray(scales, np.float16), (len(blocks), 1))
        blocks[:, at : at + 2] = drawn.view(np.uint8)
        scales = np.roll(scales, 1)
    return blocks.reshape(data.shape)


def rows_of(type, n_rows, n_cols, seed=0):
    """Rows of any bytes, but of scales near 1: uint8 (n_rows, row_bytes)."""
    r = rng(n_rows, n_cols, seed)
    if type in IN_BLOCKS:
        data = r.integers(0, 256, (n_rows, operands.row_bytes(type, n_cols)), np.uint8)
        return with_scales(type, data, r.standard_normal(97))
    return float_blocks.quantize(type, r.standard_normal((n_rows, n_cols)).astype(np.float32))


def sizes():
    for type, (n, _) in float_blocks.BLOCKS.items():
        odd = {1: (1, 15, 16, 40, 100), 32: (32, 96, 256, 288, 640), 256: (256, 512, 768)}[n]
        yield from ((type, n_cols) for n_cols in (*odd, 2560))


def embedded(table, ids, **options):
    out = matrix(np.full((len(ids), table.n_cols), np.nan))
    ops.embed(out, table, np.asarray(ids, np.int32), batch(len(ids)), **options)
    return out.array()


def logits_of(table, x, n_threads=1):
    out = matrix(np.full((len(x), table.n_rows), np.nan))
    given = operands.Matrix(guarded(x))
    ops.head(out, table, given, batch(len(x), n_threads))
    return out.array()


@pytest.mark.parametrize("type, n_cols", list(sizes()))
def test_rows_are_read_in_place(isa, type, n_cols):
    """The table ends at a page nobody may touch, and begins at any address."""
    data = rows_of(type, 71, n_cols)
    table = operands.QuantizedRows(guarded(data), type, n_cols)
    values = float_blocks.dequantize(type, data, n_cols)
    ids = [70, 0, 33, 0, 69]
    np.testing.assert_array_equal(embedded(table, ids), values[ids])
    x = rng(n_cols).standard_normal((3, n_cols)).astype(np.float32)
    want = x.astype(np.float64) @ values.T.astype(np.float64)
    bound = 4e-7 * (np.abs(x).astype(np.float64) @ np.abs(values.T).astype(np.float64))
    assert (np.abs(logits_of(table, x, n_threads=2) - want) <= bound).all()


@pytest.mark.parametrize("type", IN_BLOCKS)
@pytest.mark.parametrize("byte", [0x00, 0x0F, 0xF0, 0x55, 0x80, 0xAA, 0xFF])
def test_every_code_and_scale(isa, type, byte):
    """Codes at their limits times the largest, the smallest, negative and zero scales, signs of
    zeros included."""
    scales = [1, -1, 0, -0.0, 65504, -65504, 2**-24, -(2**-24), 2**-14, 1023 * 2**-24, 0.1]
    data = np.full((11, operands.row_bytes(type, 768)), byte, np.uint8)
    data = with_scales(type, data, scales)
    table = operands.QuantizedRows(guarded(data), type, 768)
    values = float_blocks.dequantize(type, data, 768)
    assert embedded(table, range(11)).tobytes() == values.tobytes()


@pytest.mark.parametrize("type", float_blocks.ROW_TYPES)
def test_what_is_not_finite_stays_so(isa, type):
    data = rows_of(type, 3, 256)
    if type in IN_BLOCKS:
        bad = with_scales(type, data[1:2], [np.nan])
    else:
        bad = np.full((1, 256), np.nan, np.float32)
        bad = (bad.view(np.uint32) >> 16).astype("<u2") if type == "BF16" else bad
        bad = (bad.astype(np.float16) if type == "F16" else bad).view(np.uint8)
    data[1:2] = bad
    table = operands.QuantizedRows(data, type, 256)
    assert np.isnan(embedded(table, [1])).all()
    logits = logits_of(table, np.ones((1, 256), np.float32))[0]
    assert np.isnan(logits).tolist() == [False, True, False]


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.5, float(np.sqrt(np.float32(640)))])
def test_rows_times_a_scale(isa, scale):
    data = rows_of("BF16", 9, 100)
    values = float_blocks.dequantize("BF16", data, 100)
    got = embedded(operands.QuantizedRows(guarded(data), "BF16", 100), [8, 3], scale=scale)
    np.testing.assert_array_equal(got, values[[8, 3]] * np.float32(scale))


@pytest.mark.parametrize(
    "type, n_cols", [(t, 768) for t in float_blocks.ROW_TYPES] + [("F16", 761)]
)
@pytest.mark.parametrize("n_tokens", [2, 3, 4, 5, 9])
def test_inputs_together_or_alone(isa, type, n_cols, n_tokens):
    table = operands.QuantizedRows(guarded(rows_of(type, 67, n_cols)), type, n_cols)
    x = rng(n_tokens).standard_normal((n_tokens, n_cols)).astype(np.float32)
    alone = np.vstack([logits_of(table, row[None]) for row in x])
    assert logits_of(table, x, n_threads=2).tobytes() == alone.tobytes()


def test_the_same_bits_everywhere():
    """Rows of every type and odd numbers of them, compared byte by byte with plain C."""
    x = rng(5).standard_normal((2, 768)).astype(np.float32)
    found = {}
    for name in cpu.supported():
        dispatch.use(name)
        parts = []
        for type, n_cols in [(t, 768) for t in float_blocks.ROW_TYPES] + [
            ("F16", 761),
            ("Q5_1", 736),
        ]:
            table = operands.QuantizedRows(rows_of(type, 9, n_cols), type, n_cols)
            parts += [logits_of(table, x[:, :n_cols].copy()), embedded(table, range(9))]
        found[name] = b"".join(part.tobytes() for part in parts)
    dispatch.use()
    assert all(value == found["generic"] for value in found.values())


def test_all_lists_of_types_agree():
    assert tuple(operands.ROW_TYPES) == float_blocks.ROW_TYPES
    assert sorted(operands.ROW_TYPES.values()) == list(range(len(float_blocks.ROW_TYPES)))
    assert float_blocks.ROW_TYPES == ggml_types.ROW_TYPES


def test_wrong_tables_are_refused():
    for type, (n, n_bytes) in float_blocks.BLOCKS.items():
        assert operands.row_bytes(type, 3 * n) == 3 * n_bytes
        if n > 1:
            with pytest.raises(ValueError, match=f"rows of {n + 1} {type}, limit: .* of {n}$"):
                operands.row_bytes(type, n + 1)
    with pytest.raises(ValueError, match="rows of type Q2_K, limit: one of F32, F16"):
        operands.row_bytes("Q2_K", 256)
    with pytest.raises(ValueError, match="blocks of 256"):
        operands.QuantizedRows(np.zeros((4, 210), np.uint8), "Q6_K", 100)
    with pytest.raises(ValueError, match="rows of 256 Q5_K take 176 bytes, not 175"):
        operands.QuantizedRows(np.zeros((4, 175), np.uint8), "Q5_K", 256)
    table = operands.QuantizedRows(np.zeros((4, 16), np.uint8), "F16", 8)
    for token_id in (4, -1):
        with pytest.raises(ValueError, match=rf"token id {token_id} is not in 0\.\.3"):
            embedded(table, [token_id])
