"""The int8 copy of a head's rows and rigorous bounds of its error."""

import numpy as np
from numpy.typing import NDArray

from .operands import QuantizedRows

def derive_screen(
    codes: NDArray[np.int8],
    bounds: NDArray[np.float32],
    rows: QuantizedRows,
    first: int = 0,
    n_threads: int = 1,
) -> None: ...
