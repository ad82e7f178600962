"""From logits to a token: parameters, and a sampler made once from them. Knows no text.

The same seed gives the same token on every CPU and in any batch: the random numbers of a position
are out of a counter, exp and logarithm are our own, sums have one order, ties go to the lowest id.
"""

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from ..compute import ops
from ..models.lm_head_screen import MAX_BEST, NO_IDS, LogitsQuery

SEEDS = 1 << 64
COLDEST = 1e-4  # below, the quotient of two logits' difference would overflow float32; taken as 0

# name -> least and greatest value, and whether the least itself is allowed
_LIMITS = {
    "temperature": (0.0, 100.0, True),
    "top_k": (0, 1 << 31, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 100.0, False),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "seed": (0, SEEDS - 1, True),
}
_MAX_BIASES = 4096
_local = threading.local()  # work arrays, which malloc would map and clear for every token


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. ValueError for a value out of range.

    temperature: 0 (below 1e-4) takes the most likely token. top_k: of the k most likely only (0: of
    all). top_p: of the most likely that together reach this probability. min_p: of those at least
    this fraction as likely as the most likely. repetition_penalty: divides the positive logits of
    tokens that occur in the text so far, and multiplies the negative ones. presence_penalty and
    frequency_penalty: are subtracted from the logits of generated tokens, once and as often as the
    token was generated. seed: None draws one.
    logit_bias: {token id: number to add to its logit, -inf to forbid it}.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self):
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if parameter.name in _LIMITS and (value is not None or parameter.name != "seed"):
                _check(parameter.name, value, *_LIMITS[parameter.name])
        if len(self.logit_bias) > _MAX_BIASES:
            raise ValueError(f"logit_bias: {len(self.logit_bias)} entries (at most {_MAX_BIASES})")
        for token_id, bias in self.logit_bias.items():
            if not isinstance(bias, int | float) or math.isnan(bias) or bias == math.inf:
                raise ValueError(f"logit_bias[{token_id}]: {bias!r} (a number, or -inf)")


def _check(name, value, least, greatest, least_allowed):
    whole = isinstance(least, int)
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or not (least <= value if least_allowed else least < value) or value > greatest:
        kind = "a whole number" if whole else "a number"
        border = "from" if least_allowed else "above"
        raise ValueError(f"{name}: {value!r} ({kind} {border} {least} up to {greatest})")


class Sampler:
    """Chooses tokens; made by make_sampler, has no state, and may be shared by sequences.

    seed: the one in use. top_k: 1 if it takes the most likely token. adjusts: whether it changes
    logits before that. penalises, counts: whether it wants to know which tokens the text has, and
    how often they were generated.
    """

    def __init__(self, sampling, seed, bias):
        self.seed = seed
        self.top_k = 1 if sampling.temperature < COLDEST else sampling.top_k
        self._penalty = np.float32(sampling.repetition_penalty)
        self.penalises = sampling.repetition_penalty != 1
        self._presence = np.float32(sampling.presence_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        self.counts = bool(self._presence or self._frequency)
        self._bias_ids, self._biases = bias
        self.adjusts = self.penalises or self.counts or len(self._bias_ids) > 0
        self._temperature, self._top_p = sampling.temperature, sampling.top_p
        self._min_p = sampling.min_p

    def __call__(self, logits, position, seen=(), counts=None, allowed=None):
        """The token for a position, from float32 logits (vocab,), which are not changed.

        position: of the token in its sequence. seen: distinct ids of the text so far (used only if
        the sampler penalises). counts: {id: how often it was generated} (used only if the sampler
        counts). allowed: None for all, or which tokens may come, bool (vocab,). ValueError if a
        logit is not finite, or nothing may come.
        """
        check_finite(logits, position)
        if self.adjusts or allowed is not None:
            logits = self.adjust(logits, seen, counts, allowed)
        if self.top_k == 1:
            return ops.argmax(logits)
        ids = _possible(logits)
        if self.top_k:
            chosen = best(logits if ids is None else logits[ids], self.top_k)
            ids = chosen.astype(np.int32) if ids is None else ids[chosen]
        return ops.sample(logits, *self._draw(position), ids)

    def _draw(self, position):
        """Arguments of ops.sample."""
        return self.seed, position, self._temperature, self._top_p, self._min_p

    def wanted(self, position, ids=()):
        """Of which logits the choice depends, a head.LogitsQuery; None for all of them.

        ids: those whose logits penalties change. Each may put one of the best behind another.
        """
        changed = NO_IDS
        if self.adjusts:
            ids = np.union1d(self._bias_ids, np.fromiter(ids, np.intp, len(ids)))
            changed = ids.astype(np.int32)
        n = (self.top_k or 1) + len(changed)
        if n > MAX_BEST:
            return None
        if self.top_k:
            return LogitsQuery(n, 0.0, changed)
        if self.adjusts and (self._top_p < 1 or self._min_p):
            return None
        return LogitsQuery(n, 0.0, changed, self._draw(position))

    def adjust(self, logits, seen, counts=None, allowed=None):
        """The logits with penalties and biases, -inf where nothing is allowed.

        In a work array, which the next call in this thread writes again.
        """
        adjusted = _work("adjusted", len(logits), np.float32)
        np.copyto(adjusted, logits)
        logits = adjusted
        if self.penalises and len(seen):
            ids = np.asarray(seen)
            old = logits[ids]
            logits[ids] = np.where(old < 0, old * self._penalty, old / self._penalty)
        if self.counts and counts:
            ids = np.fromiter(counts.keys(), np.intp, len(counts))
            often = np.fromiter(counts.values(), np.float32, len(counts))
            logits[ids] -= self._presence + self._frequency * often
        logits[self._bias_ids] += self._biases
        if allowed is not None:
            np.copyto(logits, -np.inf, where=_mask(np.logical_not, allowed))
        if logits.max() == -np.inf:
            raise ValueError("logit_bias: it forbids every token that may come")
        return logits


def make_sampler(sampling, vocab_size):
    """A Sampler from its parameters. A seed of None is drawn from the operating system.

    ValueError for a logit_bias outside the vocabulary.
    """
    seed = sampling.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little")
    for token_id in sampling.logit_bias:
        if isinstance(token_id, bool) or token_id not in range(vocab_size):
            raise ValueError(f"logit_bias: token {token_id!r} (0 to {vocab_size - 1})")
    ids = np.array(list(sampling.logit_bias), np.intp)
    biases = np.array(list(sampling.logit_bias.values()), np.float32)
    return Sampler(sampling, int(seed), (ids, biases))


def _work(name, n, dtype):
    """An array (n,) of undefined contents, one for each name and thread."""
    array = getattr(_local, name, None)
    if array is None or len(array) < n:
        array = np.empty(n, dtype)
        setattr(_local, name, array)
    return array[:n]


def _mask(compare, *values):
    """What a comparison gives, bool (n,), in the work array of masks."""
    return compare(*values, out=_work("mask", len(values[0]), bool))


def _possible(logits):
    """The ids (int32) of logits that are neither ops.screened nor -inf; None where many are."""
    there = _mask(np.greater, logits, ops.screened)
    few = 16 * np.count_nonzero(there) < len(there)
    return np.flatnonzero(there).astype(np.int32) if few else None


def best(logits, n):
    """The ids of the n largest logits, best first, equal ones by id. float32 (vocab,) -> (n,)."""
    if n >= len(logits):
        return np.argsort(-logits, kind="stable")
    last = len(logits) - n
    parted = _work("distances", len(logits), np.float32)
    np.copyto(parted, logits)
    parted.partition(last)
    above = np.flatnonzero(_mask(np.greater, logits, parted[last]))
    level = np.flatnonzero(_mask(np.equal, logits, parted[last]))[: n - len(above)]
    ids = np.sort(np.concatenate((above, level)))
    return ids[np.argsort(-logits[ids], kind="stable")]


def log_probabilities(logits, ids):
    """The logs of the probabilities of these ids, list of float, from logits (vocab,) as they are.

    Sums go one after the other in float64: the same on every CPU.
    """
    top = logits.max()
    mass = np.cumsum(ops.exp(logits - top), dtype=np.float64)[-1]
    rest = float(top) + math.log(mass)
    return [float(logits[i]) - rest for i in ids]


def check_finite(logits, position):
    """ValueError if a logit is NaN or infinite: the weights are at fault."""
    if not (math.isfinite(logits.max()) and math.isfinite(logits.min())):  # NaN passes through both
        finite = np.isfinite(logits)
        n, first = len(logits) - np.count_nonzero(finite), int(finite.argmin())
        raise ValueError(f"logits at position {position}: {n} not finite, first token {first}")
