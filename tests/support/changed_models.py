"""Copies of models in which one thing is other: bytes of a tensor, metadata, the layout of I2_S."""

import json
from pathlib import Path

import numpy as np
from support.paths import DATA, TINY_MODEL

from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.formats import gguf
from bitnet.formats.gguf_metadata import StringArray

FIXTURES = {
    path.parent.name: path.parent / json.loads(path.read_text())["load"]
    for path in sorted(DATA.glob("*/meta.json"))
}
GGUF = FIXTURES["gguf_i2_s_bitnet158"]


def damaged(folder, change, name, source=GGUF):
    """A copy of a GGUF in which a function has changed the bytes of one tensor."""
    file, raw = gguf.GGUFFile(source), bytearray(source.read_bytes())
    tensor = file.tensors[name]
    at = tensor.data.ctypes.data - file.data.ctypes.data
    change(np.frombuffer(raw, np.uint8)[at : at + len(tensor.data)])
    (folder / "damaged.gguf").write_bytes(raw)
    return folder / "damaged.gguf"


def set_bytes(value, where=slice(None, -32)):
    def change(data):
        data[where] = value

    return change


def floats(value, where, dtype="<f4"):
    def change(data):
        data.view(dtype)[where] = value

    return change


def rewritten(path, source=GGUF, vectors=None, **changes):
    """A copy of a GGUF with other metadata (dots are __, None removes) or other float32 vectors."""
    file = gguf.GGUFFile(source)
    metadata = {k: list(v) if isinstance(v, StringArray) else v for k, v in file.metadata.items()}
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    tensors = [
        (t.name, t.shape, "F32", vectors[t.name].astype("<f4"))
        if vectors and t.name in vectors
        else (t.name, t.shape, t.type, t.data)
        for t in file.tensors.values()
    ]
    gguf.write(path, {k: v for k, v in metadata.items() if v is not None}, tensors)
    return path


def stream(codes, layout):
    """The bytes of an I2_S tensor in a layout, by its description."""
    width = {"128x32": 32, "64x16": 16, "4row": codes.shape[1]}[layout]
    q = codes.reshape(-1, 4, width)
    return (q[:, 0] << 6 | q[:, 1] << 4 | q[:, 2] << 2 | q[:, 3]).tobytes()


def codes_of(t):
    return np.concatenate([chunk.copy() for chunk in t.read()[1]])


def in_layout(layout, path, source=TINY_MODEL):
    """The model with its linear layers written in another layout."""
    found, raw = open_checkpoint(source), bytearray(Path(source).read_bytes())
    for t in found.ternary.values():
        at = t.tensor.data.ctypes.data - found.files[0].data.ctypes.data
        data = stream(codes_of(t), layout)
        raw[at : at + len(data)] = data
    path.write_bytes(raw)
    return path
