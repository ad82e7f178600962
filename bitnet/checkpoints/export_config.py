"""What a converted model says of itself: GGUF metadata, or the JSON files of an HF folder.

A ExportSpec is that, and the ModelConfig it must read back as. Knows no tensor data.
"""

import json
from dataclasses import dataclass, fields, replace

import numpy as np

from ..models.config import GGUF_KEYS, SAMPLING_DEFAULTS, ModelConfig
from ..models.registry import ARCHITECTURES, BY_GGUF_ARCHITECTURE

FILE_TYPE_I2_S = 40  # general.file_type; other engines use the number for something else
POOLING_LAST = 3  # llama.cpp's number
HF_CLASSES = {  # family -> class in transformers, model_type
    "bitnet": ("BitNetForCausalLM", "bitnet"),
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen3": ("Qwen3Model", "qwen3"),
    "gemma3": ("Gemma3TextModel", "gemma3_text"),
}
SENTENCE_TRANSFORMERS = {  # module -> folder of it
    "Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize",
}  # fmt: skip
_SLIDING = ("sliding_window", "sliding_layers", "rope_local_theta")


@dataclass(frozen=True)
class ExportSpec:
    """config: what the result must read as, see differences(). prefix: of names of HF tensors."""

    config: ModelConfig
    prefix: str = ""

    @property
    def family(self):
        return ARCHITECTURES[self.config.family]


def gguf_export_spec(config):
    """The ExportSpec of a model as GGUF.

    2B-4T's architecture is "bitnet-b1.58", that of other BitNets, with SiLU, "bitnet"; llama has
    the rows of q and k in the order of interleaved RoPE. Norms are stored as they are applied, with
    the query scale in those of q, as no key has it.
    """
    arch = ARCHITECTURES[config.family].gguf_architectures
    if config.family in ("bitnet", "bitnet_b1_58"):
        arch = ["bitnet-b1.58" if config.hidden_act == "relu2" else "bitnet"]
    family = BY_GGUF_ARCHITECTURE[arch[0]]
    return ExportSpec(
        replace(
            config,
            family=family.name,
            architecture=arch[0],
            rope_interleaved=family.interleaved_in_gguf,
            norms_are_offsets=False,
            query_scale=1.0,
        )
    )


def gguf_metadata(config, name):
    """The general.* and <arch>.* keys of a gguf_export_spec's configuration."""
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
    if config.pooling is not None:
        values["pooling_type"] = POOLING_LAST
    general = {
        "general.architecture": arch,
        "general.name": name,
        "general.file_type": FILE_TYPE_I2_S,
        "general.quantization_version": 2,
    }
    if config.do_sample:
        keys = {"temperature": "temp"}
        general |= {
            f"general.sampling.{keys.get(field, field)}": getattr(config, field)
            for field in SAMPLING_DEFAULTS
        }
    return general | {f"{arch}.{key}": value for key, value in values.items()}


def hf_export_spec(config):
    """The ExportSpec of a model as an HF folder; 1bitLLM's BitNet becomes that of transformers."""
    family = "bitnet" if config.family == "bitnet_b1_58" else config.family
    return ExportSpec(
        replace(
            config,
            family=family,
            architecture=HF_CLASSES[family][1],
            rope_interleaved=False,
            norms_are_offsets=family == "gemma3",
        ),
        prefix="" if config.pooling else "model.",
    )


def hf_files(config, linear_class, prompts):
    """{name: bytes} of the JSON files of an hf_export_spec's configuration.

    linear_class: "autobitlinear", scales multiply, or "bitlinear", they divide.
    """
    files = {"config.json": _hf_config(config, linear_class)}
    if config.pooling is None:
        files["generation_config.json"] = _hf_generation(config)
    else:
        files |= _sentence_transformers(config, prompts)
    return {name: json.dumps(value, indent=2).encode() for name, value in files.items()}


def _hf_config(config, linear_class):
    """torch_dtype is that of the scales: transformers fails where they differ from the model's."""
    architecture, model_type = HF_CLASSES[config.family]
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "rope_theta", "tie_word_embeddings", "vocab_size",
    )  # fmt: skip
    values = {"architectures": [architecture], "model_type": model_type}
    values |= {name: _shortest(getattr(config, name)) for name in names}
    values |= _token_ids(config) | {"attention_bias": False, "torch_dtype": "float32"}
    if config.family == "gemma3":
        del values["hidden_act"]
        values |= _gemma3(config)
    return values | {
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": "offline",
        }
    }


def _gemma3(config):
    kinds = {True: "sliding_attention", False: "full_attention"}
    scalar = round(config.head_dim / config.query_scale**2, 6)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
        "layer_types": [kinds[flag] for flag in config.sliding_layers],
        "sliding_window": config.sliding_window,
        "rope_local_base_freq": _shortest(config.rope_local_theta),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _hf_generation(config):
    sampling = {"do_sample": config.do_sample}
    for name, default in SAMPLING_DEFAULTS.items():
        if config.do_sample and getattr(config, name) != default:
            sampling[name] = _shortest(getattr(config, name))
    return _token_ids(config) | sampling


def _token_ids(config):
    ids = list(config.eos_token_ids)
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ids[0] if len(ids) == 1 else ids or None,
    }


def _sentence_transformers(config, prompts):
    """The files by which sentence-transformers pools and normalises."""
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    pooling = {"word_embedding_dimension": config.hidden_size}
    pooling |= {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(SENTENCE_TRANSFORMERS.items())
    ]
    files = {"1_Pooling/config.json": pooling | {"include_prompt": True}, "modules.json": modules}
    if prompts:
        files["config_sentence_transformers.json"] = {"prompts": prompts}
    return files


def _shortest(value):
    """A float32 from a GGUF as its author wrote it: 1e-05, not 9.999999747378752e-06."""
    if isinstance(value, float) and value == np.float32(value):
        return float(str(np.float32(value)))
    return value


def differences(found, meant):
    """The names of the fields by which a configuration means another model than it should.

    GGUF holds floats as float32, names no window where no layer has one, and no sampling where
    there is none. It may have one more end token, by the text <|eot_id|> in its vocabulary.
    """
    a, b = _meaning(found), _meaning(meant)
    a["eos_token_ids"] &= b["eos_token_ids"]
    return [name for name in a if a[name] != b[name]]


def _meaning(config):
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values["eos_token_ids"] = frozenset(config.eos_token_ids)
    if not any(config.sliding_layers):
        values |= dict.fromkeys(_SLIDING)
    if not config.do_sample:
        values |= SAMPLING_DEFAULTS
    return {k: np.float32(v) if isinstance(v, float) else v for k, v in values.items()}
