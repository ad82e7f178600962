"""The operands of operations, bound once; their types and shapes are checked here."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..formats.float_blocks import BLOCKS as BLOCKS
from ..runtime.kv_cache import KVCache

MAX_LINEAR_COLS: Final[int]  # columns of a matrix
ROW_TYPES: Final[dict[str, int]]
I2_S_BLOCK: Final[tuple[int, int]]  # columns, bytes
SCREEN_LIMITS: Final[tuple[int, int, int]]  # best logits, rows of a step, columns

class Array:
    """A C-contiguous buffer of one type, held open."""

def row_bytes(type: str, n_cols: int) -> int: ...

class Matrix:
    """float32 (n_rows, n_cols), writable."""

    def __init__(self, array: NDArray[np.float32]) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_cols(self) -> int: ...
    def array(self) -> NDArray[np.float32]: ...

class Norm:
    """An RMSNorm's weight, float32 (n,), and its epsilon."""

    def __init__(self, weight: NDArray[np.float32], eps: float) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def eps(self) -> float: ...

class QuantizedActivations:
    """int8 codes (n_rows, padded n_cols), float32 1 / scale (n_rows,), int32 sums of codes."""

    n_cols: int
    def __init__(
        self, codes: NDArray[np.int8], inv_scale: NDArray[np.float32], sums: NDArray[np.int32]
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def stride(self) -> int: ...
    def arrays(self) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]: ...

class Linear:
    """Up to four ternary matrices of equal width, (codes, scales) each, stacked."""

    def __init__(
        self, matrices: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]], n_cols: int
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_cols(self) -> int: ...
    @property
    def min_rows(self) -> int: ...

class QuantizedRows:
    """Rows of an embedding or a head: uint8 (n_rows, bytes of a row) of a ggml type."""

    def __init__(self, data: NDArray[np.uint8], type: str, n_cols: int) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_cols(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...

class Rope:
    """Frequencies, float32 (head_dim / 2,), and cos_sin, float32 (2, n, head_dim / 2)."""

    def __init__(
        self,
        frequencies: NDArray[np.float32],
        cos_sin: NDArray[np.float32],
        interleaved: bool,
        n_trained: int,
        factor: float = 1,
    ) -> None: ...

class Screen:
    """An int8 copy of a head's rows, float32 (n_rows, 3) bounds, and work arrays."""

    def __init__(
        self,
        codes: NDArray[np.int8],
        bounds: NDArray[np.float32],
        array: Callable[[tuple[int, ...], DTypeLike], NDArray[Any]] = ...,
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_cols(self) -> int: ...
    @property
    def n_chunks(self) -> int: ...
    @property
    def max_survivors(self) -> int: ...

def screen_work(n_rows: int, n_cols: int) -> list[tuple[tuple[int, ...], DTypeLike]]: ...

class Batch:
    """The rows of one forward pass: tokens of several sequences, and the threads to use."""

    n_threads: int
    def __init__(
        self,
        max_tokens: int,
        max_sequences: int,
        n_threads: int = 1,
        *,
        partials: NDArray[np.float32] | None = None,
        workspace: NDArray[np.uint8] | None = None,
    ) -> None: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def max_sequences(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def n_sequences(self) -> int: ...
    @property
    def states(self) -> tuple[Any, ...]: ...
    @property
    def n_workspaces(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    def set_workspace(self, workspace: NDArray[np.uint8] | None) -> None: ...
    def rows_only(self, n_tokens: int) -> Batch: ...
    def set(self, sequences: list[tuple[KVCache, int]], states: tuple[Any, ...] = ()) -> Any: ...
