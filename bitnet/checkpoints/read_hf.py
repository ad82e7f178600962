"""The checkpoint in a Hugging Face folder."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..formats import ternary_layouts
from ..formats.float_blocks import dequantize
from ..formats.safetensors import member, open_folder
from ..formats.text_files import read_json, read_text
from ..models.config import END_OF_TURN, ModelConfig, hf_linears
from ..models.registry import ARCHITECTURES
from .checkpoint import (
    FLOATS,
    Checkpoint,
    TernaryTensor,
    TokenizerSource,
    check_all_used,
    check_scale,
    check_tensor,
    is_linear,
    one_number,
)


def read_hf(folder, masters):
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
    family, ternary, floats, used = ARCHITECTURES[config.family], {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = name if name == "lm_head" else prefix + family.hf_name(name)
        used.add(f"{stem}.weight")
        if not is_linear(name):
            floats[name] = check_tensor(found, f"{stem}.weight", shape, FLOATS, folder)
        elif stored_as in ("multiply", "divide"):
            used.add(f"{stem}.weight_scale")
            packed = check_tensor(found, f"{stem}.weight", _packed_shape(shape), ("U8",), folder)
            scale = _hf_scale(found, f"{stem}.weight_scale", stored_as, folder)
            ternary[name] = _packed(name, packed, shape, scale)
        else:
            tensor = check_tensor(found, f"{stem}.weight", shape, FLOATS, folder)
            ternary[name] = _float_linear(name, tensor, masters or stored_as == "masters")
    if config.tie_word_embeddings:
        used.add("lm_head.weight")  # some writers store it; transformers does not read it either
    check_all_used(found, used, folder)
    changed_by = [config_path, *(file.path for file in files)]
    prompts = _prompts(folder) if config.pooling else {}
    return Checkpoint(
        folder, config, tokenizer, ternary, floats, files, changed_by, prompts=prompts
    )


def _optional_json(folder, name):
    path = member(folder, name)
    return read_json(path) if path else {}


def _packed_shape(shape):
    return -(-shape[0] // 4), shape[1]


def _hf_scale(found, name, stored_as, folder):
    """The scale beside a packed tensor, as what multiplies."""
    stored = found.get(name)
    shape = () if stored is not None and stored.shape == () else (1,)
    stored = check_tensor(found, name, shape, FLOATS, folder)
    scale = check_scale(one_number(stored), stored.path, name)
    if stored_as == "multiply":
        return scale
    with np.errstate(over="ignore"):  # of a scale below 3e-39: the check sees infinity
        inverse = np.float32(1) / scale
    return check_scale(inverse, stored.path, name)


def _packed(name, tensor, shape, scale):
    packed, scales = tensor.data.reshape(tensor.shape), np.array([scale])

    def read():
        return scales, ternary_layouts.codes_hf(packed, shape[0])

    return TernaryTensor(name, tensor, *shape, "HF packed", False, None, read)


def _float_linear(name, tensor, are_masters):
    """Master weights, to be quantised; or weights that are ternary times a scale already, whose
    mean of |w| would give a scale 0.69 times too small."""
    n_rows, n_cols = tensor.shape
    data = tensor.data.reshape(n_rows, -1)
    if _looks_ternary(dequantize(tensor.type, data[:64], n_cols)):

        def read():
            largest = ternary_layouts.peak(tensor.type, data, n_cols)
            peak = check_scale(largest, tensor.path, tensor.name)
            return np.array([peak]), ternary_layouts.codes_dequantized(
                tensor.type, data, n_cols, peak
            )

        stored_as = f"{tensor.type} ternary"
    elif are_masters:

        def read():
            mean = check_scale(
                ternary_layouts.absmean(tensor.type, data, n_cols), tensor.path, tensor.name
            )
            scale = np.float32(1) / (np.float32(1) / mean)  # as transformers divides
            return np.array([scale]), ternary_layouts.codes_masters(tensor.type, data, n_cols, mean)

        stored_as = f"{tensor.type} masters"
    else:
        limit = "ternary weights, or masters by a quantization_config or `bitnet convert --masters`"
        raise FormatError(tensor.path, tensor.name, "floats that are not ternary", limit)
    return TernaryTensor(name, tensor, n_rows, n_cols, stored_as, False, None, read)


def _looks_ternary(sample):
    """Whether every weight is about 0 or about the largest: masters are spread out between."""
    sizes = np.abs(sample)
    peak = sizes.max()
    near = ternary_layouts.NEAR * peak
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
