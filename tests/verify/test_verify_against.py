"""verify(against=...): files of one model are found to be the same, every difference is named."""

import numpy as np
import pytest
from support import small_models
from support.changed_models import (
    FIXTURES,
    GGUF,
    codes_of,
    damaged,
    floats,
    in_layout,
    rewritten,
    stream,
)
from support.paths import TINY_MODEL

from bitnet.checkpoints.convert import convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.formats import gguf
from bitnet.models.rope import row_order
from bitnet.verify import verify
from bitnet.verify.compare import in_step

UP = "layers.1.mlp.up_proj"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")


SAME = {"= shape", "= configuration", "= codes", "= scales", "= norms", "= embedding", "= tokens",
        "= hidden states"}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FIXTURES if name.startswith("hf")])
def test_a_model_is_the_same_in_both_containers(name, tmp_path):
    made = convert(FIXTURES[name], tmp_path / "m.gguf").path
    report = verify(made, FIXTURES[name])
    assert report.passed, str(report)
    checks = {check.name: check.status for check in report.checks if check.name[:2] == "= "}
    assert checks.keys() >= SAME and set(checks.values()) == {"ok"}
    assert checks.keys() - SAME <= {"= head", "= logits", "= text embedding"}


def test_a_permuted_gguf_is_the_same_as_its_folder(tmp_path):
    source = FIXTURES["gguf_i2_s_llama"]
    report = verify(convert(source, tmp_path / "folder").path, source)
    assert report.passed and "equal weight for weight" in report["= codes"].detail
    assert report["= logits"].figures["relative_rms"] < 0.05


def test_a_head_of_fewer_bits_is_told_and_passes(tmp_path):
    made = convert(FIXTURES["hf_llama_bitlinear"], tmp_path / "m.gguf", head="q8_0").path
    report = verify(made, FIXTURES["hf_llama_bitlinear"])
    assert "Q8_0 against BF16: relative RMS" in report["= head"].detail
    assert report["= head"].status == report["= embedding"].status == "ok"
    assert 1e-4 < report["= head"].figures["relative_rms"] < 0.01


def test_one_other_weight_is_found(tmp_path):
    def change(data):
        first = data[1234] >> 6  # of the four codes in this byte
        data[1234] = data[1234] & 0x3F | (0x40 if first == 0 else 0)

    report = verify(damaged(tmp_path, change, "blk.1.ffn_up.weight"), GGUF)
    assert report["= codes"].figures == {"different": 1, "tensors": 1}
    assert report["= codes"].status == "FAILED" and f"{UP} 1 (" in report["= codes"].detail
    assert report["= scales"].status == "ok"


def scale_times(factor):
    def change(data):
        data[-32:-28].view("<f4")[:] *= np.float32(factor)

    return change


def test_a_scale_of_weights_quantised_twice_is_recognised(tmp_path):
    codes = codes_of(open_checkpoint(GGUF).ternary[UP])
    nonzero = (codes != 1).mean()
    path = damaged(tmp_path, scale_times(nonzero), "blk.1.ffn_up.weight")
    for a, b, which in ((path, GGUF, "the file's"), (GGUF, path, "SRC's")):
        check = verify(a, b)["= scales"]
        assert check.status == "FAILED" and f"1 of 21 differ: that of {UP}" in check.detail
        assert f"{which} is the mean of weights that were ternary already" in check.detail


def test_an_inverted_scale_is_recognised(tmp_path):
    scale = float(open_checkpoint(GGUF).ternary[UP].scales()[0, 0])
    check = verify(damaged(tmp_path, scale_times(scale**-2), "blk.1.ffn_up.weight"), GGUF)[
        "= scales"
    ]
    assert check.status == "FAILED" and "one is the inverse of the other" in check.detail


def test_the_first_layer_that_differs_is_named(tmp_path):
    report = verify(damaged(tmp_path, scale_times(7), "blk.1.ffn_down.weight"), GGUF)
    cosines = report["= hidden states"].figures["cosines"]
    assert cosines[0] == pytest.approx(1, abs=1e-12) and cosines[1] < 0.99 and len(cosines) == 3
    assert "the first layer below 0.999 is 1" in report["= hidden states"].detail
    assert report["= logits"].status != "ok"


def test_a_layout_that_was_mistaken_is_named(tmp_path):
    path = in_layout("64x16", tmp_path / "m.gguf")
    assert "reads the file with --layout 64x16" in verify(path, TINY_MODEL)["= codes"].detail
    detail = verify(TINY_MODEL, path)["= codes"].detail
    assert "reads SRC with --against-layout 64x16" in detail
    assert verify(TINY_MODEL, path, against_layout="64x16").passed


def test_rows_of_the_other_kind_of_rope_are_named(tmp_path):
    t = open_checkpoint(GGUF).ternary["layers.0.self_attn.q_proj"]
    permuted = np.empty((t.n_rows, t.n_cols), np.uint8)
    permuted[:] = codes_of(t)[row_order(t.n_rows, 64, interleaved=True)]

    def change(data):
        data[:-32] = np.frombuffer(stream(permuted, "128x32"), np.uint8)

    report = verify(damaged(tmp_path, change, "blk.0.attn_q.weight"), GGUF)
    assert "rows of layers.0.self_attn.q_proj are in the order of the other kind" in (
        report["= codes"].detail
    )


@pytest.mark.parametrize(
    ("name", "change", "check", "says"),
    [
        ("blk.2.ffn_norm.weight", floats(3, 5), "= norms", "layers.2.post_attention_layernorm"),
        ("token_embd.weight", floats(2, 700, "<f2"), "= embedding", "largest 2"),
    ],
)
def test_other_floats_are_found(tmp_path, name, change, check, says):
    found = verify(damaged(tmp_path, change, name), GGUF)[check]
    assert found.status == "FAILED" and says in found.detail


@pytest.mark.parametrize(
    ("changes", "check", "status", "says"),
    [
        ({"hidden_activation": "silu"}, "= configuration", "FAILED", "hidden_act: silu, against"),
        ({"rope.freq_base": 1e4}, "= configuration", "FAILED", "rope_theta: 10000.0, against"),
        ({"context_length": 256}, "= configuration", "warning", "max_position_embeddings: 256"),
    ],
)
def test_other_configurations_are_found(tmp_path, changes, check, status, says):
    changes = {f"bitnet-b1.58.{key}": value for key, value in changes.items()}
    found = verify(rewritten(tmp_path / "m.gguf", **changes), GGUF)[check]
    assert found.status == status and says in found.detail


def test_other_tokens_are_found(tmp_path):
    def report_of(**changes):
        return verify(rewritten(tmp_path / "m.gguf", **changes), GGUF)["= tokens"]

    merges = list(gguf.GGUFFile(GGUF).metadata["tokenizer.ggml.merges"])
    other = report_of(tokenizer__ggml__merges=merges[:60])
    assert other.status == "FAILED" and "plain text: [" in other.detail
    other = report_of(tokenizer__ggml__add_bos_token=False)
    assert other.status == "FAILED" and "a text begins" in other.detail
    other = report_of(tokenizer__chat_template="{{ messages | map(attribute='content') | join }}")
    assert other.status == "warning" and other.detail.startswith("chat: ")
    other = report_of(tokenizer__chat_template=None)
    assert other.status == "warning" and "the file alone lacks" in other.detail
    other = report_of(tokenizer__ggml__model=None)
    assert other.status == "warning" and "the file has no tokenizer" in other.detail


def test_another_model_ends_the_comparison():
    report = verify(GGUF, FIXTURES["gguf_i2_s_llama"])
    assert report["= shape"].status == "FAILED" and "num_hidden_layers: 3, against 2" in (
        report["= shape"].detail
    )
    assert report.checks[-1] is report["= shape"]


def test_a_source_that_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    report = verify(GGUF, tmp_path / "m.gguf")
    assert report["against"].status == "FAILED" and "m.gguf" in report["against"].detail


def test_masters_that_the_configuration_does_not_name(tmp_path):
    files = small_models.hf_files("llama", quantization_config=None)
    folder = small_models.write(tmp_path / "m", files)
    made = convert(folder, tmp_path / "m.gguf", masters=True).path
    assert not verify(made, folder).passed
    report = verify(made, folder, masters=True)
    assert report.passed and report["= codes"].status == "ok"


def test_pairs_of_chunks():
    a, b = np.arange(12).reshape(6, 2), np.arange(12, 24).reshape(6, 2)
    pairs = list(in_step([a[:1], a[1:4], a[4:]], [b[:5], b[5:]]))
    assert [len(x) for x, _ in pairs] == [len(y) for _, y in pairs] == [1, 3, 1, 1]
    assert (np.concatenate([y - x for x, y in pairs]) == 12).all()
