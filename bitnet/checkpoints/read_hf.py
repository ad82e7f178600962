"""The Checkpoint of a Hugging Face folder."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ..formats import group_scales, master_weights, ternary_layouts
from ..formats.float_blocks import dequantize, dequantize_steps
from ..formats.ggml_types import FLOAT_TYPES
from ..formats.group_scales import PLANES, GroupedMatrix, Steps
from ..formats.safetensors import member, open_folder
from ..formats.tensor import Tensor
from ..formats.ternary_layouts import Quantization
from ..formats.text_files import read_json, read_text
from ..models.architecture import Architecture
from ..models.config import (
    END_OF_TURN,
    ModelConfig,
    hf_linears,
    mlx_group_size,
    text_config,
)
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

# what names of tensors begin with, and lm_head's: of a text model, and of one inside another
_PREFIXES = (
    ("model.", ""),
    ("model.language_model.", ""),
    ("language_model.model.", "language_model."),
)
SAMPLE_ROWS = 64  # rows of a float matrix that are looked at: enough to see whether it is ternary


def read_hf(folder: Path, masters: bool) -> Checkpoint:
    """See open_checkpoint."""
    config_path = member(folder, "config.json")
    if config_path is None:
        raise FormatError(folder, "config.json", "missing", "an HF model folder, or a .gguf file")
    raw = text_config(read_json(config_path))
    files, tensors = open_folder(folder)
    linears = hf_linears(raw, config_path, tensors)
    tokenizer = _tokenizer_source(folder)
    generation = _optional_json(folder, "generation_config.json")
    end_ids = _end_of_turn_ids(tokenizer.tokenizer_config)
    config = ModelConfig.from_hf(raw, generation, config_path, tensors, end_ids)
    if config.pooling is not None:
        config = replace(config, pooling=_pooling(folder))
    prefix, head_prefix = _prefixes(tensors)
    tensors, is_sanitized = _flat_convolutions(config, prefix, tensors)
    if is_sanitized:
        config = replace(config, norms_are_offsets=False)
    ternary, floats, used = {}, {}, set()
    for name, shape in config.tensor_shapes().items():
        stem = head_prefix + name if name == "lm_head" else prefix + config.arch.hf_name(name)
        full_name = stem + config.arch.suffix(name, "hf")
        used.add(full_name)
        is_linear = config.arch.is_linear(name)
        if f"{stem}.scales" in tensors or (linears == "mlx" and is_linear):
            used |= {f"{stem}.scales", f"{stem}.biases"}
            if linears != "mlx":
                limit = "an object {group_size, bits}, as there are scales of MLX"
                raise FormatError(config_path, "quantization", "missing", limit)
            ternary[name] = _mlx(name, stem, shape, mlx_group_size(raw, config_path), tensors)
        elif not is_linear:
            floats[name] = check_tensor(tensors, full_name, shape, FLOAT_TYPES, folder)
        elif linears in ("multiply", "divide"):
            used.add(f"{stem}.weight_scale")
            packed_shape = -(-shape[0] // 4), shape[1]
            weight = check_tensor(tensors, f"{stem}.weight", packed_shape, ("U8",), folder)
            scale = _packed_scale(tensors, f"{stem}.weight_scale", linears, folder)
            ternary[name] = _packed(name, weight, shape, scale)
        else:
            weight = check_tensor(tensors, f"{stem}.weight", shape, FLOAT_TYPES, folder)
            ternary[name] = _float_linear(
                name, weight, masters or linears == "masters", config.arch
            )
    if linears == "floats":
        _take_ternary_tables(config, ternary, floats)
    if config.tie_word_embeddings:
        # some writers store it; transformers does not read it either
        used |= {f"{head_prefix}lm_head.{part}" for part in ("weight", "scales", "biases")}
    check_all_used(tensors, used, folder, config.arch.ignored)
    changed_by = [config_path, *(file.path for file in files)]
    prompts = _prompts(folder) if config.pooling else {}
    return Checkpoint(
        folder, config, tokenizer, ternary, floats, files, changed_by, prompts=prompts
    )


def _prefixes(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """What stands in front of the names of tensors, and in front of lm_head's."""
    for prefix, head_prefix in _PREFIXES:
        if f"{prefix}embed_tokens.weight" in tensors:
            return prefix, head_prefix
    return "", ""


def _flat_convolutions(
    config: ModelConfig, prefix: str, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], bool]:
    """The tensors, those of convolutions as (channels, taps); and whether they are MLX's, which
    has an axis of one at the end instead of in the middle, and norms that are no offsets."""
    if config.delta_net is None:
        return tensors, False
    flat, kinds = dict(tensors), set()
    for name in config.tensor_shapes():
        stem = f"{prefix}{config.arch.hf_name(name)}.weight"
        if not name.endswith("conv1d") or stem not in tensors:
            continue
        shape = n_channels, n_taps = config.delta_net.n_channels, config.delta_net.n_taps
        tensor = tensors[stem]
        expected = (n_channels, 1, n_taps), (n_channels, n_taps, 1)
        if tensor.shape not in expected:
            limit = f"the configuration needs {expected[0]}"
            raise FormatError(tensor.path, f"{stem} shape", tensor.shape, limit)
        kinds.add(tensor.shape == expected[1])
        flat[stem] = replace(tensor, shape=shape)
    if len(kinds) > 1:
        raise FormatError(config.architecture, "conv1d", "in two orders of axes", "one")
    return flat, kinds == {True}


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


def _mlx(
    name: str, stem: str, shape: tuple[int, int], group: int, tensors: Mapping[str, Tensor]
) -> TernaryTensor:
    """Codes of two bits in whole numbers of 32, which are PQ2_0's bytes, and a scale and a bias for
    each group: scale * code + bias."""
    folder = next(iter(tensors.values())).path.parent
    n_rows, n_cols = shape
    if n_cols % group:
        raise FormatError(folder, f"{stem} columns", n_cols, f"a multiple of group_size {group}")
    weight = check_tensor(tensors, f"{stem}.weight", (n_rows, n_cols // 16), ("U32",), folder)
    scales, biases = (
        check_tensor(tensors, f"{stem}.{part}", (n_rows, n_cols // group), ("F16",), folder)
        for part in ("scales", "biases")
    )
    planes = (tensor.data.reshape(n_rows, -1) for tensor in (scales, biases))
    grouped = GroupedMatrix(PLANES, weight.rows(), *shape, weight.path, weight.name, *planes)
    return TernaryTensor(
        name, weight, *shape, f"MLX of {group}", True, None, _no_rows, Quantization(group), grouped
    )


def _no_rows() -> tuple[np.ndarray, Codes]:
    raise ValueError("group scales, limit: one scale for a row")


def _float_linear(
    name: str, tensor: Tensor, are_masters: bool, arch: Architecture
) -> TernaryTensor:
    """Master weights, to be quantised; or weights that are ternary times a scale already, whose
    mean of |w| would give a scale 0.69 times too small: times one scale, or times one a group."""
    n_rows, n_cols = tensor.shape
    is_ternary = not arch.rounds_by_group and master_weights.look_ternary(
        dequantize(tensor.type, tensor.rows()[:SAMPLE_ROWS], n_cols)
    )
    by_group = None
    if arch.rounds_by_group or (arch.may_have_group_scales and not are_masters):
        by_group = _float_groups(name, tensor)
    if is_ternary:
        unpack, stored_as = _codes_of_ternary, f"{tensor.type} ternary"
    elif by_group:
        return by_group[0]
    elif are_masters:
        unpack, stored_as = _codes_of_masters, f"{tensor.type} masters"
    else:
        limit = "ternary weights, or masters by a quantization_config or `bitnet convert --masters`"
        raise FormatError(tensor.path, tensor.name, "floats that are not ternary", limit)
    return TernaryTensor(
        name, tensor, n_rows, n_cols, stored_as, False, None, lambda: unpack(tensor),
        unpack_groups=by_group[0].unpack_groups if by_group else None,
    )  # fmt: skip


def _float_groups(name: str, tensor: Tensor) -> tuple[TernaryTensor, int] | None:
    """(the tensor as one whose groups of columns are each 0 or +-d exactly, rows of a sample that
    are not so); None where most rows are not. Every row is looked at when it is read."""
    rows, (n_rows, n_cols) = tensor.rows(), tensor.shape
    sample = rows[np.linspace(0, len(rows) - 1, min(SAMPLE_ROWS, len(rows))).astype(int)]
    found = group_scales.group_of(dequantize(tensor.type, sample, n_cols))
    if found is None:
        return None
    group, n_odd = found

    def steps() -> Steps:
        row = 0
        for values in dequantize_steps(tensor.type, rows, n_cols):
            yield group_scales.split_floats(values, group, row)
            row += len(values)

    stored_as, groups = f"{tensor.type} groups of {group}", Quantization(group)
    ternary = TernaryTensor(
        name, tensor, n_rows, n_cols, stored_as, True, None, _no_rows, groups, unpack_groups=steps
    )
    return ternary, n_odd


def _take_ternary_tables(
    config: ModelConfig, ternary: dict[str, TernaryTensor], floats: dict[str, Tensor]
) -> None:
    """Move embedding and head to the ternary tensors where they are such, in a model whose groups
    of columns have scales."""
    if not any(t.quantization.weight_group for t in ternary.values()):
        return
    for name in ("embed_tokens", "lm_head"):
        found = name in floats and _float_groups(name, floats[name])
        if found and not found[1]:
            ternary[name] = found[0]
            del floats[name]


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
