"""Token ids as callers give them, and their checks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TokenIds = Sequence[int] | NDArray[np.integer[Any]]


def check_ids(token_ids: TokenIds, vocab_size: int) -> None:
    """ValueError unless these are at least one token id of the vocabulary."""
    if not len(token_ids):
        raise ValueError("tokens: none (at least one; the model has no begin token to add)")
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise ValueError(f"tokens: an id is outside the vocabulary (0 to {vocab_size - 1})")


def token_array(token_ids: TokenIds, vocab_size: int) -> NDArray[np.int32]:
    """Token ids as int32 (n,), a new array. ValueError unless they are whole numbers in a row, at
    least one, each of them of the vocabulary."""
    try:
        array = np.asarray(token_ids)
    except ValueError:
        array = np.asarray(token_ids, object)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        shown = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"tokens: {shown} (whole numbers in a row)")
    check_ids(array.tolist(), vocab_size)
    return array.astype(np.int32)
