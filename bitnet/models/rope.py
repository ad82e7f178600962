"""Rotary position embeddings (Su et al. 2021): frequencies, and the orders of rows they need.

ops.rope_table makes angles of the frequencies.
"""

from decimal import Decimal, localcontext

import numpy as np

from .rope_scaling import RopeScaling


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> np.ndarray:
    """float32 (head_dim / 2,): 1 / theta^(2j / head_dim), each step rounded as float32; scaled."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with localcontext() as context:
        context.prec = 40
        powers = [float(Decimal(theta) ** Decimal(float(e))) for e in exponents]
    periods = np.array(powers, np.float32)
    return np.float32(1) / periods if scaling is None else scaling.frequencies(periods, theta)


def row_order(n_rows: int, head_dim: int, interleaved: bool) -> np.ndarray:
    """Which row of a q or k projection each row is once it is in the order of the other RoPE.

    int (n_rows,). Rows of a head lie as (2, head_dim / 2) for RoPE over (j, j + head_dim / 2), and
    as (head_dim / 2, 2) where it is interleaved, over (2j, 2j + 1). interleaved: as they are now.
    """
    half = head_dim // 2
    of_head = (half, 2) if interleaved else (2, half)
    return np.arange(n_rows).reshape(-1, *of_head).swapaxes(1, 2).reshape(-1)
