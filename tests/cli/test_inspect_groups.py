"""inspect and memory of models whose groups of columns have scales: from the headers alone."""

import json

import pytest
from support import group_models as models

from bitnet.checkpoints.checkpoint import TernaryTensor
from bitnet.cli import main

GATE = "layers.0.mlp.gate_proj"


@pytest.fixture(autouse=True)
def no_reading(monkeypatch, tmp_path):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(TernaryTensor, "_steps", read)
    monkeypatch.setattr(TernaryTensor, "read", read)


@pytest.fixture(scope="module")
def model():
    return models.base()


def saved(tmp_path, model, container):
    if container == "mlx":
        return models.mlx_folder(tmp_path / "mlx", model, 128)
    if container == "F16":
        return models.folder(tmp_path / "f16", model, models.float_tensors(model))
    path = tmp_path / "model.gguf"
    path.write_bytes(models.gguf(model, container).bytes())
    return path


@pytest.mark.parametrize(
    ("container", "stored_as", "group", "use", "bits"),
    [
        ("Q2_0_G64", "Q2_0_G64", 64, "in place", "2.250"),
        ("Q2_0_G128", "Q2_0_G128", 128, "in place", "2.125"),
        ("PTQ1_0", "PTQ1_0", 128, "repacked once", "1.750"),
        ("mlx", "MLX of 128", 128, "in place", "2.250"),  # biases, which say what scales do
        ("F16", "F16 groups of 128", 128, "repacked once", "16.000"),
    ],
)
def test_types_and_groups(tmp_path, model, capsys, container, stored_as, group, use, bits):
    path = saved(tmp_path, model, container)
    assert main(["inspect", str(path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    n = sum(codes.size for codes in model.codes.values())
    assert f"{n:,} ternary, {bits} bits each ({stored_as})" in shown
    assert f"one scale for {group} columns of a row" in shown
    assert ("every ternary tensor is used in place" in shown) is (use == "in place")
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["group_scales"] is True
    ternary = [t for t in facts["tensors"] if t["ternary"]]
    assert len(ternary) == len(model.codes)
    assert {(t["stored_as"], t["group"], t["use"]) for t in ternary} == {(stored_as, group, use)}
    repacked = facts["derived"]["bytes"]
    assert repacked == (0 if use == "in place" else n // 128 * 34)


def test_a_refused_file_is_shown_as_far_as_it_can_be_read(tmp_path, model, capsys):
    file = models.gguf(model, "PQ2_0")
    file.number("attention.key_length", 32)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.bytes())
    assert main(["inspect", str(path)]) == 1
    assert "PQ2_0" in capsys.readouterr().out


@pytest.mark.parametrize("container", ["PQ2_0", "mlx", "F16"])
def test_memory(tmp_path, model, capsys, container):
    assert main(["memory", str(saved(tmp_path, model, container)), "--context", "128"]) == 0
    assert "private to the process" in capsys.readouterr().out
