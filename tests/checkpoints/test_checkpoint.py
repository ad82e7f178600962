"""open_checkpoint: families told apart, odd ways of storing ternary layers, layouts by override."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import small_files
from support.pack_layouts import unpack_hf
from support.paths import DATA

from bitnet.checkpoints import weights
from bitnet.checkpoints.checkpoint import I2_S_LAYOUTS, TernaryTensor
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError
from bitnet.formats.tensor import Tensor
from bitnet.formats.ternary_layouts import Quantization, unpack_i2_s
from bitnet.models.config import ModelConfig
from bitnet.models.registry import ARCHITECTURES

UP = "layers.0.mlp.up_proj"


def load_path(name):
    return DATA / name / json.loads((DATA / name / "meta.json").read_text())["load"]


@pytest.mark.parametrize(
    ("name", "family", "stored_as"),
    [
        ("hf_bitnet_offline", "bitnet", "HF packed"),
        ("hf_bitnet_online", "bitnet", "BF16 masters"),
        ("hf_bitnet_b158_large", "bitnet_b1_58", "F16 masters"),
        ("hf_llama_bitlinear", "llama", "HF packed"),
        ("hf_embedding_qwen3", "qwen3_embedding", "BF16 masters"),
        ("hf_embedding_gemma3", "gemma3", "BF16 masters"),
        ("gguf_i2_s_bitnet158", "bitnet", "I2_S"),
        ("gguf_i2_s_llama", "llama", "I2_S"),
        ("gguf_tq1_0", "bitnet", "TQ1_0"),
        ("gguf_tq2_0", "bitnet", "TQ2_0"),
        ("gguf_iq2_bn", "bitnet", "IQ2_BN"),
        ("gguf_i2_s_embedding_qwen3", "qwen3_embedding", "I2_S"),
    ],
)
def test_families_and_how_they_are_stored(name, family, stored_as):
    source = open_checkpoint(load_path(name))
    assert source.config.arch is ARCHITECTURES[family]
    assert {t.stored_as for t in source.ternary.values()} == {stored_as}
    assert all((t.in_place is not None) == (stored_as == "I2_S") for t in source.ternary.values())
    t = source.ternary[UP]
    scales, chunks = t.read()
    codes = np.concatenate([chunk.copy() for chunk in chunks])
    assert codes.shape == (t.n_rows, t.n_cols) and set(np.unique(codes)) == {0, 1, 2}
    assert scales.shape == (1, 1) and scales.dtype == np.float32
    assert source.floats.keys() | source.ternary.keys() == source.config.tensor_shapes().keys()


@pytest.fixture
def llama(tmp_path):
    """A writer of a one-layer Llama folder whose linear layers are floats, as Falcon-E's are."""

    def write(tensors, **changes):
        renamed = {n: t for n, t in tensors.items() if "sub_norm" not in n}
        changes = {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "quantization_config": None, **changes,
        }  # fmt: skip
        return small_files.hf_folder(tmp_path / "llama", renamed, **changes)

    return write


def bf16(values):
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def dequantised(scale=0.0371):
    """The packed model's tensors as bfloat16 values q * scale, and its codes of up_proj."""
    tensors, out, codes = small_files.hf_tensors(), {}, None
    for name, (dtype, shape, data) in tensors.items():
        if name.endswith("_scale"):
            continue
        if dtype == "U8":
            packed = np.frombuffer(data, np.uint8).reshape(shape)
            q = unpack_hf(packed, 4 * shape[0])
            q = np.where(q == 3, 1, q)
            codes = q if name == f"model.{UP}.weight" else codes
            values = (q.astype(np.float32) - 1) * np.float32(scale)
            dtype, shape, data = "BF16", q.shape, bf16(values).tobytes()
        out[name] = (dtype, shape, data)
    return out, codes


def test_weights_that_are_ternary_already_keep_their_scale(llama):
    tensors, codes = dequantised()
    for changes in ({}, {"quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear",
            "quantization_mode": "online"}}):  # fmt: skip
        t = open_checkpoint(llama(tensors, **changes)).ternary[UP]
        assert t.stored_as == "BF16 ternary"
        scales, chunks = t.read()
        assert (np.concatenate(list(chunks)) == codes).all()
        peak = bf16(np.array([0.0371], np.float32)).astype("<u4") << 16
        assert scales == peak.view("<f4")  # not 0.69 of it, which mean |w| would give


def test_floats_that_are_not_ternary_need_a_word(llama):
    folder = llama(small_files.hf_tensors(packed=False))
    with pytest.raises(FormatError, match=r"floats that are not ternary \(.*--masters"):
        open_checkpoint(folder)
    assert open_checkpoint(folder, masters=True).ternary[UP].stored_as == "F32 masters"


def test_one_false_weight_among_ternary_ones_is_found(llama):
    tensors, _ = dequantised()
    dtype, shape, data = tensors[f"model.{UP}.weight"]
    data = data[:-2] + bf16(np.array([0.02], np.float32)).tobytes()
    tensors[f"model.{UP}.weight"] = (dtype, shape, data)
    with pytest.raises(FormatError, match="up_proj"):
        list(open_checkpoint(llama(tensors)).ternary[UP].read()[1])


def test_the_old_bitnet_is_known_by_its_architecture(tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(DATA / "hf_bitnet_b158_large", folder)
    config = json.loads((folder / "config.json").read_text())
    for model_type in ("llama", "bitnet", None):
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
        assert open_checkpoint(folder).config.family == "bitnet_b1_58"


def write_layout(layout, tmp_path):
    """The small model with ffn_up written in a layout, its codes."""
    model = small_files.gguf_model()
    tensor = model.tensor("blk.0.ffn_up.weight")
    n_cols, n_rows = tensor[1]
    n = n_rows * n_cols // 4
    stream = np.frombuffer(tensor[3][:n], np.uint8)
    q = unpack_i2_s(stream.reshape(1, -1)).reshape(n_rows, n_cols)
    q = np.where(q == 3, 1, q)
    fields = {
        "128x32": lambda: q.reshape(-1, 4, 32),
        "64x16": lambda: q.reshape(-1, 4, 16),
        "4row": lambda: q.reshape(-1, 4, n_cols),
    }[layout]()
    data = fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3]
    tensor[3] = data.tobytes() + tensor[3][n:]
    path = tmp_path / "m.gguf"
    path.write_bytes(model.bytes())
    return path, q


@pytest.mark.parametrize("layout", I2_S_LAYOUTS)
def test_layouts_by_override(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    path, q = write_layout(layout, tmp_path)
    opened = weights.open(path, layout=layout)
    assert (unpack_i2_s(opened.ternary(UP).codes) == q).all()
    assert len(opened.mappings()) == (1 if layout == "128x32" else 2)
    for other in set(I2_S_LAYOUTS) - {layout}:  # each has a repacked file of its own
        assert (unpack_i2_s(weights.open(path, layout=other).ternary(UP).codes) != q).any()
    assert (unpack_i2_s(weights.open(path, layout=layout).ternary(UP).codes) == q).all()
    with pytest.raises(ValueError, match="layout: '32x128'"):
        open_checkpoint(path, layout="32x128")


@pytest.mark.parametrize("cache", [None, False])
def test_scales_of_each_row_are_kept_and_equal_ones_collapse(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    data = bytearray(load_path("gguf_iq2_bn").read_bytes())
    opened = weights.open(load_path("gguf_iq2_bn"), cache=cache)
    assert opened.ternary(UP).scales.shape == (1, 1)
    tensor = opened.checkpoint.ternary[UP].tensor
    at = tensor.data.ctypes.data - opened.checkpoint.files[0].data.ctypes.data
    row_bytes = 4 + tensor.shape[1] // 4
    data[at + 5 * row_bytes : at + 5 * row_bytes + 4] = np.float32(0.75).tobytes()
    (tmp_path / "m.gguf").write_bytes(data)
    scales = weights.open(tmp_path / "m.gguf", cache=cache).ternary(UP).scales
    assert scales.shape == (tensor.shape[0], 1) and scales[5] == 0.75
    assert (np.delete(scales, 5) == opened.ternary(UP).scales).all()


@pytest.mark.parametrize(
    ("scales", "quantization", "message"),
    [
        ([[2, 2], [2, 1]], Quantization(64), "group scales, 1 and 2 in row 1"),
        ([[2, 2], [2, 2]], Quantization(64), "weight_group=64.*"),
        ([[2], [1]], Quantization(None, 64), "activation_group=64.*"),
        ([[2], [1]], Quantization(), None),
        ([[2]], Quantization(), None),
    ],
)
def test_scales_of_groups_are_refused_in_one_place(scales, quantization, message):
    """Whatever the container, before a code is read."""
    tensor = Tensor("w", "U8", (2, 128), np.zeros(256, np.uint8), Path("m.gguf"))
    scales = np.array(scales, np.float32)
    linear = TernaryTensor(
        UP, tensor, 2, 128, "U8", True, None, lambda: (scales, iter(())), quantization
    )
    assert quantization.n_groups(128) in (1, 2)
    if message is None:
        assert linear.scales() is scales
        return
    with pytest.raises(FormatError, match=rf"m\.gguf: w: .*{message} \(one scale for a row\)"):
        linear.read()


def test_gemma_norms_are_stored_less_one():
    source = open_checkpoint(load_path("hf_embedding_gemma3"))
    stored = {name: t for name, t in source.floats.items() if len(t.shape) == 1}
    for name, tensor in stored.items():
        raw = (tensor.data.view("<u2").astype("<u4") << 16).view("<f4")
        applied = raw if name.endswith("_proj.norm") else 1 + raw
        assert (source.vector(name) == applied).all()


def gemma_config(**changes):
    config = json.loads((DATA / "hf_embedding_gemma3" / "config.json").read_text()) | changes
    return ModelConfig.from_hf(config, {}, "config.json", ())


def test_gemma_layers_and_their_rope():
    config = gemma_config()
    assert config.sliding_layers == (True, False) and config.sliding_window == 64
    assert (config.rope_theta, config.rope_local_theta) == (10000, 10000)
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
              "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}  # fmt: skip
    config = gemma_config(rope_parameters=nested, rope_theta=None, rope_local_base_freq=None,
                          layer_types=None, num_hidden_layers=12)  # fmt: skip
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 2e4)
    assert config.sliding_layers == ((True,) * 5 + (False,)) * 2
    assert gemma_config(query_pre_attn_scalar=256).query_scale == 0.5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"sliding_window": -1}, "sliding_window"),
        ({"sliding_window_pattern": 0, "layer_types": None}, "sliding_window_pattern"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({"query_pre_attn_scalar": "a"}, "query_pre_attn_scalar"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"rope_local_base_freq": 0}, "rope_local_base_freq"),
    ],
)
def test_gemma_configurations_that_are_refused(changes, field):
    with pytest.raises(FormatError, match=field):
        gemma_config(**changes)


def test_pooling_other_than_of_the_last_token_is_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DATA / "hf_embedding_qwen3", folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    with pytest.raises(FormatError, match=r"pooling_mode: pooling_mode_mean_tokens"):
        open_checkpoint(folder)
    pooling.unlink()
    assert open_checkpoint(folder).config.pooling == "last"
