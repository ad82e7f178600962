"""Qwen3.5's text model: gated DeltaNet in most layers, gated attention in every fourth one.

Ternary-Bonsai-27B. Its weights were trained ternary by groups of columns, its activations were
never quantised. Gated DeltaNet: Yang et al. 2024, arXiv 2412.06464; a step of a head's state S is
S = S e^g; S = S + k (beta (v - S^T k))^T; o = S^T q.
"""

from typing import Any

import numpy as np

from ..compute import ops
from ..compute.grouped import GroupedLinear
from . import llama
from .architecture import BLOCK_ARRAYS, BLOCK_NORMS, LINEARS, Architecture
from .recurrent_state import PURPOSE, DeltaNetConfig, delta_net_parts

FULL, RECURRENT = "full_attention", "linear_attention"  # as layer_types of config.json has them
HEAD_DIM, FULL_EVERY, ROTATED_PART = 256, 4, 0.25  # of a config.json that does not say


class Block(llama.Block):
    """hidden += mixer(input_layernorm(hidden)), then Llama's feed-forward part."""

    def __init__(self, bind):
        self.act = bind.config.hidden_act
        is_recurrent = bind.config.delta_net.layers[bind.layer]
        self.attention = DeltaNet(bind) if is_recurrent else GatedAttention(bind)
        self.post_attention_layernorm = bind.norm("post_attention_layernorm")
        self.gate_up_proj = bind.rotated_linear("mlp.gate_proj", "mlp.up_proj")
        self.down_proj = bind.rotated_linear("mlp.down_proj")

    def feed_forward(self, s, batch):
        ops.rms_norm(s.normed, self.post_attention_layernorm, s.hidden, batch)
        self.gate_up_proj(s.gate_up, s.normed, s, batch)  # (n, 2 ffn)
        ops.gated_activation(s.gated, s.gate_up, self.act, batch)  # (n, ffn)
        self.down_proj(s.hidden, s.gated, s, batch, add=True)  # (n, hidden)


class GatedAttention:
    """Attention whose heads are multiplied with the sigmoid of a projection; RoPE over a part."""

    def __init__(self, bind):
        config = bind.config
        self.index = config.delta_net.index(bind.layer)
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope = config.head_dim, bind.rope()
        self.input_layernorm = bind.norm("input_layernorm")
        names = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
        self.qkv_proj = bind.rotated_linear(*names)
        self.q_norm = bind.norm("self_attn.q_norm", scale=bind.query_scale)
        self.k_norm = bind.norm("self_attn.k_norm")
        self.o_proj = bind.rotated_linear("self_attn.o_proj")

    def __call__(self, s, batch):
        ops.rms_norm(s.normed, self.input_layernorm, s.hidden, batch)  # (n, hidden)
        self.qkv_proj(s.gated_qkv, s.normed, s, batch)  # (n, (2 H + 2 Hkv) D)
        ops.split_queries(s.qkv, s.gated_qkv, self.n_heads, self.head_dim, batch)
        ops.head_norm(s.qkv, self.q_norm, 0, self.n_heads, batch)
        ops.head_norm(s.qkv, self.k_norm, self.n_heads, self.n_kv_heads, batch)
        ops.rope(s.qkv, self.rope, self.n_heads + self.n_kv_heads, batch, self.head_dim)
        ops.store_kv(s.qkv, self.index, batch)
        ops.attention(s.attended, s.qkv, self.index, self.rope, batch)  # (n, H D)
        ops.gate_heads(s.attended, s.gated_qkv, self.n_heads, self.head_dim, batch)
        self.o_proj(s.hidden, s.attended, s, batch, add=True)  # (n, hidden)


class DeltaNet:
    """Gated DeltaNet, token by token in prompts as in decoding: the same bits however they are cut.

    Its state, its gates and its norms are float32; what makes gates is not rounded to 8 bits.
    """

    def __init__(self, bind):
        config = bind.config
        self.net, self.shape = config.delta_net, config.delta_net.shape
        self.index = self.net.index(bind.layer)
        self.z_column = self.net.n_channels
        self.o_column = self.z_column + self.net.value_heads * self.net.value_dim
        self.input_layernorm = bind.norm("input_layernorm")
        names = "linear_attn.in_proj_qkv", "linear_attn.in_proj_z"
        self.qkv_z_proj = bind.rotated_linear(*names)
        self.alpha = bind.rows("linear_attn.in_proj_a")
        self.beta = bind.rows("linear_attn.in_proj_b")
        self.conv, self.dt = bind.vector("linear_attn.conv1d"), bind.vector("linear_attn.dt_bias")
        self.a = bind.vector("linear_attn.A_log")
        if self.net.decays_are_logs:
            np.negative(ops.exp(self.a), out=self.a)
        self.q_norm = bind.unit_norm("unit.q", self.net.key_dim**-0.5)
        self.k_norm = bind.unit_norm("unit.k", 1.0)
        self.norm = bind.norm("linear_attn.norm")
        self.out_proj = bind.rotated_linear("linear_attn.out_proj")
        self.groups_values = bind.groups_values and self.out_proj.is_rotated

    def __call__(self, s, batch):
        n_keys, n_heads = self.net.key_heads, self.net.value_heads
        states = [state.parts[PURPOSE].layer(self.index) for state in batch.states]
        taps, heads = [taps for taps, _ in states], [delta for _, delta in states]
        ops.rms_norm(s.normed, self.input_layernorm, s.hidden, batch)  # (n, hidden)
        self.project_gates(s, batch)  # first: of inputs that are not rotated
        self.qkv_z_proj(s.qkv_z_o, s.normed, s, batch)  # (n, channels + values)
        ops.causal_conv(s.convolved, s.qkv_z_o, self.conv, taps, batch)  # (n, channels)
        ops.head_norm(s.convolved, self.q_norm, 0, n_keys, batch)
        ops.head_norm(s.convolved, self.k_norm, n_keys, n_keys, batch)
        ops.delta_rule(s.qkv_z_o, self.o_column, s.convolved, s.gates, heads, self.shape, batch)
        ops.head_norm(s.qkv_z_o, self.norm, self.o_column // self.net.value_dim, n_heads, batch)
        ops.gated_activation(s.read, s.qkv_z_o, "silu", batch, self.z_column)  # (n, values)
        read = s.read
        if self.groups_values:
            ops.group_heads(s.grouped, read, n_keys, n_heads, batch)
            read = s.grouped
        self.out_proj(s.hidden, read, s, batch, add=True)  # (n, hidden)

    def project_gates(self, s, batch):
        """s.gates (n, 2 heads): decays and rates of the state."""
        if GroupedLinear in (type(self.alpha), type(self.beta)):
            ops.quantize(s.fine_codes, s.normed, batch)
        for out, rows in ((s.alpha, self.alpha), (s.beta, self.beta)):
            if isinstance(rows, GroupedLinear):
                ops.linear(out, rows, s.fine_codes, batch)
            else:
                ops.head(out, rows, s.normed, batch)
        ops.delta_gates(s.gates, s.alpha, s.beta, self.a, self.dt, batch)


# configurations -----------------------------------------------------------------------------------


def _from_hf(fields):
    n_layers, head_dim = fields.number("num_hidden_layers"), fields.number("head_dim", HEAD_DIM)
    every = fields.number("full_attention_interval", FULL_EVERY)
    types = fields.get("layer_types", [_type(i, every) for i in range(n_layers)])
    known = (FULL, RECURRENT)
    if not isinstance(types, list) or len(types) != n_layers or any(t not in known for t in types):
        raise fields.error("layer_types", types, f"{n_layers} of {', '.join(known)}")
    if not fields.flag("attn_output_gate", True):
        raise fields.error("attn_output_gate", False, "true; attention without a gate is not known")
    rope = fields.get("rope_parameters", None) or fields.get("rope_scaling", None) or {}
    part = fields.number("partial_rotary_factor", _part(rope))
    net = DeltaNetConfig(
        layers=tuple(type_ == RECURRENT for type_ in types),
        key_heads=fields.number("linear_num_key_heads"),
        value_heads=fields.number("linear_num_value_heads"),
        key_dim=fields.number("linear_key_head_dim"),
        value_dim=fields.number("linear_value_head_dim"),
        n_taps=fields.number("linear_conv_kernel_dim"),
        tiled_heads=False,
        decays_are_logs=True,
    )
    return {"head_dim": head_dim} | _checked(fields, net, int(head_dim * part), head_dim)


def _part(rope: Any) -> Any:
    """partial_rotary_factor of a set of RoPE's parameters, which has it in transformers 5."""
    return rope.get("partial_rotary_factor", ROTATED_PART) if isinstance(rope, dict) else 0.0


def _type(layer, every):
    return RECURRENT if (layer + 1) % every else FULL


def _from_gguf(fields):
    n_layers = fields.number("num_hidden_layers") - fields.number("nextn_predict_layers", 0)
    if n_layers < 1:
        raise fields.error("nextn_predict_layers", fields.get("nextn_predict_layers"), "fewer")
    every = fields.number("full_attention_interval", FULL_EVERY)
    flags = fields.get("recurrent_layers", None)
    if flags is None:
        flags = [_type(i, every) == RECURRENT for i in range(n_layers)]
    elif not isinstance(flags, np.ndarray) or flags.dtype.kind not in "biu":
        shown = flags if isinstance(flags, int | float) else type(flags).__name__
        raise fields.error("recurrent_layers", shown, "an array of flags")
    elif len(flags) not in (n_layers, fields.number("num_hidden_layers")):
        raise fields.error("recurrent_layers", len(flags), f"a flag for each of {n_layers} layers")
    head_dim = fields.number("head_dim", HEAD_DIM)
    heads, inner = fields.number("linear_num_value_heads"), fields.number("inner_size")
    if inner % heads:
        raise fields.error("inner_size", inner, f"a multiple of {heads} heads")
    net = DeltaNetConfig(
        layers=tuple(map(bool, flags[:n_layers])),
        key_heads=fields.number("linear_num_key_heads"),
        value_heads=heads,
        key_dim=fields.number("linear_key_head_dim"),
        value_dim=inner // heads,
        n_taps=fields.number("linear_conv_kernel_dim"),
        tiled_heads=True,
        decays_are_logs=False,
    )
    rotated = fields.number("rope.dimension_count", int(head_dim * ROTATED_PART))
    return {"num_hidden_layers": n_layers} | _checked(fields, net, rotated, head_dim)


def _checked(fields, net, rotary_dim, head_dim):
    """The fields of ModelConfig, once they agree with each other."""
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise fields.error("rope.dimension_count", rotary_dim, f"even, 2 to head_dim {head_dim}")
    if all(net.layers) or not any(net.layers):
        kinds = "layers of both kinds, with a state and with attention"
        raise fields.error("layer_types", f"{sum(net.layers)} of {len(net.layers)}", kinds)
    if net.value_heads % net.key_heads:
        limit = f"a multiple of {net.key_heads} key heads"
        raise fields.error("linear_num_value_heads", net.value_heads, limit)
    for name, dim, unit in (
        ("linear_key_head_dim", net.key_dim, 4), ("linear_value_head_dim", net.value_dim, 16)
    ):  # fmt: skip
        if dim % unit:
            raise fields.error(name, dim, f"a multiple of {unit}")
    if 2 * net.key_heads * net.key_dim % net.value_dim:
        limit = f"a divisor of the {2 * net.key_heads * net.key_dim} columns of queries and keys"
        raise fields.error("linear_value_head_dim", net.value_dim, limit)
    return {"rotary_dim": rotary_dim, "delta_net": net}


def _has_tensor(config, layer, name):
    """A layer has the tensors of its kind, and those that both kinds have."""
    kind = name.partition(".")[0]
    is_recurrent = config.delta_net.layers[layer]
    return kind not in ("self_attn", "linear_attn") or (kind == "linear_attn") == is_recurrent


def _vector_limit(config, name, values):
    """Decays that grow would leave no number of a state finite."""
    grows = name == "linear_attn.A_log" and not config.delta_net.decays_are_logs
    return "at most 0, it is -e^A_log" if grows and (values > 0).any() else None


_LAYER_COUNTS = "block_count", "nextn_predict_layers"


def _extra_layers(metadata):
    """How names of the tensors of layers begin that predict tokens further on."""
    n, n_extra = (metadata.get(f"qwen35.{key}", 0) for key in _LAYER_COUNTS)
    return tuple(f"blk.{i}." for i in range(n - n_extra, n))


QWEN35 = Architecture(
    name="qwen35",
    block=Block,
    norms=BLOCK_NORMS | {"self_attn.q_norm": "head", "self_attn.k_norm": "head"},
    linears=LINEARS
    | {
        "self_attn.q_proj": ("gated_q", "hidden"),
        "linear_attn.in_proj_qkv": ("channels", "hidden"),
        "linear_attn.in_proj_z": ("values", "hidden"),
        "linear_attn.out_proj": ("hidden", "values"),
    },
    rows={
        "linear_attn.in_proj_a": ("value_heads", "hidden"),
        "linear_attn.in_proj_b": ("value_heads", "hidden"),
    },
    vectors={
        "linear_attn.conv1d": ("channels", "taps"),
        "linear_attn.A_log": ("value_heads",),
        "linear_attn.dt_bias": ("value_heads",),
        "linear_attn.norm": ("value_head",),
    },
    has_tensor=_has_tensor,
    vector_limit=_vector_limit,
    suffixes={"linear_attn.A_log": ("", ""), "linear_attn.dt_bias": ("", ".bias")},
    block_arrays=BLOCK_ARRAYS
    | {
        "gated_qkv": ("gated_q", "kv", "kv"),
        "qkv_z_o": ("channels", "values", "values"),
        "convolved": ("channels",),
        "read": ("values",),
        "grouped": ("values",),
        "alpha": ("value_heads",),
        "beta": ("value_heads",),
        "gates": ("value_heads", "value_heads"),
    },
    rounds_by_group=True,
    model_types=("qwen3_5_text", "qwen3_5"),
    nested_types=("qwen3_5",),
    ignored=("mtp.", "model.mtp.", "model.visual.", "visual.", "vision_tower."),
    ignored_in_gguf=_extra_layers,
    gguf_architectures=("qwen35",),
    gguf_names={
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.out_proj": "ssm_out",
        "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.A_log": "ssm_a",
        "linear_attn.dt_bias": "ssm_dt",
        "linear_attn.norm": "ssm_norm",
    },
    hf_class="Qwen3_5ForCausalLM",
    float_linears="floats",
    norms_are_offsets=True,
    rotates_part=True,
    may_be_rotated=True,
    can_be_written=False,
    from_hf=_from_hf,
    from_gguf=_from_gguf,
    state_parts=delta_net_parts,
)
