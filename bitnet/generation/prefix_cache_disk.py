"""Caches of finished sequences in a folder: those that memory has no room for, and for a restart.

Files of session_file.save, so a damaged one or one of another model is never used. Nothing here is needed:
what goes wrong with a file is logged, and the prompt is read as if there were none.
"""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from ..errors import ContextFull, FormatError, PoolExhausted
from ..runtime.kv_cache import PAGE
from . import session_file

log = logging.getLogger("bitnet")  # is given texts: an error's traceback would keep arrays

SUFFIX = ".prefix.gguf"
WORTH = PAGE  # tokens: a file takes milliseconds to open, as long as reading some tokens


class DiskPrefixCache:
    """Saved caches of one model and dtype in a folder, which others may use as well.

    folder: made if it is missing, for its owner alone. limit: bytes of all files in it, those used
    longest ago are deleted. fingerprint: of the model. new_cache: a function that gives an empty
    one of this dtype. OSError if the folder cannot be made.
    """

    def __init__(self, folder, limit, fingerprint, dtype, new_cache):
        self.folder, self.limit = Path(folder), limit
        self._fingerprint, self._dtype, self._new_cache = fingerprint, dtype, new_cache
        self._tokens = {}  # {path: int array}
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                self._tokens[path] = np.array(session_file.tokens_of(path, dtype, fingerprint))
            except (FormatError, OSError) as error:
                log.debug("not a prefix of this model: %s", str(error))

    def save(self, tokens, cache):
        """Write a cache that holds these tokens, unless a file has them already."""
        if len(tokens) < WORTH or cache.nbytes > self.limit:
            return
        covered = []
        for path, others in self._tokens.items():
            n = session_file.common(tokens, others)
            if n == len(tokens) and path.exists():
                return
            if n == len(others):
                covered.append(path)
        key = f"{self._fingerprint} {self._dtype} ".encode() + np.asarray(tokens, "<i8").tobytes()
        path = self.folder / (hashlib.blake2b(key, digest_size=16).hexdigest() + SUFFIX)
        try:
            session_file.save(path, tokens, cache, self._fingerprint)
            self._tokens[path] = np.array(tokens)
            for old in covered:
                self._delete(old)
            self._shrink()
        except OSError as error:
            log.warning("a prefix was not saved: %s", str(error))

    def load(self, tokens, n_known):
        """(a cache of the longest beginning of tokens that a file has, its length), or None.

        n_known: how many are known without a file; it must have more that are worth it.
        """
        lengths = {
            path: session_file.common(tokens, others) for path, others in self._tokens.items()
        }
        path = max(lengths, key=lengths.get, default=None)
        n = min(lengths.get(path, 0), len(tokens) - 1)
        if n < n_known + WORTH:
            return None
        cache = self._new_cache()
        try:
            session_file.load(path, cache, self._fingerprint)
            cache.trim(n)
            os.utime(path)
            return cache, n
        except (FormatError, OSError) as error:
            log.warning("a saved prefix is not used: %s", str(error))
            self._delete(path)
        except (PoolExhausted, ContextFull) as error:
            log.debug("no room for a saved prefix: %s", str(error))
        cache.close()
        return None

    def _delete(self, path):
        self._tokens.pop(path, None)
        path.unlink(missing_ok=True)

    def _shrink(self):
        files = [(path.stat(), path) for path in self.folder.glob(f"*{SUFFIX}")]
        total = sum(found.st_size for found, _ in files)
        for found, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if total <= self.limit:
                break
            total -= found.st_size
            self._delete(path)
