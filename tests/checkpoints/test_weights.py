"""weights.open on whole models: what is used in place, what is repacked, what is refused."""

import json
import struct

import numpy as np
import pytest
from support import small_files
from support.pack_layouts import unpack_hf
from support.paths import DATA

from bitnet.checkpoints import weights
from bitnet.errors import FormatError
from bitnet.formats import gguf
from bitnet.formats.ternary_layouts import unpack_i2_s

GGUF_PATH = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
DOWN = "layers.0.mlp.down_proj"
pytestmark = pytest.mark.usefixtures("cache")  # every test has an empty cache folder of its own


def test_gguf_is_used_in_place():
    with weights.open(GGUF_PATH) as opened:
        linear = opened.ternary(DOWN)
        ((path, address, n_bytes),) = opened.mappings()
        assert path == GGUF_PATH and n_bytes == GGUF_PATH.stat().st_size
        assert address <= linear.codes.ctypes.data < address + n_bytes
        assert linear.codes.shape == (256, 640 // 4) and linear.codes.dtype == np.uint8
        assert type(linear.codes) is np.ndarray and linear.codes.flags.c_contiguous
        assert not linear.codes.flags.writeable and linear.codes.ctypes.data % 32 == 0
        assert linear.scales.shape == (1, 1) and 0 < linear.scales[0] < 1
        assert (linear.path, linear.name) == (GGUF_PATH, "blk.0.ffn_down.weight")
        head = opened.rows("lm_head")
        assert (head.type, head.data.shape, head.n_cols) == ("F16", (384, 512), 256)
        assert head.data.ctypes.data == opened.rows("embed_tokens").data.ctypes.data  # tied
        assert (head.dequantize([3, 1])[1] == head.data[1].view("<f2")).all()
        assert opened.vector("layers.2.mlp.ffn_sub_norm").dtype == np.float32


def test_gguf_metadata_goes_to_the_tokenizer_with_its_pre_tokenizer():
    metadata = weights.open(GGUF_PATH).tokenizer_source.metadata
    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert len(metadata["tokenizer.ggml.tokens"]) == 384
    assert "BITNETAssistant" in metadata["tokenizer.chat_template"]  # left to the tokenizer


def test_a_stored_pre_tokenizer_is_kept(tmp_path):
    model = small_files.gguf_model()
    model.set("tokenizer.ggml.pre", small_files.STRING, small_files.text("other"))
    (tmp_path / "m.gguf").write_bytes(model.bytes())
    source = weights.open(tmp_path / "m.gguf").tokenizer_source
    assert source.metadata["tokenizer.ggml.pre"] == "other"


def test_arrays_outlive_close():
    opened = weights.open(GGUF_PATH)
    codes = opened.ternary(DOWN).codes
    opened.close()
    assert opened.mappings() == []
    assert codes.sum() > 0


def test_companion_scales_multiply(tmp_path):
    model = small_files.gguf_model("bitnet")
    scale = ["blk.0.attn_q.scale", [1], 0, struct.pack("<f", 3.0), None]
    model.tensors.append(scale)
    (tmp_path / "m.gguf").write_bytes(model.bytes())
    opened = weights.open(tmp_path / "m.gguf")
    assert opened.ternary("layers.0.self_attn.q_proj").scales == 1.5
    assert opened.ternary("layers.0.self_attn.k_proj").scales == 0.5
    scale[3] = struct.pack("<f", -3.0)
    (tmp_path / "m.gguf").write_bytes(model.bytes())
    with pytest.raises(FormatError, match=r"attn_q.scale scale: -3.0"):
        weights.open(tmp_path / "m.gguf")


def test_a_separate_head_is_used_as_it_is(tmp_path):
    model = small_files.gguf_model()
    rng = np.random.default_rng(6)
    head = small_files.floats(rng, small_files.VOCAB, small_files.HIDDEN, dtype="<f2")
    model.tensors.append(["output.weight", [small_files.HIDDEN, small_files.VOCAB], 1, head, None])
    (tmp_path / "m.gguf").write_bytes(model.bytes())
    opened = weights.open(tmp_path / "m.gguf")
    assert not opened.config.tie_word_embeddings
    assert opened.rows("lm_head").data.tobytes() == head


def packed_codes(folder, name):
    """The codes of a packed HF layer, by the definition of the layout."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + n])[f"model.{name}.weight"]
    begin, end = entry["data_offsets"]
    packed = np.frombuffer(raw[8 + n :][begin:end], np.uint8).reshape(entry["shape"])
    return unpack_hf(packed, 4 * len(packed))


def test_hf_packed_goes_through_a_repacked_file(folder, cache):
    opened = weights.open(folder)
    repacked = opened.mappings()[1][0]
    assert repacked.parent == cache and [m[0].name for m in opened.mappings()][:1] == [
        "model.safetensors"
    ]
    for name in small_files.HF_PROJECTIONS:
        linear = opened.ternary(f"layers.0.{name}")
        codes = unpack_i2_s(linear.codes)
        expected = packed_codes(folder, f"layers.0.{name}")
        assert (codes[:, : linear.n_cols] == expected).all()
        assert (codes[:, linear.n_cols :] == 1).all()
        assert linear.scales == np.float32(0.25)
    projections = {f"layers.0.{name}" for name in small_files.HF_PROJECTIONS}
    assert set(gguf.GGUFFile(repacked).tensors) == {*projections, "checksums"}


@pytest.mark.parametrize("name", ["hf_bitnet_offline", "hf_bitnet_online"])
def test_the_repacked_file_holds_what_memory_would(name):
    on_disk, in_memory = weights.open(DATA / name), weights.open(DATA / name, cache=False)
    again = weights.open(DATA / name)
    assert len(in_memory.mappings()) == 1 and len(on_disk.mappings()) == 2
    assert [m[0] for m in again.mappings()] == [m[0] for m in on_disk.mappings()]
    for layer in on_disk.config.tensor_shapes():
        if layer.endswith("_proj"):
            a, b = on_disk.ternary(layer), in_memory.ternary(layer)
            assert (a.codes == b.codes).all() and a.scales == b.scales
            assert (again.ternary(layer).codes == a.codes).all()


def test_masters_are_quantised_as_transformers_does():
    opened = weights.open(DATA / "hf_bitnet_online")
    linear = opened.ternary(DOWN)
    assert (linear.n_rows, linear.n_cols, linear.codes.shape) == (192, 320, (192, 96))
    raw = (DATA / "hf_bitnet_online" / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + n])[f"model.{DOWN}.weight"]["data_offsets"]
    bits = np.frombuffer(raw[8 + n :][begin:end], "<u2").astype(np.uint32) << 16
    master = bits.view(np.float32).reshape(192, 320)
    inverse = np.float32(1) / np.float32(np.abs(master.astype(np.float64)).mean())
    expected = np.clip(np.rint(master * inverse), -1, 1) / inverse
    codes = unpack_i2_s(linear.codes, 320).astype(np.float32)
    assert ((codes - 1) * linear.scales == expected).all()


def test_bitlinear_divides(tmp_path):
    quantization = small_files.HF_CONFIG["quantization_config"] | {"linear_class": "bitlinear"}
    folder = small_files.hf_folder(tmp_path / "model", quantization_config=quantization)
    assert weights.open(folder).ternary(DOWN).scales == 4  # stored 0.25


def test_end_of_turn_of_an_hf_tokenizer(folder):
    decoder = {"15": {"content": "<|eot_id|>"}, "14": {"content": "<|end_of_text|>"}, "x": 3}
    text = json.dumps({"added_tokens_decoder": decoder, "chat_template": "an older one"})
    (folder / "tokenizer_config.json").write_text(text)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    opened = weights.open(folder)
    assert opened.config.eos_token_ids == (14, 15)
    assert opened.tokenizer_source.tokenizer_config["chat_template"] == "{{ messages }}"


def test_gguf_rows_of_odd_width_are_padded_in_a_repacked_file(tmp_path):
    model = small_files.gguf_model()
    ffn = 320
    rng = np.random.default_rng(7)
    model.set("bitnet-b1.58.feed_forward_length", small_files.U32, struct.pack("<I", ffn))
    for name, shape in {"gate": (ffn, 128), "up": (ffn, 128), "down": (128, ffn)}.items():
        tensor = model.tensor(f"blk.0.ffn_{name}.weight")
        tensor[1], tensor[3] = [shape[1], shape[0]], small_files.i2_s(shape, rng)
    norm = model.tensor("blk.0.ffn_sub_norm.weight")
    norm[1], norm[3] = [ffn], small_files.floats(rng, ffn)
    path = tmp_path / "odd.gguf"
    path.write_bytes(model.bytes())
    opened = weights.open(path)
    linear = opened.ternary(DOWN)
    stream = np.frombuffer(model.tensor("blk.0.ffn_down.weight")[3][: 128 * ffn // 4], np.uint8)
    expected = unpack_i2_s(stream.reshape(1, -1)).reshape(128, ffn)
    assert (unpack_i2_s(linear.codes, ffn) == expected).all() and linear.scales == 0.5
    repacked = opened.mappings()[1][0]
    assert list(gguf.GGUFFile(repacked).tensors) == [DOWN, "checksums"]  # nothing else
    assert opened.ternary("layers.0.mlp.up_proj").path == path
    assert (linear.path, linear.name) == (repacked, DOWN)  # messages name what is read


def test_code_3_in_a_source_is_refused_when_repacked(tmp_path):
    tensors = small_files.hf_tensors()
    name = "model.layers.0.mlp.down_proj.weight"
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, b"\x0c" + data[1:]
    folder = small_files.hf_folder(tmp_path / "model", tensors)
    for cache in (None, False):
        with pytest.raises(FormatError, match=rf"{name}: not ternary: code 3"):
            weights.open(folder, cache=cache)
    assert not list((tmp_path / "cache").glob("*.gguf"))


def test_nan_in_masters_is_refused(tmp_path):
    tensors = small_files.hf_tensors(packed=False)
    name = "model.layers.0.mlp.up_proj.weight"
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, struct.pack("<f", float("nan")) + data[4:]
    quantization = small_files.HF_CONFIG["quantization_config"] | {"quantization_mode": "online"}
    folder = small_files.hf_folder(tmp_path / "m", tensors, quantization_config=quantization)
    with pytest.raises(FormatError, match=r"up_proj\.weight scale: nan"):
        weights.open(folder)
