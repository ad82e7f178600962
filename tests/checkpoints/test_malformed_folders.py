"""Damage in a Hugging Face folder of each family: each case ends in a FormatError.

Every case is a tiny valid model of small_models.py with one thing changed; see test_malformed.py
for the reader of safetensors.
"""

import json
import os
import struct

import numpy as np
import pytest
from fuzz import make_corpus
from fuzz.targets import open_and_run
from support import small_models as models
from support.refusals import refused
from support.small_files import safetensors

from bitnet.checkpoints.convert import convert
from bitnet.formats.safetensors import INDEX, SINGLE

GATE = "layers.0.mlp.gate_proj.weight"
DOWN = "layers.0.mlp.down_proj.weight"
HUGE = 10**400
INFINITE = "1e999"


def config(**changes):
    return lambda files: files.__setitem__("config.json", edited(files["config.json"], changes))


def quantization(**changes):
    def damage(files):
        old = json.loads(files["config.json"])["quantization_config"]
        config(quantization_config=old | changes)(files)

    return damage


def edited(raw, changes):
    """JSON with these fields replaced; INFINITE is the number that JSON makes of it."""
    text = json.dumps(json.loads(raw) | changes)
    return text.replace(f'"{INFINITE}"', INFINITE).encode()


def tensor(name, dtype, shape, data):
    """Replace or add one tensor, by the end of its name; None for data removes it."""

    def damage(files):
        raw = files[SINGLE]
        n = int.from_bytes(raw[:8], "little")
        header, tensors = json.loads(raw[8 : 8 + n]), {}
        for key, about in header.items():
            begin, end = about["data_offsets"]
            tensors[key] = about["dtype"], about["shape"], raw[8 + n + begin : 8 + n + end]
        full = next((key for key in tensors if key.endswith(name)), name)
        tensors[full] = dtype, shape, data
        files[SINGLE] = safetensors({k: v for k, v in tensors.items() if v[2] is not None})

    return damage


def gone(name):
    return tensor(name, "F32", [], None)


def ones(name, *shape):
    return tensor(name, "F32", list(shape), np.ones(shape, np.float32).tobytes())


def halves(*, but):
    """gate_proj as 128 x 32 float16 of -0.5, 0, 0.5, all but the last one."""
    values = (np.arange(4096).reshape(128, 32) % 3 - 1).astype(np.float16) / 2
    values[-1, -1] = but
    return tensor(GATE, "F16", [128, 32], values.tobytes())


def file(name, raw):
    return lambda files: files.__setitem__(name, raw if isinstance(raw, bytes) else jsoned(raw))


def jsoned(value):
    return json.dumps(value).encode()


PACKED = {"linears": "packed"}
HIGH = models.Shape(ffn=128)
MASTERS = {"shape": HIGH, "quantization_config": models.ONLINE}
TERNARY = {"shape": HIGH, "linears": "ternary", "quantization_config": None}

# name -> (family, how it is stored, what is changed, the refusal)
CASES = {
    "eps 0": ("llama", PACKED, config(rms_norm_eps=0), "rms_norm_eps: 0"),
    "eps -1": ("llama", PACKED, config(rms_norm_eps=-1.0), "rms_norm_eps: -1"),
    "eps infinite": ("llama", PACKED, config(rms_norm_eps=INFINITE), "rms_norm_eps: inf"),
    "eps huge": ("llama", PACKED, config(rms_norm_eps=HUGE), "rms_norm_eps: 1000"),
    "eps as text": ("llama", PACKED, config(rms_norm_eps="1e-5"), "rms_norm_eps"),
    "eps absent": ("llama", PACKED, config(rms_norm_eps=None), "rms_norm_eps: missing"),
    "RoPE of base 0": ("llama", PACKED, config(rope_theta=0), "rope_theta: 0"),
    "RoPE of base infinite": ("llama", PACKED, config(rope_theta=INFINITE), "rope_theta: inf"),
    "YaRN": ("llama", PACKED, config(rope_scaling={"rope_type": "yarn"}), "factor: missing"),
    "llama3 RoPE": ("llama", PACKED, config(rope_scaling={"type": "llama3"}), "rope_type: llama3"),
    "RoPE as text": ("llama", PACKED, config(rope_scaling="linear"), "rope_type: linear"),
    "RoPE of no base": (
        "llama", PACKED, config(rope_scaling={}, rope_theta=None), "rope_theta: missing",
    ),
    "head_dim odd": ("llama", PACKED, config(head_dim=7), "head_dim: 7"),
    "head_dim 0": ("llama", PACKED, config(head_dim=0), "head_dim: 0|q_proj.weight shape"),
    "head_dim -8": ("llama", PACKED, config(head_dim=-8), "head_dim: -8"),
    "head_dim of another": ("llama", PACKED, config(head_dim=16), "q_proj.weight shape"),
    "kv heads that do not divide": (
        "llama", PACKED, config(num_attention_heads=3, num_key_value_heads=2), "value_heads: 2",
    ),
    "no kv heads": ("llama", PACKED, config(num_key_value_heads=0), "value_heads: 0"),
    "kv heads true": ("llama", PACKED, config(num_key_value_heads=True), "value_heads: True"),
    "more heads": ("llama", PACKED, config(num_attention_heads=4), "q_proj.weight shape"),
    "vocabulary of another": ("llama", PACKED, config(vocab_size=9), "embed_tokens.weight shape"),
    "vocabulary of 2^40": ("llama", PACKED, config(vocab_size=2**40), "vocab_size"),
    "context of 2^60": (
        "llama", PACKED, config(max_position_embeddings=2**60), "max_position_embeddings",
    ),
    "context as float": (
        "llama", PACKED, config(max_position_embeddings=64.0), "max_position_embeddings: 64.0",
    ),
    "begin token beyond": ("llama", PACKED, config(bos_token_id=8), "bos_token_id: 8"),
    "end token -1": ("llama", PACKED, config(eos_token_id=-1), "eos_token_id: -1"),
    "end tokens nested": ("llama", PACKED, config(eos_token_id=[[6]]), "eos_token_id"),
    "biases": ("llama", PACKED, config(attention_bias=True), "attention_bias: True"),
    "act unknown": ("llama", PACKED, config(hidden_act="gelu"), "hidden_act: gelu"),
    "a sub norm": ("llama", PACKED, ones("attn_sub_norm.weight", 16), "sub_norm.weight: unexp"),
    "quantised by another": (
        "llama", PACKED, quantization(quant_method="awq"), "quant_method: awq",
    ),
    "linear layers of another": (
        "llama", PACKED, quantization(linear_class="x"), "linear_class: x",
    ),
    "norms in linear layers": (
        "llama", PACKED, quantization(use_rms_norm=True), "use_rms_norm: True",
    ),
    "layers kept as floats": (
        "llama", PACKED, quantization(modules_to_not_convert=["q_proj"]), "not_convert",
    ),
    "kept layers as text": (
        "llama", PACKED, quantization(modules_to_not_convert="lm_head"), "not_convert",
    ),
    "a code 3": (
        "llama", PACKED, tensor(DOWN, "U8", [8, 32], b"\x0c" + bytes(255)), "code: 3|code 3",
    ),
    "a scale that overflows": (
        "llama", PACKED,
        tensor("down_proj.weight_scale", "F32", [1], struct.pack("<f", 1e-45)), "scale: inf",
    ),
    "a negative scale": (
        "bitnet", PACKED,
        tensor("down_proj.weight_scale", "BF16", [1], b"\x80\xbf"), "scale: -1.0",
    ),
    "floats that are not ternary": (
        "llama", {"quantization_config": None}, lambda files: None, "floats that are not ternary",
    ),
    "ternary but for one": ("llama", TERNARY, halves(but=0.25), r"weight.* 0\.25"),
    "ternary but for a NaN": ("llama", TERNARY, halves(but=np.nan), "nan"),
    "ternary but for infinity": ("llama", TERNARY, halves(but=np.inf), "inf"),
    "masters of NaN": ("bitnet", MASTERS, halves(but=np.nan), "scale: nan|nan"),
    "masters of infinity": ("bitnet", MASTERS, halves(but=np.inf), "scale: inf|inf"),
    "masters as integers": (
        "bitnet", MASTERS, tensor(GATE, "I8", [128, 32], bytes(4096)), "type: I8",
    ),
    "1bitLLM without a sub norm": (
        "1bitLLM", {}, gone("self_attn.inner_attn_ln.weight"), "inner_attn_ln.weight: missing",
    ),
    "1bitLLM with a short one": (
        "1bitLLM", {}, ones("mlp.ffn_layernorm.weight", 31), "ffn_layernorm.weight shape",
    ),
    "1bitLLM by the other's names": (
        "1bitLLM", {}, config(architectures=["LlamaForCausalLM"]), "not ternary|unexpected",
    ),
    "norm before q of its outputs": (
        "qwen3", {}, ones("self_attn.q_proj.norm.weight", 16), "q_proj.norm.weight shape",
    ),
    "norm before o of the hidden": (
        "qwen3", {}, ones("self_attn.o_proj.norm.weight", 32), "o_proj.norm.weight shape",
    ),
    "no norm before down": (
        "qwen3", {}, gone("mlp.down_proj.norm.weight"), "down_proj.norm.weight: missing",
    ),
    "no norm of heads": ("qwen3", {}, gone("self_attn.k_norm.weight"), "k_norm.weight: missing"),
    "mean pooling": (
        "qwen3", {}, file("1_Pooling/config.json", {"pooling_mode_mean_tokens": True}), "pooling",
    ),
    "two poolings": (
        "qwen3", {},
        file("1_Pooling/config.json",
             {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}),
        "pooling_mode: ",
    ),
    "no pooling of all": ("qwen3", {}, file("1_Pooling/config.json", {}), "pooling_mode"),
    "pooling not JSON": ("qwen3", {}, file("1_Pooling/config.json", b"{"), "valid JSON"),
    "prompts not text": (
        "qwen3", {}, file("config_sentence_transformers.json", {"prompts": {"query": 1}}),
        "prompts: ",
    ),
    "prompts a list": (
        "qwen3", {}, file("config_sentence_transformers.json", {"prompts": ["Q: "]}), "prompts: ",
    ),
    "layer_types of two": (
        "gemma3", {}, config(layer_types=["full_attention"] * 2), "layer_types: ",
    ),
    "layer_types unknown": ("gemma3", {}, config(layer_types=["chunked"]), "layer_types: "),
    "layer_types nested": ("gemma3", {}, config(layer_types=[["full_attention"]]), "layer_types: "),
    "layer_types as text": (
        "gemma3", {}, config(layer_types="full_attention"), "layer_types: full",
    ),
    "no layer in a pattern": (
        "gemma3", {}, config(layer_types=None, sliding_window_pattern=0), "window_pattern: 0",
    ),
    "window -1": ("gemma3", {}, config(sliding_window=-1), "sliding_window: -1"),
    "window as float": ("gemma3", {}, config(sliding_window=4.0), "sliding_window: 4.0"),
    "window of 2^60": ("gemma3", {}, config(sliding_window=2**60), "sliding_window"),
    "query scale 0": ("gemma3", {}, config(query_pre_attn_scalar=0), "query_pre_attn_scalar: 0"),
    "query scale -1": ("gemma3", {}, config(query_pre_attn_scalar=-1), "attn_scalar: -1"),
    "query scale infinite": (
        "gemma3", {}, config(query_pre_attn_scalar=INFINITE), "attn_scalar: inf",
    ),
    "query scale as text": ("gemma3", {}, config(query_pre_attn_scalar="NaN"), "attn_scalar: NaN"),
    "local RoPE of base 0": ("gemma3", {}, config(rope_local_base_freq=0), "base_freq: 0"),
    "soft capping": ("gemma3", {}, config(attn_logit_softcapping=50.0), "softcapping: 50.0"),
    "act silu": ("gemma3", {}, config(hidden_activation="silu"), "hidden_activation: silu"),
    "no norm behind": (
        "gemma3", {}, gone("post_feedforward_layernorm.weight"), "post_feedforward_layernorm.w",
    ),
}  # fmt: skip


TOKENIZER_CASES = {
    "not JSON": (file("tokenizer.json", b"{"), r"tokenizer\.json: tokenizer"),
    "a list": (file("tokenizer.json", []), r"tokenizer\.json: tokenizer"),
    "deep": (file("tokenizer.json", b"[" * 100_000), r"tokenizer\.json: tokenizer"),
    "no decoder": (
        lambda files: files.__setitem__("tokenizer.json",
                                        edited(files["tokenizer.json"], {"decoder": None})),
        "decoder: ",
    ),
    "a template of tokens that names none of them": (
        lambda files: files.__setitem__("tokenizer.json", files["tokenizer.json"].replace(
            b'"SpecialToken": {"id": "<|begin_of_text|>"', b'"SpecialToken": {"id": "<x>"')),
        r"tokenizer\.json: (tokenizer|post_processor)",
    ),
    "template a number": (file("tokenizer_config.json", {"chat_template": 1}), "chat_template: "),
    "templates of nothing": (
        file("tokenizer_config.json", {"chat_template": [None]}), "chat_template: ",
    ),
    "templates in lists": (
        file("tokenizer_config.json", {"chat_template": [{"name": [], "template": "x"}]}),
        "chat_template: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZER_CASES)
def test_tokenizer(tmp_path, name):
    damage, pattern = TOKENIZER_CASES[name]
    files = models.hf_files("bitnet", **PACKED) | {"tokenizer.json": jsoned(make_corpus.TOKENIZER)}
    damage(files)
    refused(models.write(tmp_path / "model", files), pattern)


@pytest.mark.parametrize("name", CASES)
def test_folder(tmp_path, name):
    family, storage, damage, pattern = CASES[name]
    files = models.hf_files(family, **storage)
    damage(files)
    refused(models.write(tmp_path / "model", files), pattern)


# tokenizer.model ----------------------------------------------------------------------------------

PIECES = make_corpus.SPECIAL + make_corpus.LETTERS
UNIGRAM = make_corpus.sentencepiece(PIECES, make_corpus.UNIGRAM)


def with_piece(text, score=0.0, kind=make_corpus.NORMAL):
    return make_corpus.sentencepiece([*PIECES[:-1], (text, score, kind)], make_corpus.UNIGRAM)


def settings(field, value, of=2):
    """One more setting of the trainer (2), the normalizer (3) or the denormalizer (5)."""
    number = value if isinstance(value, bytes) else None
    inside = make_corpus.message(field, number) if number else make_corpus.number(field, value)
    return UNIGRAM + make_corpus.message(of, inside)


MODEL_CASES = {
    "empty": (b"", "unknown piece: 0"),
    "text": (b"not a protobuf", "tokenizer.model: "),
    "a varint without end": (UNIGRAM + b"\x08" + b"\xff" * 11, "more than 10 bytes"),
    "a varint cut": (UNIGRAM + b"\x08\xff", "ends early"),
    "a length of 2^63": (UNIGRAM + b"\x0a" + b"\xff" * 9 + b"\x00", r"size of field 1: \d{19} "),
    "a length beyond": (UNIGRAM + b"\x0a\x02a", "size of field 1: 2 .*1 bytes are left"),
    "a group": (UNIGRAM + b"\x0b", "type of field 1: 3"),
    "a piece that is a number": (UNIGRAM + b"\x08\x01", "piece 8: int"),
    "a piece without text": (with_piece(""), "piece 7: b''"),
    "a piece of 1025 bytes": (with_piece("x" * 1025), "piece 7: .*1 to 1024 bytes"),
    "a piece that is not UTF-8": (UNIGRAM.replace(b"ab", b"\xff\xff"), "piece 7: .*UTF-8"),
    "a piece twice": (with_piece("a"), "piece \\d: a "),
    "a score of NaN": (with_piece("x", float("nan")), "piece 7 score: nan"),
    "a score of infinity": (with_piece("x", float("-inf")), "piece 7 score: -inf"),
    "a kind 9": (with_piece("x", kind=9), "piece 7 type: 9"),
    "a user-defined piece": (with_piece("x", kind=make_corpus.USER_DEFINED), "user-defined"),
    "two unknowns": (with_piece("x", kind=make_corpus.UNKNOWN), "unknown piece: 2"),
    "a byte beyond": (with_piece("<0x100>", kind=make_corpus.BYTE), "piece 7: <0x100>"),
    "a byte below": (with_piece("<0x-1>", kind=make_corpus.BYTE), "piece 7: <0x-1>"),
    "a byte of letters": (with_piece("<0xZZ>", kind=make_corpus.BYTE), "piece 7: <0xZZ>"),
    "bytes that are not there": (settings(35, 1), "token <0x00>: missing"),
    "words": (settings(3, 3), "model_type: 3"),
    "spaces behind": (settings(24, 1), "treat_whitespace_as_suffix"),
    "spaces as they are": (settings(5, 0, of=3), "escape_whitespaces"),
    "rules": (settings(2, b"\x01\x02", of=3), "precompiled_charsmap"),
    "rules behind": (settings(2, b"\x01\x02", of=5), "precompiled_charsmap"),
    "more pieces than rows": (
        make_corpus.sentencepiece([*PIECES, ("x", 0.0, 1)], make_corpus.UNIGRAM), "pieces: 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODEL_CASES)
def test_tokenizer_model(tmp_path, name):
    raw, pattern = MODEL_CASES[name]
    files = models.hf_files("1bitLLM") | {"tokenizer.model": raw}
    refused(models.write(tmp_path / "model", files), pattern)


def test_tensors_of_no_elements_are_left_alone(tmp_path):
    """What torch saves for state that is not there; one that the model needs is no such."""
    tensors = models.hf_tensors("llama", linears="packed")
    tensors["model.layers.0.mlp._extra_state"] = "U8", (0,), b""
    tensors["other"] = "F32", (0, 1 << 40), b""
    folder = models.write(tmp_path / "model", models.hf_files("llama", tensors=tensors))
    open_and_run(folder)
    assert convert(folder, tmp_path / "out").path.is_dir()
    tensors["model.norm.weight"] = "F32", (0,), b""
    refused(models.write(folder, models.hf_files("llama", tensors=tensors)), "norm.weight shape")
    tensors = models.hf_tensors("llama", linears="packed")
    tensors["other"] = "F32", (1,), b"1234"
    refused(models.write(folder, models.hf_files("llama", tensors=tensors)), "other: unexpected")


# what is outside the folder -----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="the system has no links")
@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
     "tokenizer.model", "chat_template.jinja", "config_sentence_transformers.json",
     "1_Pooling/config.json"],
)  # fmt: skip
def test_a_link_out_of_the_folder(tmp_path, name):
    files = models.hf_files("qwen3")
    outside = tmp_path / "outside"
    outside.write_bytes(files.pop(name, b"{}"))
    folder = models.write(tmp_path / "model", files)
    (folder / name).parent.mkdir(exist_ok=True)
    os.symlink(outside, folder / name)
    refused(folder, r"link: .*outside")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="the system has no links")
def test_a_link_of_weights_to_what_is_none(tmp_path):
    """Weights may lie elsewhere; what a link leads to is read by the same rules."""
    folder = models.write(tmp_path / "model", models.hf_files("qwen3"))
    weights = folder / SINGLE
    weights.unlink()
    os.mkfifo(tmp_path / "pipe")
    for target, pattern in (
        (folder / "config.json", "header length"),
        (tmp_path / "absent", "missing"),
        (tmp_path, "missing"),
        (tmp_path / "pipe", "missing"),
    ):
        os.symlink(target, weights)
        refused(folder, pattern)
        weights.unlink()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/hostname", "a/b", "..", ""])
def test_an_index_that_leaves_the_folder(tmp_path, name):
    tensors = models.hf_tensors("llama", linears="packed")
    files = models.sharded(models.hf_files("llama", tensors=tensors), tensors)
    models.write(tmp_path / "other", {SINGLE: safetensors(tensors)})
    index = json.loads(files[INDEX])
    index["weight_map"]["model.norm.weight"] = name
    files[INDEX] = jsoned(index)
    refused(models.write(tmp_path / "model", files), "file name: .*without folders")
