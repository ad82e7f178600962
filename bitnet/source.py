"""scan(): what the files of a model hold, every tensor checked and none made yet.

A model is an HF folder or a GGUF file. Tensors have one name whatever the container: that of HF
checkpoints without "model." and ".weight" (embed_tokens, layers.0.self_attn.q_proj).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .config import END_OF_TURN, ModelConfig, hf_linears
from .families import FAMILIES
from .formats import FormatError, Tensor, packing, read_json, read_text
from .formats.floats import ROW_TYPES, dequantize
from .formats.gguf import GGUFFile
from .formats.gguf_metadata import StringArray
from .formats.safetensors import member, open_folder

FLOATS = ("F32", "F16", "BF16")
TERNARY_TYPES = (
    "I2_S", "TQ1_0", "TQ2_0", "IQ1_BN", "IQ2_BN", "IQ2_BN_R4", "Q2_0_G64", "Q2_0_G128",
)  # fmt: skip
# How a tensor of type I2_S may lie, which its file does not say: see docs/models.md.
LAYOUTS = {"128x32": "I2_S", "64x16": "I2_S_64", "4row": "I2_S_4ROW"}
_VOCABULARY = {
    "tokenizer.ggml.tokens": "strings",
    "tokenizer.ggml.merges": "strings",
    "tokenizer.ggml.scores": "floats",
    "tokenizer.ggml.token_type": "whole numbers",
}


@dataclass(frozen=True)
class TernarySource:
    """A linear layer as a file holds it.

    stored_as: its type ("I2_S", "TQ2_0", "HF packed", "BF16 masters", ...).
    in_place: uint8 (n_rows, padded(n_cols) // 4), the codes where the kernels can read them as they
        lie, else None. may_differ: whether the type could hold a scale for each row.
    """

    name: str
    tensor: Tensor
    n_rows: int
    n_cols: int
    stored_as: str
    may_differ: bool
    in_place: np.ndarray | None
    _read: Callable[[], tuple[np.ndarray, Iterator[np.ndarray]]]

    def scales(self):
        """float32 (1,), or (n_rows,) where they differ; they multiply the integer dot product."""
        return self.read()[0]

    def read(self):
        """(scales, codes): codes are uint8 (some rows, n_cols) of 0, 1, 2, chunks in row order.

        Each chunk is valid until the next. FormatError for illegal codes, when they come by.
        """
        try:
            scales, chunks = self._read()
        except ValueError as error:
            raise self._error(error) from None
        return scales, self._checked(chunks)

    def _checked(self, chunks):
        try:
            yield from chunks
        except ValueError as error:
            raise self._error(error) from None

    def _error(self, error):
        if isinstance(error, FormatError):
            return error
        limit = f"a ternary tensor of type {self.stored_as}"
        return FormatError(self.tensor.path, self.tensor.name, str(error), limit)


@dataclass(frozen=True)
class TokenizerSource:
    """What a tokenizer is built from: files of an HF folder, or the metadata of a GGUF."""

    path: Path  # the file or folder, for messages
    tokenizer_json: Path | None = None
    sentencepiece: Path | None = None  # tokenizer.model, where there is no tokenizer.json
    tokenizer_config: dict = field(default_factory=dict)
    metadata: dict | None = None  # the tokenizer.* keys, tokenizer.ggml.pre always there


@dataclass
class Source:
    """The tensors of one model where they lie.

    ternary: {name: TernarySource}. floats: {name: Tensor} of norms, embedding and head.
    files: the mapped files, each with path and data. changed_by: paths whose change changes it.
    prompts: {name: text} an embedding model puts in front of texts, {"query": "Instruct: ..."}.
    """

    path: Path
    config: ModelConfig
    tokenizer_source: TokenizerSource
    ternary: dict[str, TernarySource]
    floats: dict[str, Tensor]
    files: list
    changed_by: list[Path]
    layout: str = "128x32"
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def family(self):
        return FAMILIES[self.config.family]

    def vector(self, name):
        """A norm's weight as it is applied, float32 (n,); FormatError if not finite."""
        tensor = self.floats[name]
        values = dequantize(tensor.type, tensor.data.reshape(1, -1), *tensor.shape)[0]
        if not np.isfinite(values).all():
            raise FormatError(tensor.path, tensor.name, "NaN or infinite", "finite weights")
        if self.config.norms_are_offsets and not name.endswith("_proj.norm"):
            values = np.float32(1) + values
        return np.require(values, requirements=["C", "A"])  # safetensors aligns nothing


def scan(path, *, layout="128x32", masters=False):
    """The Source of an HF folder or a .gguf file: headers are read, tensors are not.

    layout: how I2_S tensors lie, one of LAYOUTS. masters: the float linear layers of a folder whose
        configuration does not say so are BitNet's master weights.
    FormatError for anything wrong in the files, OSError if one cannot be opened.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: {layout!r} ({', '.join(LAYOUTS)})")
    path = Path(path)
    return _scan_folder(path, masters) if path.is_dir() else _scan_gguf(path, layout)


def is_linear(name):
    """Whether the tensor of this name is a ternary layer."""
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


# GGUF ---------------------------------------------------------------------------------------------


def _scan_gguf(path, layout):
    file = GGUFFile(path)
    found = file.tensors
    tokenizer = _gguf_tokenizer(file)
    n_embeddings = found["token_embd.weight"].shape[0] if "token_embd.weight" in found else 0
    config = ModelConfig.from_gguf(file.metadata, path, n_embeddings, "output.weight" in found)
    n_tokens = len(tokenizer.metadata.get("tokenizer.ggml.tokens", ()))
    if n_tokens > config.vocab_size:
        limit = f"at most vocab_size {config.vocab_size}"
        raise FormatError(path, "tokenizer.ggml.tokens count", n_tokens, limit)
    family, ternary, floats, used = FAMILIES[config.family], {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = family.gguf_name(name)
        used.add(f"{stem}.weight")
        types = TERNARY_TYPES if is_linear(name) else ROW_TYPES if len(shape) == 2 else FLOATS
        tensor = _check_tensor(found, f"{stem}.weight", shape, types, path)
        if is_linear(name):
            used.add(f"{stem}.scale")
            ternary[name] = _gguf_ternary(name, tensor, found.get(f"{stem}.scale"), layout)
        else:
            floats[name] = tensor
    _check_all_used(found, used, path)
    return Source(path, config, tokenizer, ternary, floats, [file], [path], layout)


def _gguf_ternary(name, tensor, companion, layout):
    """companion: a tensor of one number that multiplies the scale, or None."""
    n_rows, n_cols = tensor.shape
    stored_as = LAYOUTS[layout] if tensor.type == "I2_S" else tensor.type
    factor = np.float32(1)
    if companion is not None:
        companion = _check_tensor(
            {companion.name: companion}, companion.name, (1,), FLOATS, tensor.path
        )
        factor = _check_scale(_one_number(companion), tensor.path, companion.name)
    scale, in_place = None, None
    if tensor.type == "I2_S":
        n = len(tensor.data) - packing.I2_S_TAIL
        stored = _check_scale(tensor.data[n : n + 4].view("<f4")[0], tensor.path, tensor.name)
        scale = _check_scale(stored * factor, tensor.path, tensor.name)
        if stored_as == "I2_S" and n_cols % packing.BLOCK == 0:
            in_place = tensor.data[:n].reshape(n_rows, -1)

    def read():
        scales, chunks = packing.unpack(stored_as, tensor.data, n_rows, n_cols)
        return scales * factor, chunks

    return TernarySource(name, tensor, n_rows, n_cols, stored_as, scale is None, in_place, read)


def _gguf_tokenizer(file):
    """The tokenizer's metadata, checked, with the pre-tokenizer the official file leaves out."""
    metadata = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    model = metadata.get("tokenizer.ggml.model")
    if isinstance(model, str) and model == "gpt2":
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


def _scan_folder(folder, masters):
    config_path = member(folder, "config.json")
    if config_path is None:
        raise FormatError(folder, "config.json", "missing", "an HF model folder, or a .gguf file")
    raw = read_json(config_path)
    stored_as = hf_linears(raw, config_path)
    files, found = open_folder(folder)
    tokenizer = _hf_tokenizer(folder)
    generation = _optional_json(folder, "generation_config.json")
    end_ids = _end_of_turn_ids(tokenizer.tokenizer_config)
    prefix = "model." if "model.embed_tokens.weight" in found else ""
    has_head = "lm_head.weight" in found
    config = ModelConfig.from_hf(raw, generation, config_path, has_head, end_ids)
    if config.pooling is not None:
        config = replace(config, pooling=_hf_pooling(folder))
    family, ternary, floats, used = FAMILIES[config.family], {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = name if name == "lm_head" else prefix + family.hf_name(name)
        used.add(f"{stem}.weight")
        if not is_linear(name):
            floats[name] = _check_tensor(found, f"{stem}.weight", shape, FLOATS, folder)
        elif stored_as in ("multiply", "divide"):
            used.add(f"{stem}.weight_scale")
            packed = _check_tensor(found, f"{stem}.weight", _packed_shape(shape), ("U8",), folder)
            scale = _hf_scale(found, f"{stem}.weight_scale", stored_as, folder)
            ternary[name] = _packed(name, packed, shape, scale)
        else:
            tensor = _check_tensor(found, f"{stem}.weight", shape, FLOATS, folder)
            ternary[name] = _float_linear(name, tensor, masters or stored_as == "masters")
    if config.tie_word_embeddings:
        used.add("lm_head.weight")  # some writers store it; transformers does not read it either
    _check_all_used(found, used, folder)
    changed_by = [config_path, *(file.path for file in files)]
    prompts = _prompts(folder) if config.pooling else {}
    return Source(folder, config, tokenizer, ternary, floats, files, changed_by, prompts=prompts)


def _optional_json(folder, name):
    path = member(folder, name)
    return read_json(path) if path else {}


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
    with np.errstate(over="ignore"):  # of a scale below 3e-39: the check sees infinity
        inverse = np.float32(1) / scale
    return _check_scale(inverse, stored.path, name)


def _packed(name, tensor, shape, scale):
    packed, scales = tensor.data.reshape(tensor.shape), np.array([scale])

    def read():
        return scales, packing.codes_hf(packed, shape[0])

    return TernarySource(name, tensor, *shape, "HF packed", False, None, read)


def _float_linear(name, tensor, are_masters):
    """Master weights, to be quantised; or weights that are ternary times a scale already, whose
    mean of |w| would give a scale 0.69 times too small."""
    n_rows, n_cols = tensor.shape
    data = tensor.data.reshape(n_rows, -1)
    if _looks_ternary(dequantize(tensor.type, data[:64], n_cols)):

        def read():
            largest = packing.peak(tensor.type, data, n_cols)
            peak = _check_scale(largest, tensor.path, tensor.name)
            return np.array([peak]), packing.codes_dequantized(tensor.type, data, n_cols, peak)

        stored_as = f"{tensor.type} ternary"
    elif are_masters:

        def read():
            mean = _check_scale(
                packing.absmean(tensor.type, data, n_cols), tensor.path, tensor.name
            )
            scale = np.float32(1) / (np.float32(1) / mean)  # as transformers divides
            return np.array([scale]), packing.codes_masters(tensor.type, data, n_cols, mean)

        stored_as = f"{tensor.type} masters"
    else:
        limit = "ternary weights, or masters by a quantization_config or `bitnet convert --masters`"
        raise FormatError(tensor.path, tensor.name, "floats that are not ternary", limit)
    return TernarySource(name, tensor, n_rows, n_cols, stored_as, False, None, read)


def _looks_ternary(sample):
    """Whether every weight is about 0 or about the largest: masters are spread out between."""
    sizes = np.abs(sample)
    peak = sizes.max()
    near = packing.NEAR * peak
    return bool(peak > 0 and ((sizes <= near) | (sizes >= peak - near)).all())


def _hf_tokenizer(folder):
    """tokenizer.json stays a path; a chat template in a file of its own joins the configuration."""
    config = _optional_json(folder, "tokenizer_config.json")
    template = member(folder, "chat_template.jinja")
    if template and "chat_template" not in config:
        config["chat_template"] = read_text(template)
    tokenizer_json = member(folder, "tokenizer.json")
    pieces = None if tokenizer_json else member(folder, "tokenizer.model")
    return TokenizerSource(Path(folder), tokenizer_json, pieces, config)


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


# embedding models ---------------------------------------------------------------------------------


def _hf_pooling(folder):
    """ "last", also where the folder does not say; another one is refused."""
    path = member(folder, "config.json", inside="1_Pooling")
    if path is not None:
        stated = read_json(path)
        modes = [key for key, value in stated.items() if key.startswith("pooling_mode") and value]
        if modes != ["pooling_mode_lasttoken"]:
            shown = ", ".join(modes) or "none"
            raise FormatError(path, "pooling_mode", shown, "pooling_mode_lasttoken")
    return "last"


def _prompts(folder):
    """What config_sentence_transformers.json puts in front of queries and documents."""
    path = member(folder, "config_sentence_transformers.json")
    prompts = read_json(path).get("prompts") if path else None
    if prompts is None:
        return {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise FormatError(path, "prompts", prompts, "an object {name: text}")
    return prompts
