"""Logits: all of them, or by a screen those that can be among the best."""

from typing import Any

from .operands import Batch, Matrix, QuantizedRows, Screen

screened: float  # the logit of a row that was screened out: the smallest float32

def head(out: Matrix, rows: QuantizedRows, x: Matrix, batch: Batch) -> None: ...
def screen(
    out: Matrix, rows: QuantizedRows, copy: Screen, x: Matrix, batch: Batch, queries: list[Any]
) -> list[int]: ...
