"""The checks of weights and of two models, of models with scales of groups."""

import numpy as np
import pytest
from support import group_models as models

from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.verify import compare, tensors

GATE, UP, TABLE = "layers.0.mlp.gate_proj", "layers.0.mlp.up_proj", "embed_tokens"


@pytest.fixture
def model():
    return models.base()


def opened(tmp_path, model, container="Q2_0_G64", change=None, **options):
    if container == "mlx":
        return open_checkpoint(models.mlx_folder(tmp_path / "mlx", model))
    if container == "F16":
        return open_checkpoint(
            models.folder(tmp_path / "f16", model, models.float_tensors(model))
        )  # fmt: skip
    path, file = tmp_path / f"{container}.gguf", models.gguf(model, container, **options)
    if change:
        change(file)
    path.write_bytes(file.bytes())
    return open_checkpoint(path)


def quiet(*_):
    pass


def checks(checkpoint):
    found = [
        *tensors.check_ternary(checkpoint, quiet),
        *tensors.check_rows(checkpoint, None, quiet),
    ]
    return {check.name: check for check in found}


def compared(a, b):
    found = [*compare.check_ternary(a, b, quiet), *compare.check_floats(a, b, quiet)]
    return {check.name: check for check in found}


@pytest.mark.parametrize("container", ["Q2_0_G64", "PQ2_0", "PTQ1_0", "mlx", "F16"])
def test_a_sound_model(tmp_path, model, container):
    found = checks(opened(tmp_path, model, container))
    assert {check.status for check in found.values()} == {"ok"}
    n = sum(codes.size for codes in model.codes.values())
    assert found["codes"].detail == f"8 tensors, {n:,} weights, all -1, 0 or +1"
    largest = max(np.abs(model.dense(TABLE)).ravel())
    stored_as = {"mlx": "MLX of 64", "F16": "F16 groups of 128"}.get(container, container)
    expected = f"{stored_as}, {models.VOCAB} rows, largest |value| {largest:.4g}"
    assert found["embedding"].detail == expected


def test_what_is_illegal_is_named(tmp_path, model):
    def change(file):
        at = models.scale_at("Q2_0_G64", model, GATE, 9, 1)
        file.put(models.gguf_name(GATE), lambda data: data.__setitem__(at + 4, 0xFF))
        at = models.scale_at("Q2_0_G64", model, TABLE, 3, 0)
        file.put("token_embd.weight", lambda data: data.__setitem__(at + 1, 0xFC))

    found = checks(opened(tmp_path, model, change=change))
    assert found["codes"].status == found["embedding"].status == "FAILED"
    assert "blk.0.ffn_gate.weight: row 9: code 3" in found["codes"].detail
    assert "token_embd.weight: row 3, group 0: scale " in found["embedding"].detail


def test_weights_that_a_scale_of_zero_makes_zero(tmp_path, model):
    model.scales[GATE][:64] = 0
    found = checks(opened(tmp_path, model))
    assert found["rows"].status == "warning" and "64 of " in found["rows"].detail
    assert found["scales"].status == "ok"  # of scales above 0
    zeros = sum((model.dense(name) == 0).sum() for name in model.codes)
    share = zeros / sum(codes.size for codes in model.codes.values())
    assert found["shares"].figures["0"] == pytest.approx(share)


def test_a_model_that_was_never_trained_ternary(tmp_path, model):
    """Gaussian weights, rounded to the largest of 128: far more zeros than training leaves."""
    rng = np.random.default_rng(1)
    for name, codes in model.codes.items():
        values = rng.standard_normal((len(codes), 1, 128))
        values /= np.abs(values).max(axis=2, keepdims=True)
        model.codes[name] = (np.rint(values) + 1).astype(np.uint8).reshape(codes.shape)
    found = checks(opened(tmp_path, model))["shares"]
    assert found.status == "warning" and "never trained ternary" in found.detail


# two models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["PQ2_0", "PTQ1_0", "mlx", "F16"])
def test_equal_models(tmp_path, model, container):
    model.scales[GATE][3] = 0  # under any codes
    found = compared(opened(tmp_path, model), opened(tmp_path, model, container))
    assert {check.status for check in found.values()} == {"ok"}
    for name in ("= codes", "= scales", "= norms", "= embedding"):
        assert "equal" in found[name].detail


def test_what_differs(tmp_path, model):
    ours = opened(tmp_path, model)
    model.codes[GATE][7, 100] = (model.codes[GATE][7, 100] + 1) % 3
    model.scales[UP][5] *= np.float16(2)
    found = compared(ours, opened(tmp_path, model, "PQ2_0"))
    assert found["= codes"].status == found["= scales"].status == "FAILED"
    assert found["= codes"].detail.startswith("1 weights of 1 tensors differ: layers.0.mlp.gate")
    assert found["= scales"].figures == {"worst": UP, "ratio": 0.5}


def test_an_embedding_of_floats_against_a_ternary_one(tmp_path, model):
    ours = opened(tmp_path, model)
    found = compared(ours, opened(tmp_path, model, "PQ2_0", rows="F16"))
    assert {check.status for check in found.values()} == {"ok"}
    assert found["= embedding"].detail == "Q2_0_G64 against F16: equal"
    assert found["= codes"].detail.startswith("7 tensors, equal")
