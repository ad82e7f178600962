"""ModelConfig: what a model is, from an HF config.json or GGUF metadata, every field checked.

A new family is one entry of HF_FAMILIES or GGUF_FAMILIES. Knows no tensor data.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from .formats import FormatError

log = logging.getLogger("bitnet")

# model_type or general.architecture -> what the files do not say
HF_FAMILIES = {"bitnet": {"sub_norms": True, "rope_interleaved": False}}
GGUF_FAMILIES = {
    "bitnet-b1.58": {"sub_norms": True, "rope_interleaved": False},
    "bitnet-25": {"sub_norms": True, "rope_interleaved": False},
    "bitnet": {"sub_norms": True, "rope_interleaved": False},
}
ACTIVATIONS = ("relu2", "silu")
END_OF_TURN = "<|eot_id|>"

# field -> least and greatest value: far beyond every model known, and such that nothing derived
# from one (a position, a page of the cache, an int32 dot product) overflows or takes seconds; rows
# of fewer than 32 columns would grow more than fourfold when padded. Floats where the value is one.
LIMITS = {
    "hidden_size": (32, 1 << 16),
    "intermediate_size": (32, 1 << 18),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 1024),
    "vocab_size": (1, 1 << 21),
    "max_position_embeddings": (1, 1 << 24),
    "rms_norm_eps": (1e-12, 0.1),
    "rope_theta": (1.0, 1e12),
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 21),
    "top_p": (0.0, 1.0),
}

# field -> key of GGUF metadata, after the "<arch>."
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
    "hidden_act": "hidden_activation",
}

# The shape of bitnet-b1.58-2B-4T, by which a file of arch "bitnet" that names no activation is
# known to need relu2.
SHAPE_2B_4T = {
    "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30, "vocab_size": 128256,
}  # fmt: skip
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, its arithmetic, and the defaults its author gives for generation.

    Fields are named as in HF config.json. sub_norms: RMSNorms before o_proj and down_proj.
    rope_interleaved: RoPE turns the pairs (2j, 2j + 1) instead of (j, j + head_dim / 2).
    """

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
    sub_norms: bool
    rope_interleaved: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def from_hf(cls, config, generation, path, has_lm_head, eos_token_ids=()):
        """From the objects of config.json and generation_config.json; path is named in errors.

        has_lm_head: whether the tensors hold a head. It decides tie_word_embeddings where the file
            does not: the default of transformers (False) is wrong for the published models.
        eos_token_ids: end tokens known from elsewhere, added to those of the two files.
        """
        fields, extra = _Fields(config, path), _Fields(generation, path)
        family = fields.choice("model_type", HF_FAMILIES)
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise fields.error(key, config[key], "false; biases are not supported")
        stated = extra.token_ids("eos_token_id") + fields.token_ids("eos_token_id")
        bos_token_ids = fields.token_ids("bos_token_id") or extra.token_ids("bos_token_id")
        return cls(
            architecture=family,
            **_shape(fields),
            num_key_value_heads=fields.number("num_key_value_heads"),
            vocab_size=fields.number("vocab_size"),
            rope_theta=_hf_rope_theta(config, path),
            hidden_act=fields.choice("hidden_act", ACTIVATIONS),
            tie_word_embeddings=fields.flag("tie_word_embeddings", not has_lm_head),
            **HF_FAMILIES[family],
            bos_token_id=bos_token_ids[0] if bos_token_ids else None,
            eos_token_ids=tuple(dict.fromkeys((*stated, *eos_token_ids))),
            do_sample=extra.flag("do_sample", False),
            **{name: extra.number(name, default) for name, default in SAMPLING_DEFAULTS.items()},
        )._checked(path)

    @classmethod
    def from_gguf(cls, metadata, path, n_embeddings, has_lm_head):
        """From GGUF metadata; path is named in errors.

        n_embeddings: rows of token_embd, the vocabulary where the file does not say.
        has_lm_head: whether there is an output tensor; without one the head is tied.
        """
        arch = _Fields(metadata, path).choice("general.architecture", GGUF_FAMILIES)
        fields = _Fields(metadata, path, f"{arch}.", GGUF_KEYS)
        general = _Fields(metadata, path, "tokenizer.ggml.")
        sampling = _Fields(metadata, path, "general.sampling.", {"temperature": "temp"})
        shape = _shape(fields)
        shape["vocab_size"] = fields.number("vocab_size", n_embeddings)
        _check_gguf_rope(fields, shape["head_dim"])
        return cls(
            architecture=arch,
            **shape,
            num_key_value_heads=fields.number("num_key_value_heads", shape["num_attention_heads"]),
            rope_theta=fields.number("rope_theta"),
            hidden_act=_gguf_activation(fields, arch, shape),
            tie_word_embeddings=not has_lm_head,
            **GGUF_FAMILIES[arch],
            bos_token_id=next(iter(general.token_ids("bos_token_id")), None),
            eos_token_ids=_gguf_eos_token_ids(general),
            do_sample=sampling.get("temperature", None) is not None,
            **{name: sampling.number(name, default) for name, default in SAMPLING_DEFAULTS.items()},
        )._checked(path)

    def _checked(self, path):
        """Self, once the fields agree with each other."""
        if self.head_dim % 2:
            raise FormatError(path, "head_dim", self.head_dim, "even, for RoPE")
        if self.num_attention_heads % self.num_key_value_heads:
            limit = f"a divisor of num_attention_heads {self.num_attention_heads}"
            raise FormatError(path, "num_key_value_heads", self.num_key_value_heads, limit)
        bos = () if self.bos_token_id is None else (self.bos_token_id,)
        for field, ids in (("bos_token_id", bos), ("eos_token_id", self.eos_token_ids)):
            for token_id in ids:
                if token_id >= self.vocab_size:
                    raise FormatError(path, field, token_id, f"below vocab_size {self.vocab_size}")
        return self

    def tensor_shapes(self):
        """{name: shape} of every tensor of the model; a linear layer is (outputs, inputs)."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        block = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }
        if self.sub_norms:
            block |= {"self_attn.attn_sub_norm": (q,), "mlp.ffn_sub_norm": (ffn,)}
        shapes = {"embed_tokens": (self.vocab_size, hidden), "norm": (hidden,)}
        if not self.tie_word_embeddings:
            shapes["lm_head"] = (self.vocab_size, hidden)
        for i in range(self.num_hidden_layers):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
        return shapes


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
        kinds = (int,) if isinstance(low, int) else (int, float)
        if type(value) not in kinds or not low <= value <= high:  # NaN fails the comparison
            kind = "a whole number" if isinstance(low, int) else "a number"
            raise self.error(name, value, f"{kind} from {low} to {high}")
        return kinds[-1](value)

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


def _shape(fields):
    """The fields both kinds of file must give; head_dim may follow from two others."""
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    shape = {name: fields.number(name) for name in names}
    per_head = shape["hidden_size"] // shape["num_attention_heads"]
    return shape | {"head_dim": fields.number("head_dim", per_head)}


def _hf_rope_theta(config, path):
    """rope_theta, at the top (transformers 4) or in rope_parameters (5); scaled RoPE is refused."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise FormatError(path, "rope_type", kind, "default; scaled RoPE is not supported")
    values = config if config.get("rope_theta") is not None else rope
    return _Fields(values, path).number("rope_theta")


def _check_gguf_rope(fields, head_dim):
    for name in ("attention.value_length", "rope.dimension_count"):
        if (value := fields.get(name, head_dim)) != head_dim:
            raise fields.error(name, value, f"head_dim, {head_dim}")
    # some writers state linear scaling by a factor of 1, which is none
    kind, factor = fields.get("rope.scaling.type", "none"), fields.get("rope.scaling.factor", 1.0)
    if kind != "none" and (kind, factor) != ("linear", 1.0):
        raise fields.error("rope.scaling.type", kind, "none; scaled RoPE is not supported")


def _gguf_activation(fields, arch, shape):
    """What the file says, else what is known of the architecture: no official file says, and
    engines that guess SiLU give 2B-4T a perplexity of 99.8 instead of 17.1."""
    if fields.get("hidden_act", None) is not None:
        return fields.choice("hidden_act", ACTIVATIONS)
    is_2b_4t = all(shape[name] == value for name, value in SHAPE_2B_4T.items())
    activation = "silu" if arch == "bitnet" and not is_2b_4t else "relu2"
    key = fields.key("hidden_act")
    log.info("%s: no %s; %s by architecture and shape", fields.path, key, activation)
    return activation


def _gguf_eos_token_ids(fields):
    """Every end token: the official 2B-4T file names <|end_of_text|> alone, not <|eot_id|>."""
    ids = fields.token_ids("eos_token_id") + fields.token_ids("eot_token_id")
    tokens = fields.get("tokens", ())
    if isinstance(tokens, Sequence) and END_OF_TURN in tokens:
        ids += (tokens.index(END_OF_TURN),)
    return tuple(dict.fromkeys(ids))


def hf_linears(config, path):
    """How an HF folder of a known family stores its linear layers: "multiply" or "divide" (packed,
    and what the scale beside them does), or "masters" (floats to quantise)."""
    model = _Fields(config, path)
    model.choice("model_type", HF_FAMILIES)
    values = model.get("quantization_config")
    if not isinstance(values, dict):
        raise model.error("quantization_config", values, "an object, as a ternary model has")
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
