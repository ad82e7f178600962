"""The parameters of sampling, with all that API, command line and server need of them.

Imports no numpy: `bitnet run --help` lists them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from ..checks import check_number
from ..models.sampling_limits import SAMPLING_LIMITS

N_SEEDS = 1 << 64  # seeds are 0 to N_SEEDS - 1
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
        lower=SAMPLING_LIMITS["temperature"][0],
        upper=SAMPLING_LIMITS["temperature"][1],
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
        lower=SAMPLING_LIMITS["top_p"][0],
        upper=SAMPLING_LIMITS["top_p"][1],
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
