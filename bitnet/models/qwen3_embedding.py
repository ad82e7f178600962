"""Qwen3 with a norm in front of every ternary projection: microsoft/bitnet-embedding-0.6b.

An embedding model: the final norm of the last token, L2-normalised, is the embedding of a text.
"""

from ..compute import ops
from . import qwen3
from .architecture import BLOCK_ARRAYS, GGUF_NAMES, LINEARS, POOLING_TYPES, Architecture


class Block:
    """As qwen3.Block, with q, k, v and gate, up each normed by itself before it is quantised."""

    def __init__(self, bind):
        config = bind.config
        self.layer, self.act, self.window = bind.layer, config.hidden_act, bind.window
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.rope = bind.rope()
        q_width, kv_width = self.n_heads * config.head_dim, self.n_kv_heads * config.head_dim
        norm, linear = bind.norm, bind.linear
        self.input_layernorm = norm("input_layernorm")
        self.qkv = [
            (norm(f"self_attn.{name}.norm"), linear(f"self_attn.{name}"), column)
            for name, column in (
                ("q_proj", 0), ("k_proj", q_width), ("v_proj", q_width + kv_width))
        ]  # fmt: skip
        self.q_norm = norm("self_attn.q_norm", scale=bind.query_scale)
        self.k_norm = norm("self_attn.k_norm")
        self.o_norm, self.o_proj = norm("self_attn.o_proj.norm"), linear("self_attn.o_proj")
        self.pre_mlp_norm = norm(self.PRE_MLP_NORM)
        self.gate_up = [
            (norm(f"mlp.{name}.norm"), linear(f"mlp.{name}"), column)
            for name, column in (("gate_proj", 0), ("up_proj", config.intermediate_size))
        ]
        self.down_norm, self.down_proj = norm("mlp.down_proj.norm"), linear("mlp.down_proj")

    PRE_MLP_NORM = "post_attention_layernorm"

    def __call__(self, s, batch):
        self.attention(s, batch)
        self.add_projection(s, batch, self.o_proj)
        self.feed_forward(s, batch)
        self.add_projection(s, batch, self.down_proj)

    def attention(self, s, batch):
        """s.codes = the quantised input of o_proj."""
        ops.rms_norm(s.normed, self.input_layernorm, s.hidden, batch)  # (n, hidden)
        self.project(s.qkv, self.qkv, s, batch)  # (n, (H + 2 Hkv) D)
        ops.head_norm(s.qkv, self.q_norm, 0, self.n_heads, batch)
        ops.head_norm(s.qkv, self.k_norm, self.n_heads, self.n_kv_heads, batch)
        ops.rope(s.qkv, self.rope, self.n_heads + self.n_kv_heads, batch)
        ops.store_kv(s.qkv, self.layer, batch)
        ops.attention(s.attended, s.qkv, self.layer, self.rope, batch, window=self.window)
        ops.rms_norm(s.attended, self.o_norm, s.attended, batch)  # (n, H D)
        ops.quantize(s.codes, s.attended, batch)

    def feed_forward(self, s, batch):
        """s.codes = the quantised input of down_proj."""
        ops.rms_norm(s.normed, self.pre_mlp_norm, s.hidden, batch)
        self.project(s.gate_up, self.gate_up, s, batch)  # (n, 2 ffn)
        ops.gated_activation(s.gated, s.gate_up, self.act, batch)  # (n, ffn)
        ops.rms_norm(s.gated, self.down_norm, s.gated, batch)
        ops.quantize(s.codes, s.gated, batch)

    def project(self, out, projections, s, batch):
        """Several projections of s.normed, side by side in out."""
        for norm, linear, column in projections:
            ops.rms_norm(s.projected, norm, s.normed, batch)
            ops.quantize(s.codes, s.projected, batch)
            ops.linear(out, linear, s.codes, batch, column=column)

    def add_projection(self, s, batch, linear):
        """hidden += linear(codes)"""
        ops.linear(s.hidden, linear, s.codes, batch, add=True)


NORMS = qwen3.NORMS | {f"{linear}.norm": inputs for linear, (_, inputs) in LINEARS.items()}
ARRAYS = BLOCK_ARRAYS | {"projected": ("hidden",)}  # the input of a projection, normed by its own
NORMS_IN_GGUF = qwen3.NORMS_IN_GGUF | {
    f"{linear}.norm": f"{GGUF_NAMES[linear]}_norm_in" for linear in LINEARS
}


def gguf_pooling(fields):
    """The pooling that a GGUF states: it must be "last", which is the only one supported."""
    stated = fields.plain("pooling_type", "missing")
    if POOLING_TYPES.get(stated) != "last":
        shown = POOLING_TYPES.get(stated, stated)
        raise fields.error("pooling_type", shown, "3, the last token; others are not supported")
    return {"pooling": "last"}


QWEN3_EMBEDDING = Architecture(
    name="qwen3_embedding",
    block=Block,
    norms=NORMS,
    block_arrays=ARRAYS,
    model_types=("qwen3",),
    gguf_architectures=("qwen3",),
    gguf_names=NORMS_IN_GGUF,
    hf_class="Qwen3Model",
    float_linears="masters",
    distinct_tensors=("_norm_in.weight", "_proj.norm.weight"),
    from_hf=lambda fields: {"pooling": "last"},
    from_gguf=gguf_pooling,
)
