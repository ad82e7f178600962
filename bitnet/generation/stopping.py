"""When a generation stops: tokens at most, end tokens, strings, and a full context."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..checks import check_choice, check_number

SINKS = 4  # first tokens that a window keeps, attention sinks (Xiao et al. 2023: more gain nothing)
CONTEXT_ENDS = ("stop", "error", "window")


@dataclass(frozen=True)
class StopConditions:
    """When to stop. ValueError for what makes no sense.

    max_tokens: tokens at most. stop: strings before which the text ends. eos_ids: the model's
    tokens that end it. context_end: what happens when the context is full: "stop", "error"
    (ContextFull), or "window" (go on, seeing the first tokens and the latest: see Model.generate).
    min_tokens: tokens before which nothing of all this ends it, but for a full context.
    ignore_eos: whether it goes on past eos_ids. stop_token_ids: more tokens that end it.
    """

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    eos_ids: frozenset[int] = field(default_factory=frozenset)
    context_end: str = "stop"
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_number("max_tokens", self.max_tokens, int, 1)
        check_number("min_tokens", self.min_tokens, int, 0, self.max_tokens)
        for token_id in self.stop_token_ids:
            check_number("stop_token_ids", token_id, int, 0)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop: {text!r} (strings of at least one character)")
        check_choice("context_end", self.context_end, CONTEXT_ENDS)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end the text."""
        return frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else self.eos_ids)

    @property
    def n_sinks(self) -> int:
        """First tokens that stay in sight when the window moves on; 0 where it does not."""
        return SINKS if self.context_end == "window" else 0
