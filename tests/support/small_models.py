"""A tiny model of every family and tensor type, written by the formats' descriptions and not by
bitnet, to be damaged: 2 to 10 KB each, one layer, random weights."""

import json
import struct
from dataclasses import dataclass

import numpy as np
from support.small_files import (
    ARRAY,
    BOOL,
    F32,
    GGUF,
    I32,
    STRING,
    U16,
    U32,
    numbers,
    safetensors,
    strings,
    text,
)

TYPE_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "I2_S": 36,
    "Q2_0_G64": 42, "Q2_0_G128": 42, "IQ1_BN": 134, "IQ2_BN": 135, "IQ2_BN_R4": 335,
}  # fmt: skip
# type -> (weights a block, bytes, where in it the f16 scales lie)
BLOCKS = {
    "Q4_0": (32, 18, (0,)), "Q4_1": (32, 20, (0, 2)), "Q5_0": (32, 22, (0,)),
    "Q5_1": (32, 24, (0, 2)), "Q8_0": (32, 34, (0,)), "IQ4_NL": (32, 18, (0,)),
    "Q4_K": (256, 144, (0, 2)), "Q5_K": (256, 176, (0, 2)), "Q6_K": (256, 210, (208,)),
    "TQ1_0": (256, 54, (52,)), "TQ2_0": (256, 66, (64,)),
    "Q2_0_G64": (64, 18, (0,)), "Q2_0_G128": (128, 34, (0,)),
}  # fmt: skip
# bytes without a code 3; bytes of five base-3 digits; of four, the fifth being 0
NO_CODE_3 = np.array([b for b in range(256) if not b & b >> 1 & 0x55], np.uint8)
TRITS = np.array([-(-v * 256 // 243) for v in range(243)], np.uint8)


@dataclass(frozen=True)
class Shape:
    """The smallest that bitnet takes, whose head_dim is not hidden / heads."""

    hidden: int = 32
    ffn: int = 32
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 8
    vocab: int = 8

    @property
    def widths(self):
        return {
            "hidden": self.hidden, "ffn": self.ffn, "head": self.head_dim,
            "q": self.heads * self.head_dim, "kv": self.kv_heads * self.head_dim,
        }  # fmt: skip


# tensor data --------------------------------------------------------------------------------------


def tensor_bytes(type_name, n_rows, n_cols, rng, scale=0.5):
    """A random matrix, or a norm of one row, in the bytes of a type; all its scales are equal."""
    n = n_rows * n_cols
    if type_name in ("F32", "F16", "BF16"):
        values = rng.standard_normal(n).astype("<f4")
        if type_name == "BF16":
            return (values.view("<u4") >> 16).astype("<u2").tobytes()
        return values.astype("<f4" if type_name == "F32" else "<f2").tobytes()
    if type_name == "I2_S":
        return _codes(rng, n // 4).tobytes() + struct.pack("<f", scale) + b"junk" * 7
    if type_name in BLOCKS:
        return _blocks(type_name, n, rng, scale)
    return _rows_with_scales(type_name, n_rows, n_cols, rng, scale)


def _codes(rng, n_bytes):
    return rng.choice(NO_CODE_3, n_bytes)


def _blocks(type_name, n, rng, scale):
    weights, n_bytes, scales = BLOCKS[type_name]
    shape = n // weights, n_bytes
    if type_name == "TQ1_0":
        blocks = rng.choice(TRITS, shape)
        blocks[:, 48:52] = rng.choice(TRITS[::3], (len(blocks), 4))
    elif type_name.startswith(("TQ", "Q2")):
        blocks = rng.choice(NO_CODE_3, shape)
    else:
        blocks = rng.integers(0, 256, shape, dtype=np.uint8)
    for at in scales:
        blocks[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.tobytes()


def _rows_with_scales(type_name, n_rows, n_cols, rng, scale):
    if type_name == "IQ1_BN":
        rows = rng.choice(TRITS, (n_rows, n_cols // 64, 13))
        rows[:, :, 12] = rng.choice(TRITS[:81], rows.shape[:2])
        return b"".join(struct.pack("<e", scale) + row.tobytes() for row in rows)
    together = 4 if type_name == "IQ2_BN_R4" else 1
    head = struct.pack("<f", scale) * together
    rows = (_codes(rng, together * n_cols // 4).tobytes() for _ in range(n_rows // together))
    return b"".join(head + row for row in rows)


# GGUF ---------------------------------------------------------------------------------------------

LINEARS = {
    "attn_q": ("q", "hidden"), "attn_k": ("kv", "hidden"), "attn_v": ("kv", "hidden"),
    "attn_output": ("hidden", "q"), "ffn_gate": ("ffn", "hidden"), "ffn_up": ("ffn", "hidden"),
    "ffn_down": ("hidden", "ffn"),
}  # fmt: skip
BASIC_NORMS = {"attn_norm": "hidden", "ffn_norm": "hidden"}
SUB_NORMS = {"attn_sub_norm": "q", "ffn_sub_norm": "ffn"}
INPUT_NORMS = {
    "attn_q_norm": "head", "attn_k_norm": "head",
    "attn_q_norm_in": "hidden", "attn_k_norm_in": "hidden", "attn_v_norm_in": "hidden",
    "attn_output_norm_in": "q", "ffn_gate_norm_in": "hidden", "ffn_up_norm_in": "hidden",
    "ffn_down_norm_in": "ffn",
}  # fmt: skip
NORMS = {
    "bitnet-b1.58": BASIC_NORMS | SUB_NORMS,
    "bitnet-25": BASIC_NORMS | SUB_NORMS,
    "bitnet": BASIC_NORMS | SUB_NORMS,
    "llama": BASIC_NORMS,
    "qwen3": BASIC_NORMS | INPUT_NORMS,
    "gemma3": BASIC_NORMS
    | INPUT_NORMS
    | {"post_attention_norm": "hidden", "post_ffw_norm": "hidden"},
}
TOKENS = ["a", "b", "c", "ab", "abc", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]


def gguf_model(arch="llama", shape=None, ternary="I2_S", rows="F16", head=None, norms="F32"):
    """A small_files.GGUF of this architecture.

    ternary: a type for all linear layers, or {layer: type}, I2_S for those not in it. rows, head:
    types of token_embd and output, which is left out if None.
    """
    shape, rng, model = shape or Shape(), np.random.default_rng(3), GGUF()
    _metadata(model, arch, shape)

    def add(name, type_name, *widths):
        sizes = [shape.widths.get(width, width) for width in widths]
        n_rows, n_cols = sizes if len(sizes) == 2 else (1, *sizes)
        data = tensor_bytes(type_name, n_rows, n_cols, rng)
        model.tensors.append([f"{name}.weight", sizes[::-1], TYPE_IDS[type_name], data, None])

    add("token_embd", rows, shape.vocab, "hidden")
    for name, width in NORMS[arch].items():
        add(f"blk.0.{name}", norms, width)
    for name, widths in LINEARS.items():
        chosen = ternary if isinstance(ternary, str) else ternary.get(name, "I2_S")
        add(f"blk.0.{name}", chosen, *widths)
    add("output_norm", norms, "hidden")
    if head:
        add("output", head, shape.vocab, "hidden")
    return model


def _metadata(model, arch, shape):
    model.set("general.architecture", STRING, text(arch))
    whole = {
        "vocab_size": shape.vocab, "context_length": 64, "embedding_length": shape.hidden,
        "block_count": 1, "feed_forward_length": shape.ffn, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads, "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim, "rope.dimension_count": shape.head_dim,
    }  # fmt: skip
    if arch in ("qwen3", "gemma3"):
        whole["pooling_type"] = 3
    if arch == "gemma3":
        whole["attention.sliding_window"] = 4
        model.set(f"{arch}.attention.sliding_window_pattern", ARRAY, numbers(7, "?", [True]))
    for key, value in whole.items():
        model.set(f"{arch}.{key}", U32, struct.pack("<I", value))
    for key, value in {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e4}.items():
        model.set(f"{arch}.{key}", F32, struct.pack("<f", value))
    if shape.vocab < len(TOKENS):
        return
    model.set("tokenizer.ggml.model", STRING, text("gpt2"))
    model.set("tokenizer.ggml.pre", STRING, text("llama-bpe"))
    model.set("tokenizer.ggml.tokens", ARRAY, strings(TOKENS))
    model.set("tokenizer.ggml.token_type", ARRAY, numbers(5, "i", [1] * 5 + [3] * 3))
    model.set("tokenizer.ggml.merges", ARRAY, strings(["a b", "ab c"]))
    model.set("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 5))
    model.set("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 6))
    model.set("tokenizer.ggml.add_bos_token", BOOL, b"\1")
    model.set("tokenizer.chat_template", STRING, text("{{ messages[0].content }}"))


def split(model, n_parts, stem="model"):
    """{file name: small_files.GGUF} of a model in parts, as llama.cpp's gguf-split writes them."""
    parts, step = {}, -(-len(model.tensors) // n_parts)
    for i in range(n_parts):
        part = GGUF(list(model.keys) if i == 0 else [], model.tensors[i * step : (i + 1) * step])
        for key, type_id, code, value in (
            ("split.no", U16, "<H", i),
            ("split.count", U16, "<H", n_parts),
            ("split.tensors.count", I32, "<i", len(model.tensors)),
        ):
            part.set(key, type_id, struct.pack(code, value))
        parts[f"{stem}-{i + 1:05}-of-{n_parts:05}.gguf"] = part
    return parts


# Hugging Face folders -----------------------------------------------------------------------------

HF_LINEARS = dict(
    zip(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        LINEARS.values(), strict=True,
    )
)  # fmt: skip
HF_BASIC = {"input_layernorm": "hidden", "post_attention_layernorm": "hidden"}
HF_INPUT = {f"{name}.norm": widths[1] for name, widths in HF_LINEARS.items()}
HF_INPUT |= {"self_attn.q_norm": "head", "self_attn.k_norm": "head"}
HF_NORMS = {
    "bitnet": HF_BASIC | {"self_attn.attn_sub_norm": "q", "mlp.ffn_sub_norm": "ffn"},
    "1bitLLM": HF_BASIC | {"self_attn.inner_attn_ln": "q", "mlp.ffn_layernorm": "ffn"},
    "llama": HF_BASIC,
    "qwen3": HF_BASIC | HF_INPUT,
    "gemma3": HF_BASIC
    | HF_INPUT
    | {"pre_feedforward_layernorm": "hidden", "post_feedforward_layernorm": "hidden"},
}
_QUANTIZED = {"quant_method": "bitnet", "modules_to_not_convert": None}
PARTICULAR = {
    "bitnet": {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
        "quantization_config": _QUANTIZED
        | {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    },
    "1bitLLM": {
        "architectures": ["BitnetForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "weight_bits": 1, "input_bits": 8, "rope_scaling": None,
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "is_bitnet_config": True,
        "quantization_config": _QUANTIZED,
    },
    "qwen3": {"architectures": ["Qwen3Model"], "model_type": "qwen3", "hidden_act": "silu"},
    "gemma3": {
        "architectures": ["Gemma3TextModel"], "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 64,
        "layer_types": ["sliding_attention"], "sliding_window_pattern": 6, "sliding_window": 4,
        "rope_local_base_freq": 10000.0,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
}  # fmt: skip
ONLINE = _QUANTIZED | {"linear_class": "autobitlinear", "quantization_mode": "online"}
POOLING = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True,
           "pooling_mode_mean_tokens": False}  # fmt: skip


def hf_config(family, shape=None, **changes):
    """config.json as an object; changes replace fields, None removes one."""
    shape = shape or Shape()
    config = {
        "hidden_size": shape.hidden, "intermediate_size": shape.ffn, "num_hidden_layers": 1,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "vocab_size": shape.vocab, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": family != "llama",
        "bos_token_id": 5, "eos_token_id": 6,
    } | PARTICULAR[family]  # fmt: skip
    config |= changes
    return {key: value for key, value in config.items() if key not in changes or value is not None}


def hf_tensors(family, shape=None, linears="F16"):
    """{name: (dtype, shape, data)}. linears: "packed", a float type of masters, or "ternary": F16
    that are -0.5, 0 or 0.5."""
    shape, rng = shape or Shape(), np.random.default_rng(4)
    widths, tensors = shape.widths, {}
    prefix = "" if family in ("qwen3", "gemma3") else "model."

    def add(name, type_name, *sizes):
        sizes = tuple(widths.get(size, size) for size in sizes)
        data = tensor_bytes(type_name, 1, int(np.prod(sizes)), rng)
        tensors[name] = type_name, sizes, data

    add(f"{prefix}embed_tokens.weight", "BF16", shape.vocab, "hidden")
    add(f"{prefix}norm.weight", "BF16", "hidden")
    for name, width in HF_NORMS[family].items():
        add(f"{prefix}layers.0.{name}.weight", "BF16", width)
    for name, (n_rows, n_cols) in HF_LINEARS.items():
        stem = f"{prefix}layers.0.{name}"
        sizes = widths[n_rows], widths[n_cols]
        if linears == "packed":
            packed = -(-sizes[0] // 4), sizes[1]
            tensors[f"{stem}.weight"] = "U8", packed, _codes(rng, packed[0] * packed[1]).tobytes()
            tensors[f"{stem}.weight_scale"] = "BF16", (1,), b"\x80\x3f"  # 1.0
        elif linears == "ternary":
            values = (rng.integers(-1, 2, sizes) / 2).astype("<f2")
            tensors[f"{stem}.weight"] = "F16", sizes, values.tobytes()
        else:
            add(f"{stem}.weight", linears, *sizes)
    if family == "llama":
        add("lm_head.weight", "BF16", shape.vocab, "hidden")
    return tensors


def hf_files(family, shape=None, linears="F16", tensors=None, **changes):
    """{file name: bytes} of a model folder; changes are of its configuration."""
    tensors = hf_tensors(family, shape, linears) if tensors is None else tensors
    files = {
        "config.json": json.dumps(hf_config(family, shape, **changes)).encode(),
        "model.safetensors": safetensors(tensors),
    }
    if family in ("qwen3", "gemma3"):
        files["1_Pooling/config.json"] = json.dumps(POOLING).encode()
    return files


def sharded(files, tensors):
    """The same folder with its tensors in two files and an index."""
    names = sorted(tensors)
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    files = {name: raw for name, raw in files.items() if name != "model.safetensors"}
    for shard in sorted(set(where.values())):
        files[shard] = safetensors({name: tensors[name] for name in names if where[name] == shard})
    files["model.safetensors.index.json"] = json.dumps({"weight_map": where}).encode()
    return files


def write(folder, files):
    """Write {name: bytes} into a new folder, which is returned."""
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder
