"""GGUF versions 2 and 3: a bounds-checked reader over a map, and a streaming writer.

    magic "GGUF" | u32 version | u64 n_tensors | u64 n_kv | n_kv x {key, value}
    | n_tensors x {name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset} | padding | tensor data

ne[0] is the fastest axis: a matrix of shape (rows, columns) has ne = [columns, rows]. Offsets count
from the data, and are multiples of general.alignment (32 if absent).
"""

import contextlib
import itertools
import math
import os
import secrets
import struct
from functools import partial
from pathlib import Path

import numpy as np

from . import FormatError, Tensor, map_file
from .gguf_metadata import Cursor, encode_string, encode_value, read_metadata

MAX_KEYS = 4096  # files in the wild have 20 to 60
MAX_TENSORS = 1 << 16
MAX_DIMS = 4
ALIGNMENTS = tuple(1 << bit for bit in range(3, 17))

# id -> (name, weights a block, bytes a block, bytes in front of a row). I2_S alone is no block
# type: one stream of n / 4 bytes whose blocks may straddle rows, then an f32 scale for the tensor
# and 28 unused bytes.
TYPES = {
    0: ("F32", 1, 4, 0),
    1: ("F16", 1, 2, 0),
    2: ("Q4_0", 32, 18, 0),
    3: ("Q4_1", 32, 20, 0),
    6: ("Q5_0", 32, 22, 0),
    7: ("Q5_1", 32, 24, 0),
    8: ("Q8_0", 32, 34, 0),
    12: ("Q4_K", 256, 144, 0),
    13: ("Q5_K", 256, 176, 0),
    14: ("Q6_K", 256, 210, 0),
    20: ("IQ4_NL", 32, 18, 0),
    30: ("BF16", 1, 2, 0),
    34: ("TQ1_0", 256, 54, 0),
    35: ("TQ2_0", 256, 66, 0),
    36: ("I2_S", 128, 32, 0),
    42: ("Q2_0_G64", 64, 18, 0),
    134: ("IQ1_BN", 64, 13, 2),
    135: ("IQ2_BN", 64, 16, 4),
    335: ("IQ2_BN_R4", 64, 16, 4),
}
# Type 42 has groups of 64 weights in llama.cpp, and of 128 in the fork it came from, under the same
# number: the groups of a file are those with which its tensors do not overlap.
Q2_0_G128 = ("Q2_0_G128", 128, 34, 0)
_BY_NAME = {entry[0]: entry[1:] for entry in (*TYPES.values(), Q2_0_G128)}
TYPE_IDS = {entry[0]: type_id for type_id, entry in TYPES.items()} | {"Q2_0_G128": 42}
I2_S_TAIL = 32

# Known and not read: named in the refusal, with the way out. Ids above 30 mean different things in
# different engines.
_CONVERT = "`bitnet convert` the original Hugging Face folder instead"
_REQUANTISE = "not a type of ternary models; quantise the tensor to Q6_K or F16 instead"
_UNREAD = {
    **dict.fromkeys((9, 10, 11, 15, *range(16, 20), *range(21, 30), 40, 41), _REQUANTISE),
    37: f"I8_S of bitnet.cpp, internal to it; {_CONVERT}",
    38: f"TL1 of bitnet.cpp, whose bytes depend on how it was built; {_CONVERT}",
    39: f"TL2 of bitnet.cpp, whose bytes depend on how it was built, or MXFP4; {_CONVERT}",
    142: f"PQ2_0, which is no type of llama.cpp or ik_llama.cpp; {_CONVERT}",
    143: f"PTQ1_0, which is no type of llama.cpp or ik_llama.cpp; {_CONVERT}",
}


def n_bytes_of(type_name, shape):
    """Bytes of a tensor of this type and shape (rows, columns); ValueError if a block is cut."""
    block, block_bytes, row_bytes = _BY_NAME[type_name]
    n = math.prod(shape)
    if (n if type_name == "I2_S" else shape[-1]) % block:
        raise ValueError(f"{type_name} needs a multiple of {block}")
    tail = I2_S_TAIL if type_name == "I2_S" else 0
    return n // block * block_bytes + n // shape[-1] * row_bytes + tail


class GGUFFile:
    """One mapped GGUF file: its metadata, and where its tensors lie.

    metadata: {key: value}, see gguf_metadata.read_metadata. tensors: {name: Tensor}.
    data: read-only uint8 (n_bytes,), the whole file.
    Raises OSError if the file cannot be opened, FormatError for anything wrong in it.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._error = partial(FormatError, self.path)
        self.data = map_file(self.path)
        cursor = Cursor(self.path, self.data)
        n_tensors, n_keys = self._read_header(cursor)
        self.metadata = read_metadata(cursor, n_keys)
        table = self._read_table(cursor, n_tensors)
        self.tensors = self._place(table, cursor.at)

    def _read_header(self, cursor):
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

    def _read_table(self, cursor, n_tensors):
        """{name: (type name, shape, bytes, offset)}"""
        table = {}
        for i in range(n_tensors):
            name = cursor.name(f"name of tensor {i}")
            if name in table:
                raise self._error(name, "appears twice", "one tensor of a name")
            table[name] = self._read_entry(cursor, name)
        return table

    def _read_entry(self, cursor, name):
        n_dims = cursor.u32(f"{name} n_dims")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._error(f"{name} n_dims", n_dims, f"1 to {MAX_DIMS}")
        ne = [cursor.u64(f"{name} ne") for _ in range(n_dims)]
        if not 0 < math.prod(ne) < 1 << 62:
            raise self._error(f"{name} ne", ne, "each at least 1, product below 2^62")
        type_id, offset = cursor.u32(f"{name} type"), cursor.u64(f"{name} offset")
        if type_id not in TYPES:
            shown = f"{type_id} ({_UNREAD[type_id]})" if type_id in _UNREAD else type_id
            supported = ", ".join(entry[0] for entry in TYPES.values())
            raise self._error(f"{name} type", shown, f"this version reads {supported}")
        type_name, shape = TYPES[type_id][0], tuple(reversed(ne))
        try:
            return type_name, shape, n_bytes_of(type_name, shape), offset
        except ValueError as error:
            raise self._error(f"{name} ne", ne, error) from None

    def _place(self, table, table_end):
        """{name: Tensor}, each inside the file and apart from the others."""
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in ALIGNMENTS:
            raise self._error("general.alignment", alignment, "a power of two from 8 to 65536")
        start, size = _round_up(table_end, alignment), len(self.data)
        table = _with_right_groups(table, size - start)
        tensors, spans = {}, []
        for name, (type_name, shape, n_bytes, offset) in table.items():
            begin, end = start + offset, start + offset + n_bytes
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


def _with_right_groups(table, n_data):
    """The table with Q2_0 in groups of 128 where tensors with groups of 64 would overlap."""
    groups = {name: entry for name, entry in table.items() if entry[0] == "Q2_0_G64"}
    offsets = sorted({entry[3] for entry in table.values()})
    ends = dict(zip(offsets, [*offsets[1:], n_data], strict=True)) if groups else {}
    if all(offset + n_bytes <= ends[offset] for _, _, n_bytes, offset in groups.values()):
        return table
    right = {}
    for name, (_, shape, n_bytes, offset) in groups.items():
        if shape[-1] % 128 == 0:
            n_bytes = n_bytes_of("Q2_0_G128", shape)
            right[name] = ("Q2_0_G128", shape, n_bytes, offset)
    return table | right


def _round_up(n, alignment):
    return -(-n // alignment) * alignment


def write(path, metadata, tensors):
    """Write a GGUF v3 file, streaming; it appears under its name only when complete and on disk.

    metadata: {key: str, bool, int, float, NumPy scalar, list of one of these, or 1-D array}.
        Python ints are stored as the first of u32, i32, i64, u64 that holds them, floats as f32;
        NumPy values keep their type.
    tensors: sequence of (name, shape, type name, data), shape (rows, columns) or (n,). data is an
        array or bytes, or an iterable of such chunks; a generator is run when its turn comes.
    Raises ValueError if the bytes do not match shape and type, OSError from the disk; then nothing
    is left behind.
    """
    path, tensors, alignment = Path(path), list(tensors), 32
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += encode_string(key) + encode_value(value)
    sizes, offset = [], 0
    for name, shape, type_name, _ in tensors:
        n_dims, type_id = len(shape), TYPE_IDS[type_name]
        head += encode_string(name)
        head += struct.pack(f"<I{n_dims}QIQ", n_dims, *reversed(shape), type_id, offset)
        sizes.append(n_bytes_of(type_name, shape))
        offset += _round_up(sizes[-1], alignment)
    head += bytes(_round_up(len(head), alignment) - len(head))
    with atomic(path) as file:
        file.write(head)
        for (name, _, _, data), size in zip(tensors, sizes, strict=True):
            written = sum(file.write(chunk) for chunk in _chunks(data))
            if written != size:
                raise ValueError(f"{name}: {written} bytes given, shape and type need {size}")
            file.write(bytes(_round_up(size, alignment) - size))


def _chunks(data):
    """The pieces of a tensor's data as flat buffers."""
    whole = isinstance(data, bytes | bytearray | memoryview | np.ndarray)
    for chunk in [data] if whole else data:
        yield np.ascontiguousarray(chunk) if isinstance(chunk, np.ndarray) else chunk


@contextlib.contextmanager
def atomic(path):
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
