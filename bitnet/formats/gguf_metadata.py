"""The key-value section of a GGUF file: read within budgets, written from Python values.

A value is {u32 type, data}; a string is a u64 length and that many bytes of UTF-8; an array is
{u32 element type, u64 count, elements}. Knows nothing of tensors.
"""

import contextlib
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError

MAX_NAME_BYTES = 256  # bytes of a key or a tensor's name; those in use have less than 80
MAX_STRINGS = 4_000_000  # strings in all arrays, walked in 0.5 s; 256k tokens and merges: 0.8 M
MAX_STRING_BYTES = 12 << 20  # bytes of all other strings; decoded they take 48 MiB at most

SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
STRING, ARRAY = 8, 9
_TYPE_IDS = {np.dtype(code): type_id for type_id, code in SCALARS.items()}


class Cursor:
    """A position in a file that cannot leave it."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.view, self.at = path, memoryview(data), 0

    def error(self, field: str, value: object, limit: str) -> FormatError:
        return FormatError(self.path, field, value, limit)

    def take(self, n: int, field: str) -> memoryview:
        """The next n bytes as a memoryview."""
        end = self.at + n
        if end > len(self.view):
            left = len(self.view) - self.at
            raise self.error(field, f"{n} bytes at {self.at}", f"{left} bytes are left in the file")
        part = self.view[self.at : end]
        self.at = end
        return part

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        return int.from_bytes(self.take(8, field), "little")

    def count(self, field: str, limit: int) -> int:
        """A u64 of at most limit."""
        n = self.u64(field)
        if n > limit:
            raise self.error(field, n, f"at most {limit}")
        return n

    def name(self, field: str) -> str:
        """A key or a tensor's name: short, not empty, UTF-8, no NUL."""
        n = self.u64(f"{field} length")
        if not 0 < n <= MAX_NAME_BYTES:
            raise self.error(f"{field} length", n, f"1 to {MAX_NAME_BYTES} bytes")
        name = _decode(bytes(self.take(n, field)), self.path, field)
        if "\0" in name:
            raise self.error(field, name, "no NUL")
        return name


class StringArray(Sequence[str]):
    """An array of strings left in the map: walked at open, decoded when asked for.

    ends[i] is where entry i ends in the file, which is where the length of entry i + 1 begins.
    FormatError for an entry that is not UTF-8.
    """

    def __init__(
        self, path: Path, key: str, view: memoryview, start: int, ends: "array[int]"
    ) -> None:
        self._path, self._key, self._view, self._start, self._ends = path, key, view, start, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        begin = (self._ends[i - 1] if i else self._start) + 8
        return _decode(bytes(self._view[begin : self._ends[i]]), self._path, f"{self._key}[{i}]")

    def __iter__(self) -> Iterator[str]:
        region, begin = self._region(), 0
        for i, end in enumerate(self._ends):
            stop = end - self._start
            yield _decode(region[begin + 8 : stop], self._path, f"{self._key}[{i}]")
            begin = stop

    def index(self, text: str, start: int = 0, stop: int | None = None) -> int:
        """The index of the first entry equal to text. Bytes are compared, no entry is decoded."""
        encoded = encode_string(text)
        region, at = self._region(), -1
        while (at := region.find(encoded, at + 1)) >= 0:
            i = bisect_left(self._ends, self._start + at + len(encoded))
            begin = self._ends[i - 1] if i else self._start
            if begin == self._start + at and i in range(len(self))[start:stop]:
                return i
        raise ValueError(f"{text!r} is not in {self._key}")

    def __contains__(self, text: object) -> bool:
        with contextlib.suppress(ValueError):
            return self.index(text) >= 0
        return False

    def _region(self) -> bytes:
        return bytes(self._view[self._start : self._ends[-1]]) if self._ends else b""


def _decode(raw: bytes, path: Path, field: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(path, field, raw[:40], "UTF-8") from None


def read_metadata(cursor: Cursor, n_keys: int) -> dict[str, Any]:
    """{key: bool | int | float | str | StringArray | read-only ndarray} of the next n_keys values.

    The numbers of an array stay in the map; a bool in one is a uint8.
    """
    return _Walk(cursor, n_keys).values


class _Walk:
    """One pass over the keys, which counts what its budgets limit."""

    def __init__(self, cursor: Cursor, n_keys: int) -> None:
        self.cursor = cursor
        self.n_text_bytes = self.n_strings = 0
        self.values: dict[str, Any] = {}
        for i in range(n_keys):
            key = cursor.name(f"key {i}")
            if key in self.values:
                raise cursor.error(key, "appears twice", "one value a key")
            self.values[key] = self._value(key, cursor.u32(f"{key} type"))

    def _value(self, key: str, type_id: int) -> Any:
        if type_id == STRING:
            return self._string(key)
        if type_id == ARRAY:
            return self._array(key)
        if type_id not in SCALARS:
            raise self.cursor.error(f"{key} type", type_id, "a GGUF value type, 0 to 12")
        dtype = np.dtype(SCALARS[type_id])
        raw = self.cursor.take(dtype.itemsize, key)
        if dtype.kind == "b" and raw[0] > 1:
            raise self.cursor.error(key, raw[0], "a bool, 0 or 1")
        return np.frombuffer(raw, dtype)[0].item()

    def _string(self, key: str) -> str:
        n = self.cursor.u64(f"{key} length")
        raw = self.cursor.take(n, key)
        self.n_text_bytes += n
        if self.n_text_bytes > MAX_STRING_BYTES:
            raise self.cursor.error(f"{key} length", n, f"{MAX_STRING_BYTES} bytes for all strings")
        return _decode(bytes(raw), self.cursor.path, key)

    def _array(self, key: str) -> Any:
        type_id = self.cursor.u32(f"{key} element type")
        n = self.cursor.u64(f"{key} count")
        if type_id == STRING:
            return self._strings(key, n)
        if type_id not in SCALARS:
            raise self.cursor.error(f"{key} element type", type_id, "a number, bool or string")
        dtype = np.dtype(SCALARS[type_id])
        values = np.frombuffer(self.cursor.take(n * dtype.itemsize, key), dtype)
        return values.view(np.uint8) if dtype.kind == "b" else values

    def _strings(self, key: str, n: int) -> StringArray:
        """An array of n strings. Its loop decides how long opening takes: llama-3's vocabulary has
        408,000 iterations."""
        self.n_strings += n
        if self.n_strings > MAX_STRINGS:
            raise self.cursor.error(f"{key} count", n, f"{MAX_STRINGS} for all arrays of strings")
        view, start = self.cursor.view, self.cursor.at
        size, at, ends = len(view), start, array("Q")
        length_at, append = struct.Struct("<Q").unpack_from, ends.append
        with contextlib.suppress(struct.error):  # fewer than 8 bytes are left
            for _ in range(n):
                at += 8 + length_at(view, at)[0]
                if at > size:
                    break
                append(at)
        if len(ends) < n:
            raise self.cursor.error(f"{key}[{len(ends)}]", "ends beyond the file", f"{size} bytes")
        self.cursor.at = at
        return StringArray(self.cursor.path, key, view, start, ends)


def encode_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def encode_value(value: Any) -> bytes:
    """u32 type and data of one value; see gguf.write for what becomes what. [] is of strings."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + encode_string(value)
    if isinstance(value, Sequence) and (not value or isinstance(value[0], str)):
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return head + b"".join(map(encode_string, value))
    if not isinstance(value, np.ndarray | np.generic):
        value = np.asarray(value)
        value = value.astype(_python_type(value))
    type_id = _TYPE_IDS.get(value.dtype)
    if type_id is None or value.ndim > 1:
        raise ValueError(f"GGUF has no value of {value.dtype} with {value.ndim} axes")
    if value.ndim == 0:
        return struct.pack("<I", type_id) + value.tobytes()
    return struct.pack("<IIQ", ARRAY, type_id, value.size) + value.tobytes()


def _python_type(values: np.ndarray) -> Any:
    """The dtype for Python numbers: float32, or the first of four integers that holds them all."""
    if values.dtype.kind in "iu":
        low, high = int(values.min()), int(values.max())
        for dtype in (np.uint32, np.int32, np.int64, np.uint64):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return dtype
    return np.float32 if values.dtype.kind == "f" else values.dtype
