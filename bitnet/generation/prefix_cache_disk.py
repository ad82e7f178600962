"""States of finished sequences in a folder: those that memory has no room for, and for a restart.

Files of session_file.save, so a damaged one or one of another model is never used. Nothing here is
needed: what goes wrong with a file is logged, and the prompt is read as if there were none. Only a
file that is damaged is deleted, or one beyond the limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextFull, FormatError, PoolExhausted
from ..formats.atomic_write import TEMPORARY_SUFFIX, check_trusted
from ..models.sequence_state import SequenceState
from ..runtime.kv_cache import PAGE
from . import session_file

log = logging.getLogger("bitnet")  # gets str(error): an error's traceback keeps arrays alive

PREFIX_SUFFIX = ".prefix.gguf"
# Tokens: opening a file takes milliseconds, in which some tokens could be read as well.
MIN_TOKENS_ON_DISK = PAGE
# Seconds since a temporary file was written to, after which its writer is taken for dead: longer
# than any disk takes to put what it has buffered in place.
ABANDONED_AFTER = 600


class DiskPrefixCache:
    """Saved states of one model and dtype in a folder, which others may use as well.

    folder: made if it is missing, for its owner alone. limit: bytes of all files in it, those used
    longest ago are deleted. fingerprint: of the model. new_state: new_state(sinks=n) gives an empty
    one of this dtype. OSError if the folder cannot be made, or if others may write into it.
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
        check_trusted(self.folder)
        for path in self.folder.glob(f"*{PREFIX_SUFFIX}"):
            try:
                check_trusted(path)
                self._tokens[path] = np.array(session_file.tokens_of(path, dtype, fingerprint))
            except (FormatError, OSError) as error:
                log.debug("not a prefix of this model: %s", str(error))
        self._shrink()

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
        except OSError as error:
            log.warning("a prefix was not saved: %s", str(error))
        self._shrink()

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
                self._touch(path)
                return state
            except FormatError as error:
                log.warning("a saved prefix is not used: %s", str(error))
                self._delete(path)
            except FileNotFoundError:  # deleted by another process
                self._tokens.pop(path, None)
            except OSError as error:  # no handles, no memory, a disk that is away: it may be good
                log.warning("a saved prefix is not used now: %s", str(error))
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

    def _touch(self, path: Path) -> None:
        """Note that a file was used, where its folder can be written."""
        try:
            os.utime(path)
        except OSError as error:
            log.debug("the use of a prefix is not noted: %s", str(error))

    def _delete(self, path: Path) -> None:
        """Forget a file, and remove it where its folder can be written."""
        self._tokens.pop(path, None)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a prefix was not deleted: %s", str(error))

    def _shrink(self) -> None:
        """Delete what writers that were killed have left, and the files used longest ago beyond the
        limit, which counts unfinished ones as well."""
        try:
            names = [
                *self.folder.glob(f"*{PREFIX_SUFFIX}"),
                *self.folder.glob(f".*{PREFIX_SUFFIX}.*{TEMPORARY_SUFFIX}"),
            ]
        except OSError as error:
            log.warning("the prefix folder cannot be read: %s", str(error))
            return
        files = []
        for path in names:
            with contextlib.suppress(OSError):  # another process was first
                files.append((path.lstat(), path))
        total = sum(info.st_size for info, _ in files)
        for info, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            is_unfinished = path.suffix == TEMPORARY_SUFFIX
            is_abandoned = is_unfinished and info.st_mtime < time.time() - ABANDONED_AFTER
            if is_abandoned or (total > self.limit and not is_unfinished):
                total -= info.st_size
                self._delete(path)
