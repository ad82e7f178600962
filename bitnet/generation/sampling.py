"""From logits to a token: the parameters, and a sampler made once from them. Knows no text.

The same seed gives the same token on every CPU and in any batch: the random numbers of a position
are out of a counter, exp and logarithm are our own, sums have one order, ties go to the lowest id.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_number
from ..compute import ops
from ..errors import NotFinite
from ..models.config import LIMITS
from ..models.lm_head_screen import MAX_BEST, LogitsQuery
from .logits_processors import Logits, LogitsProcessor, Mask, mask_of, work_array

N_SEEDS = 1 << 64  # seeds are 0 to N_SEEDS - 1
MIN_TEMPERATURE = 1e-4  # below it is greedy: differences of logits over less overflow float32
MAX_BIASES = 4096  # entries of logit_bias, which are checked and added one by one


class SamplingField(NamedTuple):
    """A parameter of Sampling that is a number: what API, command line and server need of it.

    kind: int or float. default: None for the seed, which is then drawn. lower, upper: bounds;
    lower_allowed: whether lower itself is a value. is_models: where it is not given, a model's own
    setting (the field of ModelConfig of this name) comes before the default. metavar, help: of the
    command line's option; help is None where it offers none.
    """

    name: str
    kind: type[int] | type[float]
    default: float | None
    lower: float
    upper: float
    lower_allowed: bool
    is_models: bool
    metavar: str
    help: str | None

    def check(self, value: object) -> None:
        """ValueError, which names the field, for a value out of its bounds."""
        check_number(
            self.name, value, self.kind, self.lower, self.upper, lower_allowed=self.lower_allowed
        )


def _number(
    default: float | None,
    *,
    lower: float,
    upper: float,
    lower_allowed: bool = True,
    is_models: bool = False,
    metavar: str = "X",
    help: str | None = None,
) -> Any:
    """A field of Sampling that holds a number, whole where its bounds are; see SamplingField."""
    kind = int if isinstance(lower, int) else float
    facts = (kind, default, lower, upper, lower_allowed, is_models, metavar, help)
    return field(default=default, metadata={"facts": facts})


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

    temperature: float = _number(
        0.0,
        lower=LIMITS["temperature"][0],
        upper=LIMITS["temperature"][1],
        is_models=True,
        metavar="T",
        help="0: always the likeliest token (default: the model's setting, else 0)",
    )
    top_k: int = _number(
        0,
        lower=0,
        upper=1 << 31,
        is_models=True,
        metavar="K",
        help="draw from the K likeliest tokens; 0: from all",
    )
    top_p: float = _number(
        1.0,
        lower=LIMITS["top_p"][0],
        upper=LIMITS["top_p"][1],
        lower_allowed=False,
        is_models=True,
        metavar="P",
        help="draw from the likeliest tokens that together reach probability P",
    )
    min_p: float = _number(
        0.0,
        lower=0.0,
        upper=1.0,
        metavar="P",
        help="leave out tokens less likely than P times the likeliest",
    )
    repetition_penalty: float = _number(
        1.0,
        lower=0.0,
        upper=100.0,
        lower_allowed=False,
        metavar="R",
        help="make tokens that occurred less likely; 1: do not",
    )
    seed: int | None = _number(
        None,
        lower=0,
        upper=N_SEEDS - 1,
        metavar="N",
        help="the same seed gives the same text (default: a new one each time)",
    )
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = _number(
        0.0,
        lower=-2.0,
        upper=2.0,
        help="subtract X from the logits of tokens that were generated, once",
    )
    frequency_penalty: float = _number(
        0.0,
        lower=-2.0,
        upper=2.0,
        help="the same as often as each was generated",
    )

    def __post_init__(self) -> None:
        for f in SAMPLING_FIELDS:
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                f.check(value)
        if len(self.logit_bias) > MAX_BIASES:
            raise ValueError(f"logit_bias: {len(self.logit_bias)} entries (at most {MAX_BIASES})")
        for token_id, bias in self.logit_bias.items():
            if not isinstance(bias, int | float) or math.isnan(bias) or bias == math.inf:
                raise ValueError(f"logit_bias[{token_id}]: {bias!r} (a number, or -inf)")


SAMPLING_FIELDS = tuple(
    SamplingField(f.name, *f.metadata["facts"]) for f in fields(Sampling) if f.metadata
)


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
