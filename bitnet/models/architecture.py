"""Architecture: what tells the models of one family from others, in their files and in their graph.

What reads, converts or checks a model asks its Architecture; no other room tests a family's name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..runtime.pool import Pool
from .sequence_state import SequenceState, attention_parts

# What most families have. Widths are names of ModelConfig.widths.
LINEARS = {  # ternary tensor of a block: (outputs, inputs)
    "self_attn.q_proj": ("q", "hidden"),
    "self_attn.k_proj": ("kv", "hidden"),
    "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "q"),
    "mlp.gate_proj": ("ffn", "hidden"),
    "mlp.up_proj": ("ffn", "hidden"),
    "mlp.down_proj": ("hidden", "ffn"),
}
BLOCK_NORMS = {"input_layernorm": "hidden", "post_attention_layernorm": "hidden"}
BLOCK_ARRAYS = {  # work array of a block: the widths that lie side by side in its rows
    "hidden": ("hidden",),
    "normed": ("hidden",),
    "qkv": ("q", "kv", "kv"),
    "attended": ("q",),
    "gate_up": ("ffn", "ffn"),
    "gated": ("ffn",),
}
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")  # linears whose outputs RoPE rotates
QUERY_NORM = "self_attn.q_norm"  # the norm in whose weights some files hold the query scale
GGUF_NAMES = {  # tensor: its name in a GGUF, less "blk.0."
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
POOLING_TYPES = {1: "mean", 2: "cls", 3: "last"}  # llama.cpp's numbers in <arch>.pooling_type


WEIGHT = ".weight", ".weight"  # how names of tensors end, in HF folders and in GGUF files


def _every_layer(config: Any, layer: int, name: str) -> bool:
    return True


def _any_vector(config: Any, name: str, values: np.ndarray) -> str | None:
    return None


def _none_ignored(metadata: Any) -> tuple[str, ...]:
    return ()


def _no_fields(fields: Any) -> dict[str, Any]:
    return {}


def _unchanged(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    return values


def _first_name(architecture: "Architecture", config: Any) -> str:
    return architecture.gguf_architectures[0]


@dataclass(frozen=True)
class Architecture:
    """One family. Tensors are named as in its HF checkpoints, less "model." and ".weight".

    block: the graph of one block; block(bind) binds its weights (see transformer.Binder),
        block(s, batch) runs it.
    linears: {ternary tensor of a block: (outputs, inputs)}, norms: {norm of a block: its length},
        widths being names of ModelConfig.widths.
    rows: {a matrix of a block that is floats in most files, and ternary in some: (outputs,
        inputs)}; its inputs are never rounded to 8 bits.
    vectors: {a small tensor of a block: its widths}, floats that are used as they are stored; of
        two, an array has the last axis first.
    vector_limit: (ModelConfig, one of vectors, its numbers) -> what they must be, None where they
        are.
    has_tensor: (ModelConfig, layer, tensor of a block) -> whether this layer has it.
    suffixes: {tensor: how its names end in HF folders and in GGUF files}, WEIGHT where not given.
    block_arrays: {attribute of s, an array that block works on: the widths that lie side by side in
        a row of it}. Besides them s.codes takes the quantised input of any of the linears.
    activations: what hidden_act may be; the first is that of a GGUF that does not say.
    rounds_by_group: activations were never quantised in training: they are rounded by groups of
        columns, never by one scale a token.
    distinct_tensors: of a family whose names in files are another's as well: how the names of
        tensors end, in either container, by which its files are known.

    rotates_part: whether RoPE may rotate fewer columns of a head than it has.
    may_be_rotated: whether its graph applies a Rotation.
    can_be_written: whether models of it are converted.

    In HF folders:
    ignored: how names of tensors begin that are not of the text model.
    nested_types: the model_types of a config.json that has the text model's in text_config.
    model_types: its names in config.json. hf_architectures: names in "architectures" there, for
        models whose model_type is that of another family.
    hf_names: {tensor: its name in the file} where that is not ours.
    hf_class: the class of transformers that a folder names which is written.
    float_linears: what linears are without a quantization_config: "masters", to be quantised,
        "floats", which must prove to be ternary, or None: such a folder is refused.
    linear_class: linear_class in the quantization_config of a folder that is written, if every
        scale stays the same by it: with "bitlinear" stored scales divide, as published models have
        it, else they multiply.
    norms_are_offsets: norms are stored less 1, but for those in front of projections.
    from_hf: (config._Fields) -> further fields of ModelConfig. to_hf: (ModelConfig, what every
        config.json has) -> what that of this family has.

    In GGUF files:
    ignored_in_gguf: metadata -> as ignored.
    gguf_architectures: its names in general.architecture. gguf_names: as hf_names.
    name_in_gguf: (Architecture, ModelConfig) -> general.architecture of a file that is written.
    ambiguous: the gguf_architectures under which models with several activations are published.
    interleaved_in_gguf: q and k rows are permuted for RoPE over pairs (2j, 2j + 1).
    from_gguf: as from_hf.

    may_have_group_scales: whether there are models of it whose groups of columns have scales of
        their own, and whose activations were not rounded in training.
    exported_as: the Architecture of a converted model, None: the same.
    state_parts: what its layers remember of a sequence, see sequence_state.attention_parts.
    """

    name: str
    block: type
    norms: dict[str, str]
    linears: dict[str, tuple[str, str]] = field(default_factory=LINEARS.copy)
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    vectors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vector_limit: Callable[[Any, str, np.ndarray], str | None] = _any_vector
    has_tensor: Callable[[Any, int, str], bool] = _every_layer
    suffixes: dict[str, tuple[str, str]] = field(default_factory=dict)
    block_arrays: dict[str, tuple[str, ...]] = field(default_factory=BLOCK_ARRAYS.copy)
    activations: tuple[str, ...] = ("silu",)
    rounds_by_group: bool = False
    distinct_tensors: tuple[str, ...] = ()
    rotates_part: bool = False
    may_be_rotated: bool = False
    can_be_written: bool = True
    ignored: tuple[str, ...] = ()
    nested_types: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    hf_architectures: tuple[str, ...] = ()
    hf_names: dict[str, str] = field(default_factory=dict)
    hf_class: str = ""
    float_linears: str | None = None
    linear_class: str = "autobitlinear"
    norms_are_offsets: bool = False
    from_hf: Callable[[Any], dict[str, Any]] = _no_fields
    to_hf: Callable[[Any, dict[str, Any]], dict[str, Any]] = _unchanged
    ignored_in_gguf: Callable[[Any], tuple[str, ...]] = _none_ignored
    gguf_architectures: tuple[str, ...] = ()
    gguf_names: dict[str, str] = field(default_factory=dict)
    name_in_gguf: Callable[["Architecture", Any], str] = _first_name
    ambiguous: tuple[str, ...] = ()
    interleaved_in_gguf: bool = False
    from_gguf: Callable[[Any], dict[str, Any]] = _no_fields
    may_have_group_scales: bool = False
    exported_as: "Architecture | None" = None
    state_parts: Callable[..., Any] = attention_parts

    def new_state(
        self, config: Any, pool: Pool, *, capacity: int, dtype: str, sinks: int = 0
    ) -> SequenceState:
        """An empty SequenceState, which takes memory of the pool as it is used.

        capacity: tokens that are seen at once. dtype, sinks: as of KVCache.
        """
        parts = self.state_parts(config, pool, capacity=capacity, dtype=dtype, sinks=sinks)
        return SequenceState(parts, capacity=capacity, dtype=dtype)

    def hf_name(self, tensor: str) -> str:
        """layers.0.self_attn.attn_sub_norm -> layers.0.self_attn.inner_attn_ln"""
        layer, name = split_name(tensor)
        return layer + self.hf_names.get(name, name)

    def gguf_name(self, tensor: str) -> str:
        """layers.0.self_attn.q_proj -> blk.0.attn_q"""
        layer, name = split_name(tensor)
        return layer.replace("layers.", "blk.") + (GGUF_NAMES | self.gguf_names)[name]

    def is_linear(self, tensor: str) -> bool:
        """Whether the tensor of this name is a ternary layer."""
        return split_name(tensor)[1] in self.linears

    def is_vector(self, tensor: str) -> bool:
        """Whether it is one of the small tensors that are used as they are stored."""
        return split_name(tensor)[1] in self.vectors

    def suffix(self, tensor: str, container: str) -> str:
        """How its name ends in files. container: "hf" or "gguf"."""
        return self.suffixes.get(split_name(tensor)[1], WEIGHT)[container == "gguf"]

    def is_rotated(self, tensor: str) -> bool:
        """Whether it is a linear whose rows lie in another order for the other kind of RoPE."""
        return split_name(tensor)[1] in ROTATED

    def is_query_norm(self, tensor: str) -> bool:
        """Whether it is the norm that may hold the query scale."""
        return split_name(tensor)[1] == QUERY_NORM

    def is_projection_norm(self, tensor: str) -> bool:
        """Whether it is a norm in front of one projection, which the original model has not."""
        return tensor.endswith(".norm") and self.is_linear(tensor.removesuffix(".norm"))

    def applied_norm(self, tensor: str, stored: np.ndarray, are_offsets: bool) -> np.ndarray:
        """A norm's weight as it multiplies, float32, of what a file stores.

        are_offsets: whether the file stores norms less 1, see ModelConfig.
        """
        if not are_offsets or self.is_projection_norm(tensor) or self.is_vector(tensor):
            return stored
        return np.float32(1) + stored

    def stored_norm(self, tensor: str, applied: np.ndarray, are_offsets: bool) -> np.ndarray:
        """The reverse: for |applied| < 0.5 the last bits may be lost."""
        if not are_offsets or self.is_projection_norm(tensor) or self.is_vector(tensor):
            return applied
        return applied - np.float32(1)

    def has_graph_of(self, other: "Architecture") -> bool:
        """Whether models of both compute the same from the same tensors."""
        return (
            self.block is other.block
            and self.norms == other.norms
            and self.linears == other.linears
            and self.vectors == other.vectors
        )


def split_name(tensor: str) -> tuple[str, str]:
    """layers.0.mlp.up_proj -> ("layers.0.", "mlp.up_proj")"""
    if not tensor.startswith("layers."):
        return "", tensor
    _, i, name = tensor.split(".", 2)
    return f"layers.{i}.", name
