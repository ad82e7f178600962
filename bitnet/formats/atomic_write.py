"""What the file writers share: room on the disk, a file that appears whole or not at all, folders
that nobody else writes into, and data that comes in parts."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

FREE_MARGIN = 64 << 20  # bytes of disk left to other programs
PRIVATE = 0o600  # permissions of files that hold what users wrote
READABLE = 0o644  # of files that others may read, and not write whatever the umask is
TEMPORARY_SUFFIX = ".tmp"  # of a file that is being written, or whose writer was killed


def check_free_space(folder: Path, n_bytes: int) -> None:
    """OSError (ENOSPC) unless the disk of a folder has room for n_bytes and FREE_MARGIN."""
    needed, free = n_bytes + FREE_MARGIN, shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed} bytes needed, {free} free", str(folder))


def check_trusted(path: Path) -> None:
    """OSError (EACCES) unless nobody but this user and root can have changed a folder or file.

    It, and a link that leads to it, must be theirs, and neither group nor others may write it, as
    sshd asks it of its files. Nothing is checked where the system has no such owners.
    """
    if not hasattr(os, "geteuid"):
        return
    entry, target = os.lstat(path), os.stat(path)
    for owner in (entry.st_uid, target.st_uid):
        if owner not in (0, os.geteuid()):
            words = f"not used: it belongs to user {owner}, not to {os.geteuid()} or root"
            raise OSError(errno.EACCES, words, str(path))
    mode = stat.S_IMODE(target.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        words = f"not used: others may write it (mode {mode:o}), which chmod go-w ends"
        raise OSError(errno.EACCES, words, str(path))


@contextlib.contextmanager
def atomic(path: Path, permissions: int = 0o666) -> Iterator[BinaryIO]:
    """A binary file, renamed to path once it is on disk if the block ends well, removed if not.

    permissions: of the file, less the umask. OSError, before anything is written, where path is
    there and not a file: root would replace /dev/null.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file, which could be replaced", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, permissions)

    try:
        with open(temporary, "xb", opener=opener) as file:
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
