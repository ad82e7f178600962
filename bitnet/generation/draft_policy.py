"""How many tokens a small model drafts for a large one: by what steps of both cost, as measured,
and how often drafts were right. Knows no model and no clock; the text does not depend on it.

With a draft of n tokens, each right with probability p where those before it are, a step gives
1 + p + ... + p^n tokens (Leviathan et al. 2023) and costs n steps of the small model and one of the
large one over 1 + n rows. Drafted is what gives the most tokens a second of all sequences together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

N_KEPT = 5  # latest steps of a number of rows whose lower quartile is its cost
MAX_AGE = 256  # steps after which a cost that nobody measured again is forgotten
TRY = 1  # tokens of a draft that is to find out something
MIN_GAIN = 1.02  # expected tokens a second, times those of plain decoding, for which it is drafted
MAX_PLAIN_AGE = 32  # steps with drafts, then one without: what does that take now?
# Plain steps that may be lost by drafts at once, and the part of a loss that is forgotten
# with each step: so 1.5 steps, and 0.8 % of all others, at most.
MAX_LOSS, FORGOTTEN = 1.5, 0.005
# What the small model may take to read a text, as a part of the time its prompt and its steps have
# taken, and as a part of what drafts have gained.
PROMPT_SHARE, STEP_SHARE, GAIN_SHARE = 0.03, 0.004, 0.5
AGREEMENT, AGREEMENT_WEIGHT = 0.6, 4.0  # before anything was drafted, and as how many tokens
PRIOR_WEIGHT = 2.0  # tokens as which what was seen of all sequences counts for a new one


class StepCosts:
    """Seconds that a step of a model takes, by its rows: the lower quartile of the latest ones, for
    what else the machine does only ever adds to them.

    Between two numbers of rows that were measured it lies on a line, beyond them on that through
    the first and the last.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._measured: dict[int, int] = {}  # {rows: the count of steps when it was}
        self._costs: list[tuple[int, float]] = []  # by rows
        self._n_steps = 0

    def record(self, n_rows: int, seconds: float) -> None:
        """Learn what a step has taken."""
        self._n_steps += 1
        self._seconds.setdefault(n_rows, deque(maxlen=N_KEPT)).append(seconds)
        self._measured[n_rows] = self._n_steps
        for rows in [r for r, at in self._measured.items() if at < self._n_steps - MAX_AGE]:
            del self._measured[rows], self._seconds[rows]
        self._costs = [
            (rows, sorted(times)[(len(times) - 1) // 4])
            for rows, times in sorted(self._seconds.items())
        ]

    def n_measured(self, n_rows: int) -> int:
        """How many of the latest steps had so many rows."""
        return len(self._seconds.get(n_rows, ()))

    @property
    def most_rows(self) -> int:
        """Of the steps that were measured; 0: there are none."""
        return self._costs[-1][0] if self._costs else 0

    def of(self, n_rows: int) -> float:
        """Seconds of a step over so many rows, 0 where nothing was measured."""
        costs = self._costs
        if len(costs) < 2 or n_rows <= costs[0][0]:
            return costs[0][1] if costs else 0.0
        (x0, y0), (x1, y1) = next(
            (pair for pair in pairwise(costs) if n_rows <= pair[1][0]), (costs[0], costs[-1])
        )
        if n_rows > x1:
            return y1 + max(0.0, y1 - y0) * (n_rows - x1) / (x1 - x0)
        return y0 + (y1 - y0) * (n_rows - x0) / (x1 - x0)


class Agreement:
    """How often drafts are right: the probability of a token where those before it are.

    prior: that of all sequences, for one that has drafted little.
    """

    def __init__(self, prior: Agreement | None = None) -> None:
        self._prior = prior
        self._right = 0.0 if prior else AGREEMENT * AGREEMENT_WEIGHT
        self._tried = 0.0 if prior else AGREEMENT_WEIGHT
        self._kept = 0.95 if prior else 0.99  # of the counts, at each draft

    def record(self, n_drafted: int, n_right: int) -> None:
        """Learn how a draft fared: what follows the first wrong token was not tried."""
        self._right = self._kept * self._right + n_right
        self._tried = self._kept * self._tried + min(n_right + 1, n_drafted)
        if self._prior is not None:
            self._prior.record(n_drafted, n_right)

    @property
    def probability(self) -> float:
        right, tried = self._right, self._tried
        if self._prior is not None:
            right += PRIOR_WEIGHT * self._prior.probability
            tried += PRIOR_WEIGHT
        return min(max(right / tried, 0.01), 0.99)


class Losses:
    """What drafts have cost of late beside plain decoding, in seconds of all sequences together.

    plain: seconds of a plain step.
    """

    def __init__(self) -> None:
        self._balance = 0.0

    def record_step(self) -> None:
        """Count a step."""
        self._balance *= 1 - FORGOTTEN

    def record(self, gain: float, plain: float) -> None:
        """Book what was gained, or lost."""
        # What was gained is not there to be lost again.
        self._balance = min(self._balance + gain, MAX_LOSS * plain)

    def left(self, plain: float) -> float:
        """Seconds that may be lost now."""
        return self._balance + MAX_LOSS * plain


class Savings:
    """Seconds from which the small model's reading of one sequence is paid."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def record_prompt(self, seconds: float) -> None:
        """Count the time that the large model has taken to read the prompt."""
        self.seconds += PROMPT_SHARE * seconds

    def record_step(self, seconds: float) -> None:
        """Count the sequence's part of a step."""
        self.seconds += STEP_SHARE * seconds

    def record_draft(self, gain: float) -> None:
        """Count what a draft has gained, or lost."""
        self.seconds = max(0.0, self.seconds + GAIN_SHARE * gain)

    def pay(self, seconds: float) -> float:
        """Take this away; what is lacking of it."""
        paid = min(seconds, self.seconds)
        self.seconds -= paid
        return seconds - paid


class Candidate(NamedTuple):
    """A sequence that may draft. probability: see Agreement. room: tokens at most. n_unread: tokens
    that the small model reads in the step that gives the first one."""

    probability: float
    room: int
    n_unread: int = 1


def best_lengths(
    target: StepCosts,
    draft: StepCosts,
    candidates: Sequence[Candidate],
    n_sequences: int,
    n_rows: int,
) -> list[int]:
    """Tokens that each candidate is to draft: those which give the most tokens a second.

    target, draft: costs of the large and the small model. n_sequences: of the step, the candidates
    among them. n_rows: drafted tokens of all. Of rows that were never measured TRY more are tried.
    """
    known = max(target.most_rows, n_sequences) + TRY - n_sequences
    order = sorted(  # of one sequence by n, as probabilities are below 1
        (-(c.probability**n), i) for i, c in enumerate(candidates) for n in range(1, c.room + 1)
    )
    lengths = [0] * len(candidates)
    best, best_rate = list(lengths), MIN_GAIN * n_sequences / target.of(n_sequences)
    n_expected = float(n_sequences)
    for n, (less, i) in enumerate(order[: min(n_rows, known)], 1):
        lengths[i] += 1
        n_expected -= less
        seconds = target.of(n_sequences + n) + drafting(draft, candidates, lengths)
        if n_expected / seconds > best_rate:
            best, best_rate = list(lengths), n_expected / seconds
    return best


def drafting(draft: StepCosts, candidates: Sequence[Candidate], lengths: Sequence[int]) -> float:
    """Seconds that the small model takes for drafts of these lengths, side by side."""
    first = sum(c.n_unread for c, n in zip(candidates, lengths, strict=True) if n)
    rows = [sum(n > level for n in lengths) for level in range(1, max(lengths, default=0))]
    return sum(map(draft.of, [first, *rows])) if first else 0.0
