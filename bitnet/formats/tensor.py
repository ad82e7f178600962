"""A tensor where it lies in a file, whatever the container."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STEP_WEIGHTS = 1 << 17  # weights read at a time, by whole rows: as float32, 512 KiB, a cache holds


@dataclass(frozen=True)
class Tensor:
    """One tensor where it lies in a mapped file.

    shape is in NumPy order (rows, columns): the reverse of GGUF's ne. data is read-only uint8
    (n_bytes,), a view of the map, whose address need not be a multiple of anything.
    """

    name: str
    type: str  # "F32", "F16", "BF16", "U8", "I2_S", "Q8_0", "Q6_K", ...
    shape: tuple[int, ...]
    data: np.ndarray
    path: Path

    @property
    def where(self) -> str:
        return f"{self.path}: {self.name}"

    def rows(self) -> np.ndarray:
        """The data as uint8 (n_rows, row_bytes), a view."""
        return self.data.reshape(self.shape[0], -1)

    def row_steps(self) -> Iterator[np.ndarray]:
        """Yield the rows in steps of some; see the function row_steps."""
        return row_steps(self.rows(), self.shape[1])


def row_steps(data: np.ndarray, n_cols: int) -> Iterator[np.ndarray]:
    """Yield uint8 (n_rows, row_bytes) in steps of some rows, of about STEP_WEIGHTS weights."""
    step = max(1, STEP_WEIGHTS // n_cols)
    for at in range(0, len(data), step):
        yield data[at : at + step]
