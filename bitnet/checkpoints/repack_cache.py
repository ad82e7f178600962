"""Weights the kernels cannot read in place: repacked once into a file of the cache folder.

The repacked file is a GGUF. It holds only what is made from the checkpoint: ternary tensors in I2_S
with padded rows, or in PQ2_0 or Q2_0 of 64 where groups of columns have scales of their own, and
the screen of a large head. It is mapped from then on; embeddings, heads and
norms stay mapped from the checkpoint. Its name and its own keys say "sidecar".

It is used for the files it was made of alone: their sizes, times and inodes, and pieces of every
tensor (formats/pieces.py) are in its key. It carries a CRC-32 of each of its tensors. They are
compared when it has been written or replaced since it was built or they were compared last, which a
note beside it says, or when that is asked for.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..checks import format_bytes
from ..errors import FormatError
from ..formats import file_lock, gguf
from ..formats.atomic_write import PRIVATE, READABLE, Bytes, atomic, check_free_space, check_trusted
from ..formats.mapped_file import FileFacts, facts_of, open_regular
from ..formats.pieces import PieceReader
from ..formats.ternary_layouts import I2_S_CODES
from ..formats.text_files import read_json
from ..models import lm_head_screen
from ..progress import Meter, Progress, silent
from ..runtime.pool import Pool
from .checkpoint import Checkpoint, EmbeddingRows, TernaryTensor
from .repacked_tensors import Repacked, from_file, in_memory, table, tensor_data

log = logging.getLogger("bitnet")

CONTENT_VERSION = 4  # what a repacked file holds; one of another number is stale and made again
CHECKSUMS = "checksums"  # the last tensor of the file: a little-endian uint32 for each before it
REPACKED_SUFFIX, NOTE_SUFFIX = ".sidecar.gguf", ".checked"
# Names of repacked files, of their notes and locks, and of temporary files that a killed loader
# left
_OURS = re.compile(
    r"\.?[\w.-]*-[0-9a-f]{16}\.sidecar\.gguf(\.lock|(\.checked)?(\.[0-9a-f]{8}\.tmp)?)\Z"
)

Screen = tuple[np.ndarray, np.ndarray]  # codes int8 (n_rows, n_cols), bounds float32 (n_rows, 3)


class Loaded(NamedTuple):
    """What load_or_repack gives back.

    tensors: {name: (codes uint8 (n_rows, padded // 4), scales float32 (n_rows or 1, 1))}, or
    {name: GroupedMatrix} of a model with group scales.
    file: the mapped file, None where they are in memory. screen: (codes, bounds), or None: it is
    not made in memory, as results are the same. damage: of a file that was there and is not used.
    """

    tensors: dict[str, Repacked]
    file: gguf.GGUFFile | None
    screen: Screen | None
    damage: FormatError | None


def load_or_repack(
    tensors: Mapping[str, TernaryTensor],
    checkpoint: Checkpoint,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    pool: Pool | None = None,
    rows: EmbeddingRows | None = None,
    n_threads: int = 1,
    check: bool = False,
    progress: Progress = silent,
) -> Loaded:
    """Map tensors as they were repacked before, or repack them now.

    tensors: of the checkpoint, which has one file for each layout of its I2_S tensors.
    cache: the folder, None for the default, False for none. Without a usable one a warning is
        logged and the codes go to pool (purpose "weights"), or to NumPy's memory without a pool.
    rows: of a head to be screened, or None; n_threads: to make the screen with.
    check: compare every checksum, as BITNET_CHECK_CACHE=1 asks for.
    progress: is told bytes, see bitnet/progress.py.
    Raises FormatError for an illegal weight in the checkpoint, PoolExhausted if they do not fit the
    pool.
    """
    folder, damage = cache_folder() if cache is None else cache, None
    meter = Meter(progress)
    has_groups = checkpoint.has_group_scales
    check = check or os.environ.get("BITNET_CHECK_CACHE", "0") not in ("", "0")
    if folder:
        work = _Repacking(tensors, checkpoint, Path(folder), rows, n_threads, meter)
        try:
            file = work.open_or_build(check)
            repacked = {name: from_file(file, name, t, has_groups) for name, t in tensors.items()}
            return Loaded(repacked, file, _screen(file, rows) if rows else None, work.damage)
        except OSError as error:
            if error is meter.error:
                raise
            log.warning("no repacked file, repacked weights go to memory: %s", error)
            damage = work.damage
    meter.begin(sum(t.tensor.data.nbytes for t in tensors.values()))
    made = {}
    for name, t in tensors.items():
        made[name] = in_memory(t, pool, has_groups)
        meter.add(f"repacking {name}", t.tensor.data.nbytes)
    return Loaded(made, None, None, damage)


def _screen(file: gguf.GGUFFile, rows: EmbeddingRows) -> Screen:
    codes, bounds = (file.tensors[name].data for name in lm_head_screen.TENSOR_NAMES)
    shape = rows.n_rows, rows.n_cols
    return codes.view(np.int8).reshape(shape), bounds.view("<f4").reshape(-1, 3)


# the file -----------------------------------------------------------------------------------------


def find(checkpoint: Checkpoint, folder: str | os.PathLike[str] | None = None) -> Path | None:
    """The path of a checkpoint's repacked file in a cache folder; None if missing or stale.

    If there is one it also tells, without reading weights, whether the checkpoint has group scales
    and which embeddings of floats are ternary.
    """
    place = cache_folder() if folder is None else Path(folder)
    if place is None:
        return None
    path = _path(checkpoint, place)
    try:
        check_trusted(place)
        file, facts = gguf.GGUFFile(path), _facts(checkpoint)
    except (FormatError, OSError):
        return None
    for groups in (True, False) if checkpoint.groups is None else (checkpoint.groups,):
        if file.metadata.get("sidecar.key") == _key(facts, groups):
            checkpoint.groups = groups
            for name in checkpoint.float_tables():
                if name not in file.tensors:
                    checkpoint.keep_floats(name)
            return path
    return None


class _Repacking:
    """To open the repacked file of a checkpoint, or to build it.

    damage: what was found wrong with one that was there.
    """

    def __init__(
        self,
        tensors: Mapping[str, TernaryTensor],
        checkpoint: Checkpoint,
        folder: Path,
        rows: EmbeddingRows | None,
        n_threads: int,
        meter: Meter,
    ) -> None:
        self.tensors, self.checkpoint, self.folder = tensors, checkpoint, folder
        self.rows, self.n_threads, self.meter = rows, n_threads, meter
        self.path = _path(checkpoint, folder)
        self.damage: FormatError | None = None

    def open_or_build(self, check: bool) -> gguf.GGUFFile:
        """The file, mapped; built first if missing, stale or damaged. OSError if it cannot be."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_trusted(self.folder)
        self.key = _key(_facts(self.checkpoint), self.checkpoint.has_group_scales)
        if file := self._opened(check):
            return file
        with locked(self.path) as is_held:
            if file := self._opened(check):  # another loader was first
                return file
            # left by killed loaders; without a lock another one may be writing
            for left_behind in self.folder.glob(f".{self.path.name}.*.tmp") if is_held else ():
                left_behind.unlink()
            self._build()
            try:
                file = self._read()
            except FormatError as error:
                raise OSError(errno.EIO, f"a file that was just written: {error}") from error
            if file is not None:
                _note(file)  # the checksums are those of what was written
                return file
        raise OSError(errno.EIO, "replaced by another while it was opened", str(self.path))

    def _opened(self, check: bool) -> gguf.GGUFFile | None:
        """The file if it is there, whole and of this checkpoint; else None."""
        try:
            file = self._read()
            if file is not None and (check or not _is_noted(file)):
                compare_checksums(file, self.meter)
                _note(file)
            return file
        except FileNotFoundError:
            return None
        except FormatError as error:
            if error is self.meter.error:
                raise
            if self.damage is None:  # not again under the lock
                log.warning("rebuilding a damaged repacked file: %s", error)
            self.damage = error
            return None

    def _read(self) -> gguf.GGUFFile | None:
        """The file by its header, None if it is stale; FormatError if it is not what was built."""
        path = self.path
        try:
            check_trusted(path)
        except PermissionError as error:
            raise FormatError(path, "file", error.strerror, "made by this user or root") from None
        file = gguf.GGUFFile(path)
        if file.metadata.get("sidecar.key") != self.key:
            log.info("%s: stale, rebuilding", path)
            return None
        held = {name: (tensor.type, tensor.shape) for name, tensor in file.tensors.items()}
        if held != {name: (type_name, shape) for name, shape, type_name in self._table()}:
            raise FormatError(path, "tensors", list(held), "those of its model")
        return file

    def _table(self) -> list[tuple[str, tuple[int, ...], str]]:
        """(name, shape, type) of every tensor of the file."""
        entries = list(table(self.tensors, self.checkpoint.has_group_scales))
        if self.rows:
            entries += lm_head_screen.table((self.rows.n_rows, self.rows.n_cols))
        return [*entries, (CHECKSUMS, (4 * len(entries),), "I8")]

    def _build(self) -> None:
        entries, path = self._table(), self.path
        n_bytes = sum(gguf.n_bytes_of(type_name, shape) for _, shape, type_name in entries)
        check_free_space(path.parent, n_bytes)
        log.info("writing %s of repacked weights, once: %s", format_bytes(n_bytes), path)
        metadata = {
            "general.architecture": "bitnet-sidecar",
            "general.description": f"rows padded to {I2_S_CODES} columns with code 1, weight 0",
            "sidecar.source": os.fsencode(_identity(self.checkpoint.path)).decode(errors="replace"),
            "sidecar.key": self.key,
        }
        data = tensor_data(self.tensors, self.checkpoint.has_group_scales)
        if self.rows:
            data += _screen_data(self.rows, self.n_threads)
        sums = np.zeros(len(data), "<u4")
        self.meter.begin(n_bytes - sums.nbytes)
        data = [
            (*entry, self._counted(entry[0], _summed(part, sums, i)))
            for i, (*entry, part) in enumerate(data)
        ]
        _remove_odd(path)
        gguf.write(path, metadata, [*data, (*entries[-1], sums)], READABLE)

    def _counted(self, name: str, parts: Iterable[Bytes]) -> Iterator[Bytes]:
        for part in parts:
            self.meter.add(
                f"repacking {name}", part.nbytes if isinstance(part, np.ndarray) else len(part)
            )
            yield part


def _path(checkpoint: Checkpoint, folder: Path) -> Path:
    model = _identity(checkpoint.path)
    digest = hashlib.sha256(os.fsencode(model) + checkpoint.layout.encode()).hexdigest()
    slug = re.sub(r"[^\w.-]", "_", model.name.removesuffix(".gguf"), flags=re.ASCII)[:64]
    return folder / f"{slug.lstrip('.')}-{digest[:16]}{REPACKED_SUFFIX}"


def _identity(path: Path) -> Path:
    """A folder, or a file's own name in its real folder: a hub cache links the name to a blob."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _facts(checkpoint: Checkpoint) -> list[Any]:
    """Changes with size, time, inode or content of any file, the layout, and CONTENT_VERSION.

    Of tensors the content are name, type, shape and pieces, of other files all of it.
    """
    facts: list[Any] = [CONTENT_VERSION, checkpoint.layout]
    with PieceReader(checkpoint.files) as pieces:
        for file in checkpoint.files:
            facts.append(facts_of(file.data))
            facts += [(t.name, t.type, t.shape, pieces.crc(t.data)) for t in file.tensors.values()]
    for path in set(checkpoint.changed_by) - {file.path for file in checkpoint.files}:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        facts.append((path.name, FileFacts.of(os.stat(path)), content))
    return facts


def _key(facts: list[Any], has_group_scales: bool) -> str:
    """Of the repacked file of a checkpoint with these facts."""
    kind = ["group scales"] if has_group_scales else []
    return hashlib.sha256(json.dumps(facts + kind).encode()).hexdigest()


def _is_noted(file: gguf.GGUFFile) -> bool:
    """Whether its checksums were compared, and nobody has written or replaced it since."""
    try:
        return read_json(_note_of(file.path)) == facts_of(file.data)._asdict()
    except (FormatError, OSError):
        return False


def _note(file: gguf.GGUFFile) -> None:
    try:
        _remove_odd(_note_of(file.path))
        with atomic(_note_of(file.path), READABLE) as note:
            note.write(json.dumps(facts_of(file.data)._asdict()).encode())
    except OSError as error:
        log.debug("the checksums are compared at the next load again: %s", error)


def _remove_odd(path: Path) -> None:
    """Remove what is there and no file from our folder: atomic() replaces nothing but files."""
    if path.exists() and not path.is_file():
        path.unlink()


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + NOTE_SUFFIX)


def distrust(path: Path) -> None:
    """Have the checksums of a repacked file compared before it is used again."""
    with contextlib.suppress(OSError):
        _note_of(path).unlink(missing_ok=True)


def compare_checksums(file: gguf.GGUFFile, meter: Meter) -> None:
    """FormatError that names the tensor whose bytes are not those that were written."""
    *held, (_, sums) = file.tensors.items()
    meter.begin(sum(tensor.data.nbytes for _, tensor in held))
    for (name, tensor), written in zip(held, sums.data.view("<u4").tolist(), strict=True):
        found = zlib.crc32(tensor.data.data)
        meter.add(f"comparing the checksum of {name}", tensor.data.nbytes)
        if found != written:
            raise FormatError(file.path, f"{name} CRC-32", f"{found:08x}", f"written {written:08x}")


def _summed(data: Bytes | Iterable[Bytes], sums: np.ndarray, index: int) -> Iterator[Bytes]:
    """The parts of a tensor's data, whose CRC-32 is in sums once the last was taken."""
    crc = 0
    for part in [data] if isinstance(data, Bytes) else data:
        crc = zlib.crc32(part.data if isinstance(part, np.ndarray) else part, crc)
        yield part
    sums[index] = crc


def _screen_data(rows: EmbeddingRows, n_threads: int) -> list[tuple[Any, ...]]:
    bounds = np.empty((rows.n_rows, 3), np.float32)
    data = lm_head_screen.derive(rows, bounds, n_threads), bounds
    shape = rows.n_rows, rows.n_cols
    return [(*entry, part) for entry, part in zip(lm_head_screen.table(shape), data, strict=True)]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Held by one loader, or freed by the system. The lock file stays: removing it is a race.

    Yields whether there is a lock. Without one two loaders do the work twice, each in its own
    temporary file.
    """
    name = path.with_name(path.name + ".lock")
    no_link = getattr(os, "O_NOFOLLOW", 0)  # not of Windows
    try:  # private: whoever can read it could keep it locked
        number = open_regular(name, os.O_RDWR | os.O_CREAT | no_link, PRIVATE)
    except FormatError as error:
        raise OSError(errno.EINVAL, "not a regular file", str(name)) from error
    with open(number, "rb+") as file:
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


def has_folder() -> bool:
    """Whether repacked files have a place: a cache folder that is ours, or is not there yet."""
    folder = cache_folder()
    try:
        if folder is not None:
            check_trusted(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return folder is not None and folder.is_dir()


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
