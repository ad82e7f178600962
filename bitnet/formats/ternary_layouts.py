"""The layouts of ternary weights, in NumPy: what each byte of a file means. Knows no file.

A weight is -1, 0 or +1; its code is 0, 1 or 2, and code 3 is illegal. A matrix is (rows, columns) =
(outputs, inputs) and W = scale * (code - 1). Every layout is unpacked to codes, uint8
(rows, n_cols) in row order, a chunk of rows at a time; each chunk is valid until the next.

I2_S, what the kernels read: 128 codes c in 32 bytes, the first in the highest bits.
    byte[j] = c[j] << 6 | c[32 + j] << 4 | c[64 + j] << 2 | c[96 + j]                    j = 0..31
For the kernels every row is padded to whole blocks with code 1, which is weight 0. A GGUF holds one
stream without padding, so that blocks straddle rows where n_cols is not a multiple of 128; behind
it one f32 scale and 28 bytes of no meaning. Two writers put other things under the same name:
I2_S_64    64 codes in 16 bytes, otherwise alike.
I2_S_4ROW  byte[g, k] = c[4g, k] << 6 | c[4g + 1, k] << 4 | c[4g + 2, k] << 2 | c[4g + 3, k]

HF packed: four blocks of R = ceil(n_rows / 4) rows share their bytes, the first in the lowest bits.
    byte[p, k] = c[p, k] | c[p + R, k] << 2 | c[p + 2R, k] << 4 | c[p + 3R, k] << 6

llama.cpp: blocks within a row, each with an f16 scale d.
TQ2_0      256 codes: 64 bytes, d. byte[32h + j] = sum over l of c[128h + 32l + j] << 2l
TQ1_0      256 codes: 52 bytes of five base-3 digits each, the first the highest, d.
           bytes 0..31: c[32n + j]; 32..47: c[160 + 16n + j]; 48..51: c[240 + 4n + j], n = 0..3
Q2_0       64 codes (128 in an earlier fork): d, 16 (32) bytes. byte[j] = sum of c[4j + l] << 2l
PrismML's llama.cpp:
PQ2_0      128 codes: as Q2_0 of 128.
PTQ1_0     128 codes: 26 bytes of base-3 digits as TQ1_0's, d.
           bytes 0..15: c[16n + j]; 16..23: c[80 + 8n + j]; 24..25: c[120 + 2n + j], n = 0..3

ik_llama.cpp: a scale d before each row, then blocks of 64 codes.
IQ2_BN     f32 d. byte[j] = sum over l of c[16l + j] << 2l                               j = 0..15
IQ1_BN     f16 d. For each 16 codes three bytes of five digits, the first the lowest; a 13th byte
           with the last code of each 16.
IQ2_BN_R4  four rows together: four f32 d, then of each block 64 bytes:
           byte[16l + 4r + i] = sum over t of c[r, 16l + i + 4t] << 2t             l, r, i = 0..3

A number v in base 3, below 243, is stored as ceil(v * 256 / 243): 13 values of a byte never occur.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .ggml_types import TYPES
from .tensor import STEP_WEIGHTS

I2_S_CODES, I2_S_BYTES = TYPES["I2_S"].n_values, TYPES["I2_S"].n_bytes  # a block's
I2_S_TAIL = 32  # bytes behind a stream of codes: the scale, and 28 of no meaning


@dataclass(frozen=True)
class Quantization:
    """What has a scale of its own: a group of columns of a row of weights, and of activations.

    weight_group, activation_group: columns of a group; None: the whole row is one.
    """

    weight_group: int | None = None
    activation_group: int | None = None

    def n_groups(self, n_cols: int) -> int:
        """Scales of a row of weights: those of a matrix are float32 (n_rows, n_groups)."""
        return -(-n_cols // self.weight_group) if self.weight_group else 1


WHOLE_ROWS = Quantization()


def padded(n_cols: int) -> int:
    """n_cols rounded up to whole blocks."""
    return -(-n_cols // I2_S_CODES) * I2_S_CODES


# packing ------------------------------------------------------------------------------------------


def pack_i2_s(codes: np.ndarray) -> np.ndarray:
    """uint8 codes (n_rows, n_cols) -> uint8 (n_rows, padded(n_cols) // 4)."""
    n_rows, n_cols = codes.shape
    if n_cols % I2_S_CODES:
        full = np.ones((n_rows, padded(n_cols)), np.uint8)
        full[:, :n_cols] = codes
        codes = full
    quarters = codes.reshape(n_rows, -1, 4, I2_S_BYTES)
    bytes_ = quarters[:, :, 0] << 6
    for i, shift in ((1, 4), (2, 2), (3, 0)):
        bytes_ |= quarters[:, :, i] << shift
    return bytes_.reshape(n_rows, -1)


def pack_i2_s_stream(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Codes, uint8 (some rows, n_cols) each -> the bytes of one I2_S stream, uint8 (n,) each.

    Without the scale. ValueError at the end if all codes together are no whole blocks.
    """
    rest = np.empty(0, np.uint8)
    for codes in chunks:
        flat = np.concatenate([rest, codes.reshape(-1)])
        whole = len(flat) // I2_S_CODES * I2_S_CODES
        if whole:
            yield pack_i2_s(flat[:whole].reshape(1, -1))[0]
        rest = flat[whole:]
    if len(rest):
        raise ValueError(f"{len(rest)} codes left over, limit: a multiple of {I2_S_CODES}")


def pack_hf(codes: np.ndarray) -> np.ndarray:
    """uint8 codes (n_rows, n_cols) -> uint8 (ceil(n_rows / 4), n_cols); missing rows are 0."""
    n_rows, n_cols = codes.shape
    quarter = -(-n_rows // 4)
    full = np.zeros((4 * quarter, n_cols), np.uint8)
    full[:n_rows] = codes
    a, b, c, d = full.reshape(4, quarter, n_cols)
    return a | b << 2 | c << 4 | d << 6


# the codes of a block -----------------------------------------------------------------------------


def _fields(data: np.ndarray, width: int, shifts: tuple[int, ...]) -> np.ndarray:
    """Two-bit fields: of each `width` bytes those at the first shift, then at the second, ..."""
    data = data.reshape(*data.shape[:-1], -1, 1, width)
    return (data >> np.array(shifts, np.uint8).reshape(4, 1)) & 3


_HIGH_FIRST, _LOW_FIRST = (6, 4, 2, 0), (0, 2, 4, 6)
_IN_SEQUENCE = _fields(np.arange(256, dtype=np.uint8).reshape(-1, 1), 1, _LOW_FIRST).reshape(-1, 4)


def _i2_s_4row(data: np.ndarray) -> np.ndarray:
    return _fields(data, data.shape[-1], _HIGH_FIRST)


def codes_in_sequence(data: np.ndarray) -> np.ndarray:
    """Bytes of four neighbouring codes, the first in the lowest bits -> uint8 (*shape, 4)."""
    return np.take(_IN_SEQUENCE, data, axis=0)


def _iq2_bn_r4(data: np.ndarray) -> np.ndarray:
    """Four codes with the same l, t and row (the module's docstring) are a 4-byte word: only whole
    words are moved."""
    words = _fields(data, 16, _LOW_FIRST).view("<u4").reshape(len(data), -1, 4)
    return np.ascontiguousarray(words.swapaxes(1, 2)).view(np.uint8)


def _digits(*powers: int) -> np.ndarray:
    """uint8 (256, n): the codes in a byte, each multiplied by its power of 3, or 3 if illegal."""
    table = np.full((256, len(powers)), 3, np.uint8)
    for codes in itertools.product(range(3), repeat=len(powers)):
        v = sum(code * power for code, power in zip(codes, powers, strict=True))
        table[-(-v * 256 // 243)] = codes
    return table


# parts of a block in base 3: bytes, first code, what they hold
_PTQ1_0 = (
    (slice(0, 16), 0, _digits(81, 27, 9, 3, 1)),
    (slice(16, 24), 80, _digits(81, 27, 9, 3, 1)),
    (slice(24, 26), 120, _digits(81, 27, 9, 3)),
)
_TQ1_0 = (
    (slice(0, 32), 0, _digits(81, 27, 9, 3, 1)),
    (slice(32, 48), 160, _digits(81, 27, 9, 3, 1)),
    (slice(48, 52), 240, _digits(81, 27, 9, 3)),
)
_IQ1_BN_FIVE, _IQ1_BN_LAST = _digits(1, 3, 9, 27, 81), _digits(1, 3, 9, 27)


def _base_3(data: np.ndarray, n_codes: int, parts: tuple) -> np.ndarray:
    codes = np.empty((*data.shape[:-1], n_codes), np.uint8)
    for where, at, table in parts:
        part = np.ascontiguousarray(data[..., where])
        for digits in table.T:
            codes[..., at : at + part.shape[-1]] = np.take(digits, part)
            at += part.shape[-1]
    return codes


def _iq1_bn(data: np.ndarray) -> np.ndarray:
    blocks = data.reshape(-1, 13)
    codes = np.empty((len(blocks), 4, 16), np.uint8)
    codes[:, :, :15] = np.take(_IQ1_BN_FIVE, blocks[:, :12], axis=0).reshape(-1, 4, 15)
    codes[:, :, 15] = np.take(_IQ1_BN_LAST, blocks[:, 12], axis=0)
    return codes


# whole matrices -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a matrix lies in a file.

    n_codes, n_bytes: size of a block. decode: the bytes of codes of some rows -> their codes.
    scale: dtype of a scale. where: behind the "stream", before each "row", or the "first" or "last"
        two bytes of each block. rows: how many rows are interleaved.
    """

    n_codes: int
    n_bytes: int
    decode: Callable[[np.ndarray], np.ndarray]
    scale: str
    where: str
    rows: int = 1


def _of_type(
    name: str, decode: Callable[[np.ndarray], np.ndarray], scale: str, where: str, rows: int = 1
) -> Layout:
    """The Layout of one of ggml's types."""
    return Layout(TYPES[name].n_values, TYPES[name].n_bytes, decode, scale, where, rows)


_HIGH_32, _HIGH_16 = (partial(_fields, width=n, shifts=_HIGH_FIRST) for n in (32, 16))
_LOW_32, _LOW_16 = (partial(_fields, width=n, shifts=_LOW_FIRST) for n in (32, 16))

LAYOUTS = {
    "I2_S": _of_type("I2_S", _HIGH_32, "<f4", "stream"),
    "I2_S_64": Layout(64, 16, _HIGH_16, "<f4", "stream"),  # this and the next: under I2_S's number
    "I2_S_4ROW": Layout(4, 1, _i2_s_4row, "<f4", "stream", rows=4),
    "TQ1_0": _of_type("TQ1_0", partial(_base_3, n_codes=256, parts=_TQ1_0), "<f2", "last"),
    "TQ2_0": _of_type("TQ2_0", _LOW_32, "<f2", "last"),
    "Q2_0_G64": _of_type("Q2_0_G64", codes_in_sequence, "<f2", "first"),
    "Q2_0_G128": _of_type("Q2_0_G128", codes_in_sequence, "<f2", "first"),
    "PQ2_0": _of_type("PQ2_0", codes_in_sequence, "<f2", "first"),
    "PTQ1_0": _of_type("PTQ1_0", partial(_base_3, n_codes=128, parts=_PTQ1_0), "<f2", "last"),
    "IQ1_BN": _of_type("IQ1_BN", _iq1_bn, "<f2", "row"),
    "IQ2_BN": _of_type("IQ2_BN", _LOW_16, "<f4", "row"),
    "IQ2_BN_R4": _of_type("IQ2_BN_R4", _iq2_bn_r4, "<f4", "row", rows=4),
}


def quantization_of(type_name: str) -> Quantization:
    """The groups of weights that have a scale in one of LAYOUTS."""
    layout = LAYOUTS[type_name]
    return Quantization(layout.n_codes if layout.where in ("first", "last") else None)


def n_bytes(type_name: str, n_rows: int, n_cols: int) -> int:
    """Bytes of a matrix in one of LAYOUTS, its scales included; ValueError if a block is cut."""
    layout = LAYOUTS[type_name]
    if n_rows % layout.rows:
        raise ValueError(f"{type_name} needs a multiple of {layout.rows} rows")
    n = n_rows * n_cols
    if (n if layout.where == "stream" else n_cols) % layout.n_codes:
        raise ValueError(f"{type_name} needs a multiple of {layout.n_codes}")
    heads = {"stream": I2_S_TAIL, "row": n_rows * np.dtype(layout.scale).itemsize}
    return n // layout.n_codes * layout.n_bytes + heads.get(layout.where, 0)


def unpack(
    type_name: str, data: np.ndarray, n_rows: int, n_cols: int
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """A matrix in one of LAYOUTS -> (scales, chunks): W = scale * (code - 1).

    data: uint8 (n_bytes,) as it lies in the file, at any address.
    scales: float32 (1, 1) if all are equal, (n_rows, 1) if they are within each row, else
        (n_rows, n_groups). The scale of a group or row of zeros means nothing, for most writers
        it is 0; here it is that of its neighbours.
    chunks: iterator of uint8 codes (some rows, n_cols).
    ValueError for data of another size and for scales that are not positive; from the iterator for
    code 3 and for a byte that no encoder writes.
    """
    needed = n_bytes(type_name, n_rows, n_cols)
    if len(data) != needed:
        raise ValueError(f"{type_name} {n_rows} x {n_cols}: {len(data)} bytes, limit: {needed}")
    layout = LAYOUTS[type_name]
    scales, packed = _split(layout, data, n_rows, n_cols)

    def chunks() -> Iterator[np.ndarray]:
        step = max(1, STEP_WEIGHTS * len(packed) // (n_rows * n_cols))
        for at in range(0, len(packed), step):
            yield _legal(layout.decode(packed[at : at + step]).reshape(-1, n_cols))

    return _merge_equal(scales, chunks), chunks()


def unpack_groups(
    type_name: str, data: np.ndarray, n_rows: int, n_cols: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same of a model whose scales are of groups: yields (scales float32 (some, n_groups),
    codes uint8 (some, n_cols)) of some rows, each with the scale that is stored.

    A scale of 0 is legal, and makes its weights 0. ValueError for one that is negative, infinite or
    NaN, and for illegal codes.
    """
    layout = LAYOUTS[type_name]
    scales, packed = _split(layout, data, n_rows, n_cols)
    is_bad = ~((scales >= 0) & (scales < np.inf))  # NaN is neither
    if is_bad.any():
        row, group = np.argwhere(is_bad)[0]
        shown = f"scale {scales[row, group]} of group {group} in row {row}"
        raise ValueError(f"{shown}, limit: finite, and at least 0")
    per_step = max(1, STEP_WEIGHTS * len(packed) // (n_rows * n_cols))
    together = n_rows // len(packed)
    for at in range(0, len(packed), per_step):
        codes = layout.decode(packed[at : at + per_step]).reshape(-1, n_cols)
        if codes.max() > 2:
            row = at * together + int((codes > 2).any(axis=1).argmax())
            raise ValueError(f"row {row}: code 3, or a byte that no encoder writes")
        yield scales[at * together :][: len(codes)], codes


def groups_differ(type_name: str, data: np.ndarray, n_rows: int, n_cols: int) -> bool:
    """Whether groups of one row that have weights other than 0 have different scales."""
    layout = LAYOUTS[type_name]
    if layout.where not in ("first", "last"):
        return False
    scales, packed = _split(layout, data, n_rows, n_cols)
    rows = np.flatnonzero((scales != scales[:, :1]).any(axis=1))
    step = max(1, STEP_WEIGHTS // n_cols)
    for at in range(0, len(rows), step):
        some = rows[at : at + step]
        in_use = _any_weight(layout.decode(packed[some]).reshape(-1, n_cols), scales.shape[1])
        low = scales[some].min(axis=1, where=in_use, initial=np.inf)
        high = scales[some].max(axis=1, where=in_use, initial=-np.inf)
        if (low < high).any():
            return True
    return False


def _split(
    layout: Layout, data: np.ndarray, n_rows: int, n_cols: int
) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (n_rows, n_groups), uint8 (rows together, ..., bytes of codes), a view)."""
    dtype = np.dtype(layout.scale)
    if layout.where == "stream":
        n = n_rows * n_cols // 4
        scale = data[n : n + dtype.itemsize].copy().view(dtype)
        # blocks may straddle rows: so many rows begin and end on a block
        rows = math.lcm(layout.rows, layout.n_codes // math.gcd(layout.n_codes, n_cols))
        return np.broadcast_to(scale, (n_rows, 1)), data[:n].reshape(n_rows // rows, -1)
    if layout.where == "row":
        rows, head = data.reshape(n_rows // layout.rows, -1), layout.rows * dtype.itemsize
        return _floats(rows[:, :head], dtype).reshape(n_rows, 1), rows[:, head:]
    blocks = data.reshape(n_rows, -1, layout.n_bytes)
    if layout.where == "first":
        return _floats(blocks[:, :, :2], dtype)[:, :, 0], blocks[:, :, 2:]
    return _floats(blocks[:, :, -2:], dtype)[:, :, 0], blocks[:, :, :-2]


def _floats(data: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(data).view(dtype).astype(np.float32)


def _merge_equal(scales: np.ndarray, chunks: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """Scales, float32 (n_rows, n_groups), with equal ones merged as unpack has it.

    chunks(): the codes, read only if it matters which scales are in use.
    """
    first = scales[0, 0]
    if 0 < first < np.inf and (scales == first).all():
        return scales[:1, :1].copy()
    in_use = np.concatenate([_any_weight(codes, scales.shape[1]) for codes in chunks()])
    used = scales[in_use]
    if not len(used):
        return np.ones((1, 1), np.float32)
    bad = used[~((used > 0) & (used < np.inf))]  # NaN is neither
    if len(bad):
        raise ValueError(f"scale {bad[0]}, limit: finite and above 0")
    largest = scales.max(axis=1, keepdims=True, where=in_use, initial=0)
    by_row = np.where(largest > 0, largest, used[0])
    scales = np.where(in_use, scales, by_row)
    if (scales != by_row).any():
        return scales
    return by_row[:1] if (by_row == used[0]).all() else by_row


def _any_weight(codes: np.ndarray, n_groups: int) -> np.ndarray:
    """Whether each group of a row has a weight other than 0: bool (rows, n_groups)."""
    return (codes != 1).reshape(len(codes), n_groups, -1).any(axis=2)


def _legal(codes: np.ndarray) -> np.ndarray:
    if codes.max() > 2:
        raise ValueError("not ternary: code 3, or a byte that no encoder writes")
    return codes


def codes_hf(packed: np.ndarray, n_rows: int) -> Iterator[np.ndarray]:
    """HF packed, uint8 (ceil(n_rows / 4), n_cols) -> codes in chunks; ValueError for code 3."""
    quarter, n_cols = packed.shape
    step = max(1, STEP_WEIGHTS // n_cols)
    for shift in (0, 2, 4, 6):
        n = min(quarter, n_rows - shift // 2 * quarter)
        for at in range(0, n, step):
            yield _legal((packed[at : min(at + step, n)] >> shift) & 3)


def join_codes(chunks: Iterable[np.ndarray], n_rows: int, n_cols: int) -> np.ndarray:
    """All codes of a matrix, uint8 (n_rows, n_cols), of chunks of its rows."""
    codes, at = np.empty((n_rows, n_cols), np.uint8), 0
    for chunk in chunks:
        codes[at : at + len(chunk)] = chunk
        at += len(chunk)
    return codes


def unpack_i2_s(data: np.ndarray, n_cols: int | None = None) -> np.ndarray:
    """uint8 (n_rows, bytes) of whole blocks -> uint8 codes (n_rows, n_cols), None: all columns."""
    return _fields(data, I2_S_BYTES, _HIGH_FIRST).reshape(len(data), -1)[:, :n_cols]
