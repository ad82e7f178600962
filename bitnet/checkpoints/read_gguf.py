"""The Checkpoint of a GGUF file, or of the parts of one."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ..formats import ternary_layouts
from ..formats.ggml_types import FLOAT_TYPES, ROW_TYPES, TERNARY_TYPES
from ..formats.gguf import OTHER_Q2_0, GGUFFile
from ..formats.gguf_metadata import StringArray
from ..formats.gguf_parts import open_gguf
from ..formats.group_scales import IN_PLACE, GroupedMatrix, Steps
from ..formats.tensor import Tensor
from ..models.config import ModelConfig
from ..text.vocabulary import TokenizerSource
from ..text.vocabulary.vocabulary import BYTE_LEVEL_MODEL
from .checkpoint import (
    I2_S_LAYOUTS,
    Checkpoint,
    Codes,
    TernaryTensor,
    check_all_used,
    check_scale,
    check_tensor,
    stored_scale,
)
from .read_rotation import check_family, read_rotation

_VOCABULARY_ARRAYS = {
    "tokenizer.ggml.tokens": "strings",
    "tokenizer.ggml.merges": "strings",
    "tokenizer.ggml.scores": "floats",
    "tokenizer.ggml.token_type": "whole numbers",
}
log = logging.getLogger("bitnet")

# types whose groups of columns have scales of their own: of linear layers, embeddings and heads
_GROUP_TYPES = tuple(
    name for name in TERNARY_TYPES if ternary_layouts.quantization_of(name).weight_group
)
# keys that hold a text in files whose type 42 has the scale behind the codes
_SCALE_LAST = ("oxibonsai.quant_format", "general.quantization_version")


def read_gguf(path: Path, layout: str) -> Checkpoint:
    """See open_checkpoint."""
    files, tensors = open_gguf(path)
    file, path = files[0], files[0].path
    check_family(file.metadata, path)
    _refuse_scale_last(file)
    tokenizer = _tokenizer_source(file)
    embedding = tensors.get("token_embd.weight")
    n_embeddings = 0 if embedding is None else embedding.shape[0]
    config = ModelConfig.from_gguf(file.metadata, path, n_embeddings, tensors)
    _check_n_tokens(tokenizer, config)
    ternary, floats, used = {}, {}, set()
    may_have_groups = config.arch.may_have_group_scales or config.arch.rounds_by_group
    table_types = ROW_TYPES + (_GROUP_TYPES if may_have_groups else ())
    for name, shape in config.tensor_shapes().items():
        stem = config.arch.gguf_name(name)
        full_name = stem + config.arch.suffix(name, "gguf")
        used.add(full_name)
        if config.arch.is_linear(name):
            used.add(f"{stem}.scale")
            weight = check_tensor(tensors, f"{stem}.weight", shape, TERNARY_TYPES, path)
            factor = np.float32(1)
            if f"{stem}.scale" in tensors:  # one number, which multiplies the tensor's own scales
                factor = stored_scale(tensors, f"{stem}.scale", (1,), path)
            ternary[name] = _ternary(name, weight, factor, layout)
            continue
        is_vector = len(shape) == 1 or config.arch.is_vector(name)
        types = FLOAT_TYPES if is_vector else table_types
        tensor = check_tensor(tensors, full_name, shape, types, path)
        if tensor.type in _GROUP_TYPES:
            ternary[name] = _ternary(name, tensor, np.float32(1), layout)
        else:
            floats[name] = tensor
    check_all_used(tensors, used, path, config.arch.ignored_in_gguf(file.metadata))
    _warn_of_loss(config, ternary, path)
    changed_by = [file.path for file in files]
    rotation = read_rotation(file.metadata, path, config, ternary)
    return Checkpoint(
        path, config, tokenizer, ternary, floats, files, changed_by, layout, rotation=rotation
    )


def _warn_of_loss(config: ModelConfig, ternary: dict[str, TernaryTensor], path: Path) -> None:
    """TQ1_0 and TQ2_0 have a scale for 256 columns, and the models of these families for 128."""
    wide = {t.tensor.type for t in ternary.values() if t.quantization.weight_group == 256}
    if wide and config.arch.rounds_by_group:
        types = " and ".join(sorted(wide))
        text = "%s: %s has one scale for 256 columns; a Bonsai model, which has one for 128, was "
        text += "converted with loss: take the repository's PQ2_0 or Q2_0 file"
        log.warning(text, path, types)


def _refuse_scale_last(file: GGUFFile) -> None:
    """FormatError for another engine's type 42, whose blocks are as large as those of groups of
    128, and have their scale behind the codes."""
    has_q2_0 = any(tensor.type.startswith("Q2_0") for tensor in file.tensors.values())
    for key in _SCALE_LAST if has_q2_0 else ():
        value = file.metadata.get(key)
        if isinstance(value, str):  # llama.cpp's version is a number
            limit = f"oxibonsai's type 42 is not supported; {OTHER_Q2_0}"
            raise FormatError(file.path, key, value, limit)


def _ternary(name: str, tensor: Tensor, factor: np.float32, layout: str) -> TernaryTensor:
    n_rows, n_cols = tensor.shape
    stored_as = I2_S_LAYOUTS[layout] if tensor.type == "I2_S" else tensor.type
    in_place = None
    if tensor.type == "I2_S":
        n = len(tensor.data) - ternary_layouts.I2_S_TAIL
        stored = check_scale(tensor.data[n : n + 4].view("<f4")[0], tensor)
        check_scale(stored * factor, tensor)
        if stored_as == "I2_S" and n_cols % ternary_layouts.I2_S_CODES == 0:
            in_place = tensor.data[:n].reshape(n_rows, -1)

    def unpack() -> tuple[np.ndarray, Codes]:
        scales, chunks = ternary_layouts.unpack(stored_as, tensor.data, n_rows, n_cols)
        return scales * factor, chunks

    def unpack_groups() -> Steps:
        steps = ternary_layouts.unpack_groups(stored_as, tensor.data, n_rows, n_cols)
        return ((scales * factor, codes) for scales, codes in steps)

    grouped = None
    if tensor.type in IN_PLACE and factor == 1:
        where = tensor.path, tensor.name
        grouped = GroupedMatrix(IN_PLACE[tensor.type], tensor.rows(), n_rows, n_cols, *where)
    may_differ = tensor.type != "I2_S"
    groups = ternary_layouts.quantization_of(stored_as)
    return TernaryTensor(
        name, tensor, n_rows, n_cols, stored_as, may_differ, in_place, unpack, groups, grouped,
        unpack_groups if groups.weight_group else None,
    )  # fmt: skip


# the tokenizer ------------------------------------------------------------------------------------


def _tokenizer_source(file: GGUFFile) -> TokenizerSource:
    """The tokenizer's metadata, checked, with the pre-tokenizer the official file leaves out."""
    metadata = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    model = metadata.get("tokenizer.ggml.model")
    if isinstance(model, str) and model == BYTE_LEVEL_MODEL:
        metadata.setdefault("tokenizer.ggml.pre", "llama-bpe")
    for key, expected in _VOCABULARY_ARRAYS.items():
        if key in metadata and (held := _elements(metadata[key])) != expected:
            raise FormatError(file.path, key, held, f"an array of {expected}")
    n_tokens = len(metadata.get("tokenizer.ggml.tokens", ()))
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        if key in metadata and len(metadata[key]) != n_tokens:
            raise FormatError(file.path, f"{key} count", len(metadata[key]), f"{n_tokens} tokens")
    return TokenizerSource(file.path, metadata=metadata)


def _elements(value: Any) -> str:
    """What an array is one of, or the type of what is no array."""
    if isinstance(value, StringArray):
        return "strings"
    if isinstance(value, np.ndarray):
        return "floats" if value.dtype.kind == "f" else "whole numbers"
    return type(value).__name__


def _check_n_tokens(tokenizer: TokenizerSource, config: ModelConfig) -> None:
    n_tokens = len((tokenizer.metadata or {}).get("tokenizer.ggml.tokens", ()))
    if n_tokens > config.vocab_size:
        limit = f"at most vocab_size {config.vocab_size}"
        raise FormatError(tokenizer.path, "tokenizer.ggml.tokens count", n_tokens, limit)
