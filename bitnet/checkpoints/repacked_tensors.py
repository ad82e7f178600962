"""What a repacked tensor is: in a file of repack_cache.py, and in memory.

Of a model whose rows have one scale a tensor is I2_S with padded rows, and its scales follow it
where they may differ by row. Of one whose groups of columns have scales of their own it is PQ2_0,
or Q2_0 of 64.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..formats import gguf
from ..formats.group_scales import GroupedMatrix, pack
from ..formats.ternary_layouts import I2_S_TAIL, pack_i2_s, padded
from ..runtime.pool import Pool
from .checkpoint import TernaryTensor

ROW_SCALES = ".row_scales"  # behind a tensor's name: its scales, where rows may differ

# codes uint8 (n_rows, padded // 4), scales as of read(); or of a model with group scales
Repacked = tuple[np.ndarray, np.ndarray] | GroupedMatrix


# as they lie in a file ----------------------------------------------------------------------------


def table(
    tensors: Mapping[str, TernaryTensor], has_group_scales: bool
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, shape, type) of every tensor in the file."""
    for name, t in tensors.items():
        if has_group_scales:
            yield name, (t.n_rows, t.n_cols), t.grouped_type
            continue
        yield name, (t.n_rows, padded(t.n_cols)), "I2_S"
        if t.scales_may_differ:
            yield name + ROW_SCALES, (t.n_rows,), "F32"


def repacked_bytes(tensor: TernaryTensor, has_group_scales: bool) -> int:
    """Bytes of a tensor in the file, its scales included."""
    entries = table({tensor.name: tensor}, has_group_scales)
    return sum(gguf.n_bytes_of(type_name, shape) for _, shape, type_name in entries)


def tensor_data(
    tensors: Mapping[str, TernaryTensor], has_group_scales: bool
) -> list[tuple[Any, ...]]:
    """What gguf.write takes, in the order of the table."""
    entries: list[tuple[Any, ...]] = []
    for name, t in tensors.items():
        if has_group_scales:
            entries.append((name, (t.n_rows, t.n_cols), t.grouped_type, _grouped_rows(t)))
            continue
        scales = np.ones(t.n_rows, np.float32) if t.scales_may_differ else None
        entries.append((name, (t.n_rows, padded(t.n_cols)), "I2_S", i2_s_chunks(t, scales)))
        if scales is not None:
            entries.append((name + ROW_SCALES, (t.n_rows,), "F32", scales))
    return entries


def i2_s_chunks(
    tensor: TernaryTensor, row_scales: np.ndarray | None = None
) -> Iterator[np.ndarray | bytes]:
    """The bytes of one I2_S tensor for gguf.write: its rows, then the scale and 28 unused bytes.

    row_scales: float32 (n_rows,), filled in, if the scales may differ; the tensor's is 1 then.
    """
    scales, chunks = tensor.read()
    yield from map(pack_i2_s, chunks)
    if row_scales is not None:
        row_scales[:] = scales[:, 0]
    yield (scales if row_scales is None else np.float32(1)).tobytes() + bytes(I2_S_TAIL - 4)


def _grouped_rows(tensor: TernaryTensor) -> Iterator[np.ndarray]:
    """The rows of a tensor in its grouped_type, uint8 (some, bytes) each."""
    type_name = tensor.grouped_type
    for scales, codes in tensor.read_groups():
        yield pack(type_name, scales, codes)


def from_file(
    file: gguf.GGUFFile, name: str, tensor: TernaryTensor, has_group_scales: bool
) -> Repacked:
    """A tensor of the file, mapped."""
    if has_group_scales:
        rows, shape = file.tensors[name].rows(), (tensor.n_rows, tensor.n_cols)
        return GroupedMatrix(tensor.grouped_type, rows, *shape, file.path, name)
    data = file.tensors[name].data
    n = len(data) - I2_S_TAIL
    codes, scales = data[:n].reshape(tensor.n_rows, -1), data[n : n + 4].view("<f4")
    if tensor.scales_may_differ:
        scales = file.tensors[name + ROW_SCALES].data.view("<f4")
        if (scales == scales[0]).all():
            scales = scales[:1]
    return codes, scales.reshape(-1, 1)


# in memory ----------------------------------------------------------------------------------------


def in_memory(tensor: TernaryTensor, pool: Pool | None, has_group_scales: bool) -> Repacked:
    """The same in memory of the pool (purpose "weights"), or of NumPy's without one."""
    n_rows, n_cols = tensor.n_rows, tensor.n_cols
    if has_group_scales:
        type_name = tensor.grouped_type
        row_bytes = gguf.n_bytes_of(type_name, (1, n_cols))
        data = _filled(_new_bytes((n_rows, row_bytes), pool), _grouped_rows(tensor))
        where = tensor.tensor.path, tensor.tensor.name
        return GroupedMatrix(type_name, data, n_rows, n_cols, *where)
    codes = _new_bytes((n_rows, padded(n_cols) // 4), pool)
    scales, chunks = tensor.read()
    return _filled(codes, map(pack_i2_s, chunks)), scales


def _new_bytes(shape: tuple[int, int], pool: Pool | None) -> np.ndarray:
    return np.empty(shape, np.uint8) if pool is None else pool.array(shape, np.uint8, "weights")


def _filled(data: np.ndarray, chunks: Iterator[np.ndarray]) -> np.ndarray:
    at = 0
    for rows in chunks:
        data[at : at + len(rows)] = rows
        at += len(rows)
    return data
