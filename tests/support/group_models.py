"""A tiny Qwen3 model whose groups of columns have scales of their own, in every container.

Written by the descriptions of the formats and not by bitnet, to be read and to be damaged.
"""

import json
import struct
from dataclasses import dataclass, field

import numpy as np
from support.pack_layouts import pack
from support.small_files import F32, GGUF, STRING, U32, safetensors, text

from bitnet.checkpoints import weights
from bitnet.errors import FormatError
from bitnet.formats import group_scales
from bitnet.formats.group_scales import GroupedMatrix

NUMBERS = {
    "F32": 0, "F16": 1, "TQ1_0": 34, "TQ2_0": 35, "Q2_0_G64": 42, "Q2_0_G128": 42, "PQ2_0": 142,
    "PTQ1_0": 143,
}  # fmt: skip
GROUPS = {"TQ1_0": 256, "TQ2_0": 256, "Q2_0_G64": 64}  # others: 128
HEAD, VOCAB = 64, 12  # columns of a head, rows of the embedding
EPS = 2.0**-20  # of norms: a number that the float32 of a GGUF holds too
LINEARS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
NORMS = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


# the model ----------------------------------------------------------------------------------------


@dataclass
class Model:
    """codes: {our name: uint8 (n_rows, n_cols)}; scales: {name: float16 (n_rows, groups of 128)},
    norms: {name: float32 (n,)}."""

    width: int
    n_heads: int
    codes: dict = field(default_factory=dict)
    scales: dict = field(default_factory=dict)
    norms: dict = field(default_factory=dict)

    def scales_of(self, name, group):
        """float16 (n_rows, groups of so many columns)."""
        if group == 256:
            return self.scales[name][:, ::2]
        return np.repeat(self.scales[name], 128 // group, axis=1)

    def dense(self, name):
        """float32 (n_rows, n_cols)"""
        scales = np.repeat(self.scales[name].astype(np.float32), 128, axis=1)
        return scales * (self.codes[name].astype(np.float32) - 1)


def base(width=128, group=128, n_heads=2):
    """One layer of so many columns. group: 256 for scales that TQ1_0 can hold."""
    rng, model = np.random.default_rng(width), Model(width, n_heads)
    q, kv = HEAD * n_heads, HEAD
    shapes = {
        "self_attn.q_proj": (q, width), "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width), "self_attn.o_proj": (width, q),
        "mlp.gate_proj": (width, width), "mlp.up_proj": (width, width),
        "mlp.down_proj": (width, width),
    }  # fmt: skip
    shapes = {f"layers.0.{name}": shape for name, shape in shapes.items()}
    for name, (n_rows, n_cols) in {"embed_tokens": (VOCAB, width), **shapes}.items():
        model.codes[name] = rng.integers(0, 3, (n_rows, n_cols), dtype=np.uint8)
        scales = rng.uniform(0.01, 0.1, (n_rows, n_cols // group)).astype(np.float16)
        scales = (scales.view(np.uint16) & 0xFFF8).view(np.float16)  # which bfloat16 holds too
        model.scales[name] = np.repeat(scales, group // 128, axis=1)
    model.norms["norm"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
    for name in NORMS:
        n = HEAD if name in HEAD_NORMS else width
        model.norms[f"layers.0.{name}"] = rng.uniform(0.5, 1.5, n).astype(np.float32)
    return model


def gguf_name(name):
    outer = {"embed_tokens": "token_embd", "norm": "output_norm"}
    if name in outer:
        return f"{outer[name]}.weight"
    return f"blk.0.{(LINEARS | NORMS)[name.removeprefix('layers.0.')]}.weight"


DOWN, EMBEDDING, UP = (
    gguf_name(name) for name in ("layers.0.mlp.down_proj", "embed_tokens", "layers.0.mlp.up_proj")
)


# GGUF ---------------------------------------------------------------------------------------------


@dataclass
class File(GGUF):
    """A GGUF whose table may say other things than its data are.

    order: names of tensors in the order of their data. spare: {name: bytes after it}. tail: bytes
    at the end. is_cut: bytes that are missing there.
    """

    alignment: int = 32
    order: list | None = None
    spare: dict = field(default_factory=dict)
    tail: int = 0
    is_cut: int = 0

    def bytes(self):
        at, out = 0, b""
        by_name = {tensor[0]: tensor for tensor in self.tensors}
        for name in self.order or list(by_name):
            by_name[name][4] = at
            data = by_name[name][3]
            data += bytes(-len(data) % self.alignment + self.spare.get(name, 0))
            out, at = out + data, at + len(data)
        last = len(by_name[(self.order or list(by_name))[-1]][3])
        out = out[: len(out) - (-last % self.alignment)] if self.is_cut else out
        head = self.header()
        return head + out[: len(out) - self.is_cut] + bytes(self.tail)

    def header(self):
        kept, self.tensors = self.tensors, [[*t[:3], b"", t[4]] for t in self.tensors]
        head = super().bytes()
        self.tensors = kept
        return head + bytes(-len(head) % self.alignment)

    def put(self, name, change):
        """Replace the data of a tensor by change(uint8 array), in place or returned."""
        row = self.tensor(name)
        data = np.frombuffer(row[3], np.uint8).copy()
        made = change(data)
        row[3] = (data if made is None else made).tobytes()

    def number(self, key, value):
        kind = (F32, "<f") if isinstance(value, float) else (U32, "<I")
        self.set(f"qwen3.{key}", kind[0], struct.pack(kind[1], value))


def gguf(model, type_name="Q2_0_G64", types=None, rows=None):
    """A File. types: {our name: type} of tensors of another. rows: type of the embedding, None for
    the same; F16 for floats."""
    file, width = File(), model.width
    file.set("general.architecture", STRING, text("qwen3"))
    for key, value in {
        "block_count": 1, "context_length": 512, "embedding_length": width,
        "feed_forward_length": width, "attention.head_count": model.n_heads,
        "attention.head_count_kv": 1,
        "attention.key_length": HEAD, "attention.value_length": HEAD, "rope.freq_base": 1e6,
        "attention.layer_norm_rms_epsilon": EPS,
    }.items():  # fmt: skip
        file.number(key, value)
    for name, codes in model.codes.items():
        chosen = (types or {}).get(name, type_name)
        if name == "embed_tokens" and rows:
            chosen = rows
        if chosen == "F16":
            data = model.dense(name).astype("<f2").tobytes()
        else:
            scales = model.scales_of(name, GROUPS.get(chosen, 128))
            data = pack(chosen, codes, scales).tobytes()
        ne = [codes.shape[1], codes.shape[0]]
        file.tensors.append([gguf_name(name), ne, NUMBERS[chosen], data, None])
    for name, values in model.norms.items():
        data = values.astype("<f4").tobytes()
        file.tensors.append([gguf_name(name), [len(values)], 0, data, None])
    return file


def scale_at(type_name, model, name, row, group):
    """Byte of a scale of a tensor of blocks."""
    n_codes, n_bytes, first = {
        "Q2_0_G64": (64, 18, 0), "PQ2_0": (128, 34, 0), "TQ2_0": (256, 66, 64),
        "TQ1_0": (256, 54, 52),
    }[type_name]  # fmt: skip
    return (row * model.codes[name].shape[1] // n_codes + group) * n_bytes + first


def f16(value):
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


# folders ------------------------------------------------------------------------------------------

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 1,
    "num_key_value_heads": 1, "head_dim": HEAD, "hidden_act": "silu",
    "max_position_embeddings": 512, "rms_norm_eps": EPS, "rope_theta": 1e6,
    "tie_word_embeddings": True, "vocab_size": VOCAB, "attention_bias": False, "eos_token_id": 3,
}  # fmt: skip


def mlx_tensors(model, group=64):
    """{name: (dtype, shape, data)} of an MLX folder: 16 codes in a u32, the first lowest."""
    tensors = _norm_tensors(model)
    for name, codes in model.codes.items():
        words = sum(codes[:, i::16].astype(np.uint32) << 2 * i for i in range(16))
        scales = model.scales_of(name, group)
        tensors[f"model.{name}.weight"] = "U32", words.shape, words.astype("<u4").tobytes()
        tensors[f"model.{name}.scales"] = "F16", scales.shape, scales.tobytes()
        tensors[f"model.{name}.biases"] = "F16", scales.shape, (-scales).tobytes()
    return tensors


def float_tensors(model, dtype="F16"):
    """The same of a folder of floats that are -d, 0 and d."""
    tensors = _norm_tensors(model)
    for name in model.codes:
        values = model.dense(name)
        if dtype == "BF16":
            data = (values.view("<u4") >> 16).astype("<u2").tobytes()
        else:
            data = values.astype("<f2").tobytes()
        tensors[f"model.{name}.weight"] = dtype, values.shape, data
    return tensors


def _norm_tensors(model):
    return {
        f"model.{name}.weight": ("F32", values.shape, values.astype("<f4").tobytes())
        for name, values in model.norms.items()
    }


def folder(path, model, tensors, **changes):
    """Write a folder; changes replace fields of config.json, None removes one."""
    path.mkdir(exist_ok=True)
    sizes = {
        "hidden_size": model.width, "intermediate_size": model.width,
        "num_attention_heads": model.n_heads,
    }  # fmt: skip
    config = CONFIG | sizes | changes
    config = {key: value for key, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(safetensors(tensors))
    return path


def mlx_folder(path, model, group=64, tensors=None, **changes):
    quantization = {"group_size": group, "bits": 2}
    changes = {"quantization": quantization, "quantization_config": quantization} | changes
    return folder(path, model, tensors or mlx_tensors(model, group), **changes)


# use ----------------------------------------------------------------------------------------------


def use(path, **options):
    """Open a model and look at every weight, as its first pass does; its Weights."""
    opened = weights.open(path, **options)
    config = opened.config
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 1:
            opened.vector(name)
            continue
        is_linear = config.arch.is_linear(name)
        matrix = opened.ternary(name) if is_linear else opened.rows(name)
        for row in range(matrix.n_rows) if isinstance(matrix, GroupedMatrix) else ():
            try:
                group_scales.check(matrix, slice(row, row + 1))
            except ValueError:
                raise opened.illegal_row(matrix, row) from None
    return opened


def values(opened, name):
    """float32 (n_rows, n_cols) of a matrix of Weights."""
    is_linear = opened.config.arch.is_linear(name)
    matrix = opened.ternary(name) if is_linear else opened.rows(name)
    return matrix.dequantize(np.arange(matrix.n_rows))


def refusal(path, **options):
    """The message of the FormatError with which a model is refused, or None."""
    try:
        use(path, **options)
    except FormatError as error:
        return str(error)
    return None
