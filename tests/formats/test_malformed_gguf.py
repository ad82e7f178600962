"""Damaged and hostile files: each ends in a FormatError that names the field, in little memory.

Every case is one small valid file with one thing changed.
"""

import json
import os
import struct

import pytest
from fuzz.targets import open_and_run
from support import small_files
from support.refusals import ARCH, HUGE, key, refused, u32, u64
from support.small_files import ARRAY, BOOL, STRING, U32, numbers, strings, text

from bitnet.errors import FormatError
from bitnet.formats.text_files import read_json

# GGUF ---------------------------------------------------------------------------------------------


def arch(name, value):
    return key(f"{ARCH}.{name}", U32, u32(value))


def tensor(name, column, value):
    """Set one column of the table for a tensor: 0 name, 1 ne, 2 type, 3 data, 4 offset."""
    return lambda m: m.tensor(name).__setitem__(column, value)


def attribute(name, value):
    return lambda m: setattr(m, name, value)


DOWN = "blk.0.ffn_down.weight"
NORM = "output_norm.weight"
EMBED = "token_embd.weight"

GGUF_CASES = {
    "bad magic": (attribute("magic", b"GGML"), "magic"),
    "version 0": (attribute("version", 0), "version: 0"),
    "version 1": (attribute("version", 1), "version: 1 "),
    "version 99": (attribute("version", 99), "version: 99"),
    "big-endian": (attribute("version", 3 << 24), "big-endian"),
    **{f"n_kv {n}": (attribute("n_keys", n), "n_kv") for n in HUGE},
    **{f"n_tensors {n}": (attribute("n_tensors", n), "n_tensors") for n in HUGE},
    "one key too many": (lambda m: attribute("n_keys", len(m.keys) + 1)(m), "key 20|name|length"),
    "one tensor too many": (lambda m: attribute("n_tensors", len(m.tensors) + 1)(m), "tensor"),
    **{f"string of {n}": (key("x", STRING, u64(n)), "x: ") for n in HUGE},
    **{f"array of {n}": (key("x", ARRAY, u32(0) + u64(n)), "x: ") for n in HUGE},
    **{f"doubles of {n}": (key("x", ARRAY, u32(12) + u64(n)), "x: ") for n in HUGE},
    **{f"strings of {n}": (key("x", ARRAY, u32(8) + u64(n)), "x count") for n in HUGE},
    **{
        f"entry of {n}": (key("x", ARRAY, u32(8) + u64(1) + u64(n)), r"x\[0\]: ends beyond")
        for n in HUGE
    },
    "nested array": (key("x", ARRAY, u32(ARRAY) + u64(1) + u32(4) + u64(1) + u32(0)), "element"),
    "value type 13": (key("x", 13, u32(0)), "x type: 13"),
    "array of type 13": (key("x", ARRAY, u32(13) + u64(1) + u32(0)), "x element type: 13"),
    "a bool of 2": (key("x", BOOL, b"\2"), "x: 2"),
    "empty key": (key("", U32, u32(0)), "length: 0"),
    "key with NUL": (key("a\0b", U32, u32(0)), "no NUL"),
    "key of 257 bytes": (key("k" * 257, U32, u32(0)), "257"),
    "key that is not UTF-8": (lambda m: m.keys.append([b"\xff", U32, u32(0)]), "UTF-8"),
    "text that is not UTF-8": (key("x", STRING, text(b"\xc3")), "x: .*UTF-8"),
    "key twice": (lambda m: m.keys.append(m.keys[0]), "architecture: appears twice"),
    "no architecture": (lambda m: m.remove("general.architecture"), "architecture: missing"),
    "architecture as number": (key("general.architecture", U32, u32(1)), "architecture: 1"),
    "architecture gptj": (key("general.architecture", STRING, text("gptj")), "gptj"),
    **{
        f"alignment {n}": (key("general.alignment", U32, u32(n)), "general.alignment")
        for n in (0, 1, 3, 2**31)
    },
    "alignment as text": (key("general.alignment", STRING, text("32")), "general.alignment"),
    "tokens are numbers": (
        key("tokenizer.ggml.tokens", ARRAY, numbers(5, "i", [1])),
        "tokens: whole numbers",
    ),
    "tokens are text": (key("tokenizer.ggml.tokens", STRING, text("a")), "tokens: str"),
    "merges are numbers": (key("tokenizer.ggml.merges", ARRAY, numbers(6, "f", [1])), "merges"),
    "scores are whole": (
        key("tokenizer.ggml.scores", ARRAY, numbers(5, "i", [1] * 8)),
        "scores: whole",
    ),
    "types are floats": (
        key("tokenizer.ggml.token_type", ARRAY, numbers(6, "f", [1] * 8)),
        "token_type: floats",
    ),
    "types are short": (
        key("tokenizer.ggml.token_type", ARRAY, numbers(5, "i", [1] * 7)),
        "token_type count: 7",
    ),
    "scores are short": (
        key("tokenizer.ggml.scores", ARRAY, numbers(6, "f", [1] * 7)),
        "scores count: 7",
    ),
    "more tokens than rows": (
        lambda m: (
            m.set("tokenizer.ggml.tokens", ARRAY, strings(["a"] * 9)),
            m.set("tokenizer.ggml.scores", ARRAY, numbers(6, "f", [0] * 9)),
            m.set("tokenizer.ggml.token_type", ARRAY, numbers(5, "i", [1] * 9)),
        ),
        "tokens count: 9",
    ),
    "token that is not UTF-8": (
        key("tokenizer.ggml.tokens", ARRAY, strings([b"\xff"] * 8)),
        r"tokens\[0\]",
    ),
    "no heads": (arch("attention.head_count", 0), "head_count: 0"),
    "no kv heads": (arch("attention.head_count_kv", 0), "head_count_kv: 0"),
    "kv heads that do not divide": (
        lambda m: (arch("attention.head_count", 4)(m), arch("attention.head_count_kv", 3)(m),
                   arch("rope.dimension_count", 32)(m)),
        "num_key_value_heads: 3",
    ),
    "odd head_dim": (
        lambda m: [arch(n, 63)(m) for n in
                   ("rope.dimension_count", "attention.key_length", "attention.value_length")],
        "head_dim: 63",
    ),
    "rope dims above head_dim": (arch("rope.dimension_count", 128), "dimension_count: 128"),
    "a billion layers": (arch("block_count", 10**9), "block_count"),
    "two layers": (arch("block_count", 2), r"blk\.1\.attn_\w+\.weight: missing"),
    "no layers": (arch("block_count", 0), "block_count: 0"),
    "wrong ffn": (arch("feed_forward_length", 512), "ffn_gate.weight shape"),
    "wrong vocabulary": (arch("vocab_size", 9), "token_embd.weight shape"),
    "wide": (arch("embedding_length", 2**31), "embedding_length"),
    "context of 2^60": (key(f"{ARCH}.context_length", 10, u64(2**60)), "context_length"),
    **{
        f"eps {eps}": (
            key(f"{ARCH}.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", eps)),
            "epsilon",
        )
        for eps in (0.0, -1e-5, float("nan"), float("inf"))
    },
    "eps as text": (key(f"{ARCH}.attention.layer_norm_rms_epsilon", STRING, text("1")), "epsilon"),
    "eos beyond": (key("tokenizer.ggml.eos_token_id", U32, u32(8)), "eos_token_id: 8"),
    "no embedding": (lambda m: m.tensors.pop(0), "token_embd|vocab_size"),
    "no down_proj": (lambda m: m.tensors.remove(m.tensor(DOWN)), f"{DOWN}: missing"),
    "a bias": (
        lambda m: m.tensors.append(["blk.0.attn_q.bias", [128], 0, bytes(512), None]),
        "attn_q.bias: unexpected",
    ),
    "tensor twice": (lambda m: m.tensors.append(m.tensor(NORM)), "appears twice"),
    "tensor without a name": (tensor(NORM, 0, ""), "length: 0"),
    "tensor with NUL": (tensor(NORM, 0, "a\0b"), "no NUL"),
    "tensor that is not UTF-8": (tensor(NORM, 0, b"\xff"), "UTF-8"),
    "no dims": (tensor(NORM, 1, []), "n_dims: 0"),
    "5 dims": (tensor(NORM, 1, [128, 1, 1, 1, 1]), "n_dims: 5"),
    "dim 0": (tensor(NORM, 1, [0]), "output_norm.weight ne"),
    "dim -1": (tensor(NORM, 1, [2**64 - 1]), "output_norm.weight ne"),
    "dims that wrap": (tensor(NORM, 1, [2**32, 2**32]), "output_norm.weight ne"),
    "dims that wrap twice": (tensor(NORM, 1, [2**63, 2, 2**63, 2]), "output_norm.weight ne"),
    "dims of 2^61": (tensor(NORM, 1, [2**61]), "output_norm.weight end"),
    "part of a block": (tensor(DOWN, 1, [129, 2]), "I2_S needs a multiple of 128"),
    "part of a row": (tensor(EMBED, 2, 14), "Q6_K needs a multiple of 256"),
    **{
        f"type {n}": (tensor(DOWN, 2, n), f"{DOWN} type: {n} ")
        for n in (10, 39, 1000, 2**32 - 1)
    },
    "norm as I2_S": (tensor(NORM, 2, 36), "type: I2_S"),
    "projection as F16": (tensor("blk.0.attn_k.weight", 2, 1), "end|begin|type: F16"),
    "offset unaligned": (tensor(NORM, 4, 33), "offset: 33"),
    "offset beyond": (tensor(NORM, 4, 2**30), "end"),
    "offset that wraps": (tensor(NORM, 4, 2**64 - 32), "end"),
    "offset over another": (tensor(NORM, 4, 0), "begin: .*ends at"),
    "scale 0": (lambda m: scale(m, 0.0), r"ffn_down.weight scale: 0.0"),
    "scale -1": (lambda m: scale(m, -1.0), r"ffn_down.weight scale: -1.0"),
    "scale inf": (lambda m: scale(m, float("inf")), r"ffn_down.weight scale: inf"),
    "scale NaN": (lambda m: scale(m, float("nan")), r"ffn_down.weight scale: nan"),
    "norm NaN": (tensor(NORM, 3, struct.pack("<f", float("nan")) * 128), "output_norm.weight: NaN"),
}  # fmt: skip


def scale(model, value):
    row = model.tensor(DOWN)
    row[3] = row[3][:-32] + struct.pack("<f", value) + row[3][-28:]


@pytest.mark.parametrize("name", GGUF_CASES)
def test_gguf(tmp_path, name):
    damage, pattern = GGUF_CASES[name]
    model = small_files.gguf_model()
    damage(model)
    path = tmp_path / "model.gguf"
    path.write_bytes(model.bytes())
    refused(path, pattern)


def test_the_undamaged_files_open(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(small_files.gguf_model().bytes())
    open_and_run(path)
    open_and_run(small_files.hf_folder(tmp_path / "model"))


@pytest.mark.parametrize(
    ("entry", "pattern"),
    [
        (text(""), "4000001 .*all arrays of strings"),  # 32 MB of empty strings
        (None, "all strings"),
    ],
)
def test_metadata_has_budgets(tmp_path, entry, pattern):
    model = small_files.gguf_model()
    if entry is not None:
        model.set("x", ARRAY, u32(STRING) + u64(4_000_001) + entry * 4_000_001)
    else:
        model.set("x", STRING, text(b"\xf0\x9f\x98\x80" * (4 << 20)))
    path = tmp_path / "model.gguf"
    path.write_bytes(model.bytes())
    refused(path, pattern)


def test_more_keys_than_any_file_has(tmp_path):
    model = small_files.gguf_model()
    model.keys += [[f"k{i}", U32, u32(i)] for i in range(4096)]
    path = tmp_path / "model.gguf"
    path.write_bytes(model.bytes())
    refused(path, "n_kv")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", "file type: p")
    with pytest.raises(FormatError, match="file type: p"):
        read_json(tmp_path / "pipe.gguf")
    refused(tmp_path, "config.json: missing")
    with pytest.raises(FileNotFoundError):
        open_and_run(tmp_path / "absent.gguf")


# safetensors and the JSON around it ---------------------------------------------------------------


def header_with(**entries):
    """A damage that replaces or adds entries of a valid header; None removes one."""

    def damage(folder):
        path = folder / "model.safetensors"
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n]) | {
            k.replace("__meta", "__metadata__"): v for k, v in entries.items()
        }
        text = json.dumps({k: v for k, v in header.items() if v is not None}).encode()
        path.write_bytes(u64(len(text)) + text + raw[8 + n :])

    return damage  # fmt: skip


def norm(**fields):
    entry = {"dtype": "F32", "shape": [64], "data_offsets": [4096, 4352]} | fields
    return header_with(**{"model.norm.weight": entry})


def raw_header(raw, length=None):
    def damage(folder):
        n = len(raw) if length is None else length
        (folder / "model.safetensors").write_bytes(u64(n) + raw)

    return damage


def written(name, raw):
    return lambda folder: (folder / name).write_bytes(raw)


def config(**changes):
    return lambda folder: small_files.hf_folder(folder, **changes)


HF_CASES = {
    "empty": (written("model.safetensors", b""), "file size: 0"),
    "7 bytes": (written("model.safetensors", bytes(7)), "file size: 7"),
    "empty header": (raw_header(b""), "header"),
    **{f"header of {n}": (raw_header(b"{}", n), "header length") for n in (3, 2**27, *HUGE)},
    "header not JSON": (raw_header(b"{x"), "header: .*valid JSON"),
    "header not UTF-8": (raw_header(b'{"\xff":1}'), "header: .*UTF-8"),
    "header a list": (raw_header(b"[]"), "header: list"),
    "header UTF-16": (raw_header("{}".encode("utf-16")), "header: "),
    "header NaN": (raw_header(b'{"a":NaN}'), "NaN"),
    "header of brackets": (raw_header(b"[" * 100_000), "nested too deep"),
    "header of braces": (raw_header(b'{"a":' * 100_000), "nested too deep"),
    "header with a long number": (raw_header(b'{"a":' + b"9" * 10_000 + b"}"), "header: "),
    "header of empty objects": (
        raw_header(b'{"a":[' + b'{"":0},' * 290_000 + b"0]}"),
        "a: .*an object with dtype",
    ),
    "key twice": (raw_header(b'{"a":1,"b":2,"a":3}'), "key 'a' appears twice"),
    "metadata not text": (header_with(__meta={"a": 1}), "__metadata__"),
    "metadata a list": (header_with(__meta=[]), "__metadata__"),
    "entry a number": (header_with(a=1), "a: 1"),
    "entry without dtype": (header_with(a={"shape": [], "data_offsets": [0, 0]}), "a: "),
    "dtype unknown": (norm(dtype="F128"), "dtype: F128"),
    "dtype a list": (norm(dtype=[]), "dtype"),
    "shape negative": (norm(shape=[-64]), "shape"),
    "shape of floats": (norm(shape=[64.0]), "shape"),
    "shape of bools": (norm(shape=[64, True]), "shape"),
    "shape of 9 dims": (norm(shape=[64] + [1] * 8), "shape"),
    "shape that wraps": (norm(shape=[2**61, 8]), "bytes"),
    "shape huge": (norm(shape=[2**62]), "shape"),
    "shape too small": (norm(shape=[63]), "norm.weight bytes: 256 .*takes 252"),
    "offsets swapped": (norm(data_offsets=[4352, 4096]), "data_offsets"),
    "offsets of three": (norm(data_offsets=[4096, 4352, 1]), "data_offsets"),
    "offsets beyond": (norm(data_offsets=[10**9, 10**9 + 256]), "data_offsets"),
    "offsets overlapping": (norm(data_offsets=[0, 256]), "begin"),
    "a hole": (header_with(**{"model.norm.weight": None}), "begin"),
    "bytes after the data": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            small_files.safetensors(small_files.hf_tensors(), tail=b"x")
        ),
        "data size",
    ),
    "no model": (lambda folder: (folder / "model.safetensors").unlink(), "safetensors: missing"),
    "no down_proj": (
        lambda folder: drop(folder, "model.layers.0.mlp.down_proj.weight"),
        "down_proj.weight: missing",
    ),
    "no scale": (
        lambda folder: drop(folder, "model.layers.0.mlp.down_proj.weight_scale"),
        "down_proj.weight_scale: missing",
    ),
    "a row too few": (
        lambda folder: change(folder, "mlp.down_proj.weight", "U8", (15, 96), bytes(15 * 96)),
        r"down_proj.weight shape: \(15, 96\)",
    ),
    "two scales": (
        lambda folder: change(folder, "mlp.down_proj.weight_scale", "F32", (2,), bytes(8)),
        r"weight_scale shape: \(2,\)",
    ),
    "scale 0": (
        lambda folder: change(folder, "mlp.down_proj.weight_scale", "F32", (1,), bytes(4)),
        "weight_scale scale: 0.0",
    ),
    "scale NaN": (
        lambda folder: change(folder, "mlp.down_proj.weight_scale", "BF16", (), b"\xc0\x7f"),
        "weight_scale scale: nan",
    ),
    "floats where packed bytes belong": (
        lambda folder: change(folder, "mlp.down_proj.weight", "F32", (16, 96), bytes(6144)),
        "down_proj.weight type: F32",
    ),
    "a bias": (
        lambda folder: change(folder, "mlp.down_proj.bias", "F32", (64,), bytes(256)),
        "down_proj.bias: unexpected",
    ),
    "config invalid": (written("config.json", b"{"), "config.json: JSON"),
    "config deep": (written("config.json", b"[" * 100_000), "nested too deep"),
    "config of 3 MB": (written("config.json", b" " * (3 << 20)), "file size"),
    "config a list": (written("config.json", b"[]"), "JSON: list"),
    "generation invalid": (written("generation_config.json", b"nul"), "generation_config.json"),
    "tokenizer_config invalid": (written("tokenizer_config.json", b"{"), "tokenizer_config.json"),
    "template not UTF-8": (written("chat_template.jinja", b"\xff"), "chat_template.jinja"),
    "heads 0": (config(num_attention_heads=0), "num_attention_heads: 0"),
    "layers 1e9": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "layers 2": (config(num_hidden_layers=2), r"layers\.1\.\S+\.weight: missing"),
    "model_type": (config(model_type="gptj"), "model_type: gptj"),
    "model_type a list": (config(model_type=["bitnet"]), "model_type"),
    "untied without a head": (config(tie_word_embeddings=False), "lm_head.weight: missing"),
    "no quantization": (config(quantization_config=None), "quantization_config: missing"),
    "temperature NaN as text": (config(generation={"temperature": "hot"}), "temperature: hot"),
    "top_p 2": (config(generation={"top_p": 2}), "top_p: 2"),
}


def rewrite(folder, tensors):
    (folder / "model.safetensors").write_bytes(small_files.safetensors(tensors))


def drop(folder, name):
    tensors = small_files.hf_tensors()
    del tensors[name]
    rewrite(folder, tensors)


def change(folder, name, *tensor):
    rewrite(folder, small_files.hf_tensors() | {f"model.layers.0.{name}": tensor})


@pytest.mark.parametrize("name", HF_CASES)
def test_hf_folder(tmp_path, name):
    damage, pattern = HF_CASES[name]
    folder = small_files.hf_folder(tmp_path / "model")
    damage(folder)
    refused(folder, pattern)


def test_messages_show_no_control_characters(tmp_path):
    model = small_files.gguf_model()
    model.set("general.architecture", STRING, text("\x1b[31mred" + "x" * 500))
    path = tmp_path / "model.gguf"
    path.write_bytes(model.bytes())
    refused(path, r"\\x1b\[31mred")
