"""The checkpoint in a GGUF file."""

import numpy as np

from ..errors import FormatError
from ..formats import ternary_layouts
from ..formats.float_blocks import ROW_TYPES
from ..formats.gguf import GGUFFile
from ..formats.gguf_metadata import StringArray
from ..models.config import ModelConfig
from ..models.registry import ARCHITECTURES
from .checkpoint import (
    FLOATS,
    LAYOUTS,
    TERNARY_TYPES,
    Checkpoint,
    TernaryTensor,
    TokenizerSource,
    check_all_used,
    check_scale,
    check_tensor,
    is_linear,
    one_number,
)

_VOCABULARY_ARRAYS = {
    "tokenizer.ggml.tokens": "strings",
    "tokenizer.ggml.merges": "strings",
    "tokenizer.ggml.scores": "floats",
    "tokenizer.ggml.token_type": "whole numbers",
}


def read_gguf(path, layout):
    file = GGUFFile(path)
    found = file.tensors
    tokenizer = _gguf_tokenizer(file)
    n_embeddings = found["token_embd.weight"].shape[0] if "token_embd.weight" in found else 0
    config = ModelConfig.from_gguf(file.metadata, path, n_embeddings, "output.weight" in found)
    n_tokens = len(tokenizer.metadata.get("tokenizer.ggml.tokens", ()))
    if n_tokens > config.vocab_size:
        limit = f"at most vocab_size {config.vocab_size}"
        raise FormatError(path, "tokenizer.ggml.tokens count", n_tokens, limit)
    family, ternary, floats, used = ARCHITECTURES[config.family], {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = family.gguf_name(name)
        used.add(f"{stem}.weight")
        types = TERNARY_TYPES if is_linear(name) else ROW_TYPES if len(shape) == 2 else FLOATS
        tensor = check_tensor(found, f"{stem}.weight", shape, types, path)
        if is_linear(name):
            used.add(f"{stem}.scale")
            ternary[name] = _gguf_ternary(name, tensor, found.get(f"{stem}.scale"), layout)
        else:
            floats[name] = tensor
    check_all_used(found, used, path)
    return Checkpoint(path, config, tokenizer, ternary, floats, [file], [path], layout)


def _gguf_ternary(name, tensor, companion, layout):
    """companion: a tensor of one number that multiplies the scale, or None."""
    n_rows, n_cols = tensor.shape
    stored_as = LAYOUTS[layout] if tensor.type == "I2_S" else tensor.type
    factor = np.float32(1)
    if companion is not None:
        companion = check_tensor(
            {companion.name: companion}, companion.name, (1,), FLOATS, tensor.path
        )
        factor = check_scale(one_number(companion), tensor.path, companion.name)
    scale, in_place = None, None
    if tensor.type == "I2_S":
        n = len(tensor.data) - ternary_layouts.I2_S_TAIL
        stored = check_scale(tensor.data[n : n + 4].view("<f4")[0], tensor.path, tensor.name)
        scale = check_scale(stored * factor, tensor.path, tensor.name)
        if stored_as == "I2_S" and n_cols % ternary_layouts.BLOCK == 0:
            in_place = tensor.data[:n].reshape(n_rows, -1)

    def read():
        scales, chunks = ternary_layouts.unpack(stored_as, tensor.data, n_rows, n_cols)
        return scales * factor, chunks

    return TernaryTensor(name, tensor, n_rows, n_cols, stored_as, scale is None, in_place, read)


def _gguf_tokenizer(file):
    """The tokenizer's metadata, checked, with the pre-tokenizer the official file leaves out."""
    metadata = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    model = metadata.get("tokenizer.ggml.model")
    if isinstance(model, str) and model == "gpt2":
        metadata.setdefault("tokenizer.ggml.pre", "llama-bpe")
    for key, wanted in _VOCABULARY_ARRAYS.items():
        if key in metadata and (kind := _array_kind(metadata[key])) != wanted:
            raise FormatError(file.path, key, kind, f"an array of {wanted}")
    n_tokens = len(metadata.get("tokenizer.ggml.tokens", ()))
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        if key in metadata and len(metadata[key]) != n_tokens:
            raise FormatError(file.path, f"{key} count", len(metadata[key]), f"{n_tokens} tokens")
    return TokenizerSource(file.path, metadata=metadata)


def _array_kind(value):
    if isinstance(value, StringArray):
        return "strings"
    if isinstance(value, np.ndarray):
        return "floats" if value.dtype.kind == "f" else "whole numbers"
    return type(value).__name__
