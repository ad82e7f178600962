"""verify() of one file: sound models pass, every damage is named, layouts are found out."""

import json
import os
import shutil

import numpy as np
import pytest
from support import small_models
from support.changed_models import FIXTURES, GGUF, damaged, floats, in_layout, rewritten, set_bytes
from support.paths import TINY_MODEL

from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints import weights
from bitnet.checkpoints.checkpoint import I2_S_LAYOUTS
from bitnet.checkpoints.convert import convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import main
from bitnet.verify import verify
from bitnet.verify.running import Run, _judged, some_ids

UP = "layers.1.mlp.up_proj"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")


def statuses(report):
    return {check.name: check.status for check in report.checks if check.status != "ok"}


# ------------------------------------------------------------------------------------ sound models
def test_the_bundled_model_is_sound():
    report = verify(BUNDLED_MODEL)
    assert report.passed and statuses(report) == {}
    assert report["forward pass"].figures["bits_per_byte"] < 1.7
    lines = str(report).splitlines()
    assert lines[0] == str(BUNDLED_MODEL) and lines[-1].startswith("no failures, no warnings (")
    assert len(lines) == len(report.checks) + 2
    assert json.loads(json.dumps(report.as_dict()))["checks"][0]["name"] == "structure"


def test_decay_of_a_repacked_file_is_found_and_repaired():
    """Its time and size are as they were, so that a load reads no more than its header."""
    report = verify(FIXTURES["hf_bitnet_offline"])
    assert report["repacked file"].status == "ok"
    with weights.open(FIXTURES["hf_bitnet_offline"]) as files:
        path, codes = files.repacked, files.ternary(UP).codes
        at = codes.ctypes.data - files.mappings()[-1][1]
    good, info = path.read_bytes(), path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([good[at] ^ 1]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    check = verify(FIXTURES["hf_bitnet_offline"])["repacked file"]
    assert check.status == "warning" and f"{path}: {UP} CRC-32: " in check.detail
    assert "made again" in check.detail and path.read_bytes() == good
    assert verify(FIXTURES["hf_bitnet_offline"])["repacked file"].status == "ok"
    assert "repacked file" not in [check.name for check in verify(GGUF).checks]


EXPECTED = {  # what is odd about a fixture; none was trained on English
    "gguf_i2_s_bitnet158": {"chat template", "forward pass"},
    "gguf_iq2_bn": {"chat template", "forward pass"},
    "gguf_tq1_0": {"activation", "forward pass"},
    "gguf_tq2_0": {"activation", "forward pass"},
    "gguf_i2_s_embedding_qwen3": set(),
    "hf_embedding_qwen3": set(),
    "hf_embedding_gemma3": set(),
}


@pytest.mark.parametrize("name", FIXTURES)
def test_every_form_of_model(name):
    report = verify(FIXTURES[name])
    assert report.passed, str(report)
    assert statuses(report) == dict.fromkeys(EXPECTED.get(name, {"forward pass"}), "warning")


def test_the_wrong_template_of_the_official_file_is_noticed():
    detail = verify(GGUF)["chat template"].detail
    assert "BITNETAssistant" in detail and "BitNet's own is used instead" in detail
    assert "User: " in detail and "Assistant: '" in detail


# ----------------------------------------------------------------------------------------- damages
@pytest.mark.parametrize(
    ("name", "change", "check", "status", "says"),
    [
        ("blk.1.ffn_up.weight", set_bytes(0xFF, 700), "codes", "FAILED", "blk.1.ffn_up.weight"),
        ("blk.1.ffn_up.weight", set_bytes(0x55), "shares", "warning", f"{UP} -1 0.0%, 0 100.0%"),
        ("blk.1.ffn_up.weight", set_bytes(0x55), "rows", "warning", f"{UP} 640 of 640"),
        ("blk.1.ffn_up.weight", set_bytes(0x00), "shares", "warning", f"{UP} -1 100.0%"),
        ("blk.1.ffn_up.weight", floats(200, -8), "scales", "warning", f"{UP} 200"),
        ("blk.1.ffn_up.weight", floats(1e-7, -8), "scales", "warning", f"{UP} 1e-07"),
        ("blk.1.ffn_up.weight", floats(0, -8), "structure", "FAILED", "blk.1.ffn_up.weight scale"),
        ("blk.1.ffn_up.weight", floats(np.nan, -8), "structure", "FAILED", "scale: nan"),
        ("blk.2.ffn_norm.weight", floats(np.inf, 3), "norms", "FAILED", "blk.2.ffn_norm.weight"),
        ("blk.2.ffn_norm.weight", floats(0, ...), "norms", "warning", "all 0"),
        ("blk.2.ffn_norm.weight", floats(1e6, 7), "norms", "warning", "reaches 1e+06"),
        ("token_embd.weight", floats(np.nan, 517, "<f2"), "embedding", "FAILED", "first is 2"),
        ("token_embd.weight", floats(0, slice(256, 512), "<f2"), "embedding", "warning",
         "1 rows are all 0, 1 of them of tokens that texts have, the first is 1"),
    ],
)  # fmt: skip
def test_damaged_tensors(tmp_path, name, change, check, status, says):
    path = damaged(tmp_path, change, name)
    report = verify(path)
    assert report[check].status == status and says in report[check].detail, str(report)
    assert report.passed == (status == "warning")
    assert str(path) not in "".join(c.detail for c in report.checks)  # it is in the first line


def test_tokens_that_no_text_has_may_have_an_empty_row(tmp_path):
    path = damaged(tmp_path, floats(0, slice(383 * 256, None), "<f2"), "token_embd.weight")
    check = verify(path)["embedding"]
    assert check.status == "ok" and "1 rows are all 0" in check.detail


def test_dead_channels_of_2b_4t_are_no_damage(tmp_path):
    path = damaged(tmp_path, floats(-1e-33, slice(0, 200)), "blk.0.ffn_sub_norm.weight")
    assert verify(path)["norms"].status == "ok"


def test_a_file_that_ends_early_or_late(tmp_path):
    raw, path = GGUF.read_bytes(), tmp_path / "m.gguf"
    path.write_bytes(raw[:-1])
    report = verify(path)
    assert [c.name for c in report.checks] == ["structure"] and not report.passed
    path.write_bytes(raw + bytes(5000))
    report = verify(path)
    assert report["bytes"].status == "warning" and "unused 5,000" in report["bytes"].detail
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "absent.gguf")


@pytest.fixture
def gemma_gguf(tmp_path):
    return convert(FIXTURES["hf_embedding_gemma3"], tmp_path / "gemma.gguf").path


def test_norms_of_a_gemma_gguf_that_are_stored_less_1(gemma_gguf, tmp_path):
    assert verify(gemma_gguf)["norms"].status == "ok"
    native = {
        tensor.name: source.vector(name) - 1
        for source in [open_checkpoint(gemma_gguf)]
        for name, tensor in source.floats.items()
        if len(tensor.shape) == 1 and not name.endswith("_proj.norm")
    }
    check = verify(rewritten(tmp_path / "less.gguf", gemma_gguf, native))["norms"]
    assert check.status == "warning" and "centre on 0; Gemma's are stored less 1" in check.detail


def test_norms_of_a_gemma_folder_that_1_was_added_to(tmp_path):
    folder = shutil.copytree(FIXTURES["hf_embedding_gemma3"], tmp_path / "gemma")
    source, raw = open_checkpoint(folder), bytearray((folder / "model.safetensors").read_bytes())
    for name, tensor in source.floats.items():
        if len(tensor.shape) == 1 and not name.endswith("_proj.norm"):
            at = tensor.data.ctypes.data - source.files[0].data.ctypes.data
            applied = (source.vector(name).view("<u4") >> 16).astype("<u2").tobytes()
            raw[at : at + len(applied)] = applied
    (folder / "model.safetensors").write_bytes(raw)
    check = verify(folder)["norms"]
    assert check.status == "warning" and "it may have been added twice" in check.detail


# ------------------------------------------------------------------------------------------- texts
def template(text):
    return {"tokenizer__chat_template": text}


@pytest.mark.parametrize(
    ("changes", "check", "status", "says"),
    [
        (template("{{ raise_exception('no') }}"), "chat template", "FAILED", "no"),
        (template("{{ nobody }}: hello"), "chat template", "FAILED", "not in"),
        (template("{{ messages[0].content }}"), "chat template", "FAILED", "the assistant's"),
        (template("{% for m in messages %}{{ m.content }}{% endfor %}"),
         "chat template", "warning", "no special token"),
        (template(""), "chat template", "ok", "none"),
        (template("{{ raise_exception('no system') if messages[0].role == 'system' }}"
                  "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"),
         "chat template", "ok", "without a system role"),
        (template("{% for m in messages %}{{ m.content }}<|begin_of_text|>{% endfor %}"),
         "chat template", "warning", "<|begin_of_text|>, which is not a stop token"),
        (template("{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"),
         "chat template", "ok", "harbour?<|eot_id|>"),
        (template(None), "chat template", "ok", "none"),
        ({"tokenizer__ggml__pre": "nobodys"}, "tokenizer", "FAILED", "nobodys"),
        ({"tokenizer__ggml__model": None}, "tokenizer", "warning", "only token ids"),
        ({"bitnet-b1__58__hidden_activation": "relu2"}, "activation", "ok", "as the file states"),
        ({"bitnet-b1__58__vocab_size": 8}, "structure", "FAILED", "vocab_size 8"),
    ],
)  # fmt: skip
def test_what_a_file_says(tmp_path, changes, check, status, says):
    changes = {key.replace("b1__58", "b1.58"): value for key, value in changes.items()}
    found = verify(rewritten(tmp_path / "m.gguf", **changes))[check]
    assert found.status == status and says in found.detail, found


@pytest.fixture
def edited_folder(tmp_path):
    """A copy of a folder in which a function has changed the object of one JSON file."""

    def write(change, file="tokenizer.json", name="hf_bitnet_offline"):
        folder = shutil.copytree(FIXTURES[name], tmp_path / "edited")
        values = json.loads((folder / file).read_text())
        change(values)
        (folder / file).write_text(json.dumps(values))
        return folder

    return write


def added_token(content, special):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": 384, "content": content, "special": special} | flags


def test_tokens_without_a_row(edited_folder):
    token = added_token("<picture>", True)
    check = verify(edited_folder(lambda t: t["added_tokens"].append(token)))["tokenizer"]
    assert check.status == "warning" and "<picture> (384)" in check.detail


def test_tokens_of_texts_without_a_row(edited_folder):
    def change(tokenizer):
        tokenizer["model"]["vocab"]["qu"] = 384
        tokenizer["model"]["merges"].insert(0, ["q", "u"])

    report = verify(edited_folder(change))
    assert report["tokenizer"].status == "warning" and "(384)" in report["tokenizer"].detail
    assert report["round trips"].status == "FAILED" and "plain: 384" in report["round trips"].detail


def test_a_tokenizer_that_loses_text(edited_folder):
    lower = {"type": "Lowercase"}
    report = verify(edited_folder(lambda tokenizer: tokenizer.update(normalizer=lower)))
    assert report["round trips"].status == "FAILED"
    assert "the quick brown fox" in report["round trips"].detail


def test_a_tokenizer_that_normalises_odd_text_only(edited_folder):
    spaces = {"type": "Replace", "pattern": {"String": "  "}, "content": " "}
    report = verify(edited_folder(lambda tokenizer: tokenizer.update(normalizer=spaces)))
    assert report["round trips"].status == "warning" and report.passed


# ----------------------------------------------------------------------------------------- layouts
@pytest.mark.parametrize("layout", I2_S_LAYOUTS)
def test_the_layout_is_found_out(layout, tmp_path):
    path = in_layout(layout, tmp_path / "m.gguf")
    assert (path.read_bytes() == TINY_MODEL.read_bytes()) == (layout == "128x32")
    report = verify(path, TINY_MODEL, layout="auto")
    check = report["layout"]
    assert report.layout == layout and report.passed
    assert check.status == ("ok" if layout == "128x32" else "warning")
    assert f"--layout {layout}" in check.detail or layout == "128x32"
    assert check.figures.keys() == I2_S_LAYOUTS.keys()
    others = [score for name, score in check.figures.items() if name != layout]
    assert check.figures[layout] < 0.6 * min(others)
    assert report["forward pass"].figures["bits_per_byte"] == check.figures[layout]
    assert report["= logits"].figures["relative_rms"] == 0


@pytest.mark.parametrize("name", ["gguf_i2_s_llama", "gguf_i2_s_embedding_qwen3"])
def test_the_layout_of_a_model_that_knows_no_english_cannot_be_found_out(name):
    report = verify(FIXTURES[name], layout="auto")
    assert report["layout"].status == "warning" and "cannot tell" in report["layout"].detail
    assert report.layout == "128x32" and report.passed


def test_layouts_of_other_types(tmp_path):
    report = verify(FIXTURES["gguf_tq2_0"], layout="auto")
    assert report["layout"].status == "ok" and "no I2_S tensors" in report["layout"].detail
    with pytest.raises(ValueError, match="layout: '32x128'"):
        verify(GGUF, layout="32x128")


def test_which_of_the_scores_is_believed():
    assert _judged({"128x32": 1.0, "64x16": 3.0}, guessing=4)[0] == "128x32"
    assert _judged({"128x32": 3.0, "64x16": 2.0, "4row": 3.1}, guessing=4)[0] == "64x16"
    assert _judged({"128x32": 3.0, "64x16": 2.8}, guessing=4)[0] is None
    assert _judged({"128x32": 9.0, "64x16": 5.0}, guessing=4)[0] is None
    assert _judged({"128x32": float("inf"), "64x16": float("inf")}, guessing=4)[0] is None
    assert _judged({"128x32": 1.0}, guessing=4)[0] == "128x32"


def test_only_possible_layouts_are_scored(tmp_path):
    """Rows that are no multiple of 4 have no interleaved layout."""
    shape = small_models.Shape(hidden=128, ffn=130, vocab=8)
    path = tmp_path / "m.gguf"
    path.write_bytes(small_models.gguf_model("llama", shape).bytes())
    assert verify(path, layout="auto")["layout"].figures.keys() == {"128x32", "64x16"}


def test_a_text_is_scored_as_the_api_does():
    import bitnet

    with bitnet.load(kv_dtype="f32") as model:
        ids = some_ids(model.tokenizer, model.config)
        run = Run(model.weights, ids, 1)
        total, _ = model.loglikelihood(ids[:1], ids[1:])
    assert run.bits().sum() == pytest.approx(-total / np.log(2), rel=1e-5)


# -------------------------------------------------------------------------------------- the command
def test_the_command(capsys, tmp_path):
    assert main(["verify"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-1].startswith("no failures, no warnings")
    (tmp_path / "m.gguf").write_bytes(GGUF.read_bytes()[:-1])
    assert main(["verify", str(tmp_path / "m.gguf")]) == 1
    out, err = capsys.readouterr()
    assert err == "" and "FAILED   structure  output_norm.weight end" in out
    assert main(["verify", str(GGUF), "--against", str(GGUF), "--json", "--layout", "auto"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["against"] == str(GGUF) and found["layout"] == "128x32"
    assert main(["verify", str(tmp_path / "absent.gguf")]) == 1
    assert "No such file" in capsys.readouterr().err
