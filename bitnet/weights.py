"""A model's files as arrays: every tensor under one name, whatever the container.

Names are those of HF checkpoints without "model." and ".weight": embed_tokens, norm, lm_head,
layers.0.self_attn.q_proj.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import convert
from .config import END_OF_TURN, ModelConfig, hf_linears
from .formats import FormatError, read_json, read_text
from .formats.gguf import GGUFFile
from .formats.gguf_metadata import StringArray
from .formats.packing import (
    BLOCK,
    absmean,
    dequantize,
    quantize_masters,
    repack_hf,
    repack_stream,
)
from .formats.safetensors import member, open_folder

GGUF_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
ROWS = (*FLOATS, "Q8_0", "Q6_K")
_VOCABULARY = {
    "tokenizer.ggml.tokens": "strings",
    "tokenizer.ggml.merges": "strings",
    "tokenizer.ggml.scores": "floats",
    "tokenizer.ggml.token_type": "whole numbers",
}


@dataclass(frozen=True)
class Ternary:
    """A linear layer. codes: uint8 (n_rows, padded(n_cols) // 4) in I2_S, C-contiguous.

    scale: float32, multiplies the integer dot product. Code 3 is not looked for here, because that
    would read the whole file.
    """

    codes: np.ndarray
    scale: np.float32
    n_rows: int
    n_cols: int
    where: str


@dataclass(frozen=True)
class Rows:
    """An embedding or head as it lies in the file. data: uint8 (n_rows, row_bytes), at any address.

    type: F32, F16, BF16, Q8_0 or Q6_K.
    """

    type: str
    data: np.ndarray
    n_rows: int
    n_cols: int
    where: str

    def dequantize(self, ids):
        """The rows of these ids as float32 (len(ids), n_cols)."""
        return dequantize(self.type, self.data[ids], self.n_cols)


@dataclass(frozen=True)
class TokenizerSource:
    """What a tokenizer is built from: two files of an HF folder, or the metadata of a GGUF."""

    path: Path  # the file or folder, for messages
    tokenizer_json: Path | None = None
    tokenizer_config: dict = field(default_factory=dict)
    metadata: dict | None = None  # the tokenizer.* keys, tokenizer.ggml.pre always there


class Weights:
    """The tensors of one model, mapped. Made by open()."""

    def __init__(self, path, config, tokenizer_source, ternary, floats, files):
        self.path, self.config, self.tokenizer_source = path, config, tokenizer_source
        self._ternary, self._floats, self._files = ternary, floats, files

    def ternary(self, name):
        """The linear layer of this name. Its arrays keep their file mapped, also after close()."""
        return self._ternary[name]

    def rows(self, name):
        """embed_tokens or lm_head, which is the embedding where they are tied."""
        if name == "lm_head" and self.config.tie_word_embeddings:
            name = "embed_tokens"
        tensor = self._floats[name]
        n_rows, n_cols = tensor.shape
        return Rows(tensor.type, tensor.data.reshape(n_rows, -1), n_rows, n_cols, tensor.where)

    def vector(self, name):
        """A norm's weight as float32 (n,), a copy unless it is F32; FormatError if not finite."""
        tensor = self._floats[name]
        values = dequantize(tensor.type, tensor.data.reshape(1, -1), *tensor.shape)[0]
        if not np.isfinite(values).all():
            raise FormatError(tensor.path, tensor.name, "NaN or infinite", "finite weights")
        return np.require(values, requirements=["C", "A"])  # safetensors aligns nothing

    def mappings(self):
        """[(path, address, bytes)] of every mapped file, the sidecar included."""
        return [(file.path, file.data.ctypes.data, file.data.nbytes) for file in self._files]

    def close(self):
        """Drop the maps; a file stays mapped while arrays handed out of it are alive."""
        self._ternary, self._floats, self._files = {}, {}, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def open(path, *, cache=None, pool=None):
    """Open an HF folder or a .gguf file.

    cache: the folder for repacked weights, None for the default (see convert.cache_folder), False
    to keep them in memory: in pool, if given (PoolExhausted if they do not fit), else in NumPy's.
    Raises FormatError for anything wrong in the files, OSError if one cannot be opened.
    """
    path = Path(path)
    return (_open_folder if path.is_dir() else _open_gguf)(path, cache, pool)


def _is_ternary(name):
    return name.endswith("_proj")


def _check_tensor(found, name, shape, types, path):
    """The tensor of this name in a file, if its shape and type are right."""
    tensor = found.get(name)
    if tensor is None:
        raise FormatError(path, name, "missing", f"the configuration needs it, of shape {shape}")
    if tensor.shape != shape:
        limit = f"the configuration needs {shape}"
        raise FormatError(tensor.path, f"{name} shape", tensor.shape, limit)
    if tensor.type not in types:
        raise FormatError(tensor.path, f"{name} type", tensor.type, f"one of {', '.join(types)}")
    return tensor


def _one_number(tensor):
    return dequantize(tensor.type, tensor.data.reshape(1, -1), 1)[0, 0]


def _check_scale(value, path, name):
    if not 0 < value < math.inf:  # NaN fails too
        raise FormatError(path, f"{name} scale", float(value), "finite and above 0")
    return np.float32(value)


def _check_all_used(found, used, path):
    """No tensor may be left over: one we do not know could change the result in silence."""
    for name in sorted(found.keys() - used):
        raise FormatError(path, name, "unexpected", "every tensor must have a place in the model")


def _realise(ternary, derived, model, sources, cache, pool):
    """Add the derived tensors to ternary; returns the sidecar, in a list, if there is one."""
    if not derived:
        return []
    made, sidecar = convert.realise(list(derived.values()), model, sources, cache, pool)
    for name, d in derived.items():
        codes, scale = made[d.name]
        where = sidecar.tensors[d.name].where if sidecar else d.source.where
        ternary[name] = Ternary(codes, scale, d.n_rows, d.n_cols, where)
    return [sidecar] if sidecar else []


# GGUF ---------------------------------------------------------------------------------------------


def _open_gguf(path, cache, pool):
    file = GGUFFile(path)
    found = file.tensors
    source = _gguf_tokenizer(file)
    n_embeddings = found["token_embd.weight"].shape[0] if "token_embd.weight" in found else 0
    config = ModelConfig.from_gguf(file.metadata, path, n_embeddings, "output.weight" in found)
    n_tokens = len(source.metadata.get("tokenizer.ggml.tokens", ()))
    if n_tokens > config.vocab_size:
        limit = f"at most vocab_size {config.vocab_size}"
        raise FormatError(path, "tokenizer.ggml.tokens count", n_tokens, limit)
    ternary, derived, floats, used = {}, {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = _gguf_stem(name)
        used |= {f"{stem}.weight", f"{stem}.scale"} if _is_ternary(name) else {f"{stem}.weight"}
        types = ("I2_S",) if _is_ternary(name) else ROWS if len(shape) == 2 else FLOATS
        tensor = _check_tensor(found, f"{stem}.weight", shape, types, path)
        if not _is_ternary(name):
            floats[name] = tensor
        elif shape[1] % BLOCK:
            derived[name] = _gguf_derived(tensor, _gguf_scale(found, tensor, stem))
        else:
            codes, _ = convert.i2_s_rows(tensor, shape[0])
            ternary[name] = Ternary(codes, _gguf_scale(found, tensor, stem), *shape, tensor.where)
    _check_all_used(found, used, path)
    files = [file, *_realise(ternary, derived, path, [path], cache, pool)]
    return Weights(path, config, source, ternary, floats, files)


def _gguf_stem(name):
    """layers.0.self_attn.q_proj -> blk.0.attn_q"""
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{GGUF_NAMES[rest]}"


def _gguf_scale(found, tensor, stem):
    """The scale inside the I2_S tensor, times that of an optional companion tensor."""
    scale = _check_scale(convert.i2_s_rows(tensor, 1)[1], tensor.path, tensor.name)
    if f"{stem}.scale" in found:
        companion = _check_tensor(found, f"{stem}.scale", (1,), FLOATS, tensor.path)
        scale = _check_scale(scale * _one_number(companion), tensor.path, companion.name)
    return scale


def _gguf_derived(tensor, scale):
    n_rows, n_cols = tensor.shape
    stream = convert.i2_s_rows(tensor, 1)[0][0]

    def make():
        return scale, repack_stream(stream, n_rows, n_cols)

    return convert.Derived(tensor.name, tensor, n_rows, n_cols, make)


def _gguf_tokenizer(file):
    """The tokenizer's metadata, checked, with the pre-tokenizer the official file leaves out."""
    metadata = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    metadata.setdefault("tokenizer.ggml.pre", "llama-bpe")
    for key, wanted in _VOCABULARY.items():
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


# Hugging Face folders -----------------------------------------------------------------------------


def _open_folder(folder, cache, pool):
    config_path = member(folder, "config.json")
    if config_path is None:
        raise FormatError(folder, "config.json", "missing", "an HF model folder, or a .gguf file")
    raw = read_json(config_path)
    stored_as = hf_linears(raw, config_path)
    files, found = open_folder(folder)
    source = _hf_tokenizer(folder)
    generation_path = member(folder, "generation_config.json")
    generation = read_json(generation_path) if generation_path else {}
    end_ids = _end_of_turn_ids(source.tokenizer_config)
    has_head = "lm_head.weight" in found
    config = ModelConfig.from_hf(raw, generation, config_path, has_head, end_ids)
    derived, floats, used = {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = name if name == "lm_head" else f"model.{name}"
        used.add(f"{stem}.weight")
        if not _is_ternary(name):
            floats[name] = _check_tensor(found, f"{stem}.weight", shape, FLOATS, folder)
        elif stored_as == "masters":
            tensor = _check_tensor(found, f"{stem}.weight", shape, FLOATS, folder)
            derived[name] = _masters(f"{_gguf_stem(name)}.weight", tensor)
        else:
            used.add(f"{stem}.weight_scale")
            packed = _check_tensor(found, f"{stem}.weight", _packed_shape(shape), ("U8",), folder)
            scale = _hf_scale(found, f"{stem}.weight_scale", stored_as, folder)
            derived[name] = _packed(f"{_gguf_stem(name)}.weight", packed, shape, scale)
    if config.tie_word_embeddings:
        used.add("lm_head.weight")  # some writers store it; transformers does not read it either
    _check_all_used(found, used, folder)
    ternary, sources = {}, [config_path, *(file.path for file in files)]
    files += _realise(ternary, derived, folder, sources, cache, pool)
    return Weights(folder, config, source, ternary, floats, files)


def _packed_shape(shape):
    return -(-shape[0] // 4), shape[1]


def _hf_scale(found, name, stored_as, folder):
    """The scale beside a packed tensor, as what multiplies."""
    stored = found.get(name)
    shape = () if stored is not None and stored.shape == () else (1,)
    stored = _check_tensor(found, name, shape, FLOATS, folder)
    scale = _check_scale(_one_number(stored), stored.path, name)
    if stored_as == "multiply":
        return scale
    return _check_scale(np.float32(1) / scale, stored.path, name)


def _packed(name, tensor, shape, scale):
    packed = tensor.data.reshape(tensor.shape)
    return convert.Derived(name, tensor, *shape, lambda: (scale, repack_hf(packed, shape[0])))


def _masters(name, tensor):
    n_rows, n_cols = tensor.shape
    data = tensor.data.reshape(n_rows, -1)

    def make():
        mean = _check_scale(absmean(tensor.type, data, n_cols), tensor.path, tensor.name)
        rows = quantize_masters(tensor.type, data, n_cols, mean)
        return np.float32(1) / (np.float32(1) / mean), rows

    return convert.Derived(name, tensor, n_rows, n_cols, make)


def _hf_tokenizer(folder):
    """tokenizer.json stays a path; a chat template in a file of its own joins the configuration."""
    config_path = member(folder, "tokenizer_config.json")
    config = read_json(config_path) if config_path else {}
    template = member(folder, "chat_template.jinja")
    if template and "chat_template" not in config:
        config["chat_template"] = read_text(template)
    return TokenizerSource(Path(folder), member(folder, "tokenizer.json"), config)


def _end_of_turn_ids(tokenizer_config):
    """The id of <|eot_id|> where the tokenizer lists it: config.json of 2B-4T does not."""
    listed = tokenizer_config.get("added_tokens_decoder")
    entries = listed.items() if isinstance(listed, dict) else ()
    return [
        int(token_id)
        for token_id, entry in entries
        if isinstance(entry, dict)
        and entry.get("content") == END_OF_TURN
        and token_id.isdecimal()
        and len(token_id) < 10
    ]
