"""Ternary rows with scales of groups, and activations rounded by groups, as NumPy has them."""

import numpy as np

MOST = {16: 32639, 8: 127}
COLUMNS = {16: 128, 8: 32}  # that share a scale


def quantize(x, bits):
    """float32 (n, n_cols) -> (codes int32 like x, scales float32 (n, n_groups))."""
    n, n_cols = x.shape
    group, most = COLUMNS[bits], np.float32(MOST[bits])
    full = np.zeros((n, -(-n_cols // group) * group), np.float32)
    full[:, :n_cols] = x
    full = full.reshape(n, -1, group)
    largest = np.abs(full).max(2)
    is_tiny = largest < np.float32(2.0**-100)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.rint(full * (most / largest)[:, :, None])
    codes[is_tiny | ~np.isfinite(largest)] = 0
    scales = np.where(is_tiny, np.float32(0), largest / most)
    scales[~np.isfinite(largest)] = np.nan
    return codes.astype(np.int32).reshape(n, -1)[:, :n_cols], scales


def linear(codes, input_scales, q, scales, bits):
    """What the kernels have to give, to the bit: float32 (n, n_rows).

    q: int8 (n_rows, n_cols) of -1, 0, 1. scales: float32 (n_rows, n_cols // 64 or fewer): a unit is
    64 columns where two scales of 128 differ anywhere in the matrix and one of them is in use.
    """
    n_rows, n_cols = q.shape
    n_units = -(-n_cols // 64)
    by_64 = np.repeat(scales, n_units // scales.shape[1], 1) if scales.shape[1] else scales
    unit = 32 if bits == 8 else unit_of(q, by_64)
    group = COLUMNS[bits]
    p = np.zeros((4, len(codes), n_rows), np.float32)
    for u, at in enumerate(range(0, n_cols, unit)):
        columns = slice(at, min(at + unit, n_cols))
        sums = codes[:, columns].astype(np.int64) @ q[:, columns].T.astype(np.int64)
        d = by_64[:, at // 64]
        if unit == 128:
            d = by_64[:, at // 64 : at // 64 + 2].max(1)
        factor = d[None, :] * input_scales[:, at // group, None]
        p[u % 4] += sums.astype(np.float32) * factor
    return (p[0] + p[1]) + (p[2] + p[3])


def unit_of(q, by_64):
    """128, or 64 where halves of 128 columns with different scales are both in use."""
    n_rows, n = by_64.shape
    pairs = n // 2
    d = by_64[:, : 2 * pairs].reshape(n_rows, pairs, 2)
    used = q[:, : 128 * pairs].reshape(n_rows, pairs, 2, 64).any(3)
    first, second = d[..., 0], d[..., 1]
    ok = (first == second) | (~used[..., 0] & (first < second)) | (~used[..., 1] & (second < first))
    return 128 if ok.all() else 64


def pack(q):
    """int8 (n_rows, n_cols) of -1, 0, 1 -> codes, uint8 (n_rows, n_cols / 4), the first lowest."""
    fields = (q + 1).astype(np.uint8).reshape(len(q), -1, 4)
    return (fields << np.array([0, 2, 4, 6], np.uint8)).sum(2, dtype=np.uint8)


def matrix(kind, q, scales):
    """(type, data, scales) as a GroupedLinear takes it. scales: float32 that float16 holds, one for
    each 128 columns, or 64 with "Q2_0_G64" and, by their number, "planes"."""
    n_rows = len(q)
    halves = np.ascontiguousarray(scales.astype("<f2")).view(np.uint8)
    if kind == "planes":
        return kind, pack(q), halves
    group = {"PQ2_0": 128, "Q2_0_G64": 64}[kind]
    blocks = pack(q).reshape(n_rows, -1, group // 4)
    data = np.concatenate([halves.reshape(n_rows, -1, 2), blocks], axis=2)
    return kind, np.ascontiguousarray(data.reshape(n_rows, -1)), None
