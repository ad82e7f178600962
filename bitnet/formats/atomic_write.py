"""What the file writers share: room on the disk, a file that appears whole or not at all, and data
that comes in parts."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

FREE_MARGIN = 64 << 20  # bytes of disk left to other programs


def check_free_space(folder: Path, n_bytes: int) -> None:
    """OSError (ENOSPC) unless the disk of a folder has room for n_bytes and FREE_MARGIN."""
    needed, free = n_bytes + FREE_MARGIN, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free", str(folder))


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file, renamed to path once it is on disk if the block ends well, removed if not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


Bytes = bytes | bytearray | memoryview | np.ndarray


def write_data(file: BinaryIO, name: str, data: Bytes | Iterable[Bytes], size: int) -> None:
    """Write a tensor's data: an array or bytes, or an iterable of them, run now.

    ValueError naming the tensor if it is not of this many bytes.
    """
    written = 0
    for part in [data] if isinstance(data, Bytes) else data:
        written += file.write(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
    if written != size:
        raise ValueError(f"{name}: {written} bytes given, shape and type need {size}")
