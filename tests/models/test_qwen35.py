"""Qwen3.5, a hybrid of DeltaNet and attention: its containers, and what is refused in them. Logits
beside transformers are in tests/api/test_grouped_models.py."""

import json

import numpy as np
import pytest
import tokenizers
from support import hybrid_models as models
from support.hybrid_models import rewritten

import bitnet
from bitnet.checkpoints import weights
from bitnet.checkpoints.convert import convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.compute import ops
from bitnet.errors import FormatError
from bitnet.formats.gguf import GGUFFile
from bitnet.runtime import cpu, dispatch
from bitnet.text.vocabulary.byte_level import PRE_TOKENIZERS

STORED = np.load(models.HF / "reference.npz", allow_pickle=False)
IDS = STORED["ids_0"].tolist()


def logits_of(path, **options):
    with bitnet.load(path, kv_dtype="f32", threads=1, **options) as model:
        return model.logits(IDS)


def test_every_container_of_one_model_gives_the_same_bits(tmp_path):
    """A folder of floats, one nested in a model with images, MLX as it writes it and half done."""
    expected = logits_of(models.HF)
    for path in (
        models.nested(tmp_path / "nested"),
        models.mlx(tmp_path / "mlx"),
        models.mlx(tmp_path / "raw", sanitized=False),
    ):
        assert logits_of(path).tobytes() == expected.tobytes(), path.name


def test_layers_are_of_the_kind_that_the_interval_says(tmp_path):
    bare = rewritten(tmp_path / "bare.gguf", {"qwen35.attention.recurrent_layers": None})
    assert open_checkpoint(bare).config == open_checkpoint(models.GGUF).config


def test_layers_that_predict_further_tokens_are_left_alone(tmp_path):
    extra = {"blk.4.nextn.eh_proj.weight": ((2, 2), "F32", np.zeros(16, np.uint8))}
    keys = {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    path = rewritten(tmp_path / "mtp.gguf", keys, extra)
    config = open_checkpoint(path).config
    assert config.num_hidden_layers == 4
    assert logits_of(path).tobytes() == logits_of(models.GGUF).tobytes()
    without = rewritten(tmp_path / "bad.gguf", {}, extra)
    with pytest.raises(FormatError, match="unexpected"):
        open_checkpoint(without)


def ternary_gates(file):
    """ssm_alpha and ssm_beta as PQ2_0, the first rows of another tensor."""
    source = file.tensors["blk.0.ffn_gate.weight"]
    rows = source.data.reshape(source.shape[0], -1)
    return {
        f"blk.{layer}.ssm_{name}.weight": ((4, 128), "PQ2_0", rows[at : at + 4].reshape(-1))
        for layer in range(3)
        for at, name in ((0, "alpha"), (8, "beta"))
    }


def test_gates_may_be_ternary_and_are_never_rounded_to_8_bits(tmp_path, monkeypatch):
    """Of the first generation; against the same numbers as floats."""
    gates = ops.delta_gates
    file = GGUFFile(models.GGUF)
    path = rewritten(tmp_path / "ternary.gguf", {}, ternary_gates(file))
    with weights.open(path, cache=False) as opened:
        values = {
            name: opened.rows(name).dequantize(np.arange(4))
            for i in range(3)
            for name in (f"layers.{i}.linear_attn.in_proj_{x}" for x in "ab")
        }
        gguf_name = opened.config.arch.gguf_name
    floats = {
        f"{gguf_name(name)}.weight": ((4, 128), "F32", v.view(np.uint8).reshape(-1))
        for name, v in values.items()
    }
    other = rewritten(tmp_path / "floats.gguf", {}, floats)
    seen = []
    monkeypatch.setattr(
        ops, "delta_gates", lambda *a: (seen.append(a[1].array()[: len(IDS)].copy()), gates(*a))
    )
    for activations in ("int16", "int8"):
        first = []
        for one in (path, other):
            seen.clear()
            logits_of(one, activations=activations)
            first.append(seen[0])  # alpha of the first layer, whose input is the same
        difference = np.abs(first[0] - first[1]).max() / np.abs(first[1]).max()
        assert 0 < difference < 3e-4, activations
    monkeypatch.undo()
    found = set()
    for isa in cpu.supported():
        dispatch.use(isa)
        found.add(logits_of(path, activations="int8").tobytes())
    dispatch.use()
    assert len(found) == 1


CASES = [
    ({"qwen35.ssm.time_step_rank": 3}, "inner_size"),
    ({"qwen35.ssm.conv_kernel": 1}, "conv_kernel"),
    ({"qwen35.ssm.conv_kernel": 3}, "ssm_conv1d"),
    ({"qwen35.ssm.state_size": 126}, "state_size"),
    ({"qwen35.ssm.group_count": 3}, "time_step_rank: 4 "),
    ({"qwen35.ssm.inner_size": None}, "inner_size: missing"),
    ({"qwen35.rope.dimension_count": 66}, "dimension_count: 66"),
    ({"qwen35.rope.dimension_count": 15}, "dimension_count: 15"),
    ({"qwen35.full_attention_interval": 0}, "full_attention_interval"),
    ({"qwen35.attention.recurrent_layers": np.ones(3, np.uint8)}, "recurrent_layers: 3"),
    ({"qwen35.attention.recurrent_layers": np.ones(4, np.uint8)}, "both kinds"),
    ({"qwen35.attention.recurrent_layers": np.array([1, 1, 0, 1], np.uint8)}, "blk.2.attn_q"),
    ({"qwen35.nextn_predict_layers": 4}, "nextn_predict_layers: 4"),
    ({"general.architecture": "qwen3next"}, "qwen3next"),
]


@pytest.mark.parametrize(("metadata", "pattern"), CASES)
def test_a_gguf_that_contradicts_itself_is_refused(tmp_path, metadata, pattern):
    path = rewritten(tmp_path / "bad.gguf", metadata)
    with pytest.raises(FormatError, match=pattern):
        bitnet.load(path)


@pytest.mark.parametrize(
    ("tensor", "values", "pattern"),
    [
        ("blk.0.ssm_a", [-1, -2, 0.5, -3], "at most 0"),
        ("blk.1.ssm_dt.bias", [0, np.nan, 0, 0], "finite"),
        ("blk.2.ssm_norm.weight", [np.inf] * 128, "finite"),
    ],
)
def test_small_tensors_are_looked_at(tmp_path, tensor, values, pattern):
    data = np.array(values, "<f4")
    path = rewritten(tmp_path / "bad.gguf", {}, {tensor: (data.shape, "F32", data.view(np.uint8))})
    with pytest.raises(FormatError, match=pattern):
        bitnet.load(path)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"layer_types": ["linear_attention"] * 3}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ({"linear_value_head_dim": 40}, "linear_value_head_dim"),
        ({"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": "half"}}, "partial_rot"),
        ({"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.0}}, "head_dim"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(tmp_path, changes, pattern):
    with pytest.raises(FormatError, match=pattern):
        bitnet.load(models.nested(tmp_path / "bad", **changes))


def test_a_convolution_of_another_shape_is_refused(tmp_path):
    name = "model.language_model.layers.0.linear_attn.conv1d.weight"
    bad = {name: ("BF16", (1024, 2, 2), bytes(8192))}
    with pytest.raises(FormatError, match="conv1d"):
        bitnet.load(models.nested(tmp_path / "bad", bad))


def test_it_is_not_converted(tmp_path):
    with pytest.raises(FormatError, match=r"family: qwen35 .*another order"):
        convert(models.HF, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_the_tokenizer_keeps_marks_with_their_letters(tmp_path):
    """tokenizer.ggml.pre "qwen35": a vowel sign belongs to the word, for "qwen2" it does not."""
    text, found = "नमस्ते दुनिया", {}
    for pre in ("qwen2", "qwen35"):
        (words,) = PRE_TOKENIZERS[pre][0]
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), "isolated")
        found[pre] = len(split.pre_tokenize_str(text))
    assert found["qwen35"] == 2 < found["qwen2"]
    path = rewritten(tmp_path / "qwen35.gguf", {"tokenizer.ggml.pre": "qwen35"})
    with bitnet.load(path) as model:
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text


def test_published_cases_of_the_tokenizer():
    """The rotated fixture's tokenizer.ggml.pre is "qwen35"."""
    cases = json.loads((models.GGUF.parent / "tokenizer_cases.json").read_text())
    rotated = models.DATA / "groups" / "gguf_qwen35_hadamard_pq2_0"
    assert cases == json.loads((rotated / "tokenizer_cases.json").read_text())
    for path in (models.GGUF, models.HF, rotated):
        with bitnet.load(path) as model:
            for case in cases:
                assert model.tokenizer.encode(case["text"]) == case["plain"], path.name
