"""Weights the kernels cannot read in place: repacked once into a GGUF sidecar in the cache folder.

A sidecar holds only what is derived, ternary tensors in I2_S with padded rows and the screen of a
large head, and is mapped from then on; embeddings, heads and norms stay mapped from the source.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..formats import gguf
from ..formats.ternary_layouts import BLOCK, I2_S_TAIL, pack_i2_s, padded
from ..models import lm_head_screen

try:
    import fcntl
except ImportError:  # Windows: two loaders then do the work twice, each in its own temporary file
    fcntl = None

log = logging.getLogger("bitnet")

VERSION = 3  # of the sidecar's content; a new one makes old files stale
ROW_SCALES = ".row_scales"
SUFFIX = ".sidecar.gguf"
FREE_MARGIN = 64 << 20  # bytes of disk left to others
_OURS = re.compile(r"\.?[\w.-]*-[0-9a-f]{16}\.sidecar\.gguf(\.lock|\.[0-9a-f]{8}\.tmp)?\Z")


def load_or_repack(derived, source, cache=None, pool=None, rows=None, n_threads=1):
    """Make the tensors of {name: source.TernaryTensor}, or map them as they were made before.

    source: the source.Checkpoint of the model, which has one sidecar for each layout of its tensors.
    cache: the folder, None for the default, False for none. Without a usable one a warning is
        logged and the codes go to pool (purpose "weights"), or to NumPy's memory without a pool.
    rows: of a head to be screened, or None; n_threads: to do that with.
    Returns ({name: (codes uint8 (n_rows, padded // 4), float32 scales)}, mapped GGUFFile or None,
    (codes, bounds) of the screen or None: it is not made in memory, as results are the same).
    Raises FormatError for an illegal weight in a source, PoolExhausted if they do not fit the pool.
    """
    folder = cache_folder() if cache is None else cache
    if folder:
        try:
            file = _sidecar(derived, source, Path(folder), rows, n_threads)
            made = {name: _from_sidecar(file, name, d) for name, d in derived.items()}
            return made, file, _screen(file, rows) if rows else None
        except OSError as error:
            log.warning("no sidecar, the derived weights go to memory: %s", error)
    return {name: _in_memory(d, pool) for name, d in derived.items()}, None, None


def i2_s_rows(tensor, n_rows):
    """(codes uint8 (n_rows, bytes), float32 (1,) scale) of an I2_S tensor of whole-block rows."""
    n = len(tensor.data) - I2_S_TAIL
    return tensor.data[:n].reshape(n_rows, -1), tensor.data[n : n + 4].view("<f4")


def _from_sidecar(file, name, derived):
    codes, scales = i2_s_rows(file.tensors[name], derived.n_rows)
    if derived.may_differ:
        scales = file.tensors[name + ROW_SCALES].data.view("<f4")
        if (scales == scales[0]).all():
            scales = scales[:1]
    return codes, scales


def _screen(file, rows):
    codes, bounds = (file.tensors[name].data for name in lm_head_screen.TENSOR_NAMES)
    shape = rows.n_rows, rows.n_cols
    return codes.view(np.int8).reshape(shape), bounds.view("<f4").reshape(-1, 3)


def _in_memory(derived, pool):
    shape = derived.n_rows, padded(derived.n_cols) // 4
    codes = np.empty(shape, np.uint8) if pool is None else pool.array(shape, np.uint8, "weights")
    scales, chunks = derived.read()
    at = 0
    for chunk in chunks:
        codes[at : at + len(chunk)] = pack_i2_s(chunk)
        at += len(chunk)
    return codes, scales


# the file -----------------------------------------------------------------------------------------


def _sidecar(derived, source, folder, rows, n_threads):
    """The sidecar, opened; built first if missing, stale or damaged. OSError if it cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    model = _identity(source.path)
    digest = hashlib.sha256(os.fsencode(model) + source.layout.encode()).hexdigest()
    slug = re.sub(r"[^\w.-]", "_", model.name.removesuffix(".gguf"), flags=re.ASCII)[:64]
    path = folder / f"{slug.lstrip('.')}-{digest[:16]}{SUFFIX}"
    key = _fingerprint(source)
    if file := _opened(path, key, derived, rows):
        return file
    with _locked(path):
        if file := _opened(path, key, derived, rows):  # another loader was first
            return file
        for left_behind in folder.glob(f".{path.name}.*.tmp"):  # by a loader that was killed
            left_behind.unlink()
        _build(path, key, derived, model, rows, n_threads)
        if file := _opened(path, key, derived, rows):
            return file
    raise OSError(errno.EIO, "the sidecar just written cannot be read", str(path))


def _identity(path):
    """A folder, or a file's own name in its real folder: a hub cache links the name to a blob."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _fingerprint(source):
    """Changes with the path, size or modification time of any file, the layout, and VERSION."""
    facts = [VERSION, source.layout]
    for path in source.changed_by:
        info = os.stat(path)
        facts.append([str(_identity(path)), info.st_size, info.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _opened(path, key, derived, rows):
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
    if found != {name: (type_name, shape) for name, shape, type_name in _table(derived, rows)}:
        log.warning("rebuilding a damaged sidecar: %s", path)
        return None
    scales = [_from_sidecar(file, name, d)[1] for name, d in derived.items()]
    sound = all((s > 0).all() and np.isfinite(s).all() for s in scales)
    if not sound or (rows and not lm_head_screen.is_sound(_screen(file, rows)[1])):
        log.warning("rebuilding a damaged sidecar: %s", path)
        return None
    return file


def _table(derived, rows):
    """(name, shape, type) of every tensor of the sidecar: rows are padded to whole blocks."""
    for name, d in derived.items():
        yield name, (d.n_rows, padded(d.n_cols)), "I2_S"
        if d.may_differ:
            yield name + ROW_SCALES, (d.n_rows,), "F32"
    if rows:
        yield from lm_head_screen.table((rows.n_rows, rows.n_cols))


def _build(path, key, derived, model, rows, n_threads):
    table = _table(derived, rows)
    needed = sum(gguf.n_bytes_of(t, shape) for _, shape, t in table) + FREE_MARGIN
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
    tensors = _tensors(derived)
    if rows:
        tensors += _screen_tensors(rows, n_threads)
    gguf.write(path, metadata, tensors)


def _tensors(derived):
    """What gguf.write takes: of a tensor whose scales may differ by row they follow it."""
    tensors = []
    for name, d in derived.items():
        scales = np.ones(d.n_rows, np.float32) if d.may_differ else None
        tensors.append((name, (d.n_rows, padded(d.n_cols)), "I2_S", i2_s_chunks(d, scales)))
        if d.may_differ:
            tensors.append((name + ROW_SCALES, (d.n_rows,), "F32", scales))
    return tensors


def _screen_tensors(rows, n_threads):
    bounds = np.empty((rows.n_rows, 3), np.float32)
    data = lm_head_screen.derive(rows, bounds, n_threads), bounds
    shape = rows.n_rows, rows.n_cols
    return [(*entry, part) for entry, part in zip(lm_head_screen.table(shape), data, strict=True)]


def i2_s_chunks(derived, row_scales=None):
    """The bytes of one I2_S tensor for gguf.write: its rows, then the scale and 28 unused bytes.

    row_scales: float32 (n_rows,), filled in, if the scales may differ; the tensor's is 1 then.
    """
    scales, chunks = derived.read()
    yield from map(pack_i2_s, chunks)
    if row_scales is not None:
        row_scales[:] = scales
    yield (scales if row_scales is None else np.float32(1)).tobytes() + bytes(I2_S_TAIL - 4)


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
    """Delete every sidecar in the cache folder, and nothing else; returns the bytes freed."""
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
