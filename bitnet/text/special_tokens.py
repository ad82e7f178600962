"""Special tokens in a text: where they are, and how a text is kept from spelling them."""

import re
from bisect import bisect_right
from functools import cached_property


class SpecialTokens:
    """The special tokens' texts, to find in a text and to keep apart from what users write."""

    def __init__(self, texts):
        self._texts = sorted(texts)
        self._longest = max(map(len, texts), default=0)

    @cached_property
    def pattern(self):
        """Matches the longest special token that begins at a place."""
        longest_first = sorted(self._texts, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def split(self, text):
        """Yield (piece, is_special) for the whole text, in order, without empty pieces."""
        end = 0
        for found in self.pattern.finditer(text):
            if found.start() > end:
                yield text[end : found.start()], False
            yield found.group(), True
            end = found.end()
        if end < len(text):
            yield text[end:], False

    def break_up(self, text, mark):
        """The text with a mark after the first character of every special token in it.

        Also of the beginning of one at the end of the text: what follows might complete it. The
        mark leaves all spaces where they are, for templates that trim.
        """
        text = self.break_up_whole(text, mark)
        end = len(text.rstrip())
        first = max(0, end - self._longest + 1)
        starts = [at for at in range(first, end) if self._is_beginning(text[at:end])]
        for at in reversed(starts):
            text = text[: at + 1] + mark + text[at + 1 :]
        return text

    def _is_beginning(self, text):
        i = bisect_right(self._texts, text)  # texts that begin with this one come right behind it
        return i < len(self._texts) and self._texts[i].startswith(text)

    def break_up_whole(self, text, mark):
        """The same for whole special tokens only."""
        return self.pattern.sub(lambda found: found.group()[0] + mark + found.group()[1:], text)
