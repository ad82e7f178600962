"""What a generation is asked for and gives back, and how tokens become text that stops in time."""

from dataclasses import dataclass, field

SINKS = 4  # first tokens a window keeps in sight (Xiao et al. 2023: more gain nothing)
CONTEXT_ENDS = ("stop", "error", "window")


@dataclass(frozen=True)
class StopConditions:
    """When to stop. ValueError for what makes no sense.

    max_tokens: tokens at most. stop: strings before which the text ends. eos_ids: tokens that end
    it. context_end: what happens when the context is full: "stop", "error" (ContextFull), or
    "window" (go on, seeing the first tokens and the latest: see Model.generate).
    """

    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    eos_ids: frozenset[int] = field(default_factory=frozenset)
    context_end: str = "stop"

    def __post_init__(self):
        if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, int):
            raise ValueError(f"max_tokens: {self.max_tokens!r} (a whole number of at least 1)")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: {self.max_tokens} (at least 1)")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop: {text!r} (strings of at least one character)")
        if self.context_end not in CONTEXT_ENDS:
            raise ValueError(f"context_end: {self.context_end!r} ({' or '.join(CONTEXT_ENDS)})")

    @property
    def n_sinks(self):
        """Of the cache: see cache.KVCache.sinks."""
        return SINKS if self.context_end == "window" else 0
