"""The ternary tensors of a model whose groups of columns have scales of their own, as a GGUF of
another type holds them, or a folder for MLX. Nothing is rounded: what would be is refused."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import FormatError
from ..formats.ggml_types import TYPES
from ..formats.group_scales import GROUPS, SCALE_BYTES, pack, pack_codes, regroup, to_float16
from .checkpoint import Checkpoint
from .conversion import Conversion

# --type: type of ternary tensors in a GGUF
GROUP_TYPES = {
    "q2_0": "Q2_0_G64", "pq2_0": "PQ2_0", "ptq1_0": "PTQ1_0", "tq1_0": "TQ1_0", "tq2_0": "TQ2_0",
}  # fmt: skip

Entry = tuple[str, tuple[int, ...], str, Iterator[Any]]  # name, shape, type, data


def default_type(checkpoint: Checkpoint) -> str:
    """The type with the largest groups that kernels read in place and that every tensor fits."""
    large, _ = GROUPS
    return "PQ2_0" if smallest_group(checkpoint) == large else "Q2_0_G64"


def smallest_group(checkpoint: Checkpoint) -> int:
    """Columns that have one scale, at the least, where kernels read the model: one of GROUPS."""
    matrices = checkpoint.ternary.values()
    return min(
        TYPES[t.grouped_type].n_values if t.grouped is None else t.grouped.group for t in matrices
    )


def packed_rows(conversion: Conversion, name: str, type_name: str) -> Iterator[np.ndarray]:
    """The rows of a ternary tensor in a type of a GGUF, uint8 (some, bytes) each."""
    row = 0
    for scales, codes in conversion.grouped(name):
        try:
            yield pack(type_name, scales, codes, row)
        except ValueError as error:
            tensor = conversion.checkpoint.ternary[name].tensor
            found, _, limit = f"{type_name}: {error}".partition(", limit: ")
            raise FormatError(tensor.path, tensor.name, found, limit) from None
        row += len(codes)


def mlx_entries(conversion: Conversion, name: str, stem: str, group: int) -> list[Entry]:
    """The three tensors of a ternary tensor in a folder. The first has to be written first: it
    finds the others, which are small."""
    t = conversion.checkpoint.ternary[name]
    shape = t.n_rows, t.n_cols // group
    found = np.empty((t.n_rows, t.n_cols // group * SCALE_BYTES), np.uint8)

    def codes_of() -> Iterator[np.ndarray]:
        row = 0
        for scales, codes in conversion.grouped(name):
            stored = to_float16(regroup(scales, codes, group))
            found[row : row + len(codes)] = stored.view(np.uint8)
            row += len(codes)
            yield pack_codes(codes)

    def biases() -> Iterator[np.ndarray]:
        yield (-found.view("<f2")).view(np.uint8)

    return [
        (f"{stem}.weight", (t.n_rows, t.n_cols // 16), "U32", codes_of()),
        (f"{stem}.scales", shape, "F16", iter([found])),
        (f"{stem}.biases", shape, "F16", biases()),
    ]
