"""Gemma 3 with a norm in front of every ternary projection: microsoft/bitnet-embedding-270m.

An embedding model, as qwen3_embedding.py. Some layers see a sliding window only, with a RoPE base
of their own. Checkpoints store their native norms less 1; a GGUF stores them as they are applied.
"""

import math

import numpy as np

from ..compute import ops
from . import qwen3_embedding
from .architecture import Architecture

# Where a file does not say, as in llama.cpp: the RoPE base of sliding layers, and after how many
# layers one has full attention.
LOCAL_ROPE_THETA = 10000.0
FULL_EVERY = 6
FULL, SLIDING = "full_attention", "sliding_attention"  # as layer_types of config.json has them


class Block(qwen3_embedding.Block):
    """As qwen3_embedding.Block, with norms behind o_proj and down_proj as well."""

    PRE_MLP_NORM = "pre_feedforward_layernorm"

    def __init__(self, bind):
        super().__init__(bind)
        self.post_norms = {
            self.o_proj: bind.norm("post_attention_layernorm"),
            self.down_proj: bind.norm("post_feedforward_layernorm"),
        }

    def add_projection(self, s, batch, linear):
        """hidden += norm(linear(codes))"""
        ops.linear(s.normed, linear, s.codes, batch)
        ops.rms_norm(s.normed, self.post_norms[linear], s.normed, batch)
        hidden, n = s.hidden.array(), batch.n_tokens
        np.add(hidden[:n], s.normed.array()[:n], out=hidden[:n])


def _from_hf(fields):
    n_layers, head_dim = fields.number("num_hidden_layers"), fields.number("head_dim", 256)
    types = fields.get("layer_types", None)
    if types is None:
        every = fields.get("sliding_window_pattern", FULL_EVERY)
        if type(every) is not int or not 1 <= every <= 1000:
            raise fields.error("sliding_window_pattern", every, "a whole number from 1 to 1000")
        types = [FULL if (i + 1) % every == 0 else SLIDING for i in range(n_layers)]
    known = (FULL, SLIDING)
    if not isinstance(types, list) or len(types) != n_layers or any(t not in known for t in types):
        raise fields.error("layer_types", types, f"{n_layers} of {', '.join(known)}")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if fields.get(name, None) is not None:
            raise fields.error(name, fields.get(name), "null; soft capping is not supported")
    return {
        "hidden_act": _activation(fields),
        "pooling": "last",
        "head_dim": head_dim,
        "query_scale": math.sqrt(head_dim / fields.number("query_pre_attn_scalar", 256)),
        "embedding_scale": float(np.sqrt(np.float32(fields.number("hidden_size")))),
        "sliding_window": fields.number("sliding_window", 4096),
        "sliding_layers": tuple(type_ == SLIDING for type_ in types),
        "rope_local_theta": fields.number("rope_local_base_freq", LOCAL_ROPE_THETA),
    }


def _to_hf(config, values):
    del values["hidden_act"]
    scalar = round(config.head_dim / config.query_scale**2, 6)
    return values | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
        "layer_types": [SLIDING if slides else FULL for slides in config.sliding_layers],
        "sliding_window": config.sliding_window,
        "rope_local_base_freq": config.rope_local_theta,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _activation(fields):
    name = "hidden_activation" if fields.get("hidden_activation", None) else "hidden_act"
    fields.choice(name, ("gelu_pytorch_tanh", "gelu"), "gelu_pytorch_tanh")
    return "gelu"


def _from_gguf(fields):
    n_layers, window = fields.number("num_hidden_layers"), fields.number("sliding_window", 0)
    pattern = fields.get("sliding_layers", None)
    if pattern is None:
        pattern = [bool(window) and (i + 1) % FULL_EVERY != 0 for i in range(n_layers)]
    elif not isinstance(pattern, np.ndarray) or pattern.dtype.kind not in "biu":
        shown = pattern if isinstance(pattern, int | float) else type(pattern).__name__
        raise fields.error("sliding_layers", shown, "an array of flags")
    elif len(pattern) != n_layers:
        raise fields.error("sliding_layers", len(pattern), f"a flag for each of {n_layers} layers")
    return {
        "hidden_act": "gelu",
        **qwen3_embedding.gguf_pooling(fields),
        "embedding_scale": float(np.sqrt(np.float32(fields.number("hidden_size")))),
        "sliding_window": fields.number("sliding_window", 0) if any(pattern) else 0,
        "sliding_layers": tuple(map(bool, pattern)),
        "rope_local_theta": fields.number("rope_local_theta", LOCAL_ROPE_THETA),
    }


GEMMA3 = Architecture(
    name="gemma3",
    block=Block,
    norms=qwen3_embedding.NORMS
    | {"pre_feedforward_layernorm": "hidden", "post_feedforward_layernorm": "hidden"},
    block_arrays=qwen3_embedding.ARRAYS,
    activations=("gelu",),
    model_types=("gemma3_text",),
    gguf_architectures=("gemma3",),
    gguf_names=qwen3_embedding.NORMS_IN_GGUF
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    hf_class="Gemma3TextModel",
    float_linears="masters",
    norms_are_offsets=True,
    from_hf=_from_hf,
    to_hf=_to_hf,
    from_gguf=_from_gguf,
)
