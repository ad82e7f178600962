"""`bitnet inspect --report`: what headers say and a sample shows, without weights and paths."""

import hashlib
import json
import struct

import numpy as np
import pytest
from support import group_models, grouped_reference, small_models
from support.changed_models import FIXTURES
from support.paths import DATA
from support.small_files import F32, STRING, U32, safetensors, text

from bitnet.cli import main
from bitnet.cli.inspect_report import rows
from bitnet.errors import FormatError
from bitnet.verify import layer_check
from bitnet.verify.file_report import file_report
from bitnet.verify.sampled_weights import END_ROWS, Sample

SHAPE = small_models.Shape(hidden=256, ffn=256, heads=2, kv_heads=1, head_dim=128)
WIDE = small_models.Shape(hidden=256, ffn=512, heads=4, kv_heads=1, head_dim=128, vocab=100)


def write(path, model):
    path.write_bytes(model.bytes())
    return path


@pytest.mark.parametrize("path", FIXTURES.values(), ids=FIXTURES)
def test_every_form_of_model(path, capsys):
    assert main(["inspect", "--report", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] and facts["refused"] is None
    n_tensors = sum(file["tensors"] for file in facts["files"])
    assert sum(of_type["tensors"] for of_type in facts["types"].values()) == n_tensors
    assert facts["tables"]["embedding"] and facts["keys"]
    assert main(["inspect", "--report", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"family {facts['family']}" in shown
    assert str(DATA) not in shown + json.dumps(facts) and path.name not in shown


# samples ------------------------------------------------------------------------------------------


def test_what_a_sample_counts():
    """Four rows of two groups of 64, one thing of each kind in them."""
    codes = np.ones((4, 128), np.uint8)
    codes[:, ::2] = 2
    codes[0, :64] = 1  # a half of zeros
    codes[1, 3] = 3
    codes[3] = 0
    scales = np.array([[2, 4], [0.5, 0.5], [0, 1e-5], [-1, np.nan]], np.float32)
    sample = Sample(64)
    sample.n_tensors = 1
    sample.add(scales, codes, -scales)
    found = sample.facts()
    assert found["codes"] == {"-1": 128 / 512, "0": 223 / 512, "+1": 160 / 512}
    assert (found["illegal_codes"], found["sampled_weights"]) == (1, 512)
    assert (found["scale_min"], found["scale_max"]) == (pytest.approx(1e-5), 4)
    counts = {
        "scales": 8, "zero": 1, "zero_under_weights": 1, "subnormal": 1, "negative": 1,
        "not_finite": 1, "rows": 4, "rows_of_one_scale": 2, "pairs": 4, "equal_pairs": 1,
        "pairs_with_a_half_of_zeros": 1, "other_biases": 1,
    }  # fmt: skip
    assert {name: found[name] for name in counts} == counts


@pytest.mark.parametrize(
    ("type_", "group"),
    [("Q2_0_G64", 64), ("Q2_0_G128", 128), ("PQ2_0", 128), ("PTQ1_0", 128), ("TQ1_0", 256),
     ("TQ2_0", 256)],
)  # fmt: skip
def test_types_with_scales_of_groups(tmp_path, type_, group):
    model = small_models.gguf_model("llama", SHAPE, ternary=type_)
    facts = file_report(write(tmp_path / "m.gguf", model))
    (form, sample), (other, floats) = facts["samples"].items()
    assert form == f"{type_}, groups of {group}" and sample["group"] == group
    assert (sample["tensors"], sample["illegal_codes"]) == (7, 0)
    n_rows = 7 * 2 * END_ROWS
    assert sample["sampled_weights"] == 256 * n_rows and sample["rows"] == n_rows
    assert (sample["scale_min"], sample["scale_max"]) == (0.5, 0.5)
    assert sample["rows_of_one_scale"] == n_rows and sample["subnormal"] == sample["zero"] == 0
    assert sum(sample["codes"].values()) == pytest.approx(1)
    assert all(0.3 < share < 0.37 for share in sample["codes"].values())
    assert ("pairs" in sample) == (group == 64)
    if group == 64:
        assert sample["equal_pairs"] == sample["pairs"] == 2 * n_rows
    assert (other, floats) == ("floats that are not ternary", {"tensors": 1})
    assert facts["types"][type_]["tensors"] == 7
    assert "blk.*.ffn_up.weight" in facts["types"][type_]["names"]


@pytest.mark.parametrize(("row", "n_seen"), [(0, 1), (END_ROWS, 0), (-END_ROWS, 1), (-1, 1)])
def test_only_the_ends_of_a_tensor_are_read(tmp_path, row, n_seen):
    model = small_models.gguf_model("llama", WIDE, ternary="PQ2_0")
    entry = next(entry for entry in model.tensors if entry[0] == "blk.0.ffn_up.weight")
    data = np.frombuffer(bytearray(entry[3]), np.uint8).reshape(512, -1)
    data[row, 2] |= 3
    entry[3] = data.tobytes()
    sample = file_report(write(tmp_path / "m.gguf", model))["samples"]["PQ2_0, groups of 128"]
    assert sample["illegal_codes"] == n_seen


def group_floats(group, n_rows=48, n_cols=256):
    """Ternary float16 values with another scale in every group of columns."""
    rng = np.random.default_rng(6)
    scales = rng.uniform(0.01, 0.02, (n_rows, n_cols // group, 1)).astype("<f2")
    codes = rng.integers(0, 3, (n_rows, n_cols // group, group))
    codes[:, :, 0] = 2
    return codes.reshape(n_rows, -1).astype(np.uint8), scales[:, :, 0], scales * (codes - 1)


@pytest.mark.parametrize("group", [64, 128, 256])
def test_a_folder_of_floats(tmp_path, group):
    _, scales, values = group_floats(group)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = small_models.hf_tensors("llama", SHAPE)
    tensors[name] = "F16", (48, 256), values.astype("<f2").tobytes()
    folder = small_models.write(tmp_path / "m", small_models.hf_files("llama", tensors=tensors))
    found = file_report(folder)["samples"]
    sample = found[f"F16 floats, groups of {group}"]
    seen = np.concatenate([scales[:END_ROWS], scales[-END_ROWS:]]).astype(np.float32)
    assert sample["tensors"] == 1 and sample["scales"] == seen.size
    assert (sample["scale_min"], sample["scale_max"]) == (seen.min(), seen.max())
    assert found["floats that are not ternary"]["tensors"] == 8  # six layers, embedding and head


@pytest.mark.parametrize("flip", [False, True])
def test_a_folder_that_mlx_packed(tmp_path, flip):
    codes, scales, _ = group_floats(128)
    biases = -scales
    if flip:
        biases[0, 0] *= 2
    words = (codes.reshape(48, -1, 16).astype("<u4") << np.arange(0, 32, 2, dtype="<u4")).sum(2)
    stem = "model.layers.0.mlp.up_proj"
    tensors = {
        f"{stem}.weight": ("U32", words.shape, words.astype("<u4").tobytes()),
        f"{stem}.scales": ("F16", scales.shape, scales.tobytes()),
        f"{stem}.biases": ("F16", scales.shape, biases.astype("<f2").tobytes()),
    }
    config = {"model_type": "qwen3", "quantization": {"group_size": 128, "bits": 2}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors(tensors)}
    facts = file_report(small_models.write(tmp_path / "m", files))
    sample = facts["samples"]["MLX, groups of 128"]
    assert sample["other_biases"] == flip and sample["illegal_codes"] == 0
    seen = np.concatenate([codes[:END_ROWS], codes[-END_ROWS:]])
    assert sample["codes"]["0"] == (seen == 1).mean()
    assert facts["keys"]["config.quantization"] == config["quantization"]


# headers ------------------------------------------------------------------------------------------


def test_headers(tmp_path):
    model = small_models.gguf_model("llama", SHAPE, ternary="Q2_0_G64")
    template = "{{ '<think>' }}\n\u00fc"
    model.set("tokenizer.chat_template", STRING, text(template))
    model.set("llama.rope.scaling.type", STRING, text("yarn"))
    model.set("llama.rope.scaling.factor", F32, struct.pack("<f", 4.0))
    model.set("llama.rope.scaling.original_context_length", U32, struct.pack("<I", 16))
    model.set("general.file_type", U32, struct.pack("<I", 41))
    model.set("general.sampling.top_k", U32, struct.pack("<I", 20))
    model.set("general.name", STRING, text("/home/me/secret/Bonsai"))
    model.set("general.source.url", STRING, text("https://example.com/secret"))
    model.set("quantize.imatrix.file", STRING, text("/home/me/secret/imatrix.dat"))
    path = write(tmp_path / "secret.gguf", model)
    facts = file_report(path)
    keys = facts["keys"]
    assert (keys["general.file_type"], keys["general.name"]) == (41, "Bonsai")
    assert keys["llama.rope.scaling.factor"] == 4 and keys["llama.rope.freq_base"] == 10000
    assert keys["general.sampling.top_k"] == 20 and keys["tokenizer.ggml.add_bos_token"] is True
    assert facts["rope_scaling"].startswith("yarn, factor 4, original context 16")
    assert facts["tokens"]["eos"] == {"id": 6, "text": "<|end_of_text|>"}
    assert facts["eos_token_ids"] == [6, 7]
    sha256 = hashlib.sha256(template.encode()).hexdigest()
    assert facts["chat_template"] == {"sha256": sha256, "characters": len(template)}
    assert facts["files"] == [{"bytes": path.stat().st_size, "tensors": len(model.tensors)}]
    assert facts["tables"] == {"embedding": {"type": "F16", "shape": [8, 256]}, "head": None}
    shown = "\n".join(f"{title} {line}" for title, line in rows(facts))
    assert "secret" not in shown and sha256 in shown
    assert 'general.name = "Bonsai"' in shown and "RoPE scaling read as yarn, factor 4" in shown


def test_of_a_file_that_is_refused(tmp_path, capsys):
    model = small_models.gguf_model("llama", SHAPE)
    model.set("prism.hadamard.version", U32, struct.pack("<I", 1))
    model.set("llama.rope.scaling.factor", F32, struct.pack("<f", float("nan")))
    path = write(tmp_path / "m.gguf", model)
    assert main(["inspect", "--report", "--json", str(path)]) == 0
    facts = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert facts["refused"].startswith("prism.hadamard.version: 1 (rotated weights")
    assert facts["keys"]["prism.hadamard.version"] == 1 and facts["family"] is None
    assert facts["keys"]["llama.rope.scaling.factor"] == "nan"
    assert main(["inspect", "--report", str(path)]) == 0
    out = capsys.readouterr().out
    assert "refused: prism.hadamard.version" in out and str(tmp_path) not in out
    (tmp_path / "n.gguf").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="magic"):
        file_report(tmp_path / "n.gguf")


def test_a_folder_of_several_templates_and_its_tokens(tmp_path):
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    settings = {"chat_template": named, "eos_token": "</s>", "add_bos_token": False}
    files = small_models.hf_files("bitnet", linears="packed")
    files["tokenizer_config.json"] = json.dumps(settings).encode()
    folder = small_models.write(tmp_path / "m", files)
    facts = file_report(folder)
    assert facts["chat_template"]["sha256"] == hashlib.sha256(b"d").hexdigest()
    assert facts["keys"]["tokenizer_config.eos_token"] == "</s>"
    assert facts["keys"]["config.rope_theta"] == 10000.0
    (folder / "chat_template.jinja").write_text("own")
    assert file_report(folder)["chat_template"]["characters"] == 3


# the first layer ----------------------------------------------------------------------------------

UP_PROJ = "layers.0.mlp.up_proj"


@pytest.mark.parametrize("form", ["Q2_0_G64", "Q2_0_G128", "PQ2_0", "TQ2_0", "MLX", "floats"])
def test_the_first_layer_by_kernels_and_in_float64(tmp_path, form, capsys):
    model, path = group_models.base(256, 256, 4), tmp_path / "m.gguf"
    if form == "MLX":
        path = group_models.mlx_folder(tmp_path / "m", model)
    elif form == "floats":
        path = group_models.folder(tmp_path / "m", model, group_models.float_tensors(model))
    else:
        path.write_bytes(group_models.gguf(model, form).bytes())
    found = {entry["name"]: entry for entry in file_report(path)["first_layer"]}
    assert len(found) == 7
    assert all(entry["fault"] is None for entry in found.values())
    name = f"model.{UP_PROJ}.weight" if path.is_dir() else group_models.UP
    x = layer_check.inputs(256)
    codes, scales = grouped_reference.quantize(x, 16)
    q = model.codes[UP_PROJ].astype(np.int8) - 1
    by_groups = model.scales[UP_PROJ].astype(np.float32)
    ours = grouped_reference.linear(codes, scales, q, by_groups, 16)
    exact = x.astype(np.float64) @ model.dense(UP_PROJ).T.astype(np.float64)
    error = np.sqrt(((ours - exact) ** 2).sum() / (exact**2).sum())
    assert found[name]["error"] == pytest.approx(error, rel=1e-6) and 1e-6 < error < 4e-4
    assert (found[name]["rows"], found[name]["compared"]) == (256, 256)
    assert main(["inspect", "--report", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{name}: 256 rows scanned, {error:.1e} in 256\n" in shown and "FAULT" not in shown


def test_faults_of_the_first_layer(tmp_path, monkeypatch, capsys):
    """All rows are scanned, though the first ones alone are multiplied."""
    model = group_models.base()
    file = group_models.gguf(model, "PQ2_0")
    at = group_models.scale_at("PQ2_0", model, UP_PROJ, 100, 0)

    def damage(data):
        data[at + 2] = 3  # a code

    file.put(group_models.UP, damage)
    path = write(tmp_path / "m.gguf", file)
    monkeypatch.setattr(layer_check, "STEP_WEIGHTS", 16 * 128)
    monkeypatch.setattr(layer_check, "COMPARED", 32 * 128)
    found = {entry["name"]: entry for entry in file_report(path)["first_layer"]}
    assert found[group_models.UP]["fault"] == "row 100: an illegal code, scale or bias"
    sound = found[group_models.DOWN]
    assert (sound["rows"], sound["compared"], sound["fault"]) == (128, 32, None)

    def linear(out, *_):
        out.array()[:] = 1

    monkeypatch.setattr(layer_check.ops, "linear", linear)
    assert main(["inspect", "--report", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{group_models.DOWN}: 128 rows scanned, 1." in shown
    assert "in 32; FAULT: more than 0.001\n" in shown
    assert f"{group_models.UP}: 128 rows scanned; FAULT: row 100" in shown


def test_a_bias_that_is_not_the_scale(tmp_path):
    model = group_models.base()
    tensors, name = group_models.mlx_tensors(model), f"model.{UP_PROJ}.biases"
    type_, shape, data = tensors[name]
    biases = np.frombuffer(data, "<f2").reshape(shape).copy()
    biases[7, 0] *= 2
    tensors[name] = type_, shape, biases.tobytes()
    path = group_models.mlx_folder(tmp_path / "m", model, tensors=tensors)
    faults = [entry["fault"] for entry in file_report(path)["first_layer"]]
    assert faults.count(None) == 6 and "row 7: an illegal code, scale or bias" in faults


def test_no_check_where_rows_have_one_scale(tmp_path, capsys):
    path = write(tmp_path / "m.gguf", small_models.gguf_model("llama", SHAPE))
    assert file_report(path)["first_layer"] is None
    assert main(["inspect", "--report", str(path)]) == 0
    assert "first layer" not in capsys.readouterr().out
