"""The linear layers of a model's first block by our kernels, beside the same product in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..checkpoints.checkpoint import Checkpoint, TernaryTensor
from ..compute import ops
from ..compute.grouped import GroupedActivations, GroupedLinear, activation_shapes
from ..compute.operands import Batch, Matrix
from ..errors import FormatError
from ..formats import group_scales
from ..formats.group_scales import GroupedMatrix

BITS = 16  # of activations
N_INPUTS = 4  # rows of input: a tile of the kernels
OUTLIERS = 170  # columns of which one is an outlier
LARGEST = (20.0, 50.0)  # times the others: what a linear layer's input has in trained models
MAX_ERROR = 1e-3  # relative RMS; rounding to 16 bits costs 2e-5 to 4e-4
STEP_WEIGHTS = 1 << 20  # weights at a time: 8 MiB as float64
COMPARED = 1 << 22  # weights of a matrix that are multiplied, its first rows; all are scanned


def first_layer(checkpoint: Checkpoint) -> list[dict[str, Any]] | None:
    """{name: of the tensor, rows, compared: how many of them were multiplied, error: relative RMS
    of the kernels' product, fault: None, or what is wrong in any row} of each linear layer of the
    first block, JSON-ready.

    None for a model whose linear layers have one scale a row: it rounds activations otherwise.
    """
    if not checkpoint.has_group_scales:
        return None
    prefix = "layers.0."
    return [_checked(t) for name, t in checkpoint.ternary.items() if name.startswith(prefix)]


def _checked(t: TernaryTensor) -> dict[str, Any]:
    found: dict[str, Any] = {"name": t.tensor.name, "rows": t.n_rows, "compared": 0}
    found |= {"error": None, "fault": None}
    x = inputs(t.n_cols)
    quantized, batch = _quantized(x)
    squares = np.zeros(2)  # of the differences, of what is expected
    first = 0
    try:
        for piece in _pieces(t):
            linear = GroupedLinear([(piece.type, piece.data, piece.scales)], piece.n_cols)
            row = _illegal_row(linear, piece)
            if row is not None:
                return found | {"fault": f"row {first + row}: an illegal code, scale or bias"}
            if first * t.n_cols < COMPARED:
                out = Matrix(np.empty((N_INPUTS, piece.n_rows), np.float32))
                ops.linear(out, linear, quantized, batch)
                weights = piece.dequantize(np.arange(piece.n_rows)).astype(np.float64)
                expected = x.astype(np.float64) @ weights.T
                squares += ((out.array() - expected) ** 2).sum(), (expected**2).sum()
                found["compared"] += piece.n_rows
            first += piece.n_rows
    except FormatError as error:
        return found | {"fault": str(error).removeprefix(f"{error.path}: ")}
    error = float(np.sqrt(squares[0] / squares[1])) if squares[1] else float(squares[0])
    fault = None if error <= MAX_ERROR else f"more than {MAX_ERROR:g}"
    return found | {"error": error, "fault": fault}


def _illegal_row(linear: GroupedLinear, matrix: GroupedMatrix) -> int | None:
    place = ops.scan_groups(linear)
    return place[1] if place else group_scales.row_of_wrong_bias(matrix)


def inputs(n_cols: int) -> np.ndarray:
    """float32 (N_INPUTS, n_cols) with outliers, the same each time."""
    rng = np.random.default_rng(n_cols)
    x = rng.standard_normal((N_INPUTS, n_cols))
    n = -(-n_cols // OUTLIERS)
    x[:, rng.choice(n_cols, n, replace=False)] *= rng.uniform(*LARGEST, n)
    return x.astype(np.float32)


def _quantized(x: np.ndarray) -> tuple[GroupedActivations, Batch]:
    shapes = activation_shapes(*x.shape, BITS)
    dtypes = np.int8, np.float32, np.int32
    arrays = [np.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    out, batch = GroupedActivations(*arrays, BITS), Batch(len(x), 1).rows_only(len(x))
    ops.quantize(out, Matrix(x), batch)
    return out, batch


def _pieces(t: TernaryTensor) -> Iterator[GroupedMatrix]:
    """The matrix some rows at a time: where the kernels read it as it lies, in place."""
    whole = t.grouped
    if whole is not None:
        step = max(1, STEP_WEIGHTS // t.n_cols)
        for at in range(0, t.n_rows, step):
            yield whole.with_arrays(lambda data, at=at: data[at : at + step])
        return
    type_name = t.grouped_type
    for scales, codes in t.read_groups():
        data = group_scales.pack(type_name, scales, codes)
        yield GroupedMatrix(type_name, data, len(codes), t.n_cols, t.tensor.path, t.name)
