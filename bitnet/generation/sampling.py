"""From logits to a token: a sampler, made once from its parameters. Knows no text.

The same seed gives the same token on every CPU and in any batch: the random numbers of a position
are out of a counter, exp and logarithm are our own, sums have one order, ties go to the lowest id.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..compute import ops
from ..errors import NotFinite
from ..models.lm_head_screen import MAX_BEST, LogitsQuery
from .logits_processors import Logits, LogitsProcessor, Mask, mask_of, work_array
from .sampling_fields import Sampling

MIN_TEMPERATURE = 1e-4  # below it is greedy: differences of logits over less overflow float32


class Sampler:
    """Chooses tokens; made by make_sampler, has no state, and may be shared by sequences.

    seed: the one in use. top_k: 1 if it takes the most likely token. processor: what changes the
    logits before. penalises, counts: see LogitsProcessor.
    """

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self.seed = seed
        self.top_k = 1 if sampling.temperature < MIN_TEMPERATURE else sampling.top_k
        self.processor = LogitsProcessor(
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.logit_bias,
        )
        self.penalises, self.counts = self.processor.penalises, self.processor.counts
        self._temperature = sampling.temperature
        self._top_p, self._min_p = sampling.top_p, sampling.min_p

    def __call__(
        self,
        logits: Logits,
        position: int,
        seen: Collection[int] = (),
        counts: Mapping[int, int] | None = None,
        allowed: Mask | None = None,
    ) -> int:
        """The token for a position, from float32 logits (vocab,), which are not changed.

        position: of the token in its sequence. seen, counts, allowed: see LogitsProcessor; seen is
        used only if the sampler penalises, counts only if it counts. ValueError if a logit is not
        finite, or nothing may come.
        """
        check_finite(logits, position)
        if not self.processor.is_idle or allowed is not None:
            logits = self.processor(logits, seen, counts, allowed)
        if self.top_k == 1:
            return int(ops.argmax(logits))
        ids = _possible(logits)
        if self.top_k:
            chosen = best(logits if ids is None else logits[ids], self.top_k)
            ids = chosen.astype(np.int32) if ids is None else ids[chosen]
        return int(ops.sample(logits, *self._draw(position), ids))

    def _draw(self, position: int) -> tuple[int, int, float, float, float]:
        """Arguments of ops.sample."""
        return self.seed, position, self._temperature, self._top_p, self._min_p

    def query(self, position: int, ids: Collection[int] = ()) -> LogitsQuery | None:
        """The logits that the choice for a position depends on; None for all of them.

        ids: those whose logits penalties change. Each may put one of the best behind another.
        """
        changed = self.processor.changed_ids(ids)
        n = (self.top_k or 1) + len(changed)
        if n > MAX_BEST:
            return None
        if self.top_k:
            return LogitsQuery(n, 0.0, changed)
        if not self.processor.is_idle and (self._top_p < 1 or self._min_p):
            return None
        return LogitsQuery(n, 0.0, changed, self._draw(position))


def make_sampler(sampling: Sampling, vocab_size: int) -> Sampler:
    """A Sampler from its parameters. A seed of None is drawn from the operating system.

    ValueError for a logit_bias outside the vocabulary.
    """
    for token_id in sampling.logit_bias:
        if isinstance(token_id, bool) or token_id not in range(vocab_size):
            raise ValueError(f"logit_bias: token {token_id!r} (0 to {vocab_size - 1})")
    seed = draw_seed() if sampling.seed is None else sampling.seed
    return Sampler(sampling, int(seed))


def draw_seed() -> int:
    """A seed from the operating system."""
    return int.from_bytes(os.urandom(8), "little")


def _possible(logits: Logits) -> NDArray[np.int32] | None:
    """The ids of logits that are neither ops.screened nor -inf; None where many are."""
    possible = mask_of(np.greater, logits, ops.screened)
    are_few = 16 * np.count_nonzero(possible) < len(possible)
    return np.flatnonzero(possible).astype(np.int32) if are_few else None


def best(logits: Logits, n: int) -> NDArray[np.intp]:
    """The ids of the n largest logits, best first, equal ones by id. (vocab,) -> (n,)."""
    if n >= len(logits):
        return np.argsort(-logits, kind="stable")
    last = len(logits) - n
    parted = work_array("parted", len(logits), np.float32)
    np.copyto(parted, logits)
    parted.partition(last)
    above = np.flatnonzero(mask_of(np.greater, logits, parted[last]))
    level = np.flatnonzero(mask_of(np.equal, logits, parted[last]))[: n - len(above)]
    ids = np.sort(np.concatenate((above, level)))
    return ids[np.argsort(-logits[ids], kind="stable")]


def log_mass(logits: Logits) -> tuple[float, float]:
    """(the greatest of logits (vocab,), the log of the sum of exp(logits - greatest)).

    A logit less both is the log of a probability. The sum goes one after the other in float64: the
    same on every CPU.
    """
    top = logits.max()
    mass = np.cumsum(ops.exp(logits - top), dtype=np.float64)[-1]
    return float(top), math.log(mass)


def log_probabilities(logits: Logits, ids: Iterable[int]) -> list[float]:
    """The logs of the probabilities of these ids, from logits (vocab,) as they are."""
    top, mass = log_mass(logits)
    rest = top + mass
    return [float(logits[i]) - rest for i in ids]


def check_finite(logits: Logits, position: int) -> None:
    """NotFinite if a logit is NaN or infinite."""
    if not (math.isfinite(logits.max()) and math.isfinite(logits.min())):  # NaN passes through both
        finite = np.isfinite(logits)
        n, first = len(logits) - np.count_nonzero(finite), int(finite.argmin())
        raise NotFinite(f"logits at position {position}: {n} not finite, first token {first}")
