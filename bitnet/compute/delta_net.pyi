"""Layers with a state: the gated DeltaNet, and what gated attention has beside plain attention."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .operands import Batch, Matrix

_Floats = NDArray[np.float32]

class DeltaShape:
    """Heads of a DeltaNet layer."""

    def __init__(
        self, n_key_heads: int, n_heads: int, key_dim: int, head_dim: int, tiled: bool
    ) -> None: ...
    @property
    def n_key_heads(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def key_dim(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def tiled(self) -> bool: ...
    @property
    def n_channels(self) -> int: ...
    @property
    def delta_shape(self) -> tuple[int, int, int, int]: ...

def causal_conv(
    out: Matrix, x: Matrix, weight: _Floats, states: Iterable[_Floats], batch: Batch
) -> None: ...
def delta_gates(
    gates: Matrix, alpha: Matrix, beta: Matrix, a: _Floats, dt: _Floats, batch: Batch
) -> None: ...
def delta_rule(
    out: Matrix,
    column: int,
    qkv: Matrix,
    gates: Matrix,
    states: Iterable[_Floats],
    shape: DeltaShape,
    batch: Batch,
) -> None: ...
def split_queries(
    qkv: Matrix, projected: Matrix, n_heads: int, head_dim: int, batch: Batch
) -> None: ...
def gate_heads(x: Matrix, projected: Matrix, n_heads: int, head_dim: int, batch: Batch) -> None: ...
