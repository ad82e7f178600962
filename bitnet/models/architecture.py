"""Architecture: what tells the models of one kind from others, in their files and in their graph."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .sequence_state import SequenceState, attention_parts

LINEARS = {  # of a block: (outputs, inputs) as names of widths
    "self_attn.q_proj": ("q", "hidden"),
    "self_attn.k_proj": ("kv", "hidden"),
    "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "q"),
    "mlp.gate_proj": ("ffn", "hidden"),
    "mlp.up_proj": ("ffn", "hidden"),
    "mlp.down_proj": ("hidden", "ffn"),
}
GGUF_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _nothing(fields):
    return {}


@dataclass(frozen=True)
class Architecture:
    """One kind of model. Tensors are named as in its HF checkpoints, less "model." and ".weight".

    block: the graph of one block; block(bind) binds its weights (see model.Binder), block(s, batch)
        runs it.
    norms: {tensor of a block: its width, "hidden", "q", "ffn" or "head"}.
    hf_names, gguf_names: {tensor: its name in the file} where that is not the usual one.
    from_hf, from_gguf: (config._Fields) -> further fields of ModelConfig.
    state_parts: what its layers remember of a sequence, see sequence_state.attention_parts.
    """

    name: str
    block: type
    norms: dict[str, str]
    activations: tuple[str, ...] = ("silu",)
    model_types: tuple[str, ...] = ()  # of config.json
    hf_architectures: tuple[str, ...] = ()  # of config.json, where its model_type misleads
    gguf_architectures: tuple[str, ...] = ()
    hf_names: dict[str, str] = field(default_factory=dict)
    gguf_names: dict[str, str] = field(default_factory=dict)
    interleaved_in_gguf: bool = False  # q and k rows permuted for RoPE over pairs (2j, 2j + 1)
    always_masters: bool = False  # HF folders hold masters without a quantization_config
    from_hf: Callable = _nothing
    from_gguf: Callable = _nothing
    state_parts: Callable = attention_parts

    def new_state(self, config, pool, *, capacity, dtype, sinks=0):
        """An empty SequenceState, which takes memory of the pool as it is used.

        capacity: tokens that are seen at once. dtype, sinks: as of KVCache.
        """
        parts = self.state_parts(config, pool, capacity=capacity, dtype=dtype, sinks=sinks)
        return SequenceState(parts, capacity=capacity, dtype=dtype)

    def hf_name(self, tensor):
        """layers.0.self_attn.attn_sub_norm -> layers.0.self_attn.inner_attn_ln"""
        layer, name = _split(tensor)
        return layer + self.hf_names.get(name, name)

    def gguf_name(self, tensor):
        """layers.0.self_attn.q_proj -> blk.0.attn_q"""
        layer, name = _split(tensor)
        return layer.replace("layers.", "blk.") + (GGUF_NAMES | self.gguf_names)[name]


def _split(tensor):
    """layers.0.mlp.up_proj -> ("layers.0.", "mlp.up_proj")"""
    if not tensor.startswith("layers."):
        return "", tensor
    _, i, name = tensor.split(".", 2)
    return f"layers.{i}.", name
