"""Files mapped whole, read-only: what every reader of a container begins with."""

import os
import stat
import weakref

import numpy as np

from ..errors import FormatError
from ..runtime import mmap


def map_file(path: str | os.PathLike[str]) -> np.ndarray:
    """Map a whole file: read-only uint8 (n_bytes,), a plain ndarray that keeps the map alive.

    The map follows the file: if another program truncates it while it is open, the lost part reads
    as zeros and check_map raises from then on (but on Windows, where it cannot be truncated).
    Raises OSError if it cannot be opened, FormatError if it is empty or not a regular file.
    """
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise FormatError(path, "file type", stat.filemode(info.st_mode)[0], "a regular file")
    if info.st_size == 0:
        raise FormatError(path, "file size", 0, "at least 1 byte")
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    address = mapped.ctypes.data
    _guards[address] = mmap.guard(address, mapped.nbytes)
    weakref.finalize(mapped, _release, address).atexit = False
    return mapped.view(np.ndarray)


_guards: dict[int, int] = {}  # address of a map: number of its guard


def _release(address: int) -> None:
    mmap.release(_guards.pop(address))


def release_pages(data: np.ndarray) -> None:
    """Give the pages of a map, or of a part of it, back to the system: they would count as our
    memory. What is read again comes from the file."""
    mmap.dontneed(data.ctypes.data, data.nbytes)


def check_map(data: np.ndarray, path: str | os.PathLike[str]) -> None:
    """FormatError if a file has turned out to be shorter than map_file found it."""
    if mmap.n_truncated() and mmap.is_truncated(_guards.get(data.ctypes.data, -1)):
        limit = "a file must stay as it is while a model uses it"
        raise FormatError(path, "file size", "shrank while it was mapped", limit)
