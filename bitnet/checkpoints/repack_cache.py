"""Weights the kernels cannot read in place: repacked once into a file of the cache folder.

The repacked file is a GGUF. It holds only what is made from the checkpoint: ternary tensors in I2_S
with padded rows, and the screen of a large head. It is mapped from then on; embeddings, heads and
norms stay mapped from the checkpoint. Its name and its own keys say "sidecar".
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..checks import format_bytes
from ..errors import FormatError
from ..formats import file_lock, gguf
from ..formats.atomic_write import check_free_space
from ..formats.ternary_layouts import I2_S_CODES, I2_S_TAIL, pack_i2_s, padded
from ..models import lm_head_screen
from ..runtime.pool import Pool
from .checkpoint import Checkpoint, EmbeddingRows, TernaryTensor

log = logging.getLogger("bitnet")

CONTENT_VERSION = 3  # what a repacked file holds; one of another number is stale and made again
ROW_SCALES = ".row_scales"  # behind a tensor's name: its scales, where rows may differ
REPACKED_SUFFIX = ".sidecar.gguf"
# Names of repacked files, of their locks, and of temporary files that a killed loader left
_OURS = re.compile(r"\.?[\w.-]*-[0-9a-f]{16}\.sidecar\.gguf(\.lock|\.[0-9a-f]{8}\.tmp)?\Z")

Repacked = tuple[np.ndarray, np.ndarray]  # codes uint8 (n_rows, padded // 4), scales as of read()
Screen = tuple[np.ndarray, np.ndarray]  # codes int8 (n_rows, n_cols), bounds float32 (n_rows, 3)


def load_or_repack(
    tensors: Mapping[str, TernaryTensor],
    checkpoint: Checkpoint,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    pool: Pool | None = None,
    rows: EmbeddingRows | None = None,
    n_threads: int = 1,
) -> tuple[dict[str, Repacked], gguf.GGUFFile | None, Screen | None]:
    """Map tensors as they were repacked before, or repack them now.

    tensors: of the checkpoint, which has one file for each layout of its I2_S tensors.
    cache: the folder, None for the default, False for none. Without a usable one a warning is
        logged and the codes go to pool (purpose "weights"), or to NumPy's memory without a pool.
    rows: of a head to be screened, or None; n_threads: to make the screen with.
    Returns ({name: (codes uint8 (n_rows, padded // 4), scales float32 (n_rows or 1, 1))}, the
    mapped file or None, (codes, bounds) of the screen or None: it is not made in memory, as results
    are the same).
    Raises FormatError for an illegal weight in the checkpoint, PoolExhausted if they do not fit the
    pool.
    """
    folder = cache_folder() if cache is None else cache
    if folder:
        try:
            file = _open_or_build(tensors, checkpoint, Path(folder), rows, n_threads)
            repacked = {name: _repacked(file, name, t) for name, t in tensors.items()}
            return repacked, file, _screen(file, rows) if rows else None
        except OSError as error:
            log.warning("no repacked file, repacked weights go to memory: %s", error)
    return {name: _in_memory(t, pool) for name, t in tensors.items()}, None, None


def _repacked(file: gguf.GGUFFile, name: str, tensor: TernaryTensor) -> Repacked:
    """A tensor of the file, where scales are float32 (1,) or (n_rows,)."""
    data = file.tensors[name].data
    n = len(data) - I2_S_TAIL
    codes, scales = data[:n].reshape(tensor.n_rows, -1), data[n : n + 4].view("<f4")
    if tensor.scales_may_differ:
        scales = file.tensors[name + ROW_SCALES].data.view("<f4")
        if (scales == scales[0]).all():
            scales = scales[:1]
    return codes, scales.reshape(-1, 1)


def _screen(file: gguf.GGUFFile, rows: EmbeddingRows) -> Screen:
    codes, bounds = (file.tensors[name].data for name in lm_head_screen.TENSOR_NAMES)
    shape = rows.n_rows, rows.n_cols
    return codes.view(np.int8).reshape(shape), bounds.view("<f4").reshape(-1, 3)


def _in_memory(tensor: TernaryTensor, pool: Pool | None) -> Repacked:
    shape = tensor.n_rows, padded(tensor.n_cols) // 4
    codes = np.empty(shape, np.uint8) if pool is None else pool.array(shape, np.uint8, "weights")
    scales, chunks = tensor.read()
    at = 0
    for chunk in chunks:
        codes[at : at + len(chunk)] = pack_i2_s(chunk)
        at += len(chunk)
    return codes, scales


# the file -----------------------------------------------------------------------------------------


def find(checkpoint: Checkpoint, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """The path of a checkpoint's repacked file in a cache folder; None if missing or stale."""
    key = _fingerprint(checkpoint)
    for path, _, written_for in cache_list(folder):
        if written_for != "damaged" and gguf.GGUFFile(path).metadata.get("sidecar.key") == key:
            return path
    return None


def _open_or_build(
    tensors: Mapping[str, TernaryTensor],
    checkpoint: Checkpoint,
    folder: Path,
    rows: EmbeddingRows | None,
    n_threads: int,
) -> gguf.GGUFFile:
    """The file, mapped; built first if missing, stale or damaged. OSError if it cannot be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    model = _identity(checkpoint.path)
    digest = hashlib.sha256(os.fsencode(model) + checkpoint.layout.encode()).hexdigest()
    slug = re.sub(r"[^\w.-]", "_", model.name.removesuffix(".gguf"), flags=re.ASCII)[:64]
    path = folder / f"{slug.lstrip('.')}-{digest[:16]}{REPACKED_SUFFIX}"
    key = _fingerprint(checkpoint)
    if file := _opened(path, key, tensors, rows):
        return file
    with locked(path) as is_held:
        if file := _opened(path, key, tensors, rows):  # another loader was first
            return file
        if is_held:  # without a lock another loader may be writing
            for left_behind in folder.glob(f".{path.name}.*.tmp"):  # by a loader that was killed
                left_behind.unlink()
        _build(path, key, tensors, model, rows, n_threads)
        if file := _opened(path, key, tensors, rows):
            return file
    raise OSError(errno.EIO, "the repacked file just written cannot be read", str(path))


def _identity(path: Path) -> Path:
    """A folder, or a file's own name in its real folder: a hub cache links the name to a blob."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _fingerprint(checkpoint: Checkpoint) -> str:
    """Changes with the path, size or modification time of any file, the layout, and
    CONTENT_VERSION."""
    facts: list[Any] = [CONTENT_VERSION, checkpoint.layout]
    for path in checkpoint.changed_by:
        info = os.stat(path)
        facts.append([str(_identity(path)), info.st_size, info.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _opened(
    path: Path, key: str, tensors: Mapping[str, TernaryTensor], rows: EmbeddingRows | None
) -> gguf.GGUFFile | None:
    """The file if it is there, whole and of this checkpoint; else None."""
    try:
        file = gguf.GGUFFile(path)
    except FileNotFoundError:
        return None
    except FormatError as error:
        log.warning("rebuilding a damaged repacked file: %s", error)
        return None
    if file.metadata.get("sidecar.key") != key:
        log.info("%s: stale, rebuilding", path)
        return None
    held = {name: (tensor.type, tensor.shape) for name, tensor in file.tensors.items()}
    if held != {name: (type_name, shape) for name, shape, type_name in _table(tensors, rows)}:
        log.warning("rebuilding a damaged repacked file: %s", path)
        return None
    scales = [_repacked(file, name, t)[1] for name, t in tensors.items()]
    is_sound = all((s > 0).all() and np.isfinite(s).all() for s in scales)
    if not is_sound or (rows and not lm_head_screen.is_sound(_screen(file, rows)[1])):
        log.warning("rebuilding a damaged repacked file: %s", path)
        return None
    return file


def _table(
    tensors: Mapping[str, TernaryTensor], rows: EmbeddingRows | None
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, shape, type) of every tensor of the file: rows are padded to whole blocks."""
    for name, t in tensors.items():
        yield name, (t.n_rows, padded(t.n_cols)), "I2_S"
        if t.scales_may_differ:
            yield name + ROW_SCALES, (t.n_rows,), "F32"
    if rows:
        yield from lm_head_screen.table((rows.n_rows, rows.n_cols))


def repacked_bytes(tensor: TernaryTensor) -> int:
    """Bytes of a tensor in the file, its scales included."""
    table = _table({tensor.name: tensor}, None)
    return sum(gguf.n_bytes_of(type_name, shape) for _, shape, type_name in table)


def _build(
    path: Path,
    key: str,
    tensors: Mapping[str, TernaryTensor],
    model: Path,
    rows: EmbeddingRows | None,
    n_threads: int,
) -> None:
    n_bytes = sum(gguf.n_bytes_of(t, shape) for _, shape, t in _table(tensors, rows))
    check_free_space(path.parent, n_bytes)
    log.info("writing %s of repacked weights, once: %s", format_bytes(n_bytes), path)
    metadata = {
        "general.architecture": "bitnet-sidecar",
        "general.description": f"rows padded to {I2_S_CODES} columns with code 1, weight 0",
        "sidecar.source": os.fsencode(model).decode("utf-8", "replace"),
        "sidecar.key": key,
    }
    data = _tensor_data(tensors)
    if rows:
        data += _screen_data(rows, n_threads)
    gguf.write(path, metadata, data)


def _tensor_data(tensors: Mapping[str, TernaryTensor]) -> list[tuple[Any, ...]]:
    """What gguf.write takes: of a tensor whose scales may differ by row they follow it."""
    entries: list[tuple[Any, ...]] = []
    for name, t in tensors.items():
        scales = np.ones(t.n_rows, np.float32) if t.scales_may_differ else None
        entries.append((name, (t.n_rows, padded(t.n_cols)), "I2_S", i2_s_chunks(t, scales)))
        if scales is not None:
            entries.append((name + ROW_SCALES, (t.n_rows,), "F32", scales))
    return entries


def _screen_data(rows: EmbeddingRows, n_threads: int) -> list[tuple[Any, ...]]:
    bounds = np.empty((rows.n_rows, 3), np.float32)
    data = lm_head_screen.derive(rows, bounds, n_threads), bounds
    shape = rows.n_rows, rows.n_cols
    return [(*entry, part) for entry, part in zip(lm_head_screen.table(shape), data, strict=True)]


def i2_s_chunks(
    tensor: TernaryTensor, row_scales: np.ndarray | None = None
) -> Iterator[np.ndarray | bytes]:
    """The bytes of one I2_S tensor for gguf.write: its rows, then the scale and 28 unused bytes.

    row_scales: float32 (n_rows,), filled in, if the scales may differ; the tensor's is 1 then.
    """
    scales, chunks = tensor.read()
    yield from map(pack_i2_s, chunks)
    if row_scales is not None:
        row_scales[:] = scales[:, 0]
    yield (scales if row_scales is None else np.float32(1)).tobytes() + bytes(I2_S_TAIL - 4)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Held by one loader, or freed by the system. The lock file stays: removing it is a race.

    Yields whether there is a lock. Without one two loaders do the work twice, each in its own
    temporary file.
    """
    with open(path.with_name(path.name + ".lock"), "ab") as file:
        yield file_lock.wait_for(file)


# the folder ---------------------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """BITNET_CACHE, else $XDG_CACHE_HOME/bitnet, else ~/.cache/bitnet.

    None if BITNET_CACHE is off, or there is no home folder.
    """
    chosen = os.environ.get("BITNET_CACHE")
    if chosen:
        if chosen.lower() == "off":
            return None
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError:
            raise ValueError(f"BITNET_CACHE: {chosen!r} (no such home folder)") from None
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG rule: a relative path is ignored
        base = os.path.expanduser("~/.cache")
    return Path(base) / "bitnet" if os.path.isabs(base) else None


def cache_list(folder: str | os.PathLike[str] | None = None) -> list[tuple[Path, int, str]]:
    """[(path, bytes, path of the model)] of every repacked file in the cache folder.

    "damaged" stands for the model's path where the file cannot be read.
    """
    entries = []
    for path in _ours(folder):
        if path.name.endswith(REPACKED_SUFFIX):
            try:
                model = gguf.GGUFFile(path).metadata.get("sidecar.source", "")
            except (FormatError, OSError):
                model = "damaged"
            entries.append((path, path.stat().st_size, model))
    return entries


def cache_clear(folder: str | os.PathLike[str] | None = None) -> int:
    """Delete the repacked files in the cache folder, and nothing else; returns the bytes freed."""
    freed = 0
    for path in _ours(folder):
        freed += path.stat().st_size
        path.unlink()
    return freed


def _ours(folder: str | os.PathLike[str] | None) -> list[Path]:
    place = cache_folder() if folder is None else Path(folder)
    if place is None or not place.is_dir():
        return []
    files = (path for path in place.iterdir() if path.is_file() and not path.is_symlink())
    return sorted(path for path in files if _OURS.match(path.name))
