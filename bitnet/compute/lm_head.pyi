"""Logits: all of them, or by a screen those that can be among the best."""

from typing import Any

from .operands import Batch, Matrix, QuantizedRows, Screen

screened: float  # of logits that were left out: the smallest float32

def head(out: Matrix, rows: QuantizedRows, x: Matrix, batch: Batch) -> None: ...
def screen(
    out: Matrix, rows: QuantizedRows, copy: Screen, x: Matrix, batch: Batch, wanted: list[Any]
) -> list[int]: ...
