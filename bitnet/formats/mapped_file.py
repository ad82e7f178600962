"""Files mapped whole, read-only: what every reader of a container begins with."""

import os
import stat
import weakref
from typing import NamedTuple

import numpy as np

from ..errors import FormatError
from ..runtime import mmap


class FileFacts(NamedTuple):
    """What a file system says of a file: all of them stay while nobody writes it or replaces it."""

    mtime_ns: int
    inode: int
    size: int  # bytes

    @classmethod
    def of(cls, info: os.stat_result) -> "FileFacts":
        return cls(info.st_mtime_ns, info.st_ino, info.st_size)


class _Map(NamedTuple):
    guard: int  # see runtime/mmap.pyx
    facts: FileFacts


_maps: dict[int, _Map] = {}  # by address


def map_file(path: str | os.PathLike[str]) -> np.ndarray:
    """Map a whole file: read-only uint8 (n_bytes,), a plain ndarray that keeps the map alive.

    The map follows the file: if another program truncates it while it is open, the lost part reads
    as zeros and check_map raises from then on (but on Windows, where it cannot be truncated).
    Raises OSError if it cannot be opened, FormatError if it is empty or not a regular file.
    """
    with open(open_regular(path), "rb") as file:
        info = os.fstat(file.fileno())
        if info.st_size == 0:
            raise FormatError(path, "file size", 0, "at least 1 byte")
        mapped = np.memmap(file, dtype=np.uint8, mode="r")
    address = mapped.ctypes.data
    _maps[address] = _Map(mmap.guard(address, mapped.nbytes), FileFacts.of(info))
    weakref.finalize(mapped, _release, address).atexit = False
    return mapped.view(np.ndarray)


def open_regular(
    path: str | os.PathLike[str], flags: int = os.O_RDONLY, permissions: int = 0o666
) -> int:
    """The descriptor of a file, as of os.open, which never waits: a FIFO would make it.

    FormatError if it is not a regular file, OSError if it cannot be opened.
    """
    number = os.open(path, flags | _FLAGS, permissions)
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise FormatError(path, "file type", stat.filemode(mode)[0], "a regular file")
    return number


# Windows has O_BINARY alone of these, and no FIFOs in its folders.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def _release(address: int) -> None:
    mmap.release(_maps.pop(address).guard)


def facts_of(data: np.ndarray) -> FileFacts:
    """Of the file that map_file mapped, as it was then; data: the whole map."""
    return _maps[data.ctypes.data].facts


def release_pages(data: np.ndarray) -> None:
    """Give the pages of a map, or of a part of it, back to the system: they would count as our
    memory. What is read again comes from the file."""
    mmap.dontneed(data.ctypes.data, data.nbytes)


def check_map(data: np.ndarray, path: str | os.PathLike[str]) -> None:
    """FormatError if a file has turned out to be shorter than map_file found it."""
    of_map = _maps.get(data.ctypes.data) if mmap.n_truncated() else None
    if of_map and mmap.is_truncated(of_map.guard):
        limit = "a file must stay as it is while a model uses it"
        raise FormatError(path, "file size", "shrank while it was mapped", limit)
