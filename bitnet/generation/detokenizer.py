"""Tokens in, text out: whole characters only, and nothing that a stop string would take back."""

from collections.abc import Sequence
from typing import Protocol


class TokenDecoder(Protocol):
    """What turns tokens into text one by one: a tokenizer's DecodeStream."""

    def push(self, token_id: int) -> str:
        """The text that this token completes, possibly ""."""

    def finish(self) -> str:
        """The rest, when no token follows."""


class Detokenizer:
    """The text of one sequence as it grows.

    decoder: of the tokenizer. stop: strings before which the text ends. stopped: the one that was
    met, None so far. The result does not depend on how the text is cut into tokens: the stop string
    that is complete first counts.
    """

    def __init__(self, decoder: TokenDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder, self._stop = decoder, stop
        self._max_length = max(map(len, stop), default=0)
        self._held = ""  # may be the beginning of a stop string
        self.stopped: str | None = None

    def push(self, token_id: int, may_stop: bool = True) -> str:
        """The text that is certain after this token, possibly "".

        may_stop: False for the first tokens only, in which no stop string is looked for.
        """
        text = self._decoder.push(token_id)
        return self._release(text, is_last=False) if may_stop else text

    def finish(self) -> str:
        """The text held back so far, when no token follows."""
        return "" if self.stopped else self._release(self._decoder.finish(), is_last=True)

    def _release(self, text: str, is_last: bool) -> str:
        if not self._stop:
            return text
        held = self._held + text
        matches = [(at + len(s), at, s) for s in self._stop if (at := held.find(s)) >= 0]
        if matches:
            _, at, self.stopped = min(matches)
            self._held = ""
            return held[:at]
        end = len(held) if is_last else len(held) - self._n_uncertain(held)
        self._held = held[end:]
        return held[:end]

    def _n_uncertain(self, held: str) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        for n in range(min(len(held), self._max_length - 1), 0, -1):
            end = held[-n:]
            if any(len(s) > n and s.startswith(end) for s in self._stop):
                return n
        return 0
