"""What a converted model says of itself: GGUF metadata, or the JSON files of an HF folder.

An ExportSpec is the ModelConfig that it must read back as. Knows no tensor data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..models import rope_scaling
from ..models.architecture import POOLING_TYPES
from ..models.config import GGUF_KEYS, SAMPLING_DEFAULTS, ModelConfig

# general.file_type by the type of the ternary tensors; other engines use 40 for something else
FILE_TYPES = {"I2_S": 40, "TQ1_0": 36, "TQ2_0": 37, "Q2_0_G64": 41, "PQ2_0": 128, "PTQ1_0": 129}
SENTENCE_TRANSFORMERS = {  # class of a module -> its folder
    "Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize",
}  # fmt: skip
# fields that mean nothing where no layer slides
_SLIDING = ("sliding_window", "sliding_layers", "rope_local_theta")


@dataclass(frozen=True)
class ExportSpec:
    """config: what the result must read as, see differences(). prefix: of names of HF tensors."""

    config: ModelConfig
    prefix: str = ""


def gguf_export_spec(config: ModelConfig) -> ExportSpec:
    """The ExportSpec of a model as GGUF.

    Norms are stored as they are applied, with the query scale in those of q, as no key has it.
    """
    arch = config.arch.exported_as or config.arch
    return ExportSpec(
        replace(
            config,
            family=arch.name,
            architecture=arch.name_in_gguf(arch, config),
            rope_interleaved=arch.interleaved_in_gguf,
            norms_are_offsets=False,
            query_scale=1.0,
        )
    )


def gguf_metadata(config: ModelConfig, name: str, ternary_type: str = "I2_S") -> dict[str, Any]:
    """The general.* and <arch>.* keys of a gguf_export_spec's configuration.

    ternary_type: of the linear layers, one of FILE_TYPES.
    """
    arch, of_layers = config.architecture, any(config.sliding_layers)
    values = {
        key: getattr(config, field)
        for field, key in GGUF_KEYS.items()
        if of_layers or field not in _SLIDING
    }
    values |= {
        "vocab_size": config.vocab_size,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
    }
    if config.rope_scaling is not None:
        values |= rope_scaling.to_gguf(config.rope_scaling)
    if config.pooling is not None:
        values["pooling_type"] = next(n for n, t in POOLING_TYPES.items() if t == config.pooling)
    general = {
        "general.architecture": arch,
        "general.name": name,
        "general.file_type": FILE_TYPES[ternary_type],
        "general.quantization_version": 2,
    }
    if config.do_sample:
        keys = {"temperature": "temp"}
        general |= {
            f"general.sampling.{keys.get(field, field)}": getattr(config, field)
            for field in SAMPLING_DEFAULTS
        }
    return general | {f"{arch}.{key}": value for key, value in values.items()}


def hf_export_spec(config: ModelConfig) -> ExportSpec:
    """The ExportSpec of a model as an HF folder."""
    arch = config.arch.exported_as or config.arch
    return ExportSpec(
        replace(
            config,
            family=arch.name,
            architecture=arch.model_types[0],
            rope_interleaved=False,
            norms_are_offsets=arch.norms_are_offsets,
        ),
        prefix="" if config.pooling else "model.",
    )


def hf_files(
    config: ModelConfig,
    linear_class: str,
    prompts: Mapping[str, str],
    mlx_group: int | None = None,
) -> dict[str, bytes]:
    """{name: bytes} of the JSON files of an hf_export_spec's configuration.

    linear_class: "autobitlinear", scales multiply, or "bitlinear", they divide. mlx_group: columns
        that have one scale, in a folder for MLX, which has no class of linears.
    """
    config = _as_written(config)
    files: dict[str, Any] = {"config.json": _hf_config(config, linear_class, mlx_group)}
    if config.pooling is None:
        files["generation_config.json"] = _hf_generation(config)
    else:
        files |= _sentence_transformers(config, prompts)
    return {name: json.dumps(value, indent=2).encode() for name, value in files.items()}


def _hf_config(config: ModelConfig, linear_class: str, mlx_group: int | None) -> dict[str, Any]:
    """torch_dtype is that of the scales: transformers fails where they differ from the model's."""
    arch = config.arch
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "rope_theta", "tie_word_embeddings", "vocab_size",
    )  # fmt: skip
    values: dict[str, Any] = {"architectures": [arch.hf_class], "model_type": arch.model_types[0]}
    values |= {name: getattr(config, name) for name in names}
    values |= _token_ids(config) | {"attention_bias": False, "torch_dtype": "float32"}
    if config.rope_scaling is not None:
        values["rope_scaling"] = rope_scaling.to_hf(config.rope_scaling)
    values = arch.to_hf(config, values)
    if mlx_group is not None:
        quantization = {"group_size": mlx_group, "bits": 2, "mode": "affine"}
        return values | {"quantization": quantization, "quantization_config": quantization}
    return values | {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": "offline",
        }
    }


def _hf_generation(config: ModelConfig) -> dict[str, Any]:
    sampling: dict[str, Any] = {"do_sample": config.do_sample}
    for name, default in SAMPLING_DEFAULTS.items():
        if config.do_sample and getattr(config, name) != default:
            sampling[name] = getattr(config, name)
    return _token_ids(config) | sampling


def _token_ids(config: ModelConfig) -> dict[str, Any]:
    ids = list(config.eos_token_ids)
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ids[0] if len(ids) == 1 else ids or None,
    }


def _sentence_transformers(config: ModelConfig, prompts: Mapping[str, str]) -> dict[str, Any]:
    """The files by which sentence-transformers pools and normalises."""
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    pooling: dict[str, Any] = {"word_embedding_dimension": config.hidden_size}
    pooling |= {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(SENTENCE_TRANSFORMERS.items())
    ]
    files: dict[str, Any] = {"1_Pooling/config.json": pooling | {"include_prompt": True}}
    files["modules.json"] = modules
    if prompts:
        files["config_sentence_transformers.json"] = {"prompts": prompts}
    return files


def _as_written(config: ModelConfig) -> ModelConfig:
    """With floats of a GGUF, which are float32, as their author wrote them: 1e-05, not
    9.999999747378752e-06."""
    shortest: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and value == np.float32(value):
            shortest[field.name] = float(str(np.float32(value)))
    return replace(config, **shortest)


def differences(read: ModelConfig, meant: ModelConfig) -> list[str]:
    """The names of the fields by which a configuration means another model than it should.

    GGUF holds floats as float32, names no window where no layer has one, and no sampling where
    there is none. Tokens that end a text are not compared: a GGUF leaves out those whose text says
    so, which the tokenizer knows.
    """
    a, b = _meaning(read), _meaning(meant)
    return [name for name in a if a[name] != b[name]]


def _meaning(config: ModelConfig) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    del values["eos_token_ids"]
    if not any(config.sliding_layers):
        values |= dict.fromkeys(_SLIDING)
    if not config.do_sample:
        values |= SAMPLING_DEFAULTS
    values["rope_scaling"] = str(config.rope_scaling)
    return {k: np.float32(v) if isinstance(v, float) else v for k, v in values.items()}
