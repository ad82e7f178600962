"""The Checkpoint of a Hugging Face folder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ..formats import master_weights, ternary_layouts
from ..formats.float_blocks import dequantize
from ..formats.ggml_types import FLOAT_TYPES
from ..formats.safetensors import member, open_folder
from ..formats.tensor import Tensor
from ..formats.text_files import read_json, read_text
from ..models.config import END_OF_TURN, ModelConfig, hf_linears
from ..text.vocabulary import TokenizerSource
from .checkpoint import (
    Checkpoint,
    Codes,
    TernaryTensor,
    check_all_used,
    check_scale,
    check_tensor,
    stored_scale,
)

SAMPLE_ROWS = 64  # rows of a float matrix that are looked at: enough to see whether it is ternary


def read_hf(folder: Path, masters: bool) -> Checkpoint:
    """See open_checkpoint."""
    config_path = member(folder, "config.json")
    if config_path is None:
        raise FormatError(folder, "config.json", "missing", "an HF model folder, or a .gguf file")
    raw = read_json(config_path)
    files, tensors = open_folder(folder)
    linears = hf_linears(raw, config_path, tensors)
    tokenizer = _tokenizer_source(folder)
    generation = _optional_json(folder, "generation_config.json")
    end_ids = _end_of_turn_ids(tokenizer.tokenizer_config)
    config = ModelConfig.from_hf(raw, generation, config_path, tensors, end_ids)
    if config.pooling is not None:
        config = replace(config, pooling=_pooling(folder))
    prefix = "model." if "model.embed_tokens.weight" in tensors else ""
    ternary, floats, used = {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = name if name == "lm_head" else prefix + config.arch.hf_name(name)
        used.add(f"{stem}.weight")
        if not config.arch.is_linear(name):
            floats[name] = check_tensor(tensors, f"{stem}.weight", shape, FLOAT_TYPES, folder)
        elif linears in ("multiply", "divide"):
            used.add(f"{stem}.weight_scale")
            packed_shape = -(-shape[0] // 4), shape[1]
            weight = check_tensor(tensors, f"{stem}.weight", packed_shape, ("U8",), folder)
            scale = _packed_scale(tensors, f"{stem}.weight_scale", linears, folder)
            ternary[name] = _packed(name, weight, shape, scale)
        else:
            weight = check_tensor(tensors, f"{stem}.weight", shape, FLOAT_TYPES, folder)
            ternary[name] = _float_linear(name, weight, masters or linears == "masters")
    if config.tie_word_embeddings:
        used.add("lm_head.weight")  # some writers store it; transformers does not read it either
    check_all_used(tensors, used, folder)
    changed_by = [config_path, *(file.path for file in files)]
    prompts = _prompts(folder) if config.pooling else {}
    return Checkpoint(
        folder, config, tokenizer, ternary, floats, files, changed_by, prompts=prompts
    )


# linear layers ------------------------------------------------------------------------------------


def _packed_scale(
    tensors: Mapping[str, Tensor], name: str, linears: str, folder: Path
) -> np.float32:
    """The scale beside a packed tensor, inverted where the file means it as a divisor."""
    shape = () if name in tensors and tensors[name].shape == () else (1,)
    scale = stored_scale(tensors, name, shape, folder)
    if linears == "multiply":
        return scale
    with np.errstate(over="ignore"):  # a scale below 3e-39 gives infinity, which the check refuses
        inverse = np.float32(1) / scale
    return check_scale(inverse, tensors[name])


def _packed(name: str, tensor: Tensor, shape: tuple[int, int], scale: np.float32) -> TernaryTensor:
    packed, scales = tensor.data.reshape(tensor.shape), np.array([[scale]])

    def unpack() -> tuple[np.ndarray, Codes]:
        return scales, ternary_layouts.codes_hf(packed, shape[0])

    return TernaryTensor(name, tensor, *shape, "HF packed", False, None, unpack)


def _float_linear(name: str, tensor: Tensor, are_masters: bool) -> TernaryTensor:
    """Master weights, to be quantised; or weights that are ternary times a scale already, whose
    mean of |w| would give a scale 0.69 times too small."""
    n_rows, n_cols = tensor.shape
    if master_weights.look_ternary(dequantize(tensor.type, tensor.rows()[:SAMPLE_ROWS], n_cols)):
        unpack, stored_as = _codes_of_ternary, f"{tensor.type} ternary"
    elif are_masters:
        unpack, stored_as = _codes_of_masters, f"{tensor.type} masters"
    else:
        limit = "ternary weights, or masters by a quantization_config or `bitnet convert --masters`"
        raise FormatError(tensor.path, tensor.name, "floats that are not ternary", limit)
    return TernaryTensor(
        name, tensor, n_rows, n_cols, stored_as, False, None, lambda: unpack(tensor)
    )


def _codes_of_ternary(tensor: Tensor) -> tuple[np.ndarray, Codes]:
    weights = tensor.type, tensor.rows(), tensor.shape[1]
    peak = check_scale(master_weights.peak(*weights), tensor)
    return np.array([[peak]]), master_weights.codes_dequantized(*weights, peak)


def _codes_of_masters(tensor: Tensor) -> tuple[np.ndarray, Codes]:
    weights = tensor.type, tensor.rows(), tensor.shape[1]
    mean = check_scale(master_weights.absmean(*weights), tensor)
    scale = np.float32(1) / (np.float32(1) / mean)  # as transformers divides
    return np.array([[scale]]), master_weights.codes_masters(*weights, mean)


# beside the weights -------------------------------------------------------------------------------


def _optional_json(folder: Path, name: str) -> dict[str, Any]:
    path = member(folder, name)
    return read_json(path) if path else {}


def _tokenizer_source(folder: Path) -> TokenizerSource:
    """tokenizer.json stays a path; a chat template in a file of its own joins the configuration, in
    place of one that is there: transformers writes the file and no longer that field."""
    config = _optional_json(folder, "tokenizer_config.json")
    template = member(folder, "chat_template.jinja")
    if template:
        config["chat_template"] = read_text(template)
    tokenizer_json = member(folder, "tokenizer.json")
    sentencepiece = None if tokenizer_json else member(folder, "tokenizer.model")
    return TokenizerSource(Path(folder), tokenizer_json, sentencepiece, config)


def _end_of_turn_ids(tokenizer_config: dict[str, Any]) -> list[int]:
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


def _pooling(folder: Path) -> str:
    """ "last", also where the folder does not say; another one is refused."""
    path = member(folder, "config.json", inside="1_Pooling")
    if path is not None:
        stated = read_json(path)
        modes = [key for key, value in stated.items() if key.startswith("pooling_mode") and value]
        if modes != ["pooling_mode_lasttoken"]:
            shown = ", ".join(modes) or "none"
            raise FormatError(path, "pooling_mode", shown, "pooling_mode_lasttoken")
    return "last"


def _prompts(folder: Path) -> dict[str, str]:
    """What config_sentence_transformers.json puts in front of queries and documents."""
    path = member(folder, "config_sentence_transformers.json")
    prompts = read_json(path).get("prompts") if path else None
    if path is None or prompts is None:
        return {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise FormatError(path, "prompts", prompts, "an object {name: text}")
    return prompts
