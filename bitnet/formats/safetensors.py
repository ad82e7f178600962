"""safetensors: a bounds-checked reader for one file and for a folder of shards, and a streaming
writer. Knows no model.

    u64 n | n bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}, ...} | data
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .atomic_write import atomic, write_data
from .mapped_file import map_file
from .tensor import Tensor
from .text_files import MAX_TEXT_BYTES, parse_json, read_json

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
MAX_DIMS = 8  # far more than any weight has
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFile:
    """One mapped file. tensors: {name: Tensor}; data: uint8 (n_bytes,), the whole file.

    Raises OSError if the file cannot be opened, FormatError for anything wrong in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._error = partial(FormatError, self.path)
        self.data = map_file(self.path)
        header, start = self._read_header()
        self.tensors: dict[str, Tensor] = {}
        spans = []
        for name, entry in header.items():
            type_name, shape, begin, end = self._read_entry(name, entry, len(self.data) - start)
            part = self.data[start + begin : start + end]
            self.tensors[name] = Tensor(name, type_name, shape, part, self.path)
            spans.append((begin, end, name))
        self._check_spans(sorted(spans), len(self.data) - start)

    def _read_header(self) -> tuple[dict[str, Any], int]:
        size = len(self.data)
        if size < 8:
            raise self._error("file size", size, "at least 8 bytes")
        n = int.from_bytes(self.data[:8].tobytes(), "little")
        limit = min(size - 8, MAX_TEXT_BYTES)
        if n > limit:
            raise self._error("header length", n, f"at most {limit} bytes")
        header = parse_json(self.data[8 : 8 + n].tobytes(), self.path, "header")
        notes = header.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
            raise self._error("__metadata__", notes, "an object of strings")
        return header, 8 + n

    def _read_entry(
        self, name: str, entry: Any, n_data: int
    ) -> tuple[str, tuple[int, ...], int, int]:
        """(dtype, shape, begin, end) of one tensor, its byte count checked."""
        if not isinstance(entry, dict) or {"dtype", "shape", "data_offsets"} - entry.keys():
            raise self._error(name, entry, "an object with dtype, shape, data_offsets")
        type_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(type_name, str) or type_name not in ITEM_BYTES:
            raise self._error(f"{name} dtype", type_name, f"one of {', '.join(ITEM_BYTES)}")
        if not _are_sizes(shape) or len(shape) > MAX_DIMS:
            raise self._error(f"{name} shape", shape, f"up to {MAX_DIMS} sizes")
        if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= n_data:
            raise self._error(f"{name} data_offsets", offsets, f"begin <= end <= {n_data}")
        n_bytes = n_bytes_of(type_name, shape)
        if n_bytes != offsets[1] - offsets[0]:
            limit = f"shape {shape} of {type_name} takes {n_bytes}"
            raise self._error(f"{name} bytes", offsets[1] - offsets[0], limit)
        return type_name, tuple(shape), *offsets

    def _check_spans(self, spans: list[tuple[int, int, str]], n_data: int) -> None:
        """The tensors must tile the data: no overlap, no hole, nothing after the last."""
        at = 0
        for begin, end, name in spans:
            if begin != at:
                raise self._error(f"{name} begin", begin, f"the tensor before it ends at {at}")
            at = end
        if at != n_data:
            raise self._error("data size", n_data, f"the last tensor ends at {at}")


def _are_sizes(values: Any) -> bool:
    """Whether values is a list of whole numbers below 2^62, so that their product is quick."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in values)


def member(
    folder: str | os.PathLike[str], name: str, inside: str = "", is_weights: bool = False
) -> Path | None:
    """The path of a file named by a model folder, or None if it is not there.

    inside: a folder of the folder that it is in. FormatError if the name leaves the folder, by
    itself or through a link. Links allowed are those of a hub cache, from snapshots/REVISION to the
    blobs beside it or above, and those of weights: whoever keeps them on another disk. What a text
    holds could be copied into a converted model; of weights nothing but tensors is used.
    """
    folder = Path(folder).resolve()
    path = folder / inside / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise FormatError(folder, "file name", name, "a name without folders")
    if not os.path.isfile(path):  # false too for a name the system refuses
        return None
    target = path.resolve()
    if not is_weights and target.parent != folder / inside and not _in_hub_cache(target, folder):
        limit = f"a file in {folder}; only weights may lie elsewhere"
        raise FormatError(path, "link", str(target), limit)
    return path


def _in_hub_cache(target: Path, folder: Path) -> bool:
    """Whether a snapshot's link ends in its repository's blobs, or in those that all share."""
    if folder.parent.name != "snapshots":
        return False
    repository = folder.parent.parent
    own, shared = ((place / "blobs").resolve() for place in (repository, repository.parent))
    return target.parent == own or target.parent.parent == shared


def open_folder(folder: Path) -> tuple[list[SafetensorsFile], dict[str, Tensor]]:
    """([SafetensorsFile], {name: Tensor}) of a model folder, by the index if there are several."""
    if single := member(folder, SINGLE, is_weights=True):
        file = SafetensorsFile(single)
        return [file], file.tensors
    index = member(folder, INDEX)
    if index is None:
        raise FormatError(folder, SINGLE, "missing", f"this or {INDEX}; nothing else is read")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise FormatError(index, "weight_map", weight_map, "an object {tensor: file}")
    files = {}
    for shard in sorted(set(weight_map.values())):
        path = member(folder, shard, is_weights=True)
        if path is None:
            raise FormatError(index, shard, "missing", "every file of weight_map beside the index")
        files[shard] = SafetensorsFile(path)
    tensors = {}
    for name, shard in weight_map.items():
        if name not in files[shard].tensors:
            raise FormatError(index, name, "missing", f"a tensor of {shard}")
        tensors[name] = files[shard].tensors[name]
    return list(files.values()), tensors


def write(
    path: str | os.PathLike[str],
    notes: Mapping[str, str],
    tensors: Iterable[tuple[str, tuple[int, ...], str, Any]],
) -> None:
    """Write one file, streaming; it appears under its name only when complete and on disk.

    notes: {str: str}, its __metadata__; transformers wants {"format": "pt"}.
    tensors: sequence of (name, shape, type name, data) as gguf.write takes them. They are written
        in this order, so that data may depend on what was written before, but lie in the file by
        the size of their items: each begins at a multiple of its own, as torch needs it.
    Raises ValueError if the bytes do not match shape and type, OSError from the disk; then nothing
    is left behind.
    """
    path, tensors = Path(path), list(tensors)
    header, at = {"__metadata__": notes}, 0
    for name, shape, type_name, _ in sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor[2]]):
        end = at + n_bytes_of(type_name, shape)
        header[name] = {"dtype": type_name, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, _, _, data in tensors:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + len(text) + begin)
            write_data(file, name, data, end - begin)


def n_bytes_of(type_name: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of this type and shape."""
    return ITEM_BYTES[type_name] * math.prod(shape)
