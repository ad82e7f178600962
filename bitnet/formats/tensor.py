"""A tensor where it lies in a file, whatever the container."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


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
    def where(self):
        return f"{self.path}: {self.name}"
