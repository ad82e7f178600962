"""Weights the kernels cannot read in place: repacked once into a GGUF sidecar in the cache folder.

A sidecar holds only what is derived, ternary tensors in I2_S with padded rows, and is mapped from
then on; embeddings and norms stay mapped from the source.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .formats import FormatError, Tensor, gguf
from .formats.packing import BLOCK, has_code_3, padded

try:
    import fcntl
except ImportError:  # Windows: two loaders then do the work twice, each in its own temporary file
    fcntl = None

log = logging.getLogger("bitnet")

VERSION = 1  # of the sidecar's content; a new one makes old files stale
SUFFIX = ".sidecar.gguf"
FREE_MARGIN = 64 << 20  # bytes of disk left to others
_OURS = re.compile(r"\.?[\w.-]*-[0-9a-f]{16}\.sidecar\.gguf(\.lock|\.[0-9a-f]{8}\.tmp)?\Z")


@dataclass(frozen=True)
class Derived:
    """A ternary tensor to be made from one of a file.

    make() returns its float32 scale and its rows in I2_S: uint8 (some rows, padded(n_cols) // 4),
    in order.
    """

    name: str  # in the sidecar
    source: Tensor
    n_rows: int
    n_cols: int
    make: Callable[[], tuple[np.float32, Iterator[np.ndarray]]]

    @property
    def shape(self):
        """Of the sidecar's tensor: rows are padded to whole blocks."""
        return self.n_rows, padded(self.n_cols)

    def checked(self):
        """make(), with code 3 refused while the codes pass by."""
        scale, chunks = self.make()
        return scale, (self._check(chunk) for chunk in chunks)

    def _check(self, chunk):
        if has_code_3(chunk):
            raise FormatError(self.source.path, f"{self.source.name} code", 3, "0, 1 or 2")
        return chunk


def realise(derived, model, sources, cache=None, pool=None):
    """Make the tensors, or map them as they were made before.

    model: the path of the file or folder, which has one sidecar. sources: the paths of all files
        the tensors follow from; a change of one makes the sidecar stale.
    cache: the folder, None for the default, False for none. Without a usable one a warning is
        logged and the codes go to pool (purpose "weights"), or to NumPy's memory without a pool.
    Returns ({name: (codes uint8 (n_rows, padded // 4), float32 scale)}, mapped GGUFFile or None).
    Raises FormatError for an illegal weight in a source, PoolExhausted if they do not fit the pool.
    """
    folder = cache_folder() if cache is None else cache
    if folder:
        try:
            file = _sidecar(derived, model, sources, Path(folder))
            return {d.name: i2_s_rows(file.tensors[d.name], d.n_rows) for d in derived}, file
        except OSError as error:
            log.warning("no sidecar, the derived weights go to memory: %s", error)
    return {d.name: _in_memory(d, pool) for d in derived}, None


def i2_s_rows(tensor, n_rows):
    """(codes uint8 (n_rows, bytes), float32 scale) of an I2_S tensor; rows must be whole blocks."""
    n = len(tensor.data) - gguf.I2_S_TAIL
    return tensor.data[:n].reshape(n_rows, -1), tensor.data[n : n + 4].view("<f4")[0]


def _in_memory(derived, pool):
    shape = derived.n_rows, padded(derived.n_cols) // 4
    codes = np.empty(shape, np.uint8) if pool is None else pool.array(shape, np.uint8, "weights")
    scale, chunks = derived.checked()
    at = 0
    for chunk in chunks:
        codes[at : at + len(chunk)] = chunk
        at += len(chunk)
    return codes, scale


# the file -----------------------------------------------------------------------------------------


def _sidecar(derived, model, sources, folder):
    """The sidecar, opened; built first if missing, stale or damaged. OSError if it cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    model = _identity(model)
    digest = hashlib.sha256(os.fsencode(model)).hexdigest()
    slug = re.sub(r"[^\w.-]", "_", model.name.removesuffix(".gguf"), flags=re.ASCII)[:64]
    path = folder / f"{slug.lstrip('.')}-{digest[:16]}{SUFFIX}"
    key = _fingerprint(sources)
    if file := _opened(path, key, derived):
        return file
    with _locked(path):
        if file := _opened(path, key, derived):  # another loader was first
            return file
        for left_behind in folder.glob(f".{path.name}.*.tmp"):  # by a loader that was killed
            left_behind.unlink()
        _build(path, key, derived, model)
        if file := _opened(path, key, derived):
            return file
    raise OSError(errno.EIO, "the sidecar just written cannot be read", str(path))


def _identity(path):
    """A folder, or a file's own name in its real folder: a hub cache links the name to a blob."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _fingerprint(sources):
    """Changes with the path, size or modification time of any source, and with VERSION."""
    facts = [VERSION]
    for source in sources:
        info = os.stat(source)
        facts.append([str(_identity(source)), info.st_size, info.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _opened(path, key, derived):
    """The sidecar if it is there, whole and of this source; else None."""
    try:
        file = gguf.GGUFFile(path)
    except FileNotFoundError:
        return None
    except FormatError as error:
        log.warning("rebuilding a damaged sidecar: %s", error)
        return None
    if file.metadata.get("sidecar.key") != key:
        log.info("%s: stale, rebuilding", path)
        return None
    found = {name: (tensor.type, tensor.shape) for name, tensor in file.tensors.items()}
    whole = found == {d.name: ("I2_S", d.shape) for d in derived}
    if not whole or not all(0 < i2_s_rows(t, 1)[1] < math.inf for t in file.tensors.values()):
        log.warning("rebuilding a damaged sidecar: %s", path)
        return None
    return file


def _build(path, key, derived, model):
    needed = sum(gguf.n_bytes_of("I2_S", d.shape) for d in derived) + FREE_MARGIN
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free", str(path.parent))
    log.info("%s: writing %d bytes of repacked weights", path, needed - FREE_MARGIN)
    metadata = {
        "general.architecture": "bitnet-sidecar",
        "general.description": f"rows padded to {BLOCK} columns with code 1, weight 0",
        "sidecar.source": os.fsencode(model).decode("utf-8", "replace"),
        "sidecar.key": key,
    }
    gguf.write(path, metadata, [(d.name, d.shape, "I2_S", i2_s_chunks(d)) for d in derived])


def i2_s_chunks(derived):
    """The bytes of one I2_S tensor for gguf.write: its rows, then the scale and 28 unused bytes."""
    scale, chunks = derived.checked()
    yield from chunks
    yield np.float32(scale).tobytes() + bytes(gguf.I2_S_TAIL - 4)


@contextlib.contextmanager
def _locked(path):
    """Held by one loader, or freed by the system. The lock file stays: removing it is a race."""
    if fcntl is None:
        yield
        return
    with open(path.with_name(path.name + ".lock"), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# the folder ---------------------------------------------------------------------------------------


def cache_folder():
    """BITNET_CACHE, else $XDG_CACHE_HOME/bitnet, else ~/.cache/bitnet; None if off or homeless."""
    chosen = os.environ.get("BITNET_CACHE")
    if chosen:
        return None if chosen.lower() == "off" else Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG rule: a relative path is ignored
        base = os.path.expanduser("~/.cache")
    return Path(base) / "bitnet" if os.path.isabs(base) else None


def cache_list(folder=None):
    """[(path, bytes, source)] of every sidecar in the cache folder; source may be "damaged"."""
    found = []
    for path in _ours(folder):
        if path.name.endswith(SUFFIX):
            try:
                source = gguf.GGUFFile(path).metadata.get("sidecar.source", "")
            except (FormatError, OSError):
                source = "damaged"
            found.append((path, path.stat().st_size, source))
    return found


def cache_clear(folder=None):
    """Delete every file of ours in the cache folder, and no other; returns the bytes freed."""
    freed = 0
    for path in _ours(folder):
        freed += path.stat().st_size
        path.unlink()
    return freed


def _ours(folder):
    folder = cache_folder() if folder is None else Path(folder)
    if folder is None or not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    return sorted(path for path in files if _OURS.match(path.name))
