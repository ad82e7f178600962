"""Caches of finished sequences, kept so that a prompt that begins alike need not be read again.

Keys and values of a position depend on the tokens before it alone, bit for bit, so text is the same
with and without.
"""

import numpy as np

from .session_file import common

WORTH = (
    8  # tokens: forking copies a page of each layer, 2 ms in a 2B model, which reads 100 a second
)


class PrefixCache:
    """Kept caches with their tokens, the one used last at the end.

    files (may be set): a DiskPrefixCache, which takes those that are dropped.
    """

    def __init__(self):
        self._kept = []  # [(int array of tokens, cache)]
        self.files = None

    def __len__(self):
        return len(self._kept)

    @property
    def nbytes(self):
        """Bytes of the pages held; those that several share count in each."""
        return sum(cache.nbytes for _, cache in self._kept)

    def keep(self, tokens, cache):
        """Take over a cache that holds these tokens, or close it if another holds them as well, or
        if it does not hold the first ones any more."""
        if cache.start:
            cache.close()
            return
        tokens = np.asarray(tokens, np.int64)
        for i, (others, other) in enumerate(self._kept):
            n = common(tokens, others)
            if n == len(tokens):  # it begins another one
                cache.close()
                self._kept.append(self._kept.pop(i))
                return
            if n == len(others):  # another one begins it
                other.close()
                del self._kept[i]
                break
        self._kept.append((tokens, cache))

    def fork(self, tokens, live=()):
        """(a cache of the longest beginning of tokens, its length), or (None, 0).

        tokens: at least one is left to read. live: (tokens, cache) of running sequences.
        """
        tokens = np.asarray(tokens, np.int64)
        best, length = None, WORTH - 1
        for entry in [*self._kept, *live]:
            n = min(common(tokens, np.asarray(entry[0], np.int64)), len(tokens) - 1)
            if n > length and entry[1].start == 0:
                best, length = entry, n
        if self.files is not None and (found := self.files.load(tokens, length)):
            return found
        if best is None:
            return None, 0
        for i, entry in enumerate(self._kept):
            if entry is best:
                self._kept.append(self._kept.pop(i))
                break
        cache = best[1].fork()
        cache.trim(length)
        return cache, length

    def drop_oldest(self):
        """Close the one not used for longest; False if there is none."""
        if self._kept:
            tokens, cache = self._kept.pop(0)
            if self.files is not None:
                self.files.save(tokens, cache)
            cache.close()
            return True
        return False

    def clear(self):
        """Close all."""
        while self.drop_oldest():
            pass
