"""Ternary matrices whose groups of columns have scales of their own, in NumPy: what kernels that
read them as they lie in a file must give. Knows no file.

    W[r, c] = scale[r, c // group] * (code[r, c] - 1), code 0, 1 or 2; scale an f16 of 0 or more

PQ2_0      blocks of 128 columns, 34 bytes: f16 scale, 32 bytes. byte[j] = sum of code[4j + l] << 2l
Q2_0_G64   blocks of 64 columns, 18 bytes: f16 scale, 16 bytes of the same.
planes     what MLX writes: the bytes of codes alone, in the same order; beside them the f16 scales
           of a row and, as MLX multiplies scale * code + bias, its biases, which are -scale.

A scale of 0, or -0, makes every weight of its group 0, whatever the codes are; subnormal scales
count. Code 3 is illegal, and so is a scale that is negative, infinite or NaN, whatever its codes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .ggml_types import TYPES
from .tensor import STEP_WEIGHTS
from .ternary_layouts import codes_in_sequence

PLANES = "planes"
IN_PLACE = {"PQ2_0": "PQ2_0", "Q2_0_G128": "PQ2_0", "Q2_0_G64": "Q2_0_G64"}  # file's type: ours
GROUPS = (128, 64)  # columns of a group that kernels read, the larger first
SCALE_BYTES = 2  # of an f16

Steps = Iterator[tuple[np.ndarray, np.ndarray]]  # scales float32 (some, n_groups), codes of rows


@dataclass(frozen=True)
class GroupedMatrix:
    """A matrix in one of the layouts above. Arrays are read-only views of a mapped file, at any
    address.

    type: "PQ2_0", "Q2_0_G64" or "planes". data: uint8 (n_rows, bytes of a row), of planes
        (n_rows, n_cols // 4).
    path, name: of the file and tensor that data are of, for messages.
    scales, biases: of planes alone, uint8 (n_rows, 2 * n_groups): f16, little-endian, which
        safetensors does not align. biases is None where the file has none.
    """

    type: str
    data: np.ndarray
    n_rows: int
    n_cols: int
    path: Path
    name: str
    scales: np.ndarray | None = None
    biases: np.ndarray | None = None

    @property
    def group(self) -> int:
        """Columns that have one scale: 64 or 128."""
        if self.scales is not None:
            return self.n_cols // (self.scales.shape[1] // SCALE_BYTES)
        return TYPES[self.type].n_values

    @property
    def n_groups(self) -> int:
        """Scales of a row."""
        return self.n_cols // self.group

    def arrays(self) -> list[np.ndarray]:
        """Its arrays: data, then scales and biases where they are apart."""
        return [array for array in (self.data, self.scales, self.biases) if array is not None]

    def with_arrays(self, change: Callable[[np.ndarray], np.ndarray]) -> "GroupedMatrix":
        """The same matrix with each of its arrays changed, to as many rows."""
        data, *apart = map(change, self.arrays())
        scales, biases = (*apart, None, None)[:2]
        return replace(self, data=data, n_rows=len(data), scales=scales, biases=biases)

    def dequantize(self, ids: np.ndarray) -> np.ndarray:
        """The rows of these ids as float32 (len(ids), n_cols), unchecked."""
        scales, bytes_ = _rows_of(self, ids)
        weights = codes_in_sequence(bytes_).reshape(*scales.shape, -1).astype(np.float32) - 1
        return (scales.astype(np.float32)[:, :, None] * weights).reshape(-1, self.n_cols)


def unpack(matrix: GroupedMatrix) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """(scales float32 (n_rows, n_groups), codes uint8 (some rows, n_cols) in chunks).

    ValueError for what check refuses: a chunk is checked when it comes by.
    """
    scales = _rows_of(matrix, slice(None))[0].astype(np.float32)
    return scales, (codes for _, codes in steps(matrix))


def steps(matrix: GroupedMatrix) -> Steps:
    """Yield (scales float32 (some, n_groups), codes uint8 (some, n_cols)) of some rows, checked."""
    for rows in _row_slices(matrix, slice(0, matrix.n_rows)):
        check(matrix, rows)
        scales, bytes_ = _rows_of(matrix, rows)
        yield scales.astype(np.float32), codes_in_sequence(bytes_).reshape(-1, matrix.n_cols)


def row_of_wrong_bias(matrix: GroupedMatrix) -> int | None:
    """The first row whose biases are not -scales, None where all are, or there are none."""
    if matrix.scales is None or matrix.biases is None:
        return None
    differ = (matrix.biases.view("<u2") ^ 0x8000) != matrix.scales.view("<u2")
    for row in np.flatnonzero(differ.any(axis=1)):  # 0 and -0 are equal
        if (_floats(matrix.biases[row]) != -_floats(matrix.scales[row])).any():
            return int(row)
    return None


def check(matrix: GroupedMatrix, rows: slice) -> None:
    """ValueError that names the first row among these whose codes, scales or biases are illegal."""
    for some in _row_slices(matrix, rows):
        scales, bytes_ = _rows_of(matrix, some)
        n_rows = len(scales)
        is_bad_scale = ~((scales >= 0) & (scales < np.inf))  # NaN is neither
        has_3 = (bytes_ & bytes_ >> 1 & 0x55).reshape(n_rows, -1).any(axis=1)
        is_bad = is_bad_scale.any(axis=1) | has_3
        biases = None
        if matrix.biases is not None:
            biases = _floats(matrix.biases[some])
            is_bad |= (biases != -scales).any(axis=1)
        if not is_bad.any():
            continue
        row = int(is_bad.argmax())
        where = f"row {some.start + row}"
        if has_3[row]:
            raise ValueError(f"{where}: code 3, limit: codes are 0, 1, 2 for -1, 0, 1")
        for group in np.flatnonzero(is_bad_scale[row])[:1]:
            raise ValueError(
                f"{where}, group {group}: scale {scales[row, group]}, limit: finite, and at least 0"
            )
        assert biases is not None
        group = int((biases[row] != -scales[row]).argmax())
        shown = f"bias {biases[row, group]} of scale {scales[row, group]}"
        raise ValueError(f"{where}, group {group}: {shown}, limit: -scale, of ternary weights")


def _row_slices(matrix: GroupedMatrix, rows: slice) -> Iterator[slice]:
    """The rows in steps of about STEP_WEIGHTS weights."""
    start, stop, _ = rows.indices(matrix.n_rows)
    step = max(1, STEP_WEIGHTS // matrix.n_cols)
    for at in range(start, stop, step):
        yield slice(at, min(at + step, stop))


def _rows_of(matrix: GroupedMatrix, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scales float16 (n, n_groups), bytes of codes uint8 (n, ...)) of some rows."""
    data = matrix.data[rows]
    if matrix.scales is not None:
        return _floats(matrix.scales[rows]), data
    blocks = data.reshape(len(data), matrix.n_groups, -1)
    return _floats(blocks[:, :, :SCALE_BYTES])[:, :, 0], blocks[:, :, SCALE_BYTES:]


def _floats(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).view("<f2")


# the same weights, whatever their layout ----------------------------------------------------------


def canonical(matrix: GroupedMatrix) -> bytes:
    """Bytes that are equal for equal weights: of each row scales of groups of 64, then codes.

    A group without weights has scale 0 there, whatever was stored, and one of scale 0 code 1.
    """
    scales, bytes_ = _rows_of(matrix, slice(None))
    return canonical_rows(scales, codes_in_sequence(bytes_).reshape(-1, matrix.n_cols)).tobytes()


def canonical_rows(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The same of scales that float16 holds (n_rows, n_groups) and codes: uint8 (n_rows, bytes)."""
    n_rows, n_cols = codes.shape
    scales = np.repeat(scales.astype("<f2"), n_cols // 64 // scales.shape[1], axis=1)
    codes = codes.reshape(n_rows, -1, 64).copy()
    scales[(codes == 1).all(axis=2)] = 0
    codes[scales == 0] = 1
    scales[scales == 0] = 0  # -0 too
    return np.concatenate([scales.view(np.uint8), codes.reshape(n_rows, -1)], axis=1)


# packing ------------------------------------------------------------------------------------------


def pack_codes(codes: np.ndarray) -> np.ndarray:
    """uint8 codes (n_rows, n_cols) -> uint8 (n_rows, n_cols // 4), four neighbours in a byte."""
    c = codes.reshape(len(codes), -1, 4)
    return c[:, :, 0] | c[:, :, 1] << 2 | c[:, :, 2] << 4 | c[:, :, 3] << 6


def pack(type_name: str, scales: np.ndarray, codes: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Scales float32 (n_rows, n) and codes (n_rows, n_cols) -> uint8 (n_rows, bytes) of one of
    PACKED, as ternary_layouts describes them.

    ValueError where the type cannot hold the scales: see regroup and to_float16. first_row: the
    number of the first row, for its message.
    """
    group, pack_blocks = TYPES[type_name].n_values, PACKED[type_name]
    stored = to_float16(regroup(scales, codes, group, first_row), first_row)
    stored = stored[:, :, None].view(np.uint8)
    blocks = pack_blocks(codes.reshape(-1, group)).reshape(*stored.shape[:2], -1)
    parts = (stored, blocks) if pack_blocks is pack_codes else (blocks, stored)
    return np.concatenate(parts, axis=2).reshape(len(codes), -1)


def _pack_tq2_0(codes: np.ndarray) -> np.ndarray:
    c = codes.reshape(len(codes), 2, 4, 32)
    return (c[:, :, 0] | c[:, :, 1] << 2 | c[:, :, 2] << 4 | c[:, :, 3] << 6).reshape(-1, 64)


def _pack_base_3(codes: np.ndarray, parts: tuple[tuple[int, int], ...]) -> np.ndarray:
    """parts: (bytes, digits in each), one after the other; the first digit is the highest of 5."""
    found, at = [], 0
    for width, n_digits in parts:
        digits = codes[:, at : at + width * n_digits].reshape(-1, n_digits, width)
        powers = np.array([81, 27, 9, 3, 1][:n_digits], np.uint16)
        values = (digits * powers[:, None]).sum(axis=1, dtype=np.uint16)
        found.append(((values * 256 + 242) // 243).astype(np.uint8))
        at += width * n_digits
    return np.concatenate(found, axis=1)


PACKED: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # codes (n, of a block) -> its bytes
    "Q2_0_G64": pack_codes,
    "PQ2_0": pack_codes,
    "PTQ1_0": partial(_pack_base_3, parts=((16, 5), (8, 5), (2, 4))),
    "TQ1_0": partial(_pack_base_3, parts=((32, 5), (16, 5), (4, 4))),
    "TQ2_0": _pack_tq2_0,
}


def regroup(scales: np.ndarray, codes: np.ndarray, group: int, first_row: int = 0) -> np.ndarray:
    """Scales float32 (n_rows, n) as those of groups of so many columns.

    Of several groups that become one, those without weights have any scale. ValueError where the
    others differ; first_row: the number of the first row, for its message.
    """
    n_rows, n_groups = len(codes), codes.shape[1] // group
    n = scales.shape[1]
    if n_groups % n == 0:
        return np.repeat(scales, n_groups // n, axis=1)
    if n % n_groups:
        raise ValueError(f"{n} groups of a row, limit: a divisor or a multiple of {n_groups}")
    is_used = (codes != 1).reshape(n_rows, n, -1).any(axis=2)
    values = np.where(is_used, scales, 0).reshape(n_rows, n_groups, -1)
    largest = values.max(axis=2)
    differs = (values != largest[:, :, None]) & is_used.reshape(values.shape)
    if differs.any():
        row, at = np.argwhere(differs.any(axis=2))[0]
        shown = f"{values[row, at].min():g} and {largest[row, at]:g} in row {first_row + row}"
        raise ValueError(f"group scales {shown}, limit: one scale for {group} columns")
    return largest


def to_float16(scales: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Scales as float16; ValueError for one that float16 does not hold exactly.

    first_row: the number of the first row, for the message.
    """
    with np.errstate(over="ignore"):
        stored = scales.astype("<f2")
    is_changed = stored.astype(np.float32) != scales
    if is_changed.any():
        row, group = np.argwhere(is_changed)[0]
        value = f"scale {scales[row, group]:.9g} of group {group}"
        limit = "one that float16 holds exactly"
        raise ValueError(f"row {first_row + row}: {value}, limit: {limit}")
    return stored


# floats that are ternary by group -----------------------------------------------------------------


def group_of(sample: np.ndarray) -> tuple[int, int] | None:
    """(columns of a group, rows that are not so) by which most rows of float32 (n_rows, n_cols) are
    -d, 0 or d exactly; None where fewer than half are."""
    groups = [group for group in GROUPS if sample.shape[1] % group == 0]
    n_odd = {group: int(_are_odd(_by_group(sample, group)).sum()) for group in groups}
    group = min(groups, key=lambda group: n_odd[group], default=None)  # of equals the larger
    return (group, n_odd[group]) if group and 2 * n_odd[group] < len(sample) else None


def split_floats(rows: np.ndarray, group: int, first_row: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n_rows, n_cols) of -d, 0 and d -> (scales (n_rows, n_groups), codes (n_rows,
    n_cols)). ValueError that names the first row with another weight; first_row: its number."""
    groups = _by_group(rows, group)
    for row in np.flatnonzero(_are_odd(groups))[:1]:
        is_finite, sizes = np.isfinite(groups[row]), np.abs(groups[row])
        peaks = sizes.max(axis=1, keepdims=True, where=is_finite, initial=0)
        at, column = np.argwhere(~(is_finite & ((sizes == 0) | (sizes == peaks))))[0]
        shown = f"column {at * group + column}: weight {groups[row, at, column]:.9g}"
        limit = f"0 or +-{peaks[at, 0]:.9g}, as others of its group of {group}"
        raise ValueError(f"row {first_row + row}, {shown}, limit: {limit}")
    codes = np.uint8(1) + (rows > 0) - (rows < 0)
    return np.abs(groups).max(axis=2), codes.astype(np.uint8)


def _by_group(rows: np.ndarray, group: int) -> np.ndarray:
    return rows.reshape(len(rows), -1, group)


def _are_odd(groups: np.ndarray) -> np.ndarray:
    """Whether each row of float32 (n_rows, n_groups, group) has a group that is not ternary."""
    sizes = np.abs(groups)
    peaks = sizes.max(axis=2, keepdims=True)
    return (~((sizes == 0) | (sizes == peaks)) | ~np.isfinite(peaks)).any(axis=(1, 2))
