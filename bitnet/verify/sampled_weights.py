"""Statistics of ternary weights whose groups of columns have scales, from a sample of their rows.

A sample is the first and the last rows of each tensor: an 8 GB file takes seconds. What is illegal
is counted here and refused elsewhere.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..formats.float_blocks import dequantize
from ..formats.ggml_types import FLOAT_TYPES
from ..formats.tensor import Tensor
from ..formats.ternary_layouts import LAYOUTS
from ..progress import Progress, silent

END_ROWS = 16  # rows of each end of a tensor
MAX_COLS = 1 << 17  # of a tensor that is looked at; no linear layer is wider
FLOAT_GROUPS = (256, 128, 64, 32)  # columns that floats may share a scale in, the largest that fits
SMALLEST_NORMAL = 2.0**-14  # of f16


class Sample:
    """What was seen of the tensors of one form. group: columns that have one scale."""

    def __init__(self, group: int) -> None:
        self.group, self.n_tensors, self.n_weights = group, 0, 0
        self.codes = np.zeros(4, np.int64)
        self.low, self.high = np.inf, 0.0
        self.counts = Counter[str]()

    def add(self, scales: np.ndarray, codes: np.ndarray, biases: np.ndarray | None = None) -> None:
        """Count some rows. scales, biases: float32 (n_rows, n_groups). codes: uint8 (n_rows,
        n_cols), 3 if illegal."""
        in_use = (codes.reshape(*scales.shape, -1) != 1).any(axis=2)
        finite = np.isfinite(scales)
        positive = scales[finite & (scales > 0)]
        if len(positive):
            self.low = min(self.low, float(positive.min()))
            self.high = max(self.high, float(positive.max()))
        self.codes += np.bincount(codes.reshape(-1), minlength=4)
        self.n_weights += codes.size
        lowest = scales.min(axis=1, where=in_use, initial=np.inf)
        highest = scales.max(axis=1, where=in_use, initial=-np.inf)
        found = {
            "scales": scales.size,
            "zero": scales == 0,
            "zero_under_weights": (scales == 0) & in_use,
            "subnormal": (scales != 0) & (np.abs(scales) < SMALLEST_NORMAL),
            "negative": scales < 0,
            "not_finite": ~finite,
            "rows": len(scales),
            "rows_of_one_scale": (lowest == highest) | ~in_use.any(axis=1),
        }
        if self.group == 64 and scales.shape[1] % 2 == 0:
            equal = scales[:, 0::2] == scales[:, 1::2]
            has_zeros = ~(in_use[:, 0::2] & in_use[:, 1::2])
            found |= {
                "pairs": equal.size,
                "equal_pairs": equal,
                "pairs_with_a_half_of_zeros": has_zeros & ~equal,
            }
        if biases is not None:
            found["other_biases"] = biases != -scales
        for name, seen in found.items():
            self.counts[name] += int(np.sum(seen))

    def facts(self) -> dict[str, Any]:
        """JSON-ready: shares of codes, the range of the scales above 0, and how many scales, rows
        and pairs of groups of 64 are what their names say. other_biases: not -scale, of MLX."""
        shares = self.codes / max(1, self.n_weights)
        return {
            "group": self.group,
            "tensors": self.n_tensors,
            "sampled_weights": self.n_weights,
            "codes": dict(zip(("-1", "0", "+1"), shares.tolist(), strict=False)),
            "illegal_codes": int(self.codes[3]),
            "scale_min": self.low if self.high else None,
            "scale_max": self.high or None,
            **self.counts,
        }


def samples(
    tensors: Mapping[str, Tensor], mlx_group: int | None, progress: Progress = silent
) -> dict[str, dict[str, Any]]:
    """{form: facts} of all matrices: "PQ2_0", "F16 floats", ... as Sample.facts has them; of floats
    that are not ternary the number of tensors alone.

    mlx_group: columns of a group of a folder that MLX packed with 2 bits, None for any other.
    """
    found: dict[str, Sample] = {}
    n_floats = 0
    for form, group, *rows in _sampled(tensors, mlx_group, progress):
        if not group:
            n_floats += 1
            continue
        sample = found.setdefault(f"{form}, groups of {group}", Sample(group))
        sample.n_tensors += 1
        with np.errstate(invalid="ignore"):
            sample.add(*rows)
    facts = {form: sample.facts() for form, sample in found.items()}
    return facts | ({"floats that are not ternary": {"tensors": n_floats}} if n_floats else {})


def _sampled(
    tensors: Mapping[str, Tensor], mlx_group: int | None, progress: Progress
) -> Iterator[tuple[Any, ...]]:
    """(form, group, scales, codes, biases or None) of every matrix; (form, 0) of other floats."""
    for i, (name, tensor) in enumerate(tensors.items()):
        progress(f"sampling {name}", i, len(tensors))
        if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.shape[1] > MAX_COLS:
            continue
        stem = name.removesuffix(".weight")
        if tensor.type in LAYOUTS:
            if LAYOUTS[tensor.type].where in ("first", "last"):
                yield tensor.type, LAYOUTS[tensor.type].n_codes, *_of_blocks(tensor), None
        elif tensor.type == "U32" and mlx_group and f"{stem}.scales" in tensors:
            parts = tensor, tensors.get(f"{stem}.scales"), tensors.get(f"{stem}.biases")
            if (rows := _of_mlx(*parts, mlx_group)) is not None:
                yield "MLX", mlx_group, *rows
        elif tensor.type in FLOAT_TYPES and not name.endswith((".scales", ".biases")):
            values = dequantize(tensor.type, _ends(tensor), tensor.shape[1])
            group, *rows = _of_floats(values)
            yield f"{tensor.type} floats", group, *rows, None


def _ends(tensor: Tensor) -> np.ndarray:
    """The first and the last rows, uint8 (n, row_bytes)."""
    rows = tensor.rows()
    if len(rows) <= 2 * END_ROWS:
        return rows
    return np.concatenate([rows[:END_ROWS], rows[-END_ROWS:]])


def _of_blocks(tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(scales, codes) of the sampled rows of a type whose blocks have a scale each."""
    layout, rows = LAYOUTS[tensor.type], _ends(tensor)
    blocks = rows.reshape(len(rows), -1, layout.n_bytes)
    scales, codes = blocks[:, :, :2], blocks[:, :, 2:]
    if layout.where == "last":
        scales, codes = blocks[:, :, -2:], blocks[:, :, :-2]
    return _floats(scales)[:, :, 0], layout.decode(codes).reshape(len(rows), -1)


def _of_mlx(
    weight: Tensor, scales: Tensor | None, biases: Tensor | None, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(scales, codes, biases) of the sampled rows, whose bytes are in PQ2_0's order; None where
    shapes or types are not MLX's."""
    shape = weight.shape[0], 16 * weight.shape[1] // group
    for part in (scales, biases):
        if part is None or part.shape != shape or part.type != "F16":
            return None
    codes = LAYOUTS["PQ2_0"].decode(_ends(weight)).reshape(-1, 16 * weight.shape[1])
    return _floats(_ends(scales)), codes, _floats(_ends(biases))  # type: ignore[arg-type]


def _of_floats(values: np.ndarray) -> tuple[Any, ...]:
    """(group, scales, codes) of floats that are 0 or +-d in groups of columns, else (0,)."""
    n_rows, n_cols = values.shape
    for group in FLOAT_GROUPS:
        if n_cols % group:
            continue
        sizes = np.abs(values).reshape(n_rows, -1, group)
        scales = sizes.max(axis=2)
        if ((sizes == 0) | (sizes == scales[:, :, None])).all():
            return group, scales, (np.sign(values) + 1).astype(np.uint8)
    return (0,)


def _floats(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)
