"""What the files of a model say of themselves, for a report: no weights, no paths.

Also of files that cannot be used, as long as their headers can be read.
"""

import hashlib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.model_files import CONFIG, model_at
from ..checkpoints.open_checkpoint import open_checkpoint
from ..errors import FormatError
from ..formats.gguf_parts import open_gguf
from ..formats.mapped_file import check_map
from ..formats.safetensors import member, open_folder
from ..formats.tensor import Tensor
from ..formats.text_files import read_json, read_text
from ..progress import Progress, silent
from ..runtime.float_mode import in_ieee_mode
from ..text.vocabulary.from_hf import template_of
from ..text.vocabulary.vocabulary import TEMPLATE_KEY
from ..version import VERSION
from . import sampled_weights
from .layer_check import first_layer

# GGUF keys that are shown: all others may hold names, addresses and paths of whoever made a file
_KEYS = re.compile(
    r"general\.(architecture|type|name|basename|size_label|file_type|quantization_version|alignment"
    r"|sampling\..*)|split\..*|prism\..*|oxibonsai\..*|tokenizer\.ggml\.(model|pre|add_.*)"
)
_TOKENS = ("bos", "eos", "eot", "eom", "padding", "unknown", "seperator")
# of the JSON files of a folder
_CONFIG_KEYS = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "hidden_act",
    "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "tie_word_embeddings", "attention_bias", "use_sliding_window", "sliding_window", "torch_dtype",
    "dtype", "quantization", "quantization_config", "bos_token_id", "eos_token_id",
)  # fmt: skip
_GENERATION_KEYS = (
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p",
)  # fmt: skip
_TOKENIZER_KEYS = (
    "tokenizer_class", "add_bos_token", "add_eos_token", "bos_token", "eos_token", "pad_token",
)  # fmt: skip
_PATH = re.compile(r"/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]")  # how a path begins
MAX_SHOWN = 120  # characters of a text
MAX_VALUES = 8  # of an array


@in_ieee_mode
def file_report(path: str | os.PathLike[str], progress: Progress = silent) -> dict[str, Any]:
    """A JSON-ready dict of a .gguf file or a Hugging Face folder.

    progress: is told tensors that were sampled, see bitnet/progress.py. FormatError where not even
    headers can be read, OSError.
    """
    path = model_at(Path(path))
    if path.is_dir():
        files, tensors = open_folder(path)
        header = _folder_header(path)
    else:
        ggufs, tensors = open_gguf(path)
        files, header = list(ggufs), _gguf_header(ggufs[0].metadata, tensors)
    facts = {
        "version": VERSION,
        **header,
        "files": [{"bytes": len(f.data), "tensors": len(f.tensors)} for f in files],
        "types": _types(tensors),
        "tables": _tables(tensors),
        **_use(path),
        "sampled_rows": 2 * sampled_weights.END_ROWS,
        "samples": sampled_weights.samples(tensors, header["mlx_group"], progress),
    }
    for file in files:
        check_map(file.data, file.path)
    return facts


def _use(path: Path) -> dict[str, Any]:
    """The family that it is read as, its RoPE scaling and the check of its first layer, or why it
    is refused."""
    try:
        checkpoint = open_checkpoint(path)
        config, layer = checkpoint.config, first_layer(checkpoint)
    except FormatError as error:
        reason = str(error).removeprefix(f"{error.path}: ")
        for folder in {path.parent, path, path.resolve().parent, path.resolve()}:
            reason = reason.replace(f"{folder}{os.sep}", "")
        nothing = dict.fromkeys(("family", "rope_scaling", "eos_token_ids", "first_layer"))
        return nothing | {"refused": reason}
    scaling = config.rope_scaling
    return {
        "family": config.family,
        "refused": None,
        "rope_scaling": scaling and str(scaling),
        "eos_token_ids": list(config.eos_token_ids),
        "first_layer": layer,
    }


# headers ------------------------------------------------------------------------------------------


def _gguf_header(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    arch = metadata.get("general.architecture")
    own = f"{arch}." if isinstance(arch, str) and arch else "\0"
    known = {k: v for k, v in metadata.items() if _KEYS.fullmatch(k) or k.startswith(own)}
    keys = {key[:MAX_SHOWN]: _shown(value) for key, value in known.items()}
    return {
        "container": "GGUF",
        "keys": keys,
        "tokens": _gguf_tokens(metadata),
        "n_tokens": len(metadata.get("tokenizer.ggml.tokens", ())),
        "chat_template": _template(metadata.get(TEMPLATE_KEY)),
        "mlx_group": None,
    }


def _gguf_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """{name: {id, text}} of the special tokens that are stated."""
    found: dict[str, Any] = {}
    texts = metadata.get("tokenizer.ggml.tokens", ())
    for name in _TOKENS:
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            is_known = type(token) is int and 0 <= token < len(texts)
            found[name] = {
                "id": _shown(token),
                "text": str(texts[token])[:MAX_SHOWN] if is_known else None,
            }
    return found


def _folder_header(folder: Path) -> dict[str, Any]:
    config, generation, tokenizer = (
        read_json(path) if (path := member(folder, name)) else {}
        for name in (CONFIG, "generation_config.json", "tokenizer_config.json")
    )
    keys = {}
    for file, values, names in (
        ("config", config, _CONFIG_KEYS),
        ("generation_config", generation, _GENERATION_KEYS),
        ("tokenizer_config", tokenizer, _TOKENIZER_KEYS),
    ):
        keys |= {f"{file}.{name}": _shown(values[name]) for name in names if name in values}
    template = member(folder, "chat_template.jinja")
    quantization = config.get("quantization")
    is_mlx = isinstance(quantization, dict) and quantization.get("bits") == 2
    group = quantization.get("group_size") if is_mlx else None
    return {
        "container": "safetensors",
        "keys": keys,
        "tokens": {},
        "n_tokens": None,
        "chat_template": _template(
            read_text(template) if template else template_of(tokenizer, folder)
        ),
        "mlx_group": group if type(group) is int and group > 0 else None,
    }


def _template(template: Any) -> dict[str, Any] | None:
    """The SHA-256 of a chat template's UTF-8, and its length in characters."""
    if not isinstance(template, str):
        return None
    data = template.encode("utf-8", "surrogateescape")
    return {"sha256": hashlib.sha256(data).hexdigest(), "characters": len(template)}


def _shown(value: Any) -> Any:
    """A value of a header as JSON has it: texts are short, of a path the last name, arrays by their
    length where they are long."""
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return (re.split(r"[/\\]", value)[-1] if _PATH.match(value) else value)[:MAX_SHOWN]
    if isinstance(value, dict):
        return {_shown(str(k)): _shown(v) for k, v in [*value.items()][: 2 * MAX_VALUES]}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if len(value) > MAX_VALUES:
        return f"{len(value)} values"
    return [_shown(item) for item in value]


# tensors ------------------------------------------------------------------------------------------


def _types(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """{type: how many tensors, values and bytes, and of which names}; layers are *."""
    found: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        entry = found.setdefault(tensor.type, {"tensors": 0, "values": 0, "bytes": 0, "names": []})
        entry["tensors"] += 1
        entry["values"] += math.prod(tensor.shape)
        entry["bytes"] += tensor.data.nbytes
        entry["names"].append(re.sub(r"\.\d+\.", ".*.", name, count=1)[:MAX_SHOWN])
    for entry in found.values():
        entry["names"] = sorted(set(entry["names"]))[: 8 * MAX_VALUES]
    return found


def _tables(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any] | None]:
    """Type and shape of the embedding and of the head, None of one that is not there."""
    names = {
        "embedding": ("token_embd.weight", "model.embed_tokens.weight", "embed_tokens.weight"),
        "head": ("output.weight", "lm_head.weight"),
    }
    found: dict[str, dict[str, Any] | None] = {}
    for table, known in names.items():
        tensor = next((tensors[name] for name in known if name in tensors), None)
        found[table] = tensor and {"type": tensor.type, "shape": list(tensor.shape)}
    return found
