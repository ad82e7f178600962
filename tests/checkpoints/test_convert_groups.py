"""Conversions between the containers of models with scales of groups: lossless, or refused."""

import json

import numpy as np
import pytest
from support import group_models as models
from support.paths import DATA
from support.small_files import STRING, text

from bitnet.checkpoints import convert_groups
from bitnet.checkpoints.convert import convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import main
from bitnet.errors import FormatError
from bitnet.formats.gguf import GGUFFile
from bitnet.text.tokenizer import Tokenizer
from bitnet.verify import compare

SOURCES = ("Q2_0_G64", "Q2_0_G128", "PQ2_0", "PTQ1_0", "mlx", "mlx 128", "F16")
TYPES = {"q2_0": "Q2_0_G64", "pq2_0": "PQ2_0", "ptq1_0": "PTQ1_0"}
GATE, TABLE = "layers.0.mlp.gate_proj", "embed_tokens"


@pytest.fixture(scope="module")
def model():
    return models.base()


def written(tmp_path, model, container):
    if container.startswith("mlx"):
        return models.mlx_folder(tmp_path / "src", model, 128 if "128" in container else 64)
    if container == "F16":
        return models.folder(tmp_path / "src", model, models.float_tensors(model))
    path = tmp_path / "src.gguf"
    path.write_bytes(models.gguf(model, container).bytes())
    return path


def test_every_token_that_ends_a_text_is_kept(tmp_path):
    """generation_config.json lists <|im_end|> and <|endoftext|>, as that of every Qwen3 does."""
    src = DATA / "groups" / "mlx_2bit_g128"
    ends = set(json.loads((src / "generation_config.json").read_text())["eos_token_id"])
    gguf = convert(src, tmp_path / "dst.gguf").path
    for path in (gguf, convert(gguf, tmp_path / "back").path):
        checkpoint = open_checkpoint(path)
        tokenizer = Tokenizer.from_source(checkpoint.tokenizer_source, checkpoint.config)
        assert len(ends) == 2
        assert set(tokenizer.eos_ids) == ends


def has_values_of(path, model):
    opened = models.use(path, cache=False)
    return all((models.values(opened, name) == model.dense(name)).all() for name in model.codes)


@pytest.mark.parametrize("target", [*TYPES, None, "mlx"])
@pytest.mark.parametrize("container", SOURCES)
def test_nothing_is_lost(tmp_path, model, container, target):
    src = written(tmp_path, model, container)
    if target == "mlx":
        dst = convert(src, tmp_path / "dst", to="hf").path
        config = json.loads((dst / "config.json").read_text())
        group = 64 if container in ("Q2_0_G64", "mlx") else 128
        assert config["quantization"] == {"group_size": group, "bits": 2, "mode": "affine"}
        expected = f"MLX of {group}"
    else:
        dst = convert(src, tmp_path / "dst.gguf", type=target).path
        of_64 = container in ("Q2_0_G64", "mlx")
        expected = TYPES[target] if target else "Q2_0_G64" if of_64 else "PQ2_0"
    assert has_values_of(dst, model)
    checkpoint = open_checkpoint(dst)
    assert {t.stored_as for t in checkpoint.ternary.values()} == {expected}
    for check in [
        *compare.check_ternary(checkpoint, open_checkpoint(src), lambda *_: None),
        *compare.check_floats(checkpoint, open_checkpoint(src), lambda *_: None),
    ]:
        assert check.status == "ok" and "equal" in check.detail, check


@pytest.mark.parametrize("target", ["tq1_0", "tq2_0"])
def test_groups_of_256(tmp_path, target):
    wide = models.base(256, 256, n_heads=4)
    src = written(tmp_path, wide, "PQ2_0")
    dst = convert(src, tmp_path / "dst.gguf", type=target).path
    assert has_values_of(dst, wide)
    back = convert(dst, tmp_path / "back.gguf", type="pq2_0").path
    assert {name: t.data.tobytes() for name, t in tensors(back).items()} == {
        name: t.data.tobytes() for name, t in tensors(src).items()
    }


def tensors(path):
    return open_checkpoint(path).files[0].tensors


@pytest.mark.parametrize("target", ["tq1_0", "tq2_0"])
def test_a_loss_is_refused(tmp_path, target):
    """Bonsai's groups of 128 in the 256 of TQ: what other converters do."""
    wide = models.base(256, 128, n_heads=4)
    src = written(tmp_path, wide, "PQ2_0")
    with pytest.raises(FormatError, match=r"TQ._0: group scales .* in row 0 \(one scale for 256"):
        convert(src, tmp_path / "dst.gguf", type=target)
    assert not list(tmp_path.glob("*dst*"))


def test_groups_of_64_that_differ_are_not_128(tmp_path, model):
    file = models.gguf(model)
    at = models.scale_at("Q2_0_G64", model, GATE, 70, 1)

    def put(data):
        data[at : at + 2] = models.f16(0.5)

    file.put(models.gguf_name(GATE), put)
    (tmp_path / "src.gguf").write_bytes(file.bytes())
    for target in ("pq2_0", "ptq1_0"):
        with pytest.raises(FormatError, match=r"ffn_gate.weight: .*group scales .* in row 70 "):
            convert(tmp_path / "src.gguf", tmp_path / "dst.gguf", type=target)
    dst = convert(tmp_path / "src.gguf", tmp_path / "dst").path
    assert (np.abs(models.values(models.use(dst, cache=False), GATE)[70, 64:]) % 0.5 == 0).all()


def test_rows_and_scales_of_llama_move_together(tmp_path, model):
    """Queries and keys of a GGUF of llama lie in pairs for RoPE, in a folder they do not."""

    from bitnet.models.registry import ARCHITECTURES, BY_GGUF_ARCHITECTURE, BY_MODEL_TYPE

    assert BY_GGUF_ARCHITECTURE["llama"] is ARCHITECTURES["llama"] is BY_MODEL_TYPE["llama"]
    file = models.gguf(model, "PQ2_0")
    file.keys = [[key.replace("qwen3.", "llama."), *rest] for key, *rest in file.keys]
    file.set("general.architecture", STRING, text("llama"))
    file.tensors = [t for t in file.tensors if "_q_norm" not in t[0] and "_k_norm" not in t[0]]
    src = tmp_path / "src.gguf"
    src.write_bytes(file.bytes())
    dst = convert(src, tmp_path / "dst").path
    query = "layers.0.self_attn.q_proj"
    order = np.arange(128).reshape(2, 32, 2).swapaxes(1, 2).reshape(-1)
    moved = models.values(models.use(dst, cache=False), query)
    assert (moved == model.dense(query)[order]).all() and (moved != model.dense(query)).any()
    back = convert(dst, tmp_path / "back.gguf").path
    assert (models.values(models.use(back, cache=False), query) == model.dense(query)).all()


def test_arguments(tmp_path, model):
    src = written(tmp_path, model, "PQ2_0")
    with pytest.raises(ValueError, match=r"type: 'i2_s' \(q2_0 or pq2_0 or "):
        convert(src, tmp_path / "dst.gguf", type="i2_s")
    with pytest.raises(ValueError, match=r"type: 'pq2_0' .None but for a GGUF"):
        convert(src, tmp_path / "dst", type="pq2_0")
    with pytest.raises(ValueError, match=r"head: 'f16' .None, as the head is ternary"):
        convert(src, tmp_path / "dst.gguf", head="f16")


def test_the_command(tmp_path, model, capsys):
    src = written(tmp_path, model, "mlx")
    argv = ["convert", str(src), str(tmp_path / "dst.gguf"), "--type", "ptq1_0"]
    assert main(argv) == 0 and "dst.gguf: " in capsys.readouterr().out
    file = GGUFFile(tmp_path / "dst.gguf")
    assert file.metadata["general.file_type"] == 129
    assert {t.type for t in file.tensors.values()} == {"PTQ1_0", "F32"}


def test_a_result_that_is_wrong_is_refused(tmp_path, model, monkeypatch):
    right = convert_groups.pack

    def pack(*args):
        rows = right(*args)
        rows[0, 5] ^= 1 if rows[0, 5] & 3 != 2 else 2
        return rows

    monkeypatch.setattr(convert_groups, "pack", pack)
    with pytest.raises(FormatError, match=r"weights: not as in the source|code 3"):
        convert(written(tmp_path, model, "PQ2_0"), tmp_path / "dst.gguf")
