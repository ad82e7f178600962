"""What changes logits before a token is chosen: penalties, biases, and tokens not allowed."""

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]

_local = threading.local()  # work arrays, which malloc would map and clear for every token


class LogitsProcessor:
    """The penalties and biases of one Sampling, see there; may be shared by sequences.

    penalises, counts: whether it asks which tokens the text has, and how often they were generated.
    is_idle: whether it changes nothing where all tokens are allowed.
    """

    def __init__(
        self,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: Mapping[int, float],
    ) -> None:
        self._repetition = np.float32(repetition_penalty)
        self._presence = np.float32(presence_penalty)
        self._frequency = np.float32(frequency_penalty)
        self._bias_ids = np.array(list(logit_bias), np.intp)
        self._biases = np.array(list(logit_bias.values()), np.float32)
        self.penalises = repetition_penalty != 1
        self.counts = bool(self._presence or self._frequency)
        self.is_idle = not (self.penalises or self.counts or logit_bias)

    def __call__(
        self,
        logits: Logits,
        seen: Collection[int] = (),
        counts: Mapping[int, int] | None = None,
        allowed: Mask | None = None,
    ) -> Logits:
        """The logits (vocab,) with penalties and biases, -inf where nothing is allowed.

        seen: distinct ids of the text so far. counts: {id: how often it was generated}. allowed:
        bool (vocab,), None for all. The result is a work array, which the next call in this thread
        writes again. ValueError if nothing may come.
        """
        adjusted = work_array("adjusted", len(logits), np.float32)
        np.copyto(adjusted, logits)
        if self.penalises and len(seen):
            ids = np.asarray(seen)
            old = adjusted[ids]
            adjusted[ids] = np.where(old < 0, old * self._repetition, old / self._repetition)
        if self.counts and counts:
            ids = np.fromiter(counts.keys(), np.intp, len(counts))
            often = np.fromiter(counts.values(), np.float32, len(counts))
            adjusted[ids] -= self._presence + self._frequency * often
        adjusted[self._bias_ids] += self._biases
        if allowed is not None:
            np.copyto(adjusted, -np.inf, where=mask_of(np.logical_not, allowed))
        if adjusted.max() == -np.inf:
            raise ValueError("logit_bias: it forbids every token that may come")
        return adjusted

    def changed_ids(self, penalised: Collection[int]) -> NDArray[np.int32]:
        """The ids whose logits differ from the model's, where these are subject to penalties."""
        if self.is_idle:
            return np.empty(0, np.int32)
        ids = np.fromiter(penalised, np.intp, len(penalised))
        return np.union1d(self._bias_ids, ids).astype(np.int32)


def work_array(name: str, n: int, dtype: DTypeLike) -> NDArray[Any]:
    """An array (n,) of undefined contents, one for each name and thread."""
    array: NDArray[Any] | None = getattr(_local, name, None)
    if array is None or len(array) < n:
        array = np.empty(n, dtype)
        setattr(_local, name, array)
    return array[:n]


def mask_of(compare: Callable[..., Any], *values: Any) -> Mask:
    """What a comparison of arrays (n,) gives, bool (n,), in this thread's work array of masks."""
    mask: Mask = compare(*values, out=work_array("mask", len(values[0]), np.bool_))
    return mask
