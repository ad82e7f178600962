"""Two models on one text: how far the probabilities of one are from those of the other."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from .perplexity import LogProbabilities, Perplexity
from .saved_logits import RANGE

QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Position(NamedTuple):
    """One scored token.

    at: its place in the text. kl: divergence of b's probabilities from a's, nats. same_top: whether
    both find the same token likeliest. log_p_a, log_p_b: of the token that comes.
    """

    at: int
    token_id: int
    kl: float
    same_top: bool
    log_p_a: float
    log_p_b: float


def compare_rows(at: int, token_id: int, a: LogProbabilities, b: LogProbabilities) -> Position:
    """What two float64 (vocab,) of log probabilities have to say of one token.

    Where a is -inf, saved logits do not say what it is: a probability below 1.1e-7 of the largest,
    which as llama.cpp has it counts as that where the token that comes has it.
    """
    log_p_a = max(float(a[token_id]), float(a.max()) - RANGE)
    if a.min() == -np.inf:
        kl = float(np.dot(np.exp(a), np.where(a > -np.inf, a - b, 0.0)))
    else:
        kl, log_p_a = float(np.dot(np.exp(a), a - b)), float(a[token_id])
    same_top = int(a.argmax()) == int(b.argmax())
    return Position(at, token_id, kl, same_top, log_p_a, float(b[token_id]))


@dataclass(frozen=True)
class Comparison:
    """Model b beside model a, the reference.

    kl: the mean of the Kullback-Leibler divergences KL(a || b) of all positions, nats. kl_error:
    its standard error. kl_quantiles: {name: nats} of QUANTILES. kl_max. same_top: share of
    positions with the same likeliest token. rms_dp: root mean square of the difference in the
    probability of the token that comes. a, b: their Perplexity. positions: of each Position, in
    the order of the text.
    """

    kl: float
    kl_error: float
    kl_quantiles: dict[str, float]
    kl_max: float
    same_top: float
    rms_dp: float
    a: Perplexity
    b: Perplexity
    positions: list[Position]

    def as_dict(self, positions: bool = False) -> dict[str, Any]:
        """As a JSON-ready dict. positions: with those as well."""
        fields = asdict(self)
        fields["positions"] = [position._asdict() for position in self.positions]
        if not positions:
            del fields["positions"]
        return fields

    def __str__(self) -> str:
        quantiles = ", ".join(f"{name} {value:.2e}" for name, value in self.kl_quantiles.items())
        return (
            f"KL divergence {self.kl:.4e} +/- {self.kl_error:.1e} nats ({quantiles}, "
            f"largest {self.kl_max:.2e})\n"
            f"same top token {self.same_top:.4%} of {len(self.positions):,} positions\n"
            f"difference in p, root mean square {self.rms_dp:.4%}\n"
            f"perplexity {self.a.perplexity:.4f} (a), {self.b.perplexity:.4f} (b), "
            f"ratio {self.b.perplexity / self.a.perplexity:.6f}"
        )


def comparison(positions: list[Position], a: Perplexity, b: Perplexity) -> Comparison:
    """The Comparison of these positions, at least one."""
    divergences = np.array([position.kl for position in positions])
    differences = [math.exp(p.log_p_a) - math.exp(p.log_p_b) for p in positions]
    n = len(positions)
    return Comparison(
        kl=float(divergences.mean()),
        kl_error=float(divergences.std() / math.sqrt(max(1, n - 1))),
        kl_quantiles={name: float(np.quantile(divergences, q)) for name, q in QUANTILES.items()},
        kl_max=float(divergences.max()),
        same_top=sum(position.same_top for position in positions) / n,
        rms_dp=math.sqrt(sum(d * d for d in differences) / n),
        a=a,
        b=b,
        positions=positions,
    )
