"""GGUF versions 2 and 3: a bounds-checked reader over a map, and a streaming writer.

    magic "GGUF" | u32 version | u64 n_tensors | u64 n_kv | n_kv x {key, value}
    | n_tensors x {name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset} | padding | tensor data

ne[0] is the fastest axis: a matrix of shape (rows, columns) has ne = [columns, rows]. Offsets count
from the data, and are multiples of general.alignment (32 if absent).
"""

import itertools
import math
import os
import struct
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..runtime import mmap
from .atomic_write import atomic, write_data
from .ggml_types import BY_NUMBER, FLOAT_TYPES, TYPES, UNREAD
from .gguf_metadata import Cursor, encode_string, encode_value, read_metadata
from .mapped_file import map_file
from .tensor import Tensor
from .ternary_layouts import LAYOUTS, n_bytes

MAX_KEYS = 4096  # keys of metadata; files in the wild have 20 to 60
MAX_TENSORS = 1 << 16
# what to do with a file that has a type which is not read
INSTEAD = "convert the original Hugging Face folder with `bitnet convert`"
OTHER_Q2_0 = "take the repository's PQ2_0 or Q2_0_g64 file, which says what it is"
MAX_DIMS = 4  # as ggml has it
ALIGNMENTS = tuple(1 << bit for bit in range(3, 17))  # bytes that general.alignment may be

Entry = tuple[str, tuple[int, ...], int, int]  # type name, shape, bytes, offset
Table = dict[str, Entry]  # by the names of tensors


def n_bytes_of(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this type and shape (rows, columns); ValueError if a block is cut."""
    n_rows, n_cols = math.prod(shape[:-1]), shape[-1]
    if type_name in LAYOUTS:
        return n_bytes(type_name, n_rows, n_cols)
    block = TYPES[type_name]
    if n_cols % block.n_values:
        raise ValueError(f"{type_name} needs a multiple of {block.n_values}")
    return n_rows * n_cols // block.n_values * block.n_bytes


class GGUFFile:
    """One mapped GGUF file: its metadata, and where its tensors lie.

    metadata: {key: value}, see gguf_metadata.read_metadata. tensors: {name: Tensor}.
    data: read-only uint8 (n_bytes,), the whole file.
    Raises OSError if the file cannot be opened, FormatError for anything wrong in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._error = partial(FormatError, self.path)
        self.data = map_file(self.path)
        cursor = Cursor(self.path, self.data)
        n_tensors, n_keys = self._read_header(cursor)
        self.metadata: dict[str, Any] = read_metadata(cursor, n_keys)
        table = self._read_table(cursor, n_tensors)
        self.tensors: dict[str, Tensor] = self._place(table, cursor.at)
        # A step reads a few rows of an embedding or a screened head, but whole matrices of codes.
        whole = [t.data for t in self.tensors.values() if t.type not in FLOAT_TYPES]
        mmap.huge_pages([(data.ctypes.data, data.nbytes) for data in whole])

    def _read_header(self, cursor: Cursor) -> tuple[int, int]:
        magic = bytes(cursor.take(4, "magic"))
        if magic != b"GGUF":
            raise self._error("magic", magic, "b'GGUF'")
        version = cursor.u32("version")
        if version in (2 << 24, 3 << 24):
            raise self._error("version", version >> 24, "little-endian; this file is big-endian")
        if version not in (2, 3):
            raise self._error("version", version, "2 or 3")
        n_tensors = cursor.count("n_tensors", MAX_TENSORS)
        return n_tensors, cursor.count("n_kv", MAX_KEYS)

    def _read_table(self, cursor: Cursor, n_tensors: int) -> Table:
        table: Table = {}
        for i in range(n_tensors):
            name = cursor.name(f"name of tensor {i}")
            if name in table:
                raise self._error(name, "appears twice", "one tensor of a name")
            table[name] = self._read_entry(cursor, name)
        return table

    def _read_entry(self, cursor: Cursor, name: str) -> Entry:
        n_dims = cursor.u32(f"{name} n_dims")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._error(f"{name} n_dims", n_dims, f"1 to {MAX_DIMS}")
        ne = [cursor.u64(f"{name} ne") for _ in range(n_dims)]
        if not 0 < math.prod(ne) < 1 << 62:
            raise self._error(f"{name} ne", ne, "each at least 1, product below 2^62")
        number, offset = cursor.u32(f"{name} type"), cursor.u64(f"{name} offset")
        if number not in BY_NUMBER:
            shown = f"{number} ({UNREAD.get(number, 'unknown')})"
            known = ", ".join(BY_NUMBER[n].name.removesuffix("_G64") for n in sorted(BY_NUMBER))
            limit = f"this version reads {known}; {INSTEAD}"
            raise self._error(f"{name} type", shown, limit)
        type_name, shape = BY_NUMBER[number].name, tuple(reversed(ne))
        try:
            return type_name, shape, n_bytes_of(type_name, shape), offset
        except ValueError as error:
            raise self._error(f"{name} ne", ne, str(error)) from None

    def _place(self, table: Table, table_end: int) -> dict[str, Tensor]:
        """{name: Tensor}, each inside the file and apart from the others."""
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in ALIGNMENTS:
            raise self._error("general.alignment", alignment, "a power of two from 8 to 65536")
        start, size = _round_up(table_end, alignment), len(self.data)
        tensors, spans = {}, []
        grouped = _grouped(table, size - start, alignment, self._error)
        for name, (type_name, shape, length, offset) in grouped.items():
            begin, end = start + offset, start + offset + length
            if offset % alignment:
                raise self._error(f"{name} offset", offset, f"a multiple of {alignment}")
            if end > size:
                raise self._error(f"{name} end", end, f"the file has {size} bytes")
            tensors[name] = Tensor(name, type_name, shape, self.data[begin:end], self.path)
            spans.append((begin, end, name))
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                raise self._error(f"{second} begin", begin, f"{first} ends at {end}")
        return tensors


def _grouped(table: Table, n_data: int, alignment: int, error: partial[FormatError]) -> Table:
    """The table, with groups of 128 in every tensor of type 42 if its offsets say so.

    llama.cpp has groups of 64; the fork that Q2_0 came from wrote groups of 128 under the same
    number. Those take 6 % less room: groups of 64 are meant where all fit, of 128 where the offsets
    are exactly those of a writer of these. FormatError where neither is so.
    """
    q2_0 = {name: entry for name, entry in table.items() if entry[0] == "Q2_0_G64"}
    if not q2_0:
        return table
    offsets = sorted({offset for *_, offset in table.values()})
    end_of = dict(zip(offsets, [*offsets[1:], n_data], strict=True))
    rooms = {name: end_of[offset] - offset for name, (*_, offset) in q2_0.items()}
    of_128 = {
        name: n_bytes_of("Q2_0_G128", shape)
        for name, (_, shape, _, _) in q2_0.items()
        if shape[-1] % 128 == 0
    }
    # Nothing but the file's end says where its last tensor ends, and it may be cut there.
    last = next((name for name in q2_0 if q2_0[name][3] == offsets[-1]), None)
    told = [name for name in q2_0 if name != last]
    exact = {name for name, n in of_128.items() if _round_up(n, alignment) == rooms[name]}
    too_large = [name for name in told if q2_0[name][2] > rooms[name]]
    may_be_128 = len(of_128) == len(q2_0) and exact.issuperset(told)
    if not too_large:
        if not may_be_128 or last is None:
            return table
        if q2_0[last][2] <= rooms[last] or of_128[last] > rooms[last]:
            return table
    elif not may_be_128:
        if any(q2_0[name][3] + of_128.get(name, q2_0[name][2]) > n_data for name in too_large):
            return table  # it is cut, which is told from the ends
        raise _neither(q2_0, rooms, of_128, exact, too_large, error)
    return table | {
        name: ("Q2_0_G128", shape, of_128[name], offset)
        for name, (_, shape, _, offset) in q2_0.items()
    }


def _neither(
    q2_0: Table,
    rooms: dict[str, int],
    of_128: dict[str, int],
    exact: set[str],
    too_large: list[str],
    error: partial[FormatError],
) -> FormatError:
    """The error for tensors of type 42 that are not all of one kind.

    too_large: those whose groups cannot be of 64, exact: that have the room of groups of 128.
    """
    odd = next((name for name in too_large if name not in exact), None)
    if odd is None:
        other = next(name for name in q2_0 if name not in exact)
        found = f"groups of 64, and {too_large[0]} groups of 128"
        return error(f"{other} type 42", found, f"one kind in a file; {OTHER_Q2_0}")
    limit = f"{q2_0[odd][2]} for groups of 64"
    if odd in of_128:
        limit += f", exactly {of_128[odd]} for groups of 128; {OTHER_Q2_0}"
    return error(f"{odd} room", f"{rooms[odd]} bytes", limit)


def _round_up(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], str, Any]],
    permissions: int = 0o666,
) -> None:
    """Write a GGUF v3 file, streaming; it appears under its name only when complete and on disk.

    metadata: {key: str, bool, int, float, NumPy scalar, list of one of these, or 1-D array}.
        Python ints are stored as the first of u32, i32, i64, u64 that holds them, floats as f32;
        NumPy values keep their type.
    tensors: sequence of (name, shape, type name, data), shape (rows, columns) or (n,). data is an
        array or bytes, or an iterable of such chunks; a generator runs as its tensor is written.
    permissions: of the file, less the umask.
    Raises ValueError if the bytes do not match shape and type, OSError from the disk; then nothing
    is left behind.
    """
    path, tensors, alignment = Path(path), list(tensors), 32
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += encode_string(key) + encode_value(value)
    sizes, offset = [], 0
    for name, shape, type_name, _ in tensors:
        n_dims, number = len(shape), TYPES[type_name].number
        head += encode_string(name)
        head += struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(shape), number, offset)
        sizes.append(n_bytes_of(type_name, shape))
        offset += _round_up(sizes[-1], alignment)
    head += bytes(_round_up(len(head), alignment) - len(head))
    with atomic(path, permissions) as file:
        file.write(head)
        for (name, _, _, data), size in zip(tensors, sizes, strict=True):
            write_data(file, name, data, size)
            file.write(bytes(_round_up(size, alignment) - size))
