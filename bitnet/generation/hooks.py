"""What callers change in a generation themselves: logits before a token is chosen, and its end."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .logits_processors import Logits, Mask
from .sampling import check_finite

ChangeLogits = Callable[[list[int], Logits], Logits]
ShouldStop = Callable[[list[int]], bool]


@dataclass(frozen=True)
class Hooks:
    """Functions of a caller, called once for each token that is chosen, inside a step: they may not
    use the model, and what they raise ends their generation.

    processors: given the token ids so far, the prompt's included, and float32 (vocab,) logits, a
    copy, they return logits of the same shape; -inf forbids a token. should_stop: given the token
    ids so far, whether the text ends behind the latest.
    """

    processors: tuple[ChangeLogits, ...] = ()
    should_stop: ShouldStop | None = None

    def __post_init__(self) -> None:
        for i, function in enumerate(self.processors):
            if not callable(function):
                raise ValueError(f"logits_processors[{i}]: {function!r} (a function)")
        if self.should_stop is not None and not callable(self.should_stop):
            raise ValueError(f"stopping: {self.should_stop!r} (a function)")

    def change(
        self, token_ids: list[int], logits: Logits, allowed: Mask | None
    ) -> tuple[Logits, Mask | None]:
        """(logits, which tokens may come) after all processors; the first are finite or NaN."""
        if not self.processors:
            return logits, allowed
        check_finite(logits, len(token_ids))
        changed = logits
        for i, process in enumerate(self.processors):
            changed = np.array(process(list(token_ids), changed.copy()), np.float32)
            if changed.shape != logits.shape:
                raise ValueError(
                    f"logits_processors[{i}]: logits of shape {changed.shape} ({logits.shape})"
                )
        may_come = changed != -np.inf
        changed[~may_come] = 0
        if allowed is not None:
            may_come &= allowed
        if not may_come.any():
            raise ValueError("logits_processors: they forbid every token that may come")
        return changed, may_come
