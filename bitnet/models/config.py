"""ModelConfig: what a model is, from an HF config.json or GGUF metadata, every field checked.

What only one family has is read in the file of its graph. Knows no tensor data.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..compute.operands import MAX_LINEAR_COLS
from ..errors import FormatError
from . import rope_scaling
from .architecture import Architecture
from .recurrent_state import DeltaNetConfig
from .registry import (
    ARCHITECTURES,
    BY_GGUF_ARCHITECTURE,
    BY_HF_ARCHITECTURE,
    BY_MODEL_TYPE,
    by_tensors,
)
from .rope_scaling import RopeScaling
from .sampling_limits import SAMPLING_LIMITS

log = logging.getLogger("bitnet")

END_OF_TURN = "<|eot_id|>"

# field: (lower, upper bound). Far beyond every model known, and such that nothing computed from a
# field (a position, a page of the cache, an int32 dot product) overflows or takes seconds. Rows of
# fewer than 32 columns would grow more than fourfold when padded. Bounds are floats where values
# may be.
LIMITS = {
    "hidden_size": (32, 1 << 16),
    "intermediate_size": (32, MAX_LINEAR_COLS),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 1024),
    "vocab_size": (1, 1 << 21),
    "max_position_embeddings": (1, 1 << 24),
    "rms_norm_eps": (1e-12, 0.1),
    "rope_theta": (1.0, 1e12),
    "rope_local_theta": (1.0, 1e12),
    "rope_local_base_freq": (1.0, 1e12),
    "query_pre_attn_scalar": (1.0, 1e6),
    "sliding_window": (0, 1 << 24),
    "full_attention_interval": (1, 1000),
    "nextn_predict_layers": (0, 1000),
    "linear_num_key_heads": (1, 1024),
    "linear_num_value_heads": (1, 1024),
    "linear_key_head_dim": (4, 1024),
    "linear_value_head_dim": (16, 1024),
    "linear_conv_kernel_dim": (2, 8),
    "inner_size": (16, 1 << 20),
    "partial_rotary_factor": (0.0, 1.0),
    "rope.dimension_count": (2, 1024),
    **SAMPLING_LIMITS,
}

# field: key of GGUF metadata, after the "<arch>."
GGUF_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_theta": "rope.freq_base_swa",
    "hidden_act": "hidden_activation",
    "sliding_window": "attention.sliding_window",
    "sliding_layers": "attention.sliding_window_pattern",
}
HYBRID_GGUF_KEYS = {  # of models with layers that have a state
    "recurrent_layers": "attention.recurrent_layers",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
    "linear_key_head_dim": "ssm.state_size",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "inner_size": "ssm.inner_size",
}

SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, its arithmetic, and the defaults its author gives for generation.

    Fields are named as in HF config.json. family: a key of registry.ARCHITECTURES. architecture:
    what the file calls it, for messages.
    rope_interleaved: RoPE rotates the pairs (2j, 2j + 1) instead of (j, j + head_dim / 2).
    pooling: "last" in an embedding model, whose embedding of a text is that of its last token.
    query_scale: factor of queries, besides 1 / sqrt(head_dim). embedding_scale: factor of the rows
        of embed_tokens.
    norms_are_offsets: the file holds norms less 1, see Architecture.
    sliding_window: positions that the layers flagged in sliding_layers see, themselves included;
        they use rope_local_theta.
    rotary_dim: columns of a head that RoPE rotates, its first ones; 0 for all. delta_net: what the
        layers are that have a state instead of keys and values; None where there are none.
    """

    family: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    hidden_act: str
    tie_word_embeddings: bool
    rope_interleaved: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pooling: str | None = None
    query_scale: float = 1.0
    embedding_scale: float = 1.0
    norms_are_offsets: bool = False
    sliding_window: int = 0
    sliding_layers: tuple[bool, ...] = ()
    rope_local_theta: float = 0.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int = 0
    delta_net: DeltaNetConfig | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def from_hf(cls, config, generation, path, tensors, eos_token_ids=()):
        """From the objects of config.json and generation_config.json; path is named in errors.

        tensors: names of the tensors. Whether a head is among them decides tie_word_embeddings
            where the file does not: the default of transformers (False) is wrong for the published
            models.
        eos_token_ids: end tokens known from elsewhere, added to those of the two files.
        """
        arch = hf_architecture(config, path, tensors)
        fields, extra = _Fields(_flat_rope(config), path), _Fields(generation, path)
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise fields.error(key, config[key], "false; biases are not supported")
        stated = extra.token_ids("eos_token_id") + fields.token_ids("eos_token_id")
        bos_token_ids = fields.token_ids("bos_token_id") or extra.token_ids("bos_token_id")
        family_fields = arch.from_hf(fields)
        shape = _shape(fields, family_fields.get("head_dim"))
        has_head = any(name.endswith("lm_head.weight") for name in tensors)
        if "hidden_act" not in family_fields:
            family_fields["hidden_act"] = fields.choice("hidden_act", arch.activations)
        return cls(
            family=arch.name,
            architecture=str(config.get("model_type")),
            **{
                "num_key_value_heads": fields.number("num_key_value_heads"),
                "vocab_size": fields.number("vocab_size"),
                **_hf_rope(fields, shape["max_position_embeddings"]),
                "tie_word_embeddings": fields.flag("tie_word_embeddings", not has_head),
                "rope_interleaved": False,
                "norms_are_offsets": arch.norms_are_offsets,
            }
            | shape
            | family_fields,
            bos_token_id=bos_token_ids[0] if bos_token_ids else None,
            eos_token_ids=tuple(dict.fromkeys((*stated, *eos_token_ids))),
            do_sample=extra.flag("do_sample", False),
            **{name: extra.number(name, default) for name, default in SAMPLING_DEFAULTS.items()},
        )._checked(path)

    @classmethod
    def from_gguf(cls, metadata, path, n_embeddings, tensors):
        """From GGUF metadata; path is named in errors.

        n_embeddings: rows of token_embd, the vocabulary where the file does not say.
        tensors: names of the tensors. Without one called output the head is tied.
        """
        name = _Fields(metadata, path).choice("general.architecture", BY_GGUF_ARCHITECTURE)
        arch = by_tensors(BY_GGUF_ARCHITECTURE[name], tensors)
        fields = _Fields(metadata, path, f"{name}.", GGUF_KEYS | HYBRID_GGUF_KEYS)
        general = _Fields(metadata, path, "tokenizer.ggml.")
        sampling = _Fields(metadata, path, "general.sampling.", {"temperature": "temp"})
        shape = _shape(fields)
        _check_gguf_rope(fields, shape["head_dim"], arch)
        theta = fields.number("rope_theta")
        family_fields = arch.from_gguf(fields)
        if fields.get("hidden_act", None) is not None:
            family_fields["hidden_act"] = fields.choice("hidden_act", arch.activations)
        elif "hidden_act" in family_fields:
            key, chosen = fields.key("hidden_act"), family_fields["hidden_act"]
            log.info("%s: no %s; %s by architecture and shape", path, key, chosen)
        return cls(
            family=arch.name,
            architecture=name,
            **shape
            | {
                "num_key_value_heads": fields.number(
                    "num_key_value_heads", shape["num_attention_heads"]
                ),
                "vocab_size": fields.number("vocab_size", n_embeddings),
                "rope_theta": theta,
                "rope_scaling": rope_scaling.from_gguf(
                    fields, theta, shape["max_position_embeddings"]
                ),
                "hidden_act": arch.activations[0],
                "tie_word_embeddings": "output.weight" not in tensors,
                "rope_interleaved": arch.interleaved_in_gguf,
            }
            | family_fields,
            bos_token_id=next(iter(general.token_ids("bos_token_id")), None),
            eos_token_ids=_gguf_eos_token_ids(general),
            do_sample=sampling.get("temperature", None) is not None,
            **{key: sampling.number(key, default) for key, default in SAMPLING_DEFAULTS.items()},
        )._checked(path)

    def _checked(self, path):
        """Self, once the fields agree with each other."""
        if self.head_dim % 2:
            raise FormatError(path, "head_dim", self.head_dim, "even, for RoPE")
        if self.num_attention_heads % self.num_key_value_heads:
            limit = f"a divisor of num_attention_heads {self.num_attention_heads}"
            raise FormatError(path, "num_key_value_heads", self.num_key_value_heads, limit)
        width = self.widths()
        for name, (_, inputs) in self.arch.linears.items():
            if width[inputs] > MAX_LINEAR_COLS:
                limit = f"at most {MAX_LINEAR_COLS} columns of a linear layer"
                raise FormatError(path, name, width[inputs], limit)
        bos = () if self.bos_token_id is None else (self.bos_token_id,)
        for field, ids in (("bos_token_id", bos), ("eos_token_id", self.eos_token_ids)):
            for token_id in ids:
                if token_id >= self.vocab_size:
                    raise FormatError(path, field, token_id, f"below vocab_size {self.vocab_size}")
        return self

    @property
    def arch(self) -> Architecture:
        """What all models of the family have in common."""
        return ARCHITECTURES[self.family]

    def arithmetic(self):
        """The fields on which keys and values depend, besides the weights."""
        others = {"architecture", "eos_token_ids", "bos_token_id", "max_position_embeddings",
                  "do_sample", "norms_are_offsets", *SAMPLING_DEFAULTS}  # fmt: skip
        newer = {name for name in ("rotary_dim", "delta_net") if not getattr(self, name)}
        return {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in others | newer  # as hashed before there were such models
        }

    def widths(self):
        """{name: columns}: the widths by which an Architecture says the shapes of its tensors."""
        heads, head = self.num_attention_heads, self.head_dim
        widths = {
            "hidden": self.hidden_size, "ffn": self.intermediate_size, "head": head,
            "q": heads * head, "kv": self.num_key_value_heads * head, "gated_q": 2 * heads * head,
        }  # fmt: skip
        if (net := self.delta_net) is not None:
            widths |= {
                "channels": net.n_channels, "values": net.value_heads * net.value_dim,
                "value_heads": net.value_heads, "value_head": net.value_dim, "taps": net.n_taps,
            }  # fmt: skip
        return widths

    def tensor_shapes(self):
        """{name: shape} of every tensor of the model; a linear layer is (outputs, inputs)."""
        width, arch = self.widths(), self.arch
        block = {name: (width[n], width[k]) for name, (n, k) in (arch.linears | arch.rows).items()}
        block |= {name: (width[n],) for name, n in arch.norms.items()}
        block |= {name: tuple(width[n] for n in parts) for name, parts in arch.vectors.items()}
        embedding = (self.vocab_size, self.hidden_size)
        shapes = {"embed_tokens": embedding, "norm": (self.hidden_size,)}
        if not self.tie_word_embeddings:
            shapes["lm_head"] = embedding
        for i in range(self.num_hidden_layers):
            shapes |= {
                f"layers.{i}.{name}": shape
                for name, shape in block.items()
                if arch.has_tensor(self, i, name)
            }
        return shapes

    @property
    def sub_norms(self):
        """Whether there are RMSNorms before o_proj and down_proj, in a Llama graph."""
        return "mlp.ffn_sub_norm" in self.arch.norms


class _Fields:
    """Typed and ranged access to a mapping that comes from a file."""

    def __init__(self, values, path, prefix="", keys=None):
        self.values, self.path, self.prefix, self.keys = values, path, prefix, keys or {}

    def key(self, name):
        return self.prefix + self.keys.get(name, name)

    def get(self, name, default=...):
        value = self.values.get(self.key(name))
        if value is None:
            value = default
        if value is ...:
            raise self.error(name, "missing", "required")
        return value

    def error(self, name, value, limit):
        return FormatError(self.path, self.key(name), value, limit)

    def number(self, name, default=...):
        """A number in LIMITS[name]; whole if the limits are whole."""
        value = self.get(name, default)
        low, high = LIMITS[name]
        types = (int,) if isinstance(low, int) else (int, float)
        if type(value) not in types or not _is_within(value, low, high):
            what = "a whole number" if isinstance(low, int) else "a number"
            raise self.error(name, value, f"{what} from {low} to {high}")
        return types[-1](value)

    def plain(self, name, default=...):
        """A number, flag or text, or the default: no list."""
        value = self.get(name, default)
        if value is not default and not isinstance(value, int | float | str):
            raise self.error(name, type(value).__name__, "a number or text")
        return value

    def flag(self, name, default=...):
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def choice(self, name, options, default=...):
        value = self.get(name, default)
        if not isinstance(value, str) or value not in options:
            raise self.error(name, value, f"this version supports {', '.join(options)}")
        return value

    def token_ids(self, name):
        """A tuple of token ids, from one or a list; () if absent."""
        value = self.get(name, [])
        ids = value if isinstance(value, list) else [value]
        if len(ids) > 64 or not all(type(i) is int and i >= 0 for i in ids):
            raise self.error(name, value, "up to 64 token ids, from 0")
        return tuple(ids)


def _is_within(value, low, high):
    """Whether low <= value <= high, not NaN. In a GGUF a bound may be the float32 nearest to it."""
    return low <= value <= high or value in np.float32([low, high]).tolist()


def _shape(fields, head_dim=None):
    """The fields both kinds of file must give; head_dim may follow from two others."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    shape = {name: fields.number(name) for name in names}
    per_head = shape["hidden_size"] // shape["num_attention_heads"]
    return shape | {"head_dim": fields.number("head_dim", head_dim or per_head)}


def _flat_rope(config):
    """RoPE parameters as transformers 4 has them; 5 keeps a set for each kind of layer."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not isinstance(rope.get("full_attention"), dict):
        return config
    sliding = rope.get("sliding_attention")
    local = sliding.get("rope_theta") if isinstance(sliding, dict) else None
    return config | {"rope_parameters": rope["full_attention"], "rope_local_base_freq": local}


def text_config(config):
    """The text model's part of a config.json that describes one with images as well."""
    text, kind = config.get("text_config"), config.get("model_type")
    arch = BY_MODEL_TYPE.get(kind) if isinstance(kind, str) else None
    if arch is None or kind not in arch.nested_types or not isinstance(text, dict):
        return config
    return config | {"model_type": arch.model_types[0]} | text


def _hf_rope(fields, context):
    """rope_theta and rope_scaling: at the top (transformers 4) or in rope_parameters (5)."""
    config = fields.values
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise fields.error("rope_type", rope, "an object of RoPE's parameters")
    values = config if config.get("rope_theta") is not None else rope
    theta = _Fields(values, fields.path).number("rope_theta")
    scaling = rope_scaling.from_hf(rope, fields, theta, context)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _check_gguf_rope(fields, head_dim, arch):
    for name in ("attention.value_length", "rope.dimension_count")[: 1 if arch.rotates_part else 2]:
        if (value := fields.plain(name, head_dim)) != head_dim:
            raise fields.error(name, value, f"head_dim, {head_dim}")


def _gguf_eos_token_ids(fields):
    """Every end token: the official 2B-4T file names <|end_of_text|> alone, not <|eot_id|>."""
    ids = fields.token_ids("eos_token_id") + fields.token_ids("eot_token_id")
    tokens = fields.get("tokens", ())
    if isinstance(tokens, Sequence) and END_OF_TURN in tokens:
        ids += (tokens.index(END_OF_TURN),)
    return tuple(dict.fromkeys(ids))


def hf_architecture(config, path, tensors=()):
    """The Architecture of a folder: by architectures of its config.json, for 1bitLLM's, or by the
    model_type there and the names of its tensors."""
    listed = config.get("architectures")
    for name in listed if isinstance(listed, list) else ():
        if isinstance(name, str) and name in BY_HF_ARCHITECTURE:
            return BY_HF_ARCHITECTURE[name]
    name = _Fields(config, path).choice("model_type", BY_MODEL_TYPE)
    return by_tensors(BY_MODEL_TYPE[name], tensors)


def hf_linears(config, path, tensors):
    """How an HF folder of a known family stores its linear layers: packed, with a scale that is to
    "multiply" or "divide"; as "mlx"; or as "masters", floats to quantise, or as "floats", which
    must prove to be ternary."""
    model, arch = _Fields(config, path), hf_architecture(config, path, tensors)
    if config.get("quantization") is not None:
        mlx_group_size(config, path)
        return "mlx"
    values = config.get("quantization_config")
    if values is None and arch.float_linears:
        return arch.float_linears
    if not isinstance(values, dict):
        shown = "missing" if values is None else values
        raise model.error("quantization_config", shown, "an object, as a ternary model has")
    fields = _Fields(values, path)
    fields.choice("quant_method", ("bitnet",))
    linear_class = fields.choice("linear_class", ("bitlinear", "autobitlinear"), "bitlinear")
    mode = fields.choice("quantization_mode", ("offline", "online"), "offline")
    if fields.flag("use_rms_norm", False):
        raise fields.error("use_rms_norm", True, "false; norms in linear layers are not supported")
    kept = fields.get("modules_to_not_convert", [])
    if not isinstance(kept, list) or any(name != "lm_head" for name in kept):
        raise fields.error("modules_to_not_convert", kept, "nothing but lm_head")
    if mode == "online":
        fields.choice("linear_class", ("autobitlinear",))
        return "masters"
    return "multiply" if linear_class == "autobitlinear" else "divide"


def mlx_group_size(config, path):
    """The columns of a group in a folder that MLX wrote, its "quantization" checked."""
    model, values = _Fields(config, path), config["quantization"]
    if not isinstance(values, dict):
        raise model.error("quantization", values, "an object {group_size, bits}")
    arch = hf_architecture(config, path)
    if not (arch.may_have_group_scales or arch.rounds_by_group):
        raise model.error("quantization", values, f"none: {arch.name} has one scale for a tensor")
    fields = _Fields(values, path, "quantization.")
    for name, options in (("bits", (2,)), ("group_size", (64, 128)), ("mode", ("affine",))):
        value = values.get(name, "affine" if name == "mode" else None)
        if type(value) is not type(options[0]) or value not in options:
            raise fields.error(name, value, f"one of {', '.join(map(str, options))}")
    others = values.keys() - {"bits", "group_size", "mode"}
    if others:
        limit = "nothing but group_size, bits and mode: one kind for all layers"
        raise fields.error(sorted(others)[0], values[sorted(others)[0]], limit)
    return values["group_size"]
