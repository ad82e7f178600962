"""A ternary matrix times quantised activations."""

from .grouped import GroupedActivations, GroupedLinear
from .operands import Batch, Linear, Matrix, QuantizedActivations

def workspace_bytes(n_rows: int) -> int: ...
def linear(
    out: Matrix,
    weights: Linear | GroupedLinear,
    x: QuantizedActivations | GroupedActivations,
    batch: Batch,
    add: bool = False,
    column: int = 0,
) -> None: ...
def find_code_3(weights: Linear, n_threads: int = 1) -> tuple[int, int] | None: ...
