"""The screen of an LM head: an int8 copy of its rows, by which few rows are left that can be among
the best. compute/lm_head.pyx and compute/screen_bounds.pyx prove that no row is lost.

Knows no files: the cache of repacked weights keeps what is made here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..compute import ops
from ..compute.operands import SCREEN_LIMITS, QuantizedRows

TYPES = ("F16", "BF16", "F32")  # of rows that are exact in float32, and twice as large as the copy
MIN_WEIGHTS = 1 << 24  # weights of a head: reading fewer takes too little of a step to be noticed
CHUNK_ROWS = 4096  # rows that derive holds at once: 10 MiB of codes for 2,560 columns
TENSOR_NAMES = ("lm_head.screen", "lm_head.screen_bounds")  # in a file of repacked weights
MAX_BEST, MAX_ROWS, MAX_COLS = SCREEN_LIMITS

NO_IDS = np.empty(0, np.int32)


class LogitsQuery(NamedTuple):
    """Which logits of a row are asked for: the n best and those equal to the least of them, those
    that are less than it by margin at most, and those of ids (int32).

    draw: None, or arguments of ops.sample behind the logits. Then it is those by which that draws
    the same id as out of all, and with n > 1 (only without top_p and min_p) the n - 1 next ones.
    """

    n: int
    margin: float = 0.0
    ids: NDArray[np.int32] = NO_IDS
    draw: tuple[Any, ...] | None = None


class Backoff:
    """When to do without the screen: once it was of no use twice in a row, for 1, 2, 4 ... 16 steps
    after each further time."""

    def __init__(self) -> None:
        self._n_useless = self._n_left = 0

    def should_skip(self) -> bool:
        """Whether this step does without; to be asked once a step."""
        self._n_left -= self._n_left > 0
        return self._n_left > 0

    def record(self, was_useful: bool) -> None:
        """Learn whether a step with the screen gained by it."""
        self._n_useless = 0 if was_useful else self._n_useless + 1
        self._n_left = 1 + min(16, 2 ** (self._n_useless - 2)) if self._n_useless > 1 else 0


def is_worth_it(type_name: str, shape: tuple[int, int]) -> bool:
    """Whether a head of this type and shape (n_rows, n_cols) is screened."""
    n_rows, n_cols = shape
    return type_name in TYPES and n_cols <= MAX_COLS and n_rows * n_cols >= MIN_WEIGHTS


def table(shape: tuple[int, int]) -> list[tuple[str, tuple[int, int], str]]:
    """(name, shape, type) of the tensors of a screen, of a head of this shape."""
    return [(TENSOR_NAMES[0], shape, "I8"), (TENSOR_NAMES[1], (shape[0], 3), "F32")]


def derive(
    rows: Any, bounds: NDArray[np.float32], n_threads: int = 1
) -> Iterator[NDArray[np.int8]]:
    """Yield the codes, int8 (some rows, n_cols), each valid until the next.

    rows: EmbeddingRows or what has its data, type and n_cols. bounds: float32 (n_rows, 3), filled.
    """
    bound = QuantizedRows(rows.data, rows.type, rows.n_cols)
    buffer = np.empty((min(CHUNK_ROWS, bound.n_rows), bound.n_cols), np.int8)
    for first in range(0, bound.n_rows, CHUNK_ROWS):
        codes = buffer[: bound.n_rows - first]
        ops.derive_screen(codes, bounds[first : first + len(codes)], bound, first, n_threads)
        yield codes


def is_sound(bounds: NDArray[np.float32]) -> bool:
    """Whether these could be what derive makes: no NaN, nothing negative, scales finite."""
    return bool((bounds >= 0).all() and np.isfinite(bounds[:, 0]).all())
