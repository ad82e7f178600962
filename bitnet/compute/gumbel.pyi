"""A draw from softmax by Gumbel noise: the same for a seed and position on every CPU."""

import numpy as np
from numpy.typing import NDArray

def sample(
    logits: NDArray[np.float32],
    seed: int,
    position: int,
    temperature: float,
    top_p: float = 1.0,
    min_p: float = 0.0,
    ids: NDArray[np.int32] | None = None,
) -> int: ...
