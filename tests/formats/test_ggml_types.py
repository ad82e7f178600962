"""The one table of ggml types: what a new row of it needs elsewhere, and what it refuses."""

from collections import Counter

import numpy as np
import pytest

from bitnet.compute import operands
from bitnet.formats import float_blocks, ggml_types, ternary_layouts
from bitnet.formats.ggml_types import BY_NUMBER, FLOAT_ROWS, TERNARY, TYPES, UNREAD


@pytest.mark.parametrize("name", ggml_types.TERNARY_TYPES)
def test_a_ternary_type_has_a_layout_of_its_block(name):
    layout, row = ternary_layouts.LAYOUTS[name], TYPES[name]
    assert (layout.n_codes, layout.n_bytes) == (row.n_values, row.n_bytes)
    assert row.kind == TERNARY


@pytest.mark.parametrize("name", ggml_types.ROW_TYPES)
def test_a_type_of_rows_is_dequantized_and_has_a_kernel(name):
    row = TYPES[name]
    data = np.zeros((3, 2 * row.n_bytes), np.uint8)
    assert float_blocks.dequantize(name, data, 2 * row.n_values).shape == (3, 2 * row.n_values)
    assert operands.QuantizedRows(data, name, 2 * row.n_values).n_rows == 3
    assert row.kind == FLOAT_ROWS


def test_the_kernels_read_the_blocks_of_i2_s():
    assert (TYPES["I2_S"].n_values, TYPES["I2_S"].n_bytes) == operands.I2_S_BLOCK


def test_numbers_are_those_of_one_type():
    twice = {n for n, count in Counter(t.number for t in TYPES.values()).items() if count > 1}
    assert twice == {TYPES["Q2_0_G64"].number} and BY_NUMBER[42].name == "Q2_0_G64"
    assert BY_NUMBER.keys() == {t.number for t in TYPES.values()}
    assert not BY_NUMBER.keys() & UNREAD.keys()
    assert all(name == row.name for name, row in TYPES.items())
