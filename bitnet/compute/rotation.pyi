"""Rotated activations: the normalised Walsh-Hadamard transform, and the order of heads."""

import numpy as np
from numpy.typing import NDArray

from .operands import Batch, Matrix

class Hadamard:
    """H and signs for rows of n columns."""

    def __init__(self, signs: NDArray[np.float32] | None, block: int, n: int) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def block(self) -> int: ...

def rotate(x: Matrix, h: Hadamard, batch: Batch, inverse: bool = False) -> None: ...
def group_heads(out: Matrix, x: Matrix, n_key_heads: int, n_heads: int, batch: Batch) -> None: ...
