"""The frequencies of rotary position embeddings (Su et al. 2021); ops.rope_table makes angles of them."""

from decimal import Decimal, localcontext

import numpy as np


def inverse_frequencies(head_dim, theta):
    """float32 (head_dim / 2,): 1 / theta^(2j / head_dim), each step rounded as float32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with localcontext() as context:
        context.prec = 40
        powers = [float(Decimal(theta) ** Decimal(float(e))) for e in exponents]
    return np.float32(1) / np.array(powers, np.float32)
