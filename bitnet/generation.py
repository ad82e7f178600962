"""What a generation is asked for and gives back, and how tokens become text that stops in time."""

from dataclasses import dataclass, field

SINKS = 4  # first tokens a window keeps in sight (Xiao et al. 2023: more gain nothing)
CONTEXT_ENDS = ("stop", "error", "window")


def check_ids(token_ids, vocab_size):
    """ValueError unless these are at least one token id of the vocabulary."""
    if not len(token_ids):
        raise ValueError("tokens: none (at least one; the model has no begin token to add)")
    if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise ValueError(f"tokens: an id is outside the vocabulary (0 to {vocab_size - 1})")


@dataclass(frozen=True)
class Completion:
    """What was generated.

    text: without the stop string and special tokens. token_ids: all that were generated, the end
    token included. finish_reason: "stop" (an end token or a stop string), "length" (max_tokens) or
    "context" (no room for another token). stop: the stop string that was met, or None. seed: gives
    the same text again. cached_tokens: of the prompt, not read since another sequence began alike.
    prompt_tps, generation_tps: tokens a second, 0 where nothing was timed. drafted_tokens,
    accepted_tokens: proposed by speculation, and those that were right.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stop: str | None
    seed: int
    prompt_tokens: int
    cached_tokens: int
    prompt_tps: float
    generation_tps: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def completion_tokens(self):
        """How many tokens were generated."""
        return len(self.token_ids)

    def __str__(self):
        return self.text


@dataclass(frozen=True)
class Limits:
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


class TextAssembler:
    """Tokens in, text out: whole characters only, and nothing that a stop string would take back.

    stream: a decoder of the tokenizer, .push(id) -> str and .finish() -> str. stop: strings.
    stopped: the stop string that was met, None so far. The result does not depend on how the text
    is cut into tokens: the stop string that is complete first counts.
    """

    def __init__(self, stream, stop=()):
        self._stream, self._stop = stream, stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""  # may be the beginning of a stop string
        self.stopped = None

    def push(self, token_id):
        """The text that is certain after this token, possibly ""."""
        return self._release(self._stream.push(token_id), is_last=False)

    def finish(self):
        """The text held back so far, when no token follows."""
        return "" if self.stopped else self._release(self._stream.finish(), is_last=True)

    def _release(self, text, is_last):
        if not self._stop:
            return text
        held = self._held + text
        found = [(at + len(s), at, s) for s in self._stop if (at := held.find(s)) >= 0]
        if found:
            _, at, self.stopped = min(found)
            self._held = ""
            return held[:at]
        end = len(held) if is_last else len(held) - self._n_uncertain(held)
        self._held = held[end:]
        return held[:end]

    def _n_uncertain(self, held):
        """How many characters at the end could be the beginning of a stop string."""
        for n in range(min(len(held), self._longest - 1), 0, -1):
            end = held[-n:]
            if any(len(s) > n and s.startswith(end) for s in self._stop):
                return n
        return 0
