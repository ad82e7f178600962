"""The screen of a head: an int8 copy of its rows that tells which few can be among the best.

The proof that nothing is lost is in screen.pxi. Knows no files: a sidecar keeps what is made here.
"""

from typing import NamedTuple

import numpy as np

from . import ops
from .arrays import SCREEN_LIMITS, Rows

TYPES = ("F16", "BF16", "F32")  # of rows that are exact in float32, and twice as large as the copy
LEAST = 1 << 24  # weights: below, a step takes no time that anyone would notice
CHUNK_ROWS = 4096
NAMES = ("lm_head.screen", "lm_head.screen_bounds")  # of the tensors in a sidecar
MOST_BEST, MOST_ROWS, MOST_COLS = SCREEN_LIMITS


class Wanted(NamedTuple):
    """Which logits of a row are wanted: the n best and those equal to the least of them, those
    that are less than it by margin at most, and those of ids (int32)."""

    n: int
    margin: float = 0.0
    ids: np.ndarray = np.empty(0, np.int32)


def for_rows(parts):
    """The Wanted of each row, from (Wanted or None, rows) of each sequence; None if one is."""
    parts = [(wanted, n) for wanted, n in parts if n]
    if any(wanted is None for wanted, _ in parts):
        return None
    return [wanted for wanted, n in parts for _ in range(n)]


def is_worth_it(type_name, shape):
    """Whether a head of this type and shape (n_rows, n_cols) is screened."""
    n_rows, n_cols = shape
    return type_name in TYPES and n_cols <= MOST_COLS and n_rows * n_cols >= LEAST


def table(shape):
    """(name, shape, type) of the tensors of a screen."""
    return [(NAMES[0], shape, "I8"), (NAMES[1], (shape[0], 3), "F32")]


def derive(rows, bounds, n_threads=1):
    """Yield the codes, int8 (some rows, n_cols), each valid until the next.

    rows: weights.Rows or what has its data, type and n_cols. bounds: float32 (n_rows, 3), filled.
    """
    bound = Rows(rows.data, rows.type, rows.n_cols)
    buffer = np.empty((min(CHUNK_ROWS, bound.n_rows), bound.n_cols), np.int8)
    for first in range(0, bound.n_rows, CHUNK_ROWS):
        codes = buffer[: bound.n_rows - first]
        ops.derive_screen(codes, bounds[first : first + len(codes)], bound, first, n_threads)
        yield codes


def is_sound(bounds):
    """Whether these could be what derive makes: no NaN, nothing negative, scales finite."""
    return bool((bounds >= 0).all() and np.isfinite(bounds[:, 0]).all())
