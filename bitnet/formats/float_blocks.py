"""The layouts of floats: rows of an embedding or a head in every type read in place, in NumPy.

A row is a number of blocks; n of values, then what its bytes hold, f16 and u32 little-endian:
F32, F16, BF16  1: the number
Q8_0     32: f16 d, i8 q[32]. d q
Q4_0     32: f16 d, 16 bytes of nibbles n. d (n - 8)
Q4_1     32: f16 d, f16 m, nibbles. d n + m
Q5_0     32: f16 d, u32 of fifth bits, nibbles. d (n - 16)
Q5_1     32: f16 d, f16 m, u32 of fifth bits, nibbles. d n + m
IQ4_NL   32: f16 d, nibbles. d IQ4_NL[n]
Q4_K    256: f16 d, f16 dmin, 12 bytes of six-bit s[8] and m[8], nibbles. d s n - dmin m
Q5_K    256: as Q4_K, with 32 bytes of fifth bits in front of the nibbles
Q6_K    256: 128 bytes of low nibbles, 64 of high bit pairs, i8 s[16], f16 d. d s (n - 32)

Value j of a block of 32 is the low nibble of byte j, value 16 + j the high one. In blocks of 256 a
s and m count for 32 values (16 in Q6_K), and nibbles go by 64 values, with 32 bytes in between.
Products and sums are rounded to float32 one by one, from the left: the kernels give the same bits.
"""

import math
from collections.abc import Iterator

import numpy as np

from .ggml_types import ROW_TYPES, TYPES
from .tensor import row_steps

BLOCKS = {name: (TYPES[name].n_values, TYPES[name].n_bytes) for name in ROW_TYPES}
IQ4_NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
F16_MAX = 65504
# type: the largest |value| that quantize can store; in blocks the f16 scale would overflow
MAX_ABS = {
    "F32": float(np.finfo(np.float32).max), "F16": F16_MAX, "BF16": 255 * 2.0**120,
    "Q8_0": 127 * F16_MAX, "Q6_K": 24 * 128 * F16_MAX,
}  # fmt: skip
# A smaller scale counts as 0, which it would be as an f16. So inverses times 33.5 stay finite.
TINY = np.float32(2**-100)


def dequantize(type_name: str, data: np.ndarray, n_cols: int) -> np.ndarray:
    """Rows as they lie in a file, uint8 (n_rows, row_bytes), to float32 (n_rows, n_cols).

    ValueError for a type that is not one of ROW_TYPES, and for rows of another size.
    """
    data = np.ascontiguousarray(data)
    n, n_bytes = _block_size(type_name, n_cols)
    if data.shape[1] != n_cols // n * n_bytes:
        limit = f"limit: {n_cols // n * n_bytes}"
        raise ValueError(f"row of {n_cols} {type_name}: {data.shape[1]} bytes, {limit}")
    if type_name == "F32":
        return data.view("<f4")
    if type_name == "F16":
        return data.view("<f2").astype(np.float32)
    if type_name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # an infinite scale times 0
        return _DECODERS[type_name](data.reshape(-1, n_bytes)).reshape(-1, n_cols)


def dequantize_steps(type_name: str, data: np.ndarray, n_cols: int) -> Iterator[np.ndarray]:
    """Yield the same in steps of some rows, float32 (some, n_cols)."""
    for rows in row_steps(data, n_cols):
        yield dequantize(type_name, rows, n_cols)


def quantize(type_name: str, rows: np.ndarray) -> np.ndarray:
    """float32 (n_rows, n_cols) to rows as they lie in a file, uint8 (n_rows, row_bytes).

    type_name: one of F32, F16, BF16, Q8_0, Q6_K. ValueError for another one, for rows that are no
    whole blocks, and for a value that is not finite or above MAX_ABS.
    """
    if type_name not in MAX_ABS:
        raise ValueError(f"quantize to {type_name}, limit: one of {', '.join(MAX_ABS)}")
    n, n_bytes = _block_size(type_name, rows.shape[1])
    peak = np.abs(rows).max(initial=0)
    if not peak <= MAX_ABS[type_name]:  # NaN fails too
        raise ValueError(f"{type_name}: |value| {peak:g}, limit: {MAX_ABS[type_name]:g}")
    rows = np.ascontiguousarray(rows, "<f4")
    if type_name == "F32":
        return rows.view(np.uint8)
    if type_name == "F16":
        return rows.astype("<f2").view(np.uint8)
    if type_name == "BF16":
        bits = rows.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").view(np.uint8)
    encode = {"Q8_0": _encode_q8_0, "Q6_K": _encode_q6_k}[type_name]
    return encode(rows.reshape(-1, n)).reshape(len(rows), rows.shape[1] // n * n_bytes)


def _block_size(type_name: str, n_cols: int) -> tuple[int, int]:
    """(values, bytes) of a block; ValueError for a type or a row that has none."""
    if type_name not in BLOCKS:
        raise ValueError(f"type {type_name}, limit: one of {', '.join(BLOCKS)}")
    n, n_bytes = BLOCKS[type_name]
    if n_cols % n:
        raise ValueError(f"row of {n_cols} {type_name}, limit: a multiple of {n}")
    return n, n_bytes


# blocks to values, uint8 (n_blocks, bytes) -> float32 (n_blocks, values) --------------------------


def _f16(blocks, at):
    """The f16 at a byte of each block: float32 (n_blocks, 1)."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(data):
    """All low ones of the last axis, then all high ones."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _five_bits(blocks, at):
    """u32 of fifth bits, 16 bytes of nibbles."""
    fifth = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return _nibbles(blocks[:, at + 4 :]) | fifth << 4


def _q8_0(blocks):
    return _f16(blocks, 0) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks):
    return _f16(blocks, 0) * (_nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8))


def _q4_1(blocks):
    return _f16(blocks, 0) * _nibbles(blocks[:, 4:]) + _f16(blocks, 2)


def _q5_0(blocks):
    return _f16(blocks, 0) * (_five_bits(blocks, 2).view(np.int8) - np.int8(16))


def _q5_1(blocks):
    return _f16(blocks, 0) * _five_bits(blocks, 4) + _f16(blocks, 2)


def _iq4_nl(blocks):
    return _f16(blocks, 0) * IQ4_NL[_nibbles(blocks[:, 2:])]


def _q4_k(blocks):
    return _with_minimums(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks):
    """Bit i of fifth byte j belongs to value 32 i + j."""
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    nibbles = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _with_minimums(blocks, nibbles | fifth << 4)


def _with_minimums(blocks, q):
    """d s q - dmin m, q (n_blocks, 8, 32); s and m of six bits: four and four bytes hold the first
    half of each, their top bits and the nibbles of the last four bytes the second half."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1)
    m = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1)
    return (_f16(blocks, 0) * s)[:, :, None] * q - (_f16(blocks, 2) * m)[:, :, None]


def _q6_k(blocks):
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)) & 3
    q = (low | high << 4).reshape(-1, 16, 16).view(np.int8) - np.int8(32)
    scale = _f16(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return scale[:, :, None] * q


_DECODERS = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q4_K": _q4_k,
    "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl,
}  # fmt: skip


# values to blocks, float32 (n_blocks, values) -> uint8 (n_blocks, bytes) --------------------------


def _encode_q8_0(values):
    """d = largest |value| / 127, rounded half away from zero: the bytes of ggml's own."""
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * _inverse(d)
    whole = np.trunc(scaled)
    codes = (whole + np.trunc(2 * (scaled - whole))).astype(np.int8)
    return np.concatenate([d.astype("<f2").view(np.uint8), codes.view(np.uint8)], axis=1)


def _encode_q6_k(values):
    """A scale for 16 values by least squares, kept as a whole number of the block's f16 d."""
    groups = values.reshape(-1, 16, 16)
    scales = _group_scales(groups)
    d = (_signed_peak(scales) / np.float32(-128)).astype("<f2")
    s = np.clip(np.rint(scales * _inverse(d.astype(np.float32))), -128, 127).astype(np.int8)
    codes = _six_bits(groups, _inverse(d.astype(np.float32) * s)[:, :, None])
    codes = (codes + np.float32(32)).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = codes & 15, codes >> 4
    parts = [
        low[:, :, :2] | low[:, :, 2:] << 4,
        high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6,
        s.view(np.uint8),
        d.view(np.uint8),
    ]
    return np.concatenate([part.reshape(-1, math.prod(part.shape[1:])) for part in parts], axis=1)


def _group_scales(groups):
    """The best of a few scales for each 16 values: float32 (n_blocks, 16, 16) -> (n_blocks, 16).

    Each makes the largest value a number near -32; codes q of it have the best scale sum(x q) /
    sum(q q), which explains sum(x q)^2 / sum(q q) of the squares. More than 7 gain under 1 %.
    """
    inverse_peak = _inverse(_signed_peak(groups))
    best = np.zeros(groups.shape[:2], np.float32)
    scales = best.copy()
    for code in np.arange(-33.5, -30, 0.5, dtype=np.float32):
        q = _six_bits(groups, code * inverse_peak)
        products, squares = (np.einsum("bgi,bgi->bg", a, q) for a in (groups, q))
        fitted = products * _inverse(squares)
        better = fitted * products > best
        best[better], scales[better] = (fitted * products)[better], fitted[better]
    return scales


def _six_bits(groups, inverse_scales):
    return np.clip(np.rint(groups * inverse_scales), -32, 31)


def _signed_peak(values):
    """The value of the largest magnitude along the last axis, which stays, of length 1."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=-1, keepdims=True), axis=-1)


def _inverse(values):
    """1 / values, and 0 for those near 0."""
    return np.divide(np.float32(1), values, out=np.zeros_like(values), where=abs(values) >= TINY)
