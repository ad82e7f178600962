"""Qwen3, causal: the Llama graph with an RMSNorm over every head of q and k: Ternary-Bonsai.

Its weights were trained ternary by groups of columns, its activations were never quantised.
"""

from ..compute import ops
from . import llama
from .architecture import BLOCK_NORMS, POOLING_TYPES, Architecture

HF_CLASS = "Qwen3ForCausalLM"
HEAD_DIM = 128  # of a config.json that does not say, as in transformers
FULL = "full_attention"  # as layer_types of config.json has it


class Block(llama.Block):
    """As llama.Block, with q = q_norm(q), k = k_norm(k) in front of RoPE, over every head."""

    def __init__(self, bind):
        super().__init__(bind)
        self.n_heads = bind.config.num_attention_heads
        self.n_kv_heads = bind.config.num_key_value_heads
        self.q_norm = bind.norm("self_attn.q_norm", scale=bind.query_scale)
        self.k_norm = bind.norm("self_attn.k_norm")

    def attention(self, s, batch):
        ops.rms_norm(s.normed, self.input_layernorm, s.hidden, batch)  # (n, hidden)
        ops.quantize(s.codes, s.normed, batch)
        ops.linear(s.qkv, self.qkv_proj, s.codes, batch)  # (n, (H + 2 Hkv) D)
        ops.head_norm(s.qkv, self.q_norm, 0, self.n_heads, batch)
        ops.head_norm(s.qkv, self.k_norm, self.n_heads, self.n_kv_heads, batch)
        ops.rope(s.qkv, self.rope, self.n_rotated, batch)
        ops.store_kv(s.qkv, self.layer, batch)
        ops.attention(s.attended, s.qkv, self.layer, self.rope, batch)  # (n, H D)
        ops.quantize(s.codes, s.attended, batch)
        ops.linear(s.hidden, self.o_proj, s.codes, batch, add=True)  # (n, hidden)


NORMS_IN_GGUF = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
NORMS = BLOCK_NORMS | dict.fromkeys(NORMS_IN_GGUF, "head")


def _from_hf(fields):
    listed = fields.get("architectures", [HF_CLASS])
    if not isinstance(listed, list) or HF_CLASS not in listed:
        limit = f"{HF_CLASS}; an embedding model needs a norm in front of every projection"
        raise fields.error("architectures", listed, limit)
    if fields.flag("use_sliding_window", False):
        limit = "false; sliding windows of this family are not supported"
        raise fields.error("use_sliding_window", True, limit)
    types = fields.get("layer_types", [])
    if not isinstance(types, list) or any(type_ != FULL for type_ in types):
        raise fields.error("layer_types", types, f"{FULL} alone")
    return {"head_dim": fields.number("head_dim", HEAD_DIM)}


def _from_gguf(fields):
    pooling = fields.plain("pooling_type", 0)
    if pooling != 0:
        shown = POOLING_TYPES.get(pooling, pooling)
        limit = "none; an embedding model needs a norm in front of every projection"
        raise fields.error("pooling_type", shown, limit)
    window, context = fields.number("sliding_window", 0), fields.number("max_position_embeddings")
    if 0 < window < context:
        limit = f"0, or the context of {context}; sliding windows of this family are not supported"
        raise fields.error("sliding_window", window, limit)
    return {}


QWEN3 = Architecture(
    name="qwen3",
    block=Block,
    norms=NORMS,
    rounds_by_group=True,
    model_types=("qwen3",),
    gguf_architectures=("qwen3",),
    gguf_names=NORMS_IN_GGUF,
    hf_class=HF_CLASS,
    float_linears="floats",
    from_hf=_from_hf,
    from_gguf=_from_gguf,
)
