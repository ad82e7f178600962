"""Pieces of tensors, by which models are told apart without reading them whole.

64 of 4 KiB, spread evenly over a tensor: two models that were trained differ in nearly every one.
Two that differ in a few rows alone may be taken for one.
"""

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from .mapped_file import FileFacts, facts_of, open_regular

N_PIECES, PIECE_BYTES = 64, 4096


class MappedFile(Protocol):
    """GGUFFile or SafetensorsFile. data: the whole map, of map_file."""

    path: Path
    data: np.ndarray


class PieceReader:
    """CRC-32 of the pieces of arrays.

    Those in one of these files are read with pread: through a map the system would read ahead, up
    to the whole file. A context manager, which keeps the files open.
    """

    def __init__(self, files: Iterable[MappedFile]) -> None:
        self._open = contextlib.ExitStack()
        self._files = [(file.data, self._descriptor(file)) for file in files]

    def _descriptor(self, file: MappedFile) -> int | None:
        """None where its pieces come from the map: without pread, or if its name is another's."""
        if not hasattr(os, "pread"):
            return None
        try:
            number = open_regular(file.path)
        except (OSError, ValueError):
            return None
        self._open.callback(os.close, number)
        if FileFacts.of(os.fstat(number)) != facts_of(file.data):
            return None
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
        return number

    def crc(self, data: np.ndarray) -> int:
        """Of the pieces of a C-contiguous array, of all of it if it is no larger than they are."""
        raw = data.reshape(-1).view(np.uint8)
        crc = 0
        for part in self._read(raw, _places(len(raw))):
            crc = zlib.crc32(part, crc)
        return crc

    def rows(self, data: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """A copy of the rows of these numbers of a C-contiguous uint8 (n_rows, n_bytes)."""
        n_bytes = data.shape[1]
        places = [(int(row) * n_bytes, n_bytes) for row in numbers]
        read = b"".join(map(bytes, self._read(data.reshape(-1), places)))
        if len(read) < len(places) * n_bytes:  # of a file that has shrunk: as its map has it
            read = read.ljust(len(places) * n_bytes, b"\0")
        return np.frombuffer(read, np.uint8).reshape(-1, n_bytes)

    def _read(self, raw: np.ndarray, places: list[tuple[int, int]]) -> Iterator[bytes | np.ndarray]:
        """Yield what is at each (offset, bytes) of an array."""
        for file, number in self._files:
            offset = raw.ctypes.data - file.ctypes.data
            if number is not None and 0 <= offset < len(file):
                yield from (os.pread(number, n, offset + at) for at, n in places)
                return
        yield from (raw[at : at + n] for at, n in places)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def _places(n_bytes: int) -> list[tuple[int, int]]:
    """[(offset, bytes)] of the pieces; the first begins and the last ends with the array."""
    if n_bytes <= N_PIECES * PIECE_BYTES:
        return [(0, n_bytes)]
    last = n_bytes - PIECE_BYTES
    return [(i * last // (N_PIECES - 1), PIECE_BYTES) for i in range(N_PIECES)]
