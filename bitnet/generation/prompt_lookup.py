"""Prompt-lookup speculation (Saxena 2023): drafts out of the text itself, without a draft model.

The longest run of tokens at the end of the text that occurred before proposes the tokens that
followed it there. One forward pass gives the logits of all of them, and the sampler, which draws
one number for each position, decides as it would have: a draft is accepted as far as it is what
the sampler chooses. So the tokens are those of plain decoding, whatever is proposed.
"""

# Tokens of the run at the text's end that is looked up. Runs of two are often an accident: in 200
# tokens that the bundled model sampled, 35 of 116 drafted ones were accepted and the text took 5 %
# longer; with runs of three 24 of 64, and 2 %. A greedy text came 1.15 and 1.32 times as fast.
MAX_MATCH, MIN_MATCH = 4, 3
FIRST_DRAFT = 3  # tokens of the first draft, and of one after a failure
MAX_PAUSE = 16  # steps without a draft, after many that failed


class NgramDrafts:
    """The drafts of one sequence, and how they fared.

    drafted, accepted: tokens proposed, and those that were right. A draft is one longer than what
    was accepted of the latest, twice as long if all was; after 1, 2, 4, ... that failed from their
    first token on, so many steps pass without any.
    """

    def __init__(self) -> None:
        self.drafted = self.accepted = 0
        self._text = ""  # a character for each token: str.rfind is the fastest search there is
        self._length = FIRST_DRAFT
        self._pause, self._next_pause = 0, 1

    def propose(self, tokens: list[int], n_max: int) -> list[int]:
        """At most n_max tokens that may follow these.

        tokens: those of the call before, and more behind them.
        """
        self._text += "".join(map(chr, tokens[len(self._text) :]))
        if self._pause:
            self._pause -= 1
            return []
        return lookup(self._text, min(n_max, self._length))

    def record(self, n_drafted: int, n_accepted: int) -> None:
        """Learn how the latest draft fared."""
        self.drafted += n_drafted
        self.accepted += n_accepted
        if n_accepted == 0:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, MAX_PAUSE)
            self._length = FIRST_DRAFT
            return
        self._next_pause = 1
        self._length = 2 * n_drafted if n_accepted == n_drafted else n_accepted + 1


def lookup(text: str, n: int) -> list[int]:
    """The n characters after the latest earlier occurrence of the text's end, as a list of codes.

    What ends the text is repeated as far as needed: there the text has that period.
    """
    for length in range(min(MAX_MATCH, len(text) - 1), MIN_MATCH - 1, -1) if n > 0 else ():
        at = text.rfind(text[-length:], 0, len(text) - 1)
        if at >= 0:
            after = text[at + length :][:n]
            return [ord(after[i % len(after)]) for i in range(n)]
    return []
