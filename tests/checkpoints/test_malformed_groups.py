"""Models with scales of groups that are damaged, or at the edge of what is read: each of one tiny
model with one thing changed."""

import struct

import numpy as np
import pytest
from fuzz.targets import open_and_run
from support import group_models as models
from support.group_models import DOWN, EMBEDDING, UP, f16
from support.refusals import refused
from support.small_files import STRING, U32, text

from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError

LOADS, ERROR, AT_USE = "loads", "error", "error at first use"
MLP_DOWN, TABLE = "layers.0.mlp.down_proj", "embed_tokens"
Q, V = "layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"


@pytest.fixture(scope="module")
def model():
    return models.base()


@pytest.fixture(scope="module")
def wide():
    return models.base(256, 256, n_heads=4)


# GGUF: what is changed --------------------------------------------------------------------------


def g64(change=None, **options):
    """A case of a file of type 42, groups of 64; change(File, Model)."""
    return _case("Q2_0_G64", change, **options)


def pq2_0(change=None, **options):
    return _case("PQ2_0", change, **options)


def legacy(change=None, **options):
    """Of type 42 in the older layout, groups of 128."""
    return _case("Q2_0_G128", change, **options)


def tq(type_name, change):
    return lambda _, wide: _changed(models.gguf(wide, type_name, rows="F16"), change, wide)


def _case(type_name, change, **options):
    return lambda model, _: _changed(models.gguf(model, type_name, **options), change, model)


def _changed(file, change, model):
    if change:
        change(file, model)
    return file


def set_scale(value, type_name="Q2_0_G64", row=1, group=0, name=MLP_DOWN, codes=None):
    def change(file, model):
        at = models.scale_at(type_name, model, name, row, group)

        def put(data):
            data[at : at + 2] = f16(value)
            if codes is not None:
                data[at + 2 : at + 18] = codes

        file.put(models.gguf_name(name), put)

    return change


def set_code_3(type_name="Q2_0_G64", row=2, name=MLP_DOWN):
    def change(file, model):
        at = models.scale_at(type_name, model, name, row, 0)
        at += -3 if type_name == "TQ2_0" else 3

        def put(data):
            data[at] |= 0x0C

        file.put(models.gguf_name(name), put)

    return change


def columns(name, n_cols, n_bytes):
    """A tensor with rows of so many columns, its data cut to so many bytes."""

    def change(file, _):
        row = file.tensor(models.gguf_name(name))
        row[1][0], row[3] = n_cols, row[3][:n_bytes]

    return change


def cut(name, n_bytes):
    def change(file, _):
        row = file.tensor(name)
        row[3] = row[3][:-n_bytes]

    return change


def spare(name, n_bytes):
    return lambda file, _: file.spare.update({name: n_bytes})


def aligned(file, _):
    file.alignment = 4096
    file.set("general.alignment", U32, struct.pack("<I", 4096))


def reversed_data(file, _):
    file.order = [tensor[0] for tensor in file.tensors][::-1]


def last_and_tail(file, _):
    file.tensors.append(file.tensors.pop(0))
    file.tail = 1000


def last_is_cut(file, _):
    file.tensors.append(file.tensors.pop(0))
    file.is_cut = 40


def type_of(name, number):
    def change(file, _):
        file.tensor(name)[2] = number

    return change


def keys(**values):
    def change(file, _):
        for key, value in values.items():
            key = key.replace("__", ".")
            if isinstance(value, str):
                file.set(f"qwen3.{key}", STRING, text(value))
            else:
                file.number(key, value)

    return change


def yarn(**values):
    scaling = {"factor": 4.0, "original_context_length": 128} | values
    scaling = {f"rope__scaling__{key}": v for key, v in scaling.items() if v is not None}
    return keys(rope__scaling__type="yarn", **scaling)


def norm(change):
    """Of attn_q_norm: change(float32 (n,)) -> the one in its place."""

    def changed(file, _):
        row = file.tensor("blk.0.attn_q_norm.weight")
        values = change(np.frombuffer(row[3], "<f4").copy())
        row[1], row[3] = [len(values)], values.astype("<f4").tobytes()

    return changed


def with_nan(values):
    values[3] = np.nan
    return values


def no_k_norm(file, _):
    file.tensors.remove(file.tensor("blk.0.attn_k_norm.weight"))


def rotated(file, _):
    file.set("prism.hadamard.version", U32, struct.pack("<I", 1))


ZEROS = np.full(16, 0x55, np.uint8)  # 64 codes of weight 0
GGUF = {  # name: (File of (Model, wide Model), what is expected, pattern of the message)
    "q2_0_g64": (g64(), LOADS, None),
    "q2_0_g128_legacy": (legacy(), LOADS, None),
    "pq2_0": (pq2_0(), LOADS, None),
    "legacy_reversed_data": (legacy(reversed_data), LOADS, None),
    "legacy_last_tensor_and_tail": (legacy(last_and_tail), LOADS, None),
    "scale_negative_zero": (g64(set_scale(-0.0, codes=ZEROS)), LOADS, None),
    "scale_zero_nonzero_codes": (g64(set_scale(0.0)), LOADS, None),
    "q2_0_and_pq2_0": (g64(types={V: "PQ2_0"}), LOADS, None),
    "q2_0_code_3": (g64(set_code_3()), AT_USE, "ffn_down.weight: row 2: code 3"),
    "pq2_0_code_3": (
        pq2_0(set_code_3("PQ2_0", 7)), AT_USE, "ffn_down.weight: row 7: code 3"),
    "q2_0_code_3_in_embedding": (
        g64(set_code_3(name=TABLE)), AT_USE, "token_embd.weight: row 2: code 3"),
    "q2_0_scale_nan": (
        g64(set_scale(np.nan, group=1)), AT_USE, "ffn_down.weight: row 1, group 1: scale nan"),
    "pq2_0_scale_inf": (
        pq2_0(set_scale(np.inf, "PQ2_0", 3)), AT_USE, "row 3, group 0: scale inf"),
    "q2_0_scale_inf_zero_codes": (
        g64(set_scale(-np.inf, row=0, codes=ZEROS)), AT_USE, "row 0, group 0: scale -inf"),
    "q2_0_scale_negative": (
        g64(set_scale(-0.25)), AT_USE, r"scale -0.25 \(finite, and at least 0; the PQ2_0 file"),
    "q2_0_k_not_multiple": (
        g64(columns(MLP_DOWN, 96, 3456)), ERROR, "needs a multiple of 64"),
    "pq2_0_k_192": (pq2_0(columns(MLP_DOWN, 192, None)), ERROR, "needs a multiple of 128"),
    "q2_0_size_neither": (
        g64(cut(models.gguf_name(Q), 4608 - 4224)), ERROR,
        "attn_q.weight room: 4224 bytes .4608 for groups of 64, exactly 4352 for groups of 128"),
    "legacy_room_too_small": (legacy(cut(UP, 64)), ERROR, "ffn_up.weight room: 4288 bytes"),
    "q2_0_gap": (
        legacy(spare(models.gguf_name(Q), 128)), ERROR, "attn_q.weight room: 4480 bytes.*PQ2_0"),
    "q2_0_mixed_layouts": (
        g64(types={Q: "Q2_0_G128"}), ERROR,
        "type 42: groups of 64, and blk.0.attn_q.weight groups of 128 .one kind.*PQ2_0"),
    "ambiguous_alignment_g64": (g64(aligned), LOADS, None),
    "ambiguous_alignment_g128": (
        legacy(aligned), AT_USE, "token_embd.weight: row .*PQ2_0 file"),
    "legacy_cut_in_data": (legacy(last_is_cut), ERROR, r"weight end: \d+ .the file has"),
    "type_144": (g64(type_of(DOWN, 144)), ERROR, "ffn_down.weight type: 144 .unknown"),
    "type_143": (pq2_0(type_of(DOWN, 143)), AT_USE, "ffn_down.weight: "),
    "hadamard_rotated": (pq2_0(rotated), ERROR, "prism.hadamard.version: 1 .rotated weights"),
    "tq2_0_scale_nan": (
        tq("TQ2_0", set_scale(np.nan, "TQ2_0", 2)), AT_USE, "ffn_down.weight: scale nan"),
    "tq1_0_scale_inf": (
        tq("TQ1_0", set_scale(np.inf, "TQ1_0", 2)), AT_USE, "ffn_down.weight: scale inf"),
    "tq2_0_code_3": (tq("TQ2_0", set_code_3("TQ2_0")), AT_USE, "ffn_down.weight: row 2: code 3"),
    "q_norm_wrong_length": (g64(norm(lambda v: v[:32])), ERROR, "attn_q_norm.weight shape"),
    "k_norm_missing": (g64(no_k_norm), ERROR, "attn_k_norm.weight: missing"),
    "q_norm_nan": (g64(norm(with_nan)), AT_USE, "attn_q_norm.weight: NaN"),
    "key_length_mismatch": (
        g64(keys(attention__key_length=32, attention__value_length=32)), ERROR,
        "attn_q.weight shape"),
    "yarn": (g64(yarn()), LOADS, None),
    "rope_scaling_none": (
        g64(keys(rope__scaling__type="none", rope__scaling__factor=4.0)), LOADS, None),
    "yarn_factor_0": (g64(yarn(factor=0.0)), ERROR, "factor: 0.0"),
    "yarn_factor_nan": (g64(yarn(factor=float("nan"))), ERROR, "factor: nan"),
    "yarn_factor_negative": (g64(yarn(factor=-4.0)), ERROR, "factor: -4.0"),
    "yarn_factor_missing": (g64(yarn(factor=None)), ERROR, "factor: missing"),
    "yarn_original_0": (
        g64(yarn(original_context_length=0)), ERROR, "original_context_length: 0"),
    "yarn_original_missing": (g64(yarn(original_context_length=None)), LOADS, None),
    "rope_scaling_unknown": (
        g64(keys(rope__scaling__type="spiral")), ERROR, "type: spiral"),
    "rope_freq_base_1": (
        g64(lambda file, model: [yarn()(file, model), keys(rope__freq_base=1.0)(file, model)]),
        ERROR, "freq_base: 1.0"),
    "scale_behind_the_codes": (
        legacy(lambda file, _: file.set("oxibonsai.quant_format", STRING, text("TQ2_0_G128"))),
        ERROR, "quant_format: TQ2_0_G128"),
}  # fmt: skip


def expect(path, expected, pattern):
    """What a model of this path does at the load, and in its first forward pass."""
    if expected == ERROR:
        with pytest.raises(FormatError, match=pattern):
            open_checkpoint(path)
        return
    open_checkpoint(path)
    if expected == AT_USE:
        refused(path, pattern)
    else:
        open_and_run(path)
        assert models.use(path, cache=False).has_group_scales


@pytest.mark.parametrize("name", GGUF)
def test_a_file(tmp_path, model, wide, name):
    make, expected, pattern = GGUF[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(make(model, wide).bytes())
    expect(path, expected, pattern)


def test_yarn_without_an_original_length_is_warned_of(tmp_path, model, wide, caplog):
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF["yarn_original_missing"][0](model, wide).bytes())
    config = open_checkpoint(path).config
    assert "the context, 512, is taken" in caplog.text and config.rope_scaling is not None


# folders ------------------------------------------------------------------------------------------


def mlx(change=None, **config):
    """A case of an MLX folder of groups of 64; change({name: (dtype, shape, data)})."""

    def make(path, model):
        tensors = models.mlx_tensors(model)
        if change:
            change(tensors)
        return models.mlx_folder(path, model, tensors=tensors, **config)

    return make


def floats(change=None, **config):
    def make(path, model):
        tensors = models.float_tensors(model)
        if change:
            change(tensors)
        return models.folder(path, model, tensors, **config)

    return make


def put(part, dtype, row, column, value, name=MLP_DOWN):
    def change(tensors):
        name_ = f"model.{name}.{part}"
        type_name, shape, data = tensors[name_]
        values = np.frombuffer(data, dtype).reshape(shape).copy()
        values[row, column] = value(values[row, column]) if callable(value) else value
        tensors[name_] = type_name, shape, values.tobytes()

    return change


def negated(tensors):
    """scale -d, bias d, codes the other way round: the same weights."""
    for part in ("scales", "biases"):
        name = f"model.{MLP_DOWN}.{part}"
        type_name, shape, data = tensors[name]
        tensors[name] = type_name, shape, (-np.frombuffer(data, "<f2")).tobytes()


def no_biases(tensors):
    del tensors[f"model.{MLP_DOWN}.biases"]


def one_group_less(tensors):
    type_name, _, data = tensors[f"model.{MLP_DOWN}.scales"]
    tensors[f"model.{MLP_DOWN}.scales"] = type_name, (127, 2), data[:-4]


def mlx_of(**quantization):
    return {"quantization": {"group_size": 64, "bits": 2} | quantization}


SPIRAL = {"rope_type": "spiral", "factor": 4.0}
YARN_0 = {"rope_type": "yarn", "factor": 0.0, "original_max_position_embeddings": 128}
FOLDERS = {
    "mlx": (mlx(), LOADS, None),
    "mlx_mode": (mlx(**mlx_of(mode="affine")), LOADS, None),
    "mlx_bits_4": (mlx(**mlx_of(bits=4)), ERROR, "quantization.bits: 4"),
    "mlx_group_size_0": (mlx(**mlx_of(group_size=0)), ERROR, "quantization.group_size: 0"),
    "mlx_mode_unknown": (mlx(**mlx_of(mode="mxfp4")), ERROR, "quantization.mode: mxfp4"),
    "mlx_layers_apart": (
        mlx(**mlx_of(lm_head={"bits": 4})), ERROR, "quantization.lm_head.*one kind"),
    "mlx_no_quantization": (
        mlx(quantization=None, quantization_config=None), ERROR, "quantization: missing"),
    "mlx_biases_missing": (mlx(no_biases), ERROR, "down_proj.biases: missing"),
    "mlx_scales_shape": (mlx(one_group_less), ERROR, "down_proj.scales shape"),
    "mlx_bias_not_minus_scale": (
        mlx(put("biases", "<f2", 3, 0, -0.75)), AT_USE, "row 3, group 0: bias -0.75 of scale"),
    "mlx_code_3": (
        mlx(put("weight", "<u4", 2, 1, lambda word: word | 0xC0)), AT_USE, "row 2: code 3"),
    "mlx_scale_nan": (
        mlx(put("scales", "<f2", 5, 0, np.nan)), AT_USE, "row 5, group 0: scale nan"),
    "mlx_negative_scales": (mlx(negated), AT_USE, "row 0, group 0: scale -.*at least 0"),
    "hf_group": (floats(), LOADS, None),
    "hf_one_weight_not_ternary": (
        floats(put("weight", "<f2", 7, 5, 0.5)), AT_USE, "down_proj.weight: row 7, column"),
    "hf_scale_float16_has_not": (
        lambda path, model: models.folder(path, model, _tiny_bf16(model)), AT_USE,
        "down_proj.weight: row 9: scale .* float16 holds"),
    "hf_yarn_factor_0": (floats(rope_scaling=YARN_0), ERROR, "factor: 0.0"),
    "hf_rope_type_unknown": (floats(rope_scaling=SPIRAL), ERROR, "rope_type: spiral"),
}  # fmt: skip


def _tiny_bf16(model):
    """bfloat16 of which one group is smaller than any float16."""
    tensors = models.float_tensors(model, "BF16")
    type_name, shape, data = tensors[f"model.{MLP_DOWN}.weight"]
    bits = np.frombuffer(data, "<u2").reshape(shape).copy()
    bits[9][bits[9] << 1 != 0] = 0x2000
    tensors[f"model.{MLP_DOWN}.weight"] = type_name, shape, bits.tobytes()
    return tensors


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder(tmp_path, model, name):
    make, expected, pattern = FOLDERS[name]
    expect(make(tmp_path / "model", model), expected, pattern)


def test_the_cases_of_an_embedding_of_floats(tmp_path, model):
    """A row that is not ternary: the embedding stays floats, and nothing is rounded."""
    path = floats(put("weight", "<f2", 11, 3, 0.5, name=TABLE))(tmp_path / "model", model)
    opened = models.use(path, cache=False)
    expected = model.dense(TABLE)
    expected[11, 3] = 0.5
    assert (models.values(opened, TABLE) == expected).all()
    assert opened.rows(TABLE).type == "F16" and opened.ternary(MLP_DOWN).type == "PQ2_0"


def test_the_message_for_an_embedding(tmp_path, model):
    file = g64(set_code_3(name=TABLE))(model, None)
    (tmp_path / "model.gguf").write_bytes(file.bytes())
    assert EMBEDDING in models.refusal(tmp_path / "model.gguf", cache=False)
