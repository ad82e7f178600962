"""Cosines and sines of rotary position embeddings (Su et al. 2021), the same bits on every CPU.

NumPy's and libm's cos differ between machines in the last place; additions and multiplications do
not. So the functions here are made of those alone.
"""

from decimal import Decimal, localcontext

import numpy as np

# pi / 2 in three parts of 33 bits: k times the first two is exact in float64 for k < 2^20.
_HALF_PI = (1.5707963267341256e00, 6.0771005063039660e-11, 2.0222662487959506e-21)
_SIN = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800,
        -1 / 1307674368000)  # fmt: skip
_COS = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600,
        -1 / 87178291200, 1 / 20922789888000)  # fmt: skip


_ROWS = 512  # positions at a time: a dozen float64 arrays on the way to a float32 one


def fill_tables(cosines, sines, theta):
    """Write cosines and sines, float32 (n_positions, d / 2), of position * theta^(-2j / d).

    Frequencies and angles are rounded to float32, as transformers' LlamaRotaryEmbedding does:
    at position 4000 the rounding of the angle (2e-4) is the largest difference between engines.
    """
    frequencies = inverse_frequencies(2 * cosines.shape[1], theta)
    for begin in range(0, len(cosines), _ROWS):
        rows = slice(begin, min(begin + _ROWS, len(cosines)))
        positions = np.arange(rows.start, rows.stop, dtype=np.float32)
        angles = positions[:, None] * frequencies[None, :]
        cosines[rows], sines[rows] = cos_sin(angles.astype(np.float64))


def inverse_frequencies(head_dim, theta):
    """float32 (head_dim / 2,): 1 / theta^(2j / head_dim), each step rounded as float32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    with localcontext() as context:
        context.prec = 40
        powers = [float(Decimal(theta) ** Decimal(float(e))) for e in exponents]
    return np.float32(1) / np.array(powers, np.float32)


def cos_sin(x):
    """(cos x, sin x) rounded to float32, for float64 x from 0 to 1e6."""
    k = np.rint(x * (2 / np.pi))
    r = x - k * _HALF_PI[0] - k * _HALF_PI[1] - k * _HALF_PI[2]
    square = r * r
    sin, cos = r * _horner(_SIN, square), _horner(_COS, square)
    quadrant = k.astype(np.int64) & 3
    odd = (quadrant & 1).astype(bool)
    cosines = np.where(odd, sin, cos) * np.where((quadrant == 1) | (quadrant == 2), -1.0, 1.0)
    sines = np.where(odd, cos, sin) * np.where(quadrant >= 2, -1.0, 1.0)
    return cosines.astype(np.float32), sines.astype(np.float32)


def _horner(coefficients, x):
    total = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total
