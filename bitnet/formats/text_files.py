"""Small text files and bounded JSON."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from ..errors import FormatError
from .mapped_file import open_regular

# Bytes of a text or JSON file. Parsed JSON takes up to 34 times its text (`{"":0},` is 7 bytes, its
# dict 240), so this is at most 68 MiB of memory. A safetensors header has about 130 bytes a tensor:
# 15,000 tensors fit.
MAX_TEXT_BYTES = 2 << 20


def parse_json(data: bytes, path: Path, field: str) -> dict[str, Any]:
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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; see parse_json."""
    return parse_json(_read_small(path), path, "JSON")


def read_text(path: Path) -> str:
    """The text of a small file; FormatError if it is not UTF-8."""
    try:
        return _read_small(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(path, "text", str(error), "UTF-8") from None


def _read_small(path: Path) -> bytes:
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TEXT_BYTES:
            raise FormatError(path, "file size", size, f"at most {MAX_TEXT_BYTES} bytes")
        return file.read(size)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"key {keys.most_common(1)[0][0]!r} appears twice")
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
