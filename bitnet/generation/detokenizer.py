"""Tokens in, text out: whole characters only, and nothing that a stop string would take back."""


class Detokenizer:
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
