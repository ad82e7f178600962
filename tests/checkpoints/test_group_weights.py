"""Models whose groups of columns have scales: equal weights from every container, what is mapped in
place, what is repacked, and which models they are."""

import numpy as np
import pytest
from support import group_models as models
from support import small_models
from support.pack_layouts import pack

import bitnet
from bitnet.checkpoints import repack_cache, repacked_tensors, weights
from bitnet.checkpoints.checkpoint import TernaryTensor
from bitnet.checkpoints.memory_plan import Planner, Settings
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError
from bitnet.formats.group_scales import GroupedMatrix
from bitnet.formats.pieces import PieceReader
from bitnet.runtime.pool import Pool

GATE = "layers.0.mlp.gate_proj"
IN_PLACE = {"Q2_0_G64": "Q2_0_G64", "Q2_0_G128": "PQ2_0", "PQ2_0": "PQ2_0", "mlx": "planes"}
CONTAINERS = (*IN_PLACE, "mlx 128", "PTQ1_0", "F16", "BF16")


@pytest.fixture(scope="module")
def model():
    return models.base()


@pytest.fixture(scope="module")
def wide():
    """One that TQ1_0 and TQ2_0 can hold."""
    return models.base(256, 256, n_heads=4)


def written(tmp_path, model, container):
    if container.startswith("mlx"):
        return models.mlx_folder(tmp_path / "mlx", model, 128 if "128" in container else 64)
    if container in ("F16", "BF16"):
        return models.folder(
            tmp_path / container, model, models.float_tensors(model, container)
        )  # fmt: skip
    path = tmp_path / f"{container}.gguf"
    path.write_bytes(models.gguf(model, container).bytes())
    return path


def has_values_of(opened, model):
    return all((models.values(opened, name) == model.dense(name)).all() for name in model.codes)


# every container ----------------------------------------------------------------------------------


@pytest.mark.parametrize("container", CONTAINERS)
def test_equal_weights(tmp_path, cache, model, container):
    opened = models.use(written(tmp_path, model, container))
    assert opened.has_group_scales and has_values_of(opened, model)
    assert opened.rows("lm_head") is opened.rows("embed_tokens")
    repacked = [] if container in IN_PLACE or container == "mlx 128" else [opened.repacked]
    assert list(cache.glob("*.gguf")) == repacked


def test_equal_logits(tmp_path, cache, model):
    """The same bits from every container of the same weights."""
    found = set()
    for container in CONTAINERS:
        with bitnet.load(written(tmp_path, model, container)) as loaded:
            found.add(np.asarray(loaded.logits([1, 2, 3, 4, 5])).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("type_name", ["TQ1_0", "TQ2_0"])
def test_groups_of_256(tmp_path, cache, wide, type_name, caplog):
    opened = models.use(written(tmp_path, wide, type_name))
    assert has_values_of(opened, wide) and opened.ternary(GATE).type == "PQ2_0"
    assert f"{type_name} has one scale for 256 columns" in caplog.text
    assert "PQ2_0" in caplog.text


def test_one_fingerprint(tmp_path, cache, model):
    """A GGUF says no bos or eos here, and a folder does: it is not part of what is computed."""
    ours = {weights.open(written(tmp_path, model, c)).fingerprint() for c in CONTAINERS}
    assert len(ours) == 1
    model = models.base()
    model.codes[GATE][0, 0] = (model.codes[GATE][0, 0] + 1) % 3
    (tmp_path / "other").mkdir()
    assert weights.open(written(tmp_path / "other", model, "PQ2_0")).fingerprint() not in ours


@pytest.mark.parametrize("container", IN_PLACE)
def test_in_place(tmp_path, cache, model, container):
    """Every array is a view of the file: nothing is copied and nothing written."""
    opened = weights.open(written(tmp_path, model, container))
    ((_, address, n_bytes),) = opened.mappings()
    matrices = [opened.ternary(GATE), opened.rows("embed_tokens"), opened.rows("lm_head")]
    for matrix in matrices:
        assert isinstance(matrix, GroupedMatrix) and matrix.type == IN_PLACE[container]
        for array in matrix.arrays():
            assert address <= array.ctypes.data < address + n_bytes
            assert array.dtype == np.uint8 and not array.flags.writeable
    assert opened.repacked is None and not cache.exists()


def test_load_reads_no_weights(tmp_path, cache, model, monkeypatch):
    """Not even of a repacked file, whose scales and codes were checked as it was written."""
    paths = [written(tmp_path, model, container) for container in ("PQ2_0", "mlx", "PTQ1_0", "F16")]
    for path in paths:
        weights.open(path).close()

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(TernaryTensor, "_steps", read)
    monkeypatch.setattr(TernaryTensor, "read", read)
    for path in paths:
        with weights.open(path) as opened:
            assert has_values_of(opened, model)


def test_unaligned_folders(tmp_path, model):
    """safetensors aligns nothing: every plane at an odd address."""
    tensors = {"a": ("U8", (1,), b"x"), **models.mlx_tensors(model)}
    path = models.mlx_folder(tmp_path / "mlx", model, tensors=tensors)
    with pytest.raises(FormatError, match="a: unexpected"):
        weights.open(path)
    tensors["a"] = "U8", (0,), b""
    models.mlx_folder(tmp_path / "mlx", model, tensors=tensors)
    assert has_values_of(models.use(path, cache=False), model)


@pytest.mark.parametrize("container", ["PQ2_0", "mlx", "PTQ1_0", "F16"])
def test_copied_into_a_pool(tmp_path, cache, model, container):
    pool = Pool(8 << 20)
    opened = weights.open(written(tmp_path, model, container))
    opened.fingerprint()
    before = opened.fingerprint()
    opened.copy_into(pool)
    places = [(a, n) for _, a, n in opened.mappings()]
    for matrix in (opened.ternary(GATE), opened.rows("embed_tokens")):
        for array in matrix.arrays():
            assert array.flags.writeable
            assert not any(a <= array.ctypes.data < a + n for a, n in places)
    assert has_values_of(opened, model) and opened.fingerprint() == before


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_plan_counts_what_the_pool_gives(tmp_path, cache, model, container):
    path, pool = written(tmp_path, model, container), Pool(8 << 20)
    opened = weights.open(path)
    opened.copy_into(pool)
    planned = Planner(open_checkpoint(path)).needs(Settings(128, mapping="copy"))
    (need,) = (need.nbytes for need in planned if need.purpose == "weights")
    assert need == pool.stats().in_use


# repacked -----------------------------------------------------------------------------------------


def test_without_a_cache_folder(tmp_path, model):
    pool = Pool(8 << 20)
    path = written(tmp_path, model, "PTQ1_0")
    opened = models.use(path, cache=False, pool=pool)
    assert has_values_of(opened, model) and opened.repacked is None
    needed = sum(
        repacked_tensors.repacked_bytes(t, True) for t in opened.checkpoint.ternary.values()
    )
    assert needed <= pool.stats().in_use < needed + 64 * len(model.codes)


def test_an_illegal_row_of_a_repacked_file(tmp_path, cache, model):
    """It is named, and the file is made again."""
    path = written(tmp_path, model, "PTQ1_0")
    with weights.open(path) as opened:
        matrix = opened.ternary(GATE)
        _, address, _ = opened.mappings()[1]
        with opened.repacked.open("r+b") as file:
            file.seek(matrix.data.ctypes.data - address + 5 * matrix.data.shape[1] + 7)
            file.write(b"\xff")
        error = str(opened.illegal_row(matrix, 5))
    assert f"{opened.repacked}: {GATE}: row 5: code 3 (codes are" in error
    assert "which the next load makes again" in error
    with models.use(path) as opened:
        assert has_values_of(opened, model)


def test_tensors_without_groups_in_a_model_that_has_them(tmp_path, model):
    """A row of one scale repeats it."""
    model = models.base()
    model.scales[GATE][:] = np.float16(0.5)
    file = models.gguf(model)
    row = file.tensor(models.gguf_name(GATE))
    row[2], row[3] = 36, pack("I2_S", model.codes[GATE], 0.5).tobytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(file.bytes())
    opened = models.use(path, cache=False)
    assert opened.ternary(GATE).type == "PQ2_0" and has_values_of(opened, model)
    row[3] = pack("I2_S", model.codes[GATE], 1 / 3).tobytes()
    path.write_bytes(file.bytes())
    assert "ffn_gate.weight: row 0: scale 0.333333343" in models.refusal(path, cache=False)


def test_a_factor_beside_a_tensor(tmp_path, model):
    file = models.gguf(model)
    factor = np.float32([0.5]).tobytes()
    file.tensors.append(["blk.0.ffn_gate.scale", [1], 0, factor, None])
    path = tmp_path / "model.gguf"
    path.write_bytes(file.bytes())
    opened = models.use(path, cache=False)
    assert (models.values(opened, GATE) == model.dense(GATE) / 2).all()
    assert (models.values(opened, "embed_tokens") == model.dense("embed_tokens")).all()


def test_rows_of_a_file_are_read_without_its_map(tmp_path, model):
    file = open_checkpoint(written(tmp_path, model, "PQ2_0")).files[0]
    rows = file.tensors[models.gguf_name(GATE)].rows()
    with PieceReader([file]) as pieces:
        assert (pieces.rows(rows, np.array([7, 0, 127])) == rows[[7, 0, 127]]).all()
        assert (pieces.rows(rows.copy(), np.array([3])) == rows[3]).all()


# which models -------------------------------------------------------------------------------------

WIDE = small_models.Shape(hidden=256, ffn=256, heads=2, kv_heads=1, head_dim=128, vocab=8)


def llama(tmp_path, types, arch="llama", change=None):
    """A small model of another family. types: of its linears. change(GGUF)."""
    file = small_models.gguf_model(arch, WIDE, types)
    if change:
        change(file)
    path = tmp_path / "llama.gguf"
    path.write_bytes(file.bytes())
    return path


def other_scale(type_name, value=0.25):
    """Another scale of one group of ffn_gate's row 5."""
    n_codes, n_bytes, (at,) = small_models.BLOCKS[type_name]

    def change(file):
        row = file.tensor("blk.0.ffn_down.weight")
        data = bytearray(row[3])
        begin = 5 * 256 // n_codes * n_bytes + at
        data[begin : begin + 2] = np.float16(value).tobytes()
        row[3] = bytes(data)

    return change


def test_types_of_groups_are_enough(tmp_path):
    for type_name in ("Q2_0_G64", "Q2_0_G128", "PQ2_0", "PTQ1_0"):
        opened = models.use(llama(tmp_path, {"ffn_down": type_name}), cache=False)
        assert opened.has_group_scales
        assert isinstance(opened.ternary("layers.0.self_attn.k_proj"), GroupedMatrix)
        assert not weights.open(llama(tmp_path, type_name, "bitnet"), cache=False).has_group_scales


def test_a_ternary_embedding_is_enough(tmp_path):
    file = small_models.gguf_model("llama", WIDE, "TQ2_0", rows="TQ2_0")
    path = tmp_path / "llama.gguf"
    path.write_bytes(file.bytes())
    assert models.use(path, cache=False).rows("embed_tokens").type == "PQ2_0"


def test_tq_by_its_scales(tmp_path, cache):
    """Groups of 256: a row of 512 has two. The repacked file remembers."""
    shape = small_models.Shape(hidden=256, ffn=512, heads=2, kv_heads=1, head_dim=128, vocab=8)
    for value, differs in ((0.5, False), (0.25, True), (0.0, True)):
        file = small_models.gguf_model("llama", shape, "TQ2_0")
        row = file.tensor("blk.0.ffn_down.weight")
        data = bytearray(row[3])
        at = 11 * 66 + 64  # the second group of row 5
        data[at : at + 2] = np.float16(value).tobytes()
        row[3] = bytes(data)
        path = tmp_path / f"{value}.gguf"
        path.write_bytes(file.bytes())
        checkpoint = open_checkpoint(path)
        assert checkpoint.groups is None and checkpoint.is_undecided()
        with models.use(path) as opened:
            assert opened.has_group_scales is differs
            down = opened.ternary("layers.0.mlp.down_proj")
            assert isinstance(down, GroupedMatrix) is differs
            if differs:
                row_5 = down.dequantize(np.array([5]))[0]
                assert np.abs(row_5[:256]).max() == 0.5 and np.abs(row_5[256:]).max() == value
        assert repack_cache.find(checkpoint) and checkpoint.groups is differs


def test_bitnets_groups_stay_refused(tmp_path):
    path = llama(tmp_path, "Q2_0_G64", "bitnet-b1.58", other_scale("Q2_0_G64"))
    with pytest.raises(FormatError, match=r"group scales, 0\.25 and 0\.5 in row 5"):
        weights.open(path, cache=False)


def test_zero_under_any_codes(tmp_path):
    """Where scales are of groups it is 0; in BitNet's models it is refused."""
    path = llama(tmp_path, "PQ2_0", change=other_scale("PQ2_0", 0.0))
    down = models.use(path, cache=False).ternary("layers.0.mlp.down_proj")
    assert not down.dequantize(np.array([5]))[0, :128].any()
    path = llama(tmp_path, "PQ2_0", "bitnet", other_scale("PQ2_0", 0.0))
    with pytest.raises(FormatError, match=r"scale 0\.0 \(finite and above 0"):
        weights.open(path, cache=False)


def test_rows_that_are_no_groups(tmp_path):
    shape = small_models.Shape(hidden=128, ffn=96)
    file = small_models.gguf_model("llama", shape, {"attn_q": "PQ2_0"})
    path = tmp_path / "model.gguf"
    path.write_bytes(file.bytes())
    with pytest.raises(FormatError, match=r"columns: (16|96) \(a multiple of 64, in a model whose"):
        weights.open(path, cache=False)


def test_folders_of_a_scale_for_a_tensor_are_as_before(tmp_path):
    path = small_models.write(
        tmp_path / "m", small_models.hf_files("llama", WIDE, "ternary", quantization_config=None)
    )
    assert not weights.open(path, cache=False).has_group_scales


def test_mlx_of_bitnet_is_refused(tmp_path):
    quantization = {"group_size": 64, "bits": 2}
    path = small_models.write(
        tmp_path / "m", small_models.hf_files("bitnet", WIDE, quantization=quantization)
    )
    with pytest.raises(FormatError, match=r"quantization: .*bitnet has one scale for a tensor"):
        weights.open(path, cache=False)
