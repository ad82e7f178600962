"""Small valid model files, written byte by byte and not by bitnet, to be read and to be damaged."""

import json
import struct
from dataclasses import dataclass, field

import numpy as np

U16, U32, I32, F32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9
HIDDEN, FFN, KV, VOCAB = 128, 256, 64, 8
PROJECTIONS = {
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (KV, HIDDEN), "attn_v": (KV, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}  # fmt: skip
NORMS = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN, "attn_sub_norm": HIDDEN, "ffn_sub_norm": FFN}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def strings(values):
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def numbers(type_id, code, values):
    return struct.pack("<IQ", type_id, len(values)) + struct.pack(f"<{len(values)}{code}", *values)


@dataclass
class GGUF:
    """The parts of a file; bytes() puts them together, whatever they are."""

    keys: list = field(default_factory=list)  # [name, type id, payload]
    tensors: list = field(default_factory=list)  # [name, ne, type id, data, offset or None]
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None

    def bytes(self):
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        out = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        for name, type_id, payload in self.keys:
            out += text(name) + struct.pack("<I", type_id) + payload
        at = 0
        for name, ne, type_id, data, offset in self.tensors:
            out += text(name) + struct.pack(f"<I{len(ne)}Q", len(ne), *ne)
            out += struct.pack("<IQ", type_id, at if offset is None else offset)
            at += len(data) + -len(data) % 32
        out += bytes(-len(out) % 32)
        for *_, data, _ in self.tensors:
            out += data + bytes(-len(data) % 32)
        return out

    def set(self, name, type_id, payload):
        """Replace or add a key."""
        self.remove(name)
        self.keys.append([name, type_id, payload])

    def remove(self, name):
        self.keys = [key for key in self.keys if key[0] != name]

    def tensor(self, name):
        return next(tensor for tensor in self.tensors if tensor[0] == name)


def i2_s(shape, rng, scale=0.5):
    """The bytes of a random I2_S tensor: codes, scale, 28 bytes of junk."""
    codes = rng.integers(0, 3, shape[0] * shape[1], dtype=np.uint8).reshape(-1, 4, 32)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return packed.tobytes() + struct.pack("<f", scale) + bytes(range(28))


def gguf_model(arch="bitnet-b1.58"):
    """A one-layer model of 130 KB that bitnet.checkpoints.weights.open takes."""
    rng = np.random.default_rng(1)
    model = GGUF()
    model.set("general.architecture", STRING, text(arch))
    for key, value in {
        "vocab_size": VOCAB, "context_length": 512, "embedding_length": HIDDEN, "block_count": 1,
        "feed_forward_length": FFN, "rope.dimension_count": 64, "attention.head_count": 2,
        "attention.head_count_kv": 1,
    }.items():  # fmt: skip
        model.set(f"{arch}.{key}", U32, struct.pack("<I", value))
    for key, value in {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5e5}.items():
        model.set(f"{arch}.{key}", F32, struct.pack("<f", value))
    tokens = ["a", "b", "ab", "c", "d", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    model.set("tokenizer.ggml.model", STRING, text("gpt2"))
    model.set("tokenizer.ggml.tokens", ARRAY, strings(tokens))
    model.set("tokenizer.ggml.scores", ARRAY, numbers(6, "f", [0.0] * VOCAB))
    model.set("tokenizer.ggml.token_type", ARRAY, numbers(5, "i", [1] * 5 + [3] * 3))
    model.set("tokenizer.ggml.merges", ARRAY, strings(["a b"]))
    model.set("tokenizer.ggml.add_bos_token", BOOL, b"\1")
    model.set("tokenizer.ggml.bos_token_id", U32, struct.pack("<I", 5))
    model.set("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 6))

    def add(name, ne, type_id, data):
        model.tensors.append([name, ne, type_id, data, None])

    add("token_embd.weight", [HIDDEN, VOCAB], 1, floats(rng, VOCAB, HIDDEN, dtype="<f2"))
    for name, n in NORMS.items():
        add(f"blk.0.{name}.weight", [n], 0, floats(rng, n))
    for name, shape in PROJECTIONS.items():
        add(f"blk.0.{name}.weight", [shape[1], shape[0]], 36, i2_s(shape, rng))
    add("output_norm.weight", [HIDDEN], 0, floats(rng, HIDDEN))
    return model


def floats(rng, *shape, dtype="<f4"):
    return rng.standard_normal(shape).astype(dtype).tobytes()


def safetensors(tensors, header=None, length=None, tail=b""):
    """The bytes of a file. tensors: {name: (dtype, shape, data)}; header replaces the JSON."""
    entries, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += raw
    if header is None:
        header = json.dumps(entries).encode()
    n = len(header) if length is None else length
    return struct.pack("<Q", n) + header + data + tail


HF_CONFIG = {
    "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "hidden_act": "relu2", "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 16,
    "bos_token_id": 13, "eos_token_id": 14,
    "quantization_config": {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
    },
}  # fmt: skip
HF_PROJECTIONS = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}  # fmt: skip
HF_NORMS = {
    "input_layernorm": 64, "post_attention_layernorm": 64, "self_attn.attn_sub_norm": 64,
    "mlp.ffn_sub_norm": 96,
}  # fmt: skip


def hf_tensors(packed=True):
    """{name: (dtype, shape, data)} of a one-layer model, packed or as float32 masters."""
    rng = np.random.default_rng(2)
    tensors = {"model.embed_tokens.weight": ("F32", (16, 64), floats(rng, 16, 64))}
    tensors["model.norm.weight"] = ("F32", (64,), floats(rng, 64))
    for name, n in HF_NORMS.items():
        tensors[f"model.layers.0.{name}.weight"] = ("F32", (n,), floats(rng, n))
    for name, (n_rows, n_cols) in HF_PROJECTIONS.items():
        stem = f"model.layers.0.{name}"
        if packed:
            a, b, c, d = rng.integers(0, 3, (4, n_rows // 4, n_cols), dtype=np.uint8)
            data = (a | b << 2 | c << 4 | d << 6).tobytes()
            tensors[f"{stem}.weight"] = ("U8", (n_rows // 4, n_cols), data)
            tensors[f"{stem}.weight_scale"] = ("F32", (1,), struct.pack("<f", 0.25))
        else:
            tensors[f"{stem}.weight"] = ("F32", (n_rows, n_cols), floats(rng, n_rows, n_cols))
    return tensors


def hf_folder(folder, tensors=None, generation=None, **changes):
    """Write a model folder; changes replace fields of config.json, None removes one."""
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in (HF_CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "model.safetensors").write_bytes(safetensors(tensors or hf_tensors()))
    return folder
