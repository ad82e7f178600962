"""What the file readers share: an exception, a description of a tensor, mapped files, bounded JSON.

Knows neither GGUF nor safetensors, and no model.
"""

import json
import os
import stat
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import mapping

# JSON grows by up to 34 times when parsed (`{"":0},` is 7 bytes, its dict 240), so 64 MiB allow
# 2 MiB of text. A safetensors header takes about 130 bytes a tensor: 15,000 tensors fit.
MAX_TEXT_BYTES = 2 << 20


class FormatError(ValueError):
    """A file that is damaged, contradicts itself, or is of a kind this version does not read.

    The message is always "path: field: value (limit)"; the four parts are attributes of the same
    names.
    """

    def __init__(self, path, field, value, limit):
        super().__init__(path, field, value, limit)
        self.path, self.field, self.value, self.limit = path, field, value, limit

    def __str__(self):
        return f"{self.path}: {_shown(self.field)}: {_shown(self.value)} ({self.limit})"


def _shown(value):
    """A value from an untrusted file, safe and short enough for a terminal."""
    text = value if isinstance(value, str) and value and value.isprintable() else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


@dataclass(frozen=True)
class Tensor:
    """One tensor where it lies in a mapped file.

    shape is in NumPy order (rows, columns): the reverse of GGUF's ne. data is read-only uint8
    (n_bytes,), a view of the map, whose address need not be a multiple of anything.
    """

    name: str
    type: str  # "F32", "F16", "BF16", "U8", "I2_S", "Q8_0", "Q6_K", ...
    shape: tuple[int, ...]
    data: np.ndarray
    path: Path

    @property
    def where(self):
        return f"{self.path}: {self.name}"


def map_file(path):
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
    _guards[address] = mapping.guard(address, mapped.nbytes)
    weakref.finalize(mapped, _release, address).atexit = False
    return mapped.view(np.ndarray)


_guards = {}  # address of a map: its number


def _release(address):
    mapping.release(_guards.pop(address))


def check_map(data, path):
    """FormatError if a file has turned out to be shorter than map_file found it."""
    if mapping.n_lost() and mapping.is_lost(_guards.get(data.ctypes.data, -1)):
        limit = "a file must stay as it is while a model uses it"
        raise FormatError(path, "file size", "shrank while it was mapped", limit)


def parse_json(data, path, field):
    """The object in bytes of UTF-8; FormatError for anything else, and for a key given twice.

    data: at most MAX_TEXT_BYTES, which the caller checks.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise FormatError(path, field, "nested too deep", "JSON the parser can follow") from None
    except ValueError as error:  # also bad UTF-8, a key twice, an integer of 5000 digits
        raise FormatError(path, field, str(error), "valid JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise FormatError(path, field, type(value).__name__, "a JSON object")
    return value


def read_json(path):
    """The object in a small JSON file; see parse_json."""
    return parse_json(_read_small(path), path, "JSON")


def read_text(path):
    """The text of a small file; FormatError if it is not UTF-8."""
    try:
        return _read_small(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(path, "text", str(error), "UTF-8") from None


def _read_small(path):
    size = os.stat(path).st_size
    if size > MAX_TEXT_BYTES:
        raise FormatError(path, "file size", size, f"at most {MAX_TEXT_BYTES} bytes")
    with open(path, "rb") as file:
        return file.read(size)


def _unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"key {keys.most_common(1)[0][0]!r} appears twice")
    return found


def _refuse_constant(text):
    raise ValueError(f"{text} is not a JSON number")
