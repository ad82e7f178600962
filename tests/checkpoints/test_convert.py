"""convert(): a model stays what it was, in every container and from every type."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from support import small_files, small_models
from support.conversions import TARGETS, source_of, tensors_of, to
from support.paths import DATA

from bitnet.checkpoints import convert, weights
from bitnet.checkpoints.export_config import differences
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError
from bitnet.formats import gguf, safetensors
from bitnet.formats.ggml_types import ROW_TYPES, TERNARY_TYPES
from bitnet.generation.embedding import normalized
from bitnet.models.transformer import Transformer
from bitnet.runtime.pool import Pool
from bitnet.text.tokenizer import Tokenizer

FIXTURES = sorted(path.parent.name for path in DATA.glob("*/meta.json"))
ARCHITECTURES = {
    "gguf_i2_s_bitnet158": ("bitnet-b1.58", "bitnet"), "gguf_iq2_bn": ("bitnet-b1.58", "bitnet"),
    "gguf_i2_s_embedding_qwen3": ("qwen3", "qwen3"), "gguf_i2_s_llama": ("llama", "llama"),
    "gguf_tq1_0": ("bitnet", "bitnet"), "gguf_tq2_0": ("bitnet", "bitnet"),
    "hf_bitnet_b158_large": ("bitnet", "bitnet"), "hf_bitnet_offline": ("bitnet-b1.58", "bitnet"),
    "hf_bitnet_online": ("bitnet-b1.58", "bitnet"), "hf_llama_bitlinear": ("llama", "llama"),
    "hf_embedding_gemma3": ("gemma3", "gemma3_text"), "hf_embedding_qwen3": ("qwen3", "qwen3"),
}  # fmt: skip


def outputs(path, sequences, head=True):
    """Logits (n, vocab) of each sequence, or the normalised last hidden state (1, hidden)."""
    pool = Pool(1 << 28)
    opened = weights.open(path, cache=False, pool=pool)
    model = Transformer(opened, pool, context=512, max_batch=512)
    for ids in sequences:
        step = [(model.new_state(dtype="f32"), len(ids))]
        if opened.config.pooling is None:
            yield model.forward(np.asarray(ids, np.int32), step, logits="all").copy()
        else:
            hidden = model.forward(np.asarray(ids, np.int32), step, logits="hidden")
            yield normalized(hidden[-1])[None]


def relative_rms(ours, theirs):
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return np.sqrt(((a - b) ** 2).sum() / (b**2).sum())


# every fixture ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FIXTURES)
def test_a_converted_model_gives_what_its_reference_gives(name, target, tmp_path):
    path = to(name, tmp_path, target)
    meta = json.loads((DATA / name / "meta.json").read_text())
    stored = np.load(DATA / name / "reference.npz", allow_pickle=False)
    sequences = [stored[f"ids_{j}"] for j in range(int(stored["n"]))]
    for j, ours in enumerate(outputs(path, sequences)):
        if meta["kind"] == "embedding":
            theirs = stored[f"embedding_{j}"][None]
        else:
            ours, theirs = ours[stored[f"pos_{j}"]], stored[f"logits_{j}"]
            assert (ours.argmax(1) == theirs.argmax(1)).mean() >= meta["tolerance"]["argmax"]
        assert relative_rms(ours, theirs) <= meta["tolerance"]["rel_rms"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FIXTURES)
def test_its_configuration_is_that_of_the_source(name, target, tmp_path):
    before, after = (
        open_checkpoint(source_of(name)).config,
        open_checkpoint(to(name, tmp_path, target)).config,
    )
    family = "bitnet" if before.family == "bitnet_b1_58" else before.family
    assert after.architecture == ARCHITECTURES[name][target == "hf"]
    expected = replace(
        before,
        family=family,
        architecture=after.architecture,
        norms_are_offsets=family == "gemma3" and target == "hf",
        rope_interleaved=family == "llama" and target == "gguf",
    )
    assert differences(after, expected) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FIXTURES)
def test_its_tokenizer_is_that_of_the_source(name, target, tmp_path):
    source = open_checkpoint(to(name, tmp_path, target))
    tokenizer = Tokenizer.from_source(source.tokenizer_source, source.config)
    cases = json.loads((DATA / name / "tokenizer_cases.json").read_text())
    for case in cases:
        assert tokenizer.encode(case["text"], False, True) == case["plain"]
        full = tokenizer.encode(case["text"], parse_special=True, add_eos=True)
        assert full == case["full"]


@pytest.mark.parametrize("name", FIXTURES)
def test_there_and_back_changes_no_weight(name, tmp_path):
    first = to(name, tmp_path)
    convert.convert(first, tmp_path / "folder")
    convert.convert(tmp_path / "folder", tmp_path / "again.gguf")
    before, after = tensors_of(first), tensors_of(tmp_path / "again.gguf")
    if name in ("gguf_tq1_0", "gguf_tq2_0"):  # Q8_0 and Q6_K became F32, and that F16
        before.pop("embed_tokens"), after.pop("embed_tokens")
    assert before == after


# every type ---------------------------------------------------------------------------------------

SHAPE = small_models.Shape(hidden=256, ffn=256, heads=2, kv_heads=1, head_dim=128, vocab=8)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("ternary", TERNARY_TYPES)
def test_every_ternary_type(ternary, target, tmp_path):
    (tmp_path / "a.gguf").write_bytes(small_models.gguf_model("bitnet", SHAPE, ternary).bytes())
    convert.convert(tmp_path / "a.gguf", tmp_path / "b", to=target)
    found = open_checkpoint(tmp_path / "b")
    assert {t.stored_as for t in found.ternary.values()} == {
        "I2_S" if target == "gguf" else "HF packed"
    }
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b")


@pytest.mark.parametrize("rows", ROW_TYPES)
def test_embedding_and_head_keep_their_type(rows, tmp_path):
    (tmp_path / "a.gguf").write_bytes(
        small_models.gguf_model("llama", SHAPE, rows=rows, head=rows).bytes()
    )
    done = convert.convert(tmp_path / "a.gguf", tmp_path / "b.gguf")
    before, after = tensors_of(tmp_path / "a.gguf"), tensors_of(tmp_path / "b.gguf")
    found = gguf.GGUFFile(tmp_path / "b.gguf").tensors
    wide = rows in ("F32", "BF16")
    for name in ("token_embd.weight", "output.weight"):
        assert found[name].type == ("F16" if wide else rows)
    assert done.notes == (
        (f"embed_tokens: {rows} to F16", f"lm_head: {rows} to F16") if wide else ()
    )
    if wide:
        for name in ("embed_tokens", "lm_head"):
            values = np.frombuffer(before[name], np.float32).astype(np.float16)
            assert values.astype(np.float32).tobytes() == after.pop(name)
            before.pop(name)
    assert before == after


@pytest.mark.parametrize("head, error", [("f16", 1e-3), ("q8_0", 1e-2), ("q6_k", 4e-2)])
def test_the_head_that_was_asked_for(head, error, tmp_path):
    path = to("gguf_i2_s_llama", tmp_path, head=head)
    found = gguf.GGUFFile(path).tensors
    assert {found[f"{name}.weight"].type for name in ("token_embd", "output")} == {head.upper()}
    before, after = tensors_of(source_of("gguf_i2_s_llama")), tensors_of(path)
    for name in ("embed_tokens", "lm_head"):
        a, b = (np.frombuffer(found.pop(name), np.float32) for found in (after, before))
        assert relative_rms(a, b) <= error
    assert before == after


def test_a_head_of_blocks_that_do_not_fit(tmp_path):
    with pytest.raises(FormatError, match=r"token_embd.*columns: 192 \(a multiple of 256"):
        to("gguf_iq2_bn", tmp_path, head="q6_k")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_one_float_type(tmp_path):
    with pytest.raises(ValueError, match="head: 'f16'"):
        to("gguf_iq2_bn", tmp_path, "hf", head="f16")
    tensors = safetensors.SafetensorsFile(
        to("hf_bitnet_offline", tmp_path, "hf") / "model.safetensors"
    ).tensors
    assert {t.type for t in tensors.values()} == {"U8", "F32"}


@pytest.mark.parametrize("name", FIXTURES)
def test_tensors_of_a_folder_are_aligned_and_the_library_reads_them(name, tmp_path):
    path = to(name, tmp_path, "hf") / "model.safetensors"
    file = safetensors.SafetensorsFile(path)
    for tensor in file.tensors.values():
        offset = tensor.data.ctypes.data - file.data.ctypes.data
        assert offset % safetensors.ITEM_BYTES[tensor.type] == 0
    with pytest.importorskip("safetensors").safe_open(path, "numpy") as found:
        assert found.metadata() == {"format": "pt"}
        assert set(found.keys()) == set(file.tensors)
        for tensor in file.tensors.values():
            if tensor.type != "BF16":  # NumPy has none
                assert found.get_tensor(tensor.name).tobytes() == tensor.data.tobytes()


def test_values_that_leave_the_range_of_f16(tmp_path):
    tensors = small_files.hf_tensors()
    values = np.full((16, 64), 1e-33, np.float32)
    values[3, 7] = 70000
    tensors["model.embed_tokens.weight"] = ("F32", (16, 64), values.tobytes())
    folder = small_files.hf_folder(tmp_path / "a", tensors)
    done = convert.convert(folder, tmp_path / "b.gguf")
    assert gguf.GGUFFile(done.path).tensors["token_embd.weight"].type == "F32"
    values[3, 7] = np.nan
    tensors["model.embed_tokens.weight"] = ("F32", (16, 64), values.tobytes())
    folder = small_files.hf_folder(tmp_path / "a", tensors)
    with pytest.raises(FormatError, match=r"embed_tokens.*NaN"):
        convert.convert(folder, tmp_path / "c.gguf")


# what a container cannot hold ---------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_scales_by_row_are_refused_by_name(target, tmp_path):
    model = small_models.gguf_model("bitnet", SHAPE, ternary={"ffn_up": "IQ2_BN"})
    tensor = model.tensor("blk.0.ffn_up.weight")
    tensor[3] = np.float32(0.75).tobytes() + tensor[3][4:]
    (tmp_path / "a.gguf").write_bytes(model.bytes())
    assert open_checkpoint(tmp_path / "a.gguf").ternary["layers.0.mlp.up_proj"].scales().size == 256
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_up\.weight: 256 scales"):
        convert.convert(tmp_path / "a.gguf", tmp_path / "b", to=target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_tensor_that_does_not_fill_blocks(tmp_path):
    files = small_models.hf_files("1bitLLM", small_models.Shape(hidden=32, ffn=34))
    folder = small_models.write(tmp_path / "a", files)
    with pytest.raises(FormatError, match=r"gate_proj shape: \(34, 32\).*multiple of 128"):
        convert.convert(folder, tmp_path / "b.gguf")
    convert.convert(folder, tmp_path / "b")  # an HF folder takes it
    assert tensors_of(tmp_path / "b").keys() == tensors_of(folder).keys()


def test_a_lost_end_token_is_noticed(tmp_path, monkeypatch):
    folder = shutil.copytree(source_of("hf_bitnet_b158_large"), tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 7]}))
    monkeypatch.setattr(convert.tokenizer_export, "_end_keys", lambda *_: {})
    with pytest.raises(FormatError, match="tokens that end a text: not as in the source"):
        convert.convert(folder, tmp_path / "b.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_rows_that_bitnet_cpp_cannot_run_are_noted(tmp_path):
    done = convert.convert(source_of("hf_bitnet_b158_large"), tmp_path / "b.gguf")
    assert any("down_proj (448)" in note for note in done.notes)


# what the source means ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["64x16", "4row"])
def test_a_file_in_another_layout_becomes_the_usual_one(layout, tmp_path):
    source = source_of("gguf_i2_s_bitnet158")
    data, file = bytearray(source.read_bytes()), gguf.GGUFFile(source)
    for t in open_checkpoint(source).ternary.values():
        codes = np.concatenate([chunk.copy() for chunk in t.read()[1]])
        if layout == "64x16":
            a, b, c, d = codes.reshape(-1, 4, 16).swapaxes(0, 1)
        else:
            a, b, c, d = codes.reshape(-1, 4, t.n_cols).swapaxes(0, 1)
        packed = (a << 6 | b << 4 | c << 2 | d).tobytes()
        tensor = file.tensors[t.tensor.name]
        at = tensor.data.ctypes.data - file.data.ctypes.data
        data[at : at + len(packed)] = packed
    (tmp_path / "a.gguf").write_bytes(data)
    convert.convert(tmp_path / "a.gguf", tmp_path / "b.gguf", layout=layout)
    assert tensors_of(tmp_path / "b.gguf") == tensors_of(source)


def test_masters_that_only_the_caller_knows_of(tmp_path):
    files = small_models.hf_files("llama", quantization_config=None)
    folder = small_models.write(tmp_path / "a", files)
    with pytest.raises(FormatError, match="--masters"):
        convert.convert(folder, tmp_path / "b.gguf")
    convert.convert(folder, tmp_path / "b.gguf", masters=True)
    convert.convert(folder, tmp_path / "b", masters=True)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"] == {
        "quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline",
    }  # fmt: skip
    a, b = tensors_of(tmp_path / "b.gguf"), tensors_of(tmp_path / "b")
    for name in a.keys() - {"embed_tokens", "lm_head"}:
        if not name.endswith(("q_proj", "k_proj")):
            assert a[name] == b[name], name


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_llama_scales_divide_where_that_loses_nothing(linear_class, tmp_path):
    every = np.arange(1, 2, 1e-3, dtype=np.float32)
    kept = 1 / (1 / every) == every
    scale = every[kept if linear_class == "bitlinear" else ~kept][5]
    model = small_models.gguf_model("llama", head="F16")
    tensor = model.tensor("blk.0.ffn_up.weight")
    tensor[3] = tensor[3][:-32] + scale.tobytes() + bytes(28)
    (tmp_path / "a.gguf").write_bytes(model.bytes())
    convert.convert(tmp_path / "a.gguf", tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["quantization_config"]["linear_class"] == linear_class
    up = open_checkpoint(tmp_path / "b").ternary["layers.0.mlp.up_proj"]
    assert up.scales().tobytes() == scale.tobytes()


@pytest.mark.parametrize("scalar", [16, 100])
def test_the_query_scale_of_gemma_goes_into_a_norm(scalar, tmp_path):
    shutil.copytree(source_of("hf_embedding_gemma3"), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(
        json.dumps(config | {"query_pre_attn_scalar": scalar})
    )
    notes = convert.convert(tmp_path / "a", tmp_path / "b.gguf").notes
    convert.convert(tmp_path / "a", tmp_path / "b")
    assert any("query scale" in note for note in notes)
    ids = [list(range(5, 45))]
    before, *after = (next(outputs(tmp_path / name, ids)) for name in ("a", "b.gguf", "b"))
    assert all(found.tobytes() == before.tobytes() for found in after)


def test_an_embedding_model_keeps_its_prompts_in_a_folder(tmp_path):
    shutil.copytree(source_of("hf_embedding_qwen3"), tmp_path / "a")
    path = tmp_path / "a" / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": "Instruct: find\nQuery: "}}))
    convert.convert(tmp_path / "a", tmp_path / "b")
    assert open_checkpoint(tmp_path / "b").prompts == {"query": "Instruct: find\nQuery: "}
    notes = convert.convert(tmp_path / "a", tmp_path / "b.gguf").notes
    assert any("prompts" in note for note in notes)
