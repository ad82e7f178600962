"""States of finished sequences in a folder: those that memory has no room for, and for a restart.

Files of session_file.save, so a damaged one or one of another model is never used. Nothing here is
needed: what goes wrong with a file is logged, and the prompt is read as if there were none.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextFull, FormatError, PoolExhausted
from ..models.sequence_state import SequenceState
from ..runtime.kv_cache import PAGE
from . import session_file

log = logging.getLogger("bitnet")  # gets str(error): an error's traceback keeps arrays alive

PREFIX_SUFFIX = ".prefix.gguf"
# Tokens: opening a file takes milliseconds, in which some tokens could be read as well.
MIN_TOKENS_ON_DISK = PAGE


class DiskPrefixCache:
    """Saved states of one model and dtype in a folder, which others may use as well.

    folder: made if it is missing, for its owner alone. limit: bytes of all files in it, those used
    longest ago are deleted. fingerprint: of the model. new_state: new_state(sinks=n) gives an empty
    one of this dtype. OSError if the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        limit: int,
        fingerprint: str,
        dtype: str,
        new_state: Callable[..., SequenceState],
    ) -> None:
        self.folder, self.limit = Path(folder), limit
        self._fingerprint, self._dtype, self._new_state = fingerprint, dtype, new_state
        self._tokens: dict[Path, NDArray[np.int32 | np.int64]] = {}
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.folder.glob(f"*{PREFIX_SUFFIX}"):
            try:
                self._tokens[path] = np.array(session_file.tokens_of(path, dtype, fingerprint))
            except (FormatError, OSError) as error:
                log.debug("not a prefix of this model: %s", str(error))

    def save(self, tokens: NDArray[np.int64], state: SequenceState) -> None:
        """Write a state that has seen these tokens, unless a file serves as well."""
        if len(tokens) < MIN_TOKENS_ON_DISK or state.nbytes > self.limit:
            return
        covered = []
        for path, others in self._tokens.items():
            n = session_file.common(tokens, others)
            serves = n == len(others) or state.is_trimmable
            if n == len(tokens) and serves and path.exists():
                return
            if n == len(others) and (n == len(tokens) or state.is_trimmable):
                covered.append(path)
        key = f"{self._fingerprint} {self._dtype} ".encode() + np.asarray(tokens, "<i8").tobytes()
        path = self.folder / (hashlib.blake2b(key, digest_size=16).hexdigest() + PREFIX_SUFFIX)
        try:
            session_file.save(path, tokens, state, self._fingerprint)
            self._tokens[path] = np.array(tokens)
            for old in covered:
                if old != path:
                    self._delete(old)
            self._shrink()
        except OSError as error:
            log.warning("a prefix was not saved: %s", str(error))

    def load(
        self, tokens: NDArray[np.int64], n_known: int, *, sinks: int | None = None
    ) -> SequenceState | None:
        """A state of the longest beginning of tokens that a file has, or None.

        n_known: how many tokens a state in memory has seen; the file must have MIN_TOKENS_ON_DISK
        more. sinks: of the new state, see KVCache.
        """
        state = self._new_state(sinks=sinks or 0)
        path, n = self._longest(tokens, state.is_trimmable)
        if path is not None and n >= n_known + MIN_TOKENS_ON_DISK:
            try:
                session_file.load(path, state, self._fingerprint)
                state.trim(n)
                os.utime(path)
                return state
            except (FormatError, OSError) as error:
                log.warning("a saved prefix is not used: %s", str(error))
                self._delete(path)
            except (PoolExhausted, ContextFull) as error:
                log.debug("no room for a saved prefix: %s", str(error))
        state.close()
        return None

    def _longest(self, tokens: NDArray[np.int64], is_trimmable: bool) -> tuple[Path | None, int]:
        """The file with the longest usable beginning of tokens, and how many of them are usable."""
        best, length = None, 0
        for path, others in self._tokens.items():
            n = min(session_file.common(tokens, others), len(tokens) - 1)
            if n > length and (is_trimmable or n == len(others)):
                best, length = path, n
        return best, length

    def _delete(self, path: Path) -> None:
        self._tokens.pop(path, None)
        path.unlink(missing_ok=True)

    def _shrink(self) -> None:
        files = [(path.stat(), path) for path in self.folder.glob(f"*{PREFIX_SUFFIX}")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if total <= self.limit:
                break
            total -= stat.st_size
            self._delete(path)
