"""The Llama graph with ternary linears, and BitNet's: the same with a norm before o_proj and
down_proj.

    bitnet    microsoft/bitnet-b1.58-2B-4T (relu2); arXiv 2504.12285
    bitnet_b1_58  1bitLLM/bitnet_b1_58-large, -xl, -3B (silu); arXiv 2402.17764
    llama     HF1BitLLM/Llama3-8B-1.58, tiiuae/Falcon3-*-1.58bit, tiiuae/Falcon-E-*
"""

from ..compute import ops
from .architecture import BLOCK_NORMS, Architecture


class Block:
    """hidden += o_proj(sub_norm(attention(qkv_proj(norm(hidden))))), then
    hidden += down_proj(sub_norm(act(gate_proj(x)) * up_proj(x))), x = norm(hidden)."""

    def __init__(self, bind):
        config = bind.config
        self.layer, self.act = bind.layer, config.hidden_act
        self.n_rotated = config.num_attention_heads + config.num_key_value_heads
        self.rope = bind.rope()
        self.input_layernorm = bind.norm("input_layernorm")
        self.qkv_proj = bind.linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.attn_sub_norm = bind.norm("self_attn.attn_sub_norm") if config.sub_norms else None
        self.o_proj = bind.linear("self_attn.o_proj")
        self.post_attention_layernorm = bind.norm("post_attention_layernorm")
        self.gate_up_proj = bind.linear("mlp.gate_proj", "mlp.up_proj")
        self.ffn_sub_norm = bind.norm("mlp.ffn_sub_norm") if config.sub_norms else None
        self.down_proj = bind.linear("mlp.down_proj")

    def __call__(self, s, batch):
        self.attention(s, batch)
        self.feed_forward(s, batch)

    def attention(self, s, batch):
        ops.rms_norm(s.normed, self.input_layernorm, s.hidden, batch)  # (n, hidden)
        ops.quantize(s.codes, s.normed, batch)
        ops.linear(s.qkv, self.qkv_proj, s.codes, batch)  # (n, (H + 2 Hkv) D)
        ops.rope(s.qkv, self.rope, self.n_rotated, batch)
        ops.store_kv(s.qkv, self.layer, batch)
        ops.attention(s.attended, s.qkv, self.layer, self.rope, batch)  # (n, H D)
        if self.attn_sub_norm:
            ops.rms_norm(s.attended, self.attn_sub_norm, s.attended, batch)
        ops.quantize(s.codes, s.attended, batch)
        ops.linear(s.hidden, self.o_proj, s.codes, batch, add=True)  # (n, hidden)

    def feed_forward(self, s, batch):
        ops.rms_norm(s.normed, self.post_attention_layernorm, s.hidden, batch)
        ops.quantize(s.codes, s.normed, batch)
        ops.linear(s.gate_up, self.gate_up_proj, s.codes, batch)  # (n, 2 ffn)
        ops.gated_activation(s.gated, s.gate_up, self.act, batch)  # (n, ffn)
        if self.ffn_sub_norm:
            ops.rms_norm(s.gated, self.ffn_sub_norm, s.gated, batch)
        ops.quantize(s.codes, s.gated, batch)
        ops.linear(s.hidden, self.down_proj, s.codes, batch, add=True)  # (n, hidden)


SUB_NORMS = {"self_attn.attn_sub_norm": "q", "mlp.ffn_sub_norm": "ffn"}
_SUB_NORMS_IN_GGUF = {
    "self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm",
}  # fmt: skip

BITNET = Architecture(
    name="bitnet",
    block=Block,
    norms=BLOCK_NORMS | SUB_NORMS,
    activations=("relu2", "silu"),
    model_types=("bitnet",),
    hf_class="BitNetForCausalLM",
    gguf_architectures=("bitnet-b1.58", "bitnet-25", "bitnet"),
    gguf_names=_SUB_NORMS_IN_GGUF,
    name_in_gguf=lambda _, config: "bitnet-b1.58" if config.hidden_act == "relu2" else "bitnet",
    ambiguous=("bitnet",),
    from_gguf=lambda fields: {"hidden_act": _gguf_activation(fields)},
)
BITNET_B1_58 = Architecture(
    name="bitnet_b1_58",
    block=Block,
    norms=BLOCK_NORMS | SUB_NORMS,
    hf_architectures=("BitnetForCausalLM",),
    hf_names={
        "self_attn.attn_sub_norm": "self_attn.inner_attn_ln",
        "mlp.ffn_sub_norm": "mlp.ffn_layernorm",
    },
    gguf_names=_SUB_NORMS_IN_GGUF,
    float_linears="masters",
    exported_as=BITNET,
)
LLAMA = Architecture(
    name="llama",
    block=Block,
    norms=BLOCK_NORMS,
    model_types=("llama",),
    hf_class="LlamaForCausalLM",
    float_linears="floats",
    linear_class="bitlinear",
    gguf_architectures=("llama",),
    interleaved_in_gguf=True,
    may_have_group_scales=True,
)

# The shape of bitnet-b1.58-2B-4T, by which a file of arch "bitnet" that names no activation is
# known to need relu2.
_SHAPE_2B_4T = {
    "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30, "vocab_size": 128256,
}  # fmt: skip


def _gguf_activation(fields):
    """hidden_act of a GGUF that does not say, by its architecture and shape. No official file says,
    and engines that guess SiLU give 2B-4T a perplexity of 99.8 instead of 17.1."""
    is_2b_4t = all(fields.get(name, None) == value for name, value in _SHAPE_2B_4T.items())
    return "silu" if fields.prefix == "bitnet." and not is_2b_4t else "relu2"
