"""A model split into several GGUF files, as llama.cpp's gguf-split names and numbers them.

Part 1 has the metadata of the model; the others have the keys of the split alone.
"""

import os
import re
from pathlib import Path

from ..errors import FormatError
from .gguf import MAX_TENSORS, OTHER_Q2_0, GGUFFile
from .tensor import Tensor

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"  # split.no is from 0
MAX_PARTS = 1024  # a map and a handle each; the largest models in use have less than 100
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)


def part_names(name: str) -> list[str] | None:
    """The names of all parts of a model, if a name is that of one: STEM-00001-of-00003.gguf."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    stem, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count <= MAX_PARTS:
        return None
    return [f"{stem}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]


def open_gguf(path: str | os.PathLike[str]) -> tuple[list[GGUFFile], dict[str, Tensor]]:
    """([GGUFFile], {name: Tensor}) of a model, from its only file or from any of its parts.

    The first file is the one with the metadata. FormatError for parts that are missing or do not
    belong together, and what GGUFFile raises.
    """
    file = GGUFFile(path)
    n_parts = _whole(file, COUNT, 1, MAX_PARTS)
    if n_parts < 2:
        return [file], file.tensors
    number = _whole(file, NUMBER, "missing", n_parts - 1) + 1
    files, tensors = [], dict[str, Tensor]()
    for i, part_path in enumerate(_paths(file, number, n_parts), 1):
        if i == number:
            part = file
        elif part_path.is_file():
            part = GGUFFile(part_path)
        else:
            limit = f"part {i} of {n_parts}, beside the others"
            raise FormatError(file.path, part_path.name, "missing", limit)
        _check_part(part, i, n_parts)
        _join(tensors, part)
        if files:
            part.metadata = {}  # what has no use is not kept: there is a budget for one file
        files.append(part)
    _check_q2_0(tensors)
    stated = files[0].metadata.get(TENSORS, len(tensors))
    if stated != len(tensors):
        raise FormatError(files[0].path, TENSORS, stated, f"the parts have {len(tensors)}")
    return files, tensors


def _check_q2_0(tensors: dict[str, Tensor]) -> None:
    """FormatError for type 42 of both kinds, which each part tells for itself."""
    of_64, of_128 = (
        next((t for t in tensors.values() if t.type == f"Q2_0_G{group}"), None)
        for group in (64, 128)
    )
    if of_64 and of_128:
        found = f"groups of 64, and {of_128.name} of {of_128.path.name} groups of 128"
        raise FormatError(of_64.path, f"{of_64.name} type 42", found, f"one kind; {OTHER_Q2_0}")


def _whole(file: GGUFFile, key: str, default: object, limit: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or not 0 <= value <= limit:
        raise FormatError(file.path, key, value, f"a whole number, {limit} at most")
    return value


def _paths(file: GGUFFile, number: int, n_parts: int) -> list[Path]:
    """The paths of all parts: beside the file, or beside the one that a link leads to."""
    for path in (file.path, file.path.resolve()):
        names = part_names(path.name)
        if names and len(names) == n_parts and names[number - 1] == path.name:
            return [path.with_name(name) for name in names]
    limit = f"named STEM-{number:05}-of-{n_parts:05}.gguf, with the others beside it"
    raise FormatError(file.path, "file name", f"part {number} of {n_parts}", limit)


def _check_part(part: GGUFFile, number: int, n_parts: int) -> None:
    for key, expected in ((NUMBER, number - 1), (COUNT, n_parts)):
        if (value := part.metadata.get(key, "missing")) != expected:
            limit = f"{expected}, as its name is that of part {number} of {n_parts}"
            raise FormatError(part.path, key, value, limit)


def _join(tensors: dict[str, Tensor], part: GGUFFile) -> None:
    for name in part.tensors:
        if name in tensors:
            raise FormatError(part.path, name, "appears twice", f"also in {tensors[name].path}")
    tensors |= part.tensors
    if len(tensors) > MAX_TENSORS:
        raise FormatError(part.path, "n_tensors", len(tensors), f"{MAX_TENSORS} in all parts")
