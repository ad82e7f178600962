"""States of finished sequences, kept so that a prompt that begins alike need not be read again.

A state depends on the tokens it has seen alone, bit for bit, so text is the same with and without.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..models.sequence_state import SequenceState
from .prefix_cache_disk import DiskPrefixCache
from .session_file import common

# Tokens of a beginning that is worth a fork. A fork copies a page of each layer, 2 ms in a 2B
# model, which reads 100 tokens of a prompt a second.
MIN_TOKENS = 8

Entry = tuple[NDArray[np.int64], SequenceState]


class PrefixCache:
    """Kept states with their tokens, the one used last at the end.

    disk: where dropped states are saved; None: nowhere.
    """

    def __init__(self, disk: DiskPrefixCache | None = None) -> None:
        self._kept: list[Entry] = []
        self._disk = disk

    def keep_on_disk(self, disk: DiskPrefixCache) -> None:
        """From now on, save what is dropped to files."""
        self._disk = disk

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of the states kept; those that several share count in each."""
        return sum(state.nbytes for _, state in self._kept)

    def insert(self, tokens: Sequence[int], state: SequenceState) -> None:
        """Keep a state that has seen these tokens; it belongs to the cache from now on.

        It is closed instead if a kept one serves as well, or if its first positions are gone.
        """
        if state.start:
            state.close()
            return
        ids = np.asarray(tokens, np.int64)
        for i, (others, other) in enumerate(self._kept):
            n = common(ids, others)
            if n == len(ids) and (n == len(others) or other.is_trimmable):  # a kept one goes on
                state.close()
                self._kept.append(self._kept.pop(i))
                return
            if n == len(others) and state.is_trimmable:  # it goes on from a kept one
                other.close()
                del self._kept[i]
                break
        self._kept.append((ids, state))

    def fork(
        self,
        tokens: Sequence[int],
        live: Iterable[tuple[Sequence[int], SequenceState]] = (),
        *,
        sinks: int | None = None,
    ) -> SequenceState | None:
        """A state of the longest beginning of tokens, or None.

        tokens: at least one is left to read. live: (tokens, state) of running sequences. sinks: of
        the new state, as of KVCache; None for those of the other one.
        """
        ids = np.asarray(tokens, np.int64)
        best: SequenceState | None = None
        length = MIN_TOKENS - 1
        for others, state in [*self._kept, *live]:
            n = min(common(ids, np.asarray(others, np.int64)), len(ids) - 1)
            usable = state.start == 0 and (state.is_trimmable or n == state.length)
            if n > length and usable:
                best, length = state, n
        if self._disk is not None:
            loaded = self._disk.load(ids, length, sinks=sinks)
            if loaded is not None:
                return loaded
        if best is None:
            return None
        for i, (_, state) in enumerate(self._kept):
            if state is best:
                self._kept.append(self._kept.pop(i))
                break
        fork = best.fork(sinks)
        fork.trim(length)
        return fork

    def drop_oldest(self) -> bool:
        """Close the one not used for longest; False if there is none."""
        if self._kept:
            tokens, state = self._kept.pop(0)
            if self._disk is not None:
                self._disk.save(tokens, state)
            state.close()
            return True
        return False

    def clear(self) -> None:
        """Close all."""
        while self.drop_oldest():
            pass
