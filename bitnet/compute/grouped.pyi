"""Ternary matrices whose groups of columns have scales, and activations rounded by groups."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .operands import MAX_LINEAR_COLS as MAX_LINEAR_COLS

GROUPS: Final[dict[int, int]]  # bits of activations: columns that share a scale

class GroupedLinear:
    """Up to four matrices, (type, data, scales) each, stacked."""

    def __init__(
        self,
        matrices: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]],
        n_cols: int,
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_cols(self) -> int: ...
    @property
    def min_rows(self) -> int: ...
    @property
    def units(self) -> list[int]: ...

class GroupedActivations:
    """Codes int8, scales float32 and sums int32 of the shapes of activation_shapes."""

    n_cols: int
    def __init__(
        self,
        codes: NDArray[np.int8],
        scales: NDArray[np.float32],
        sums: NDArray[np.int32],
        bits: int,
    ) -> None: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def max_cols(self) -> int: ...
    @property
    def bits(self) -> int: ...
    def arrays(self) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]: ...

def grouped_workspace_bytes(n_rows: int) -> int: ...
def activation_shapes(n_rows: int, n_cols: int, bits: int) -> list[tuple[int, int]]: ...
def scan_groups(weights: GroupedLinear, n_threads: int = 1) -> tuple[int, int] | None: ...
