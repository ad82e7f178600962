"""The Qwen3.5 fixture in its other published forms: nested in a model with images, and as MLX."""

import json
import shutil

import numpy as np
from support.paths import DATA
from support.small_files import safetensors

from bitnet.formats import gguf
from bitnet.formats.safetensors import SafetensorsFile

HF, GGUF = DATA / "groups" / "hf_qwen35_group", DATA / "groups" / "gguf_qwen35_pq2_0" / "model.gguf"
OFFSETS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")


def fixture():
    """(config, {name: (dtype, shape, bytes)}) of the HF fixture."""
    tensors = SafetensorsFile(HF / "model.safetensors").tensors
    found = {name: (t.type, t.shape, t.data.tobytes()) for name, t in tensors.items()}
    return json.loads((HF / "config.json").read_text()), found


def write(folder, config, tensors):
    """A folder with the fixture's tokenizer."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(HF / name, folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder


def nested(folder, changes=(), **text_changes):
    """As published with images: text_config, model.language_model.*, and tensors of other parts.

    changes: {name: tensor} of the file; text_changes: of text_config."""
    config, tensors = fixture()
    renamed = {
        name.replace("model.", "model.language_model.", 1): entry for name, entry in tensors.items()
    }
    renamed["model.visual.blocks.0.attn.qkv.weight"] = ("F32", (2, 2), bytes(16))
    renamed["mtp.layers.0.mlp.up_proj.weight"] = ("F32", (2, 2), bytes(16))
    renamed |= dict(changes)
    outer = {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "text_config": config | text_changes, "vision_config": {"hidden_size": 8},
        "image_token_id": 5, "tie_word_embeddings": False,
    }  # fmt: skip
    return write(folder, outer, renamed)


def bf16(data):
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


def mlx_parts(name, shape, values):
    """A matrix of d times -1, 0, 1 by groups of 128, packed."""
    groups = values.reshape(shape[0], -1, 128)
    scales = np.abs(groups).max(-1).astype("<f2")
    codes = (np.sign(groups) + 1).reshape(shape[0], -1, 16).astype(np.uint32)
    packed = (codes << (2 * np.arange(16, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    shapes = (shape[0], shape[1] // 16), (shape[0], shape[1] // 128)
    return {
        f"{name}.weight": ("U32", shapes[0], packed.tobytes()),
        f"{name}.scales": ("F16", shapes[1], scales.tobytes()),
        f"{name}.biases": ("F16", shapes[1], (-scales).tobytes()),
    }


def mlx(folder, sanitized=True):
    """As mlx-lm writes it: packed matrices, norms as 1 + w and convolutions (channels, taps, 1).

    sanitized: False for norms and convolutions as transformers has them.
    """
    config, tensors = fixture()
    made = {}
    for name, (dtype, shape, data) in tensors.items():
        stem, values = f"language_model.{name}".removesuffix(".weight"), bf16(data)
        is_offset = name == "model.norm.weight" or stem.endswith(OFFSETS)
        if len(shape) == 2 and not stem.endswith(("in_proj_a", "in_proj_b")):
            made |= mlx_parts(stem, shape, values)
        elif sanitized and stem.endswith("conv1d"):
            made[f"{stem}.weight"] = (dtype, (shape[0], shape[2], 1), data)
        elif sanitized and is_offset:
            made[f"{stem}.weight"] = ("F32", shape, (np.float32(1) + values).tobytes())
        else:
            made[f"language_model.{name}"] = (dtype, shape, data)
    packed = {"quantization": {"group_size": 128, "bits": 2}}
    return write(folder, {"model_type": "qwen3_5", "text_config": config} | packed, made)


def rewritten(path, metadata=(), tensors=(), source=GGUF):
    """A GGUF with other keys and tensors; None removes one."""
    file = gguf.GGUFFile(source)
    keys = {
        key: [*value] if type(value).__name__ == "StringArray" else value
        for key, value in (file.metadata | dict(metadata)).items()
        if value is not None
    }
    changed = {name: (t.shape, t.type, t.data) for name, t in file.tensors.items()} | dict(tensors)
    entries = [(name, *entry) for name, entry in changed.items() if entry is not None]
    gguf.write(path, keys, entries)
    return path
