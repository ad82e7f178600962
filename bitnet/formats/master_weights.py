"""Ternary codes of float weights: of BitNet's masters, and of weights that were ternary before.

A matrix is uint8 (n_rows, row_bytes) of F32, F16 or BF16, as it lies in a file, and is read in
steps of some rows. Codes and scales are those of ternary_layouts.
"""

from collections.abc import Iterator

import numpy as np

from .float_blocks import dequantize_steps

# lower bound of a mean of |w|, that of transformers: so masters that are all 0 have a scale too
MIN_ABSMEAN = np.float32(1e-5)
# relative difference within which two weights count as equal: that of two bfloat16 roundings
TERNARY_TOLERANCE = np.float32(2**-7)


def absmean(type_name: str, data: np.ndarray, n_cols: int) -> np.float32:
    """The mean of |w| of master weights, uint8 (n_rows, bytes): float32, at least 1e-5, or NaN."""
    total = 0.0
    for rows in dequantize_steps(type_name, data, n_cols):
        total += float(np.abs(rows).sum(dtype=np.float64))
    return np.maximum(np.float32(total / (len(data) * n_cols)), MIN_ABSMEAN)


def codes_masters(
    type_name: str, data: np.ndarray, n_cols: int, mean: np.float32
) -> Iterator[np.ndarray]:
    """Master weights, uint8 (n_rows, bytes) of F32, F16 or BF16 -> codes in chunks.

    As transformers in float32: s = 1 / mean, code = clip(round_half_even(w * s), -1, 1) + 1, and
    the weight it stands for is (code - 1) / s: the scale is 1 / s, which is not quite mean.
    """
    inverse = np.float32(1) / mean
    for rows in dequantize_steps(type_name, data, n_cols):
        yield _signs(rows * inverse, np.float32(0.5))  # 0.5 itself goes to 0


def peak(type_name: str, data: np.ndarray, n_cols: int) -> np.float32:
    """The largest |w| of uint8 (n_rows, bytes): float32, NaN if one is NaN."""
    return np.max([np.abs(rows).max() for rows in dequantize_steps(type_name, data, n_cols)])


def codes_dequantized(
    type_name: str, data: np.ndarray, n_cols: int, peak: np.float32
) -> Iterator[np.ndarray]:
    """Weights that are -peak, 0 or +peak but for bfloat16 rounding -> codes in chunks.

    Their mean would give a scale 0.69 times too small. ValueError for any other weight.
    """
    if not 0 < peak < np.inf:  # NaN fails too
        raise ValueError(f"largest weight {peak}, limit: finite and above 0")
    for rows in dequantize_steps(type_name, data, n_cols):
        is_ternary = _are_ternary(np.abs(rows), peak)
        if not is_ternary.all():
            raise ValueError(f"weight {rows[~is_ternary][0]:g}, limit: 0 or +-{peak:g}")
        yield _signs(rows, np.float32(0.5) * peak)


def look_ternary(sample: np.ndarray) -> bool:
    """Whether every weight of float32 (some rows, n_cols) is about 0 or about the largest: masters
    are spread out between."""
    sizes = np.abs(sample)
    peak = sizes.max()
    return bool(peak > 0 and _are_ternary(sizes, peak).all())


def _are_ternary(sizes: np.ndarray, peak: np.float32) -> np.ndarray:
    """Whether each of |w| is 0 or peak, within TERNARY_TOLERANCE: bool, of the shape of sizes."""
    near = TERNARY_TOLERANCE * peak
    return (sizes <= near) | (sizes >= peak - near)


def _signs(values: np.ndarray, threshold: np.float32) -> np.ndarray:
    return np.uint8(1) + (values > threshold) - (values < -threshold)
