"""Fixtures, converted."""

import json

from support.paths import DATA

from bitnet.checkpoints import convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.formats.float_blocks import dequantize

TARGETS = ["gguf", "hf"]


def source_of(name):
    return DATA / name / json.loads((DATA / name / "meta.json").read_text())["load"]


def to(name, folder, target="gguf", **options):
    """A fixture, converted; the path of the result."""
    dst = folder / ("model.gguf" if target == "gguf" else "model")
    assert convert.convert(source_of(name), dst, to=target, **options).path == dst
    return dst


def tensors_of(path):
    """{name: bytes of codes and scales, or of values} of a model."""
    source, found = open_checkpoint(path), {}
    for name, t in source.ternary.items():
        scales, chunks = t.read()
        found[name] = scales.tobytes() + b"".join(chunk.tobytes() for chunk in chunks)
    for name, tensor in source.floats.items():
        if len(tensor.shape) == 1:
            found[name] = source.vector(name).tobytes()
        else:
            data = tensor.data.reshape(tensor.shape[0], -1)
            found[name] = dequantize(tensor.type, data, tensor.shape[1]).tobytes()
    return found
