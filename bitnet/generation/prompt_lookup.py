"""Drafts without a draft model: what followed the last time the text went like this.

Prompt lookup (Saxena 2023): the longest run of tokens at the end of the text that occurred before
proposes the tokens that followed it. One forward pass then gives the logits of all of them, and the
sampler, which draws one number for each position, decides as it would have: a draft is right as far
as it is what the sampler chooses. So the tokens are those of plain decoding, whatever is proposed.
"""

KINDS = ("ngram",)
# Tokens of the run that is looked for. Runs of two are often an accident: of 200 tokens the bundled
# model sampled, 35 of 116 drafted ones were right and the text took longer by 5 %; with runs of
# three 24 of 64, and 2 %. A greedy text came 1.15 and 1.32 times as fast.
LONGEST, SHORTEST = 4, 3
FIRST = 3  # of the first one
LONGEST_PAUSE = 16  # steps without a draft, after many that failed


class NgramDrafts:
    """The drafts of one sequence, and how they fared.

    drafted, accepted: tokens proposed, and those that were right. A draft is one longer than what
    was right of the latest, twice as long if all was; after 1, 2, 4, ... that failed from their
    first token on, so many steps pass without any.
    """

    def __init__(self):
        self.drafted = self.accepted = 0
        self._text = ""  # a character for each token: str.rfind is the fastest search there is
        self._length = FIRST
        self._pause, self._next_pause = 0, 1

    def propose(self, tokens, most):
        """At most ``most`` tokens that may follow these, a list; tokens have only been added."""
        self._text += "".join(map(chr, tokens[len(self._text) :]))
        if self._pause:
            self._pause -= 1
            return []
        return find(self._text, min(most, self._length))

    def record(self, n_drafted, n_accepted):
        """Learn how the latest draft fared."""
        self.drafted += n_drafted
        self.accepted += n_accepted
        if n_accepted == 0:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)
            self._length = FIRST
            return
        self._next_pause = 1
        self._length = 2 * n_drafted if n_accepted == n_drafted else n_accepted + 1


def find(text, n):
    """The n characters after the latest earlier occurrence of the text's end, as a list of codes.

    What ends the text is repeated as far as needed: there the text has that period.
    """
    for length in range(min(LONGEST, len(text) - 1), SHORTEST - 1, -1) if n > 0 else ():
        at = text.rfind(text[-length:], 0, len(text) - 1)
        if at >= 0:
            after = text[at + length :][:n]
            return [ord(after[i % len(after)]) for i in range(n)]
    return []


def make_drafts(kind):
    """NgramDrafts, or None for None. ValueError for another kind."""
    if kind is None:
        return None
    if kind not in KINDS:
        raise ValueError(f"speculative: {kind!r} ({' or '.join(KINDS)}, or None)")
    return NgramDrafts()
