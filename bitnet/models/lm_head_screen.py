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
from ..formats.ggml_types import FLOAT_TYPES

MIN_WEIGHTS = 1 << 24  # weights of a head that is worth it: fewer take hardly any of a step's time
CHUNK_ROWS = 4096  # rows of codes that derive holds at once: 10 MiB for 2,560 columns
TENSOR_NAMES = ("lm_head.screen", "lm_head.screen_bounds")  # codes and bounds in a repacked file
# best logits of a query; rows of a step; columns of a head
MAX_BEST, MAX_ROWS, MAX_SCREEN_COLS = SCREEN_LIMITS

NO_IDS = np.empty(0, np.int32)


class LogitsQuery(NamedTuple):
    """Which logits of a row are asked for: all from the n-th best less margin on, and those of ids.

    ids: int32 (m,). draw: None, or what ops.sample takes after the logits: seed, position,
    temperature, top_p, min_p. Then the logits are asked for that ops.sample needs to draw the same
    id as from all of them; with n > 1, only without top_p and min_p, also those of the n - 1 ids
    that would be drawn next.
    """

    n: int
    margin: float = 0.0
    ids: NDArray[np.int32] = NO_IDS
    draw: tuple[Any, ...] | None = None


class Backoff:
    """When to do without the screen. From the second useless step in a row on, each is followed by
    a pause: of 1 step, then of 2, 4, 8, and 16 from then on."""

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
    """Whether a head of this type and shape (n_rows, n_cols) is screened.

    Rows of floats alone are exact in float32, as the bounds take them to be, and at least twice as
    large as their copy.
    """
    n_rows, n_cols = shape
    is_large = n_rows * n_cols >= MIN_WEIGHTS
    return type_name in FLOAT_TYPES and n_cols <= MAX_SCREEN_COLS and is_large


def table(shape: tuple[int, int]) -> list[tuple[str, tuple[int, int], str]]:
    """(name, shape, type) of the two tensors that are the screen of a head of this shape."""
    return [(TENSOR_NAMES[0], shape, "I8"), (TENSOR_NAMES[1], (shape[0], 3), "F32")]


def derive(
    rows: Any, bounds: NDArray[np.float32], n_threads: int = 1
) -> Iterator[NDArray[np.int8]]:
    """Make the screen of a head: yield its codes, int8 (some rows, n_cols), each valid until the
    next, and fill in its bounds, float32 (n_rows, 3).

    rows: EmbeddingRows or what has its data, type and n_cols.
    """
    bound = QuantizedRows(rows.data, rows.type, rows.n_cols)
    buffer = np.empty((min(CHUNK_ROWS, bound.n_rows), bound.n_cols), np.int8)
    for first in range(0, bound.n_rows, CHUNK_ROWS):
        codes = buffer[: bound.n_rows - first]
        ops.derive_screen(codes, bounds[first : first + len(codes)], bound, first, n_threads)
        yield codes
