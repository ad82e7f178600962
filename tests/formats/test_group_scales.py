"""Matrices with scales of groups: what their bytes mean, what is illegal in them, how they are
packed."""

from pathlib import Path

import numpy as np
import pytest
from support.pack_layouts import pack
from support.paths import DATA

from bitnet.formats import group_scales, ternary_layouts
from bitnet.formats.group_scales import GroupedMatrix

TYPES = ("PQ2_0", "Q2_0_G64", "planes 64", "planes 128")
N_ROWS, N_COLS = 12, 768
PATH = Path("model.gguf")


@pytest.fixture(scope="module")
def vectors():
    """q and float16 scales, 0, 6e-8 and 65504 among them, in every layout, as others wrote them."""
    with np.load(DATA / "packing_group.npz", allow_pickle=False) as held:
        return dict(held)


def unaligned(data, *shape):
    """The same bytes at an odd address, read-only."""
    raw = np.concatenate([[np.uint8(7)], np.ascontiguousarray(data).reshape(-1).view(np.uint8)])
    raw.flags.writeable = False
    return raw[1:].reshape(*shape, -1)


def planes(codes, scales, biases=None):
    """What MLX stores, as a GroupedMatrix."""
    words = sum(codes[:, i::16].astype(np.uint32) << 2 * i for i in range(16)).astype("<u4")
    n_rows, n_cols = codes.shape
    parts = [None if part is None else unaligned(part, n_rows) for part in (scales, biases)]
    return GroupedMatrix("planes", unaligned(words, n_rows), n_rows, n_cols, PATH, "t", *parts)


def matrix(name, codes, scales):
    """Codes with float16 scales of groups of 64 or of 128."""
    if name.startswith("planes"):
        return planes(codes, scales, -scales)
    data = unaligned(pack(name, codes, scales), len(codes))
    return GroupedMatrix(name, data, *codes.shape, PATH, "t")


def group_of(name):
    return 64 if name.endswith("64") else 128


def example(name, n_rows=6, n_cols=640, seed=3):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (n_rows, n_cols), dtype=np.uint8)
    return codes, rng.uniform(0.1, 1, (n_rows, n_cols // group_of(name))).astype(np.float16)


def dense(codes, scales):
    group = codes.shape[1] // scales.shape[1]
    return np.repeat(scales.astype(np.float64), group, axis=1) * (codes.astype(np.float64) - 1)


# what bytes mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 5000, 1 << 20])
@pytest.mark.parametrize("group", [64, 128])
def test_every_container_gives_the_reference(monkeypatch, vectors, group, chunk):
    """The same q and d of other programs' files: equal scales, codes, and y bit for bit."""
    monkeypatch.setattr(group_scales, "STEP_WEIGHTS", chunk)
    codes, x = (vectors["q"] + 1).astype(np.uint8), vectors["x"].astype(np.float64)
    blocks = vectors["q2_0_g64" if group == 64 else "q2_0_g128"]
    type_name = "Q2_0_G64" if group == 64 else "PQ2_0"
    words, *parts = (vectors[f"mlx_{part}_g{group}"] for part in ("weight", "scales", "biases"))
    shape = N_ROWS, N_COLS, PATH, "t"
    matrices = [
        GroupedMatrix(type_name, unaligned(blocks, N_ROWS), *shape),
        GroupedMatrix("planes", unaligned(words, N_ROWS), *shape,
                      *(unaligned(part, N_ROWS) for part in parts)),
    ]  # fmt: skip
    for held in matrices:
        assert (held.group, held.n_groups) == (group, N_COLS // group)
        scales, chunks = group_scales.unpack(held)
        found = np.concatenate(list(chunks))
        assert (scales == vectors[f"d_{group}"]).all() and (found == codes).all()
        assert scales.dtype == np.float32 and found.dtype == np.uint8
        assert (x @ dense(found, scales).T == vectors[f"y_{group}"]).all()
        rows = np.array([11, 0, 5])
        assert (held.dequantize(rows) == dense(codes, scales)[rows]).all()


@pytest.mark.parametrize("type_name", ["TQ1_0", "TQ2_0", "PTQ1_0"])
def test_types_that_are_repacked_give_the_reference(vectors, type_name):
    group = 128 if type_name == "PTQ1_0" else 256
    data = vectors[type_name.lower()]
    parts = ternary_layouts.unpack_groups(type_name, data, N_ROWS, N_COLS)
    scales, codes = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert (scales == vectors[f"d_{group}"]).all() and (codes == vectors["q"] + 1).all()
    packed = group_scales.pack("PQ2_0", scales, codes)
    again = GroupedMatrix("PQ2_0", packed, N_ROWS, N_COLS, PATH, "t")
    weights = again.dequantize(np.arange(N_ROWS)).astype(np.float64)
    assert (vectors["x"].astype(np.float64) @ weights.T == vectors[f"y_{group}"]).all()


@pytest.mark.parametrize("name", TYPES)
def test_a_layout_by_hand(name):
    """Column c is two bits of byte c // 4, and its scale that of group c // group."""
    codes, scales = example(name)
    held, group = matrix(name, codes, scales), group_of(name)
    for row, column in ((0, 0), (1, 63), (2, 64), (3, 127), (4, 128), (5, 639)):
        if name.startswith("planes"):
            byte = held.data[row, column // 4]
            scale = held.scales[row, column // group * 2 :][:2]
        else:
            n_bytes = 2 + group // 4
            block = held.data[row, column // group * n_bytes :][:n_bytes]
            byte, scale = block[2 + column % group // 4], block[:2]
        assert byte >> 2 * (column % 4) & 3 == codes[row, column]
        assert scale.tobytes() == scales[row, column // group].tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_a_scale_of_zero_makes_its_weights_zero(name):
    codes, scales = example(name)
    scales[2, 1], scales[3, 0] = 0.0, -0.0
    held = matrix(name, codes, scales)
    group_scales.check(held, slice(None))
    found = held.dequantize(np.array([2, 3]))
    assert not found[0, group_of(name) :][: group_of(name)].any()
    assert not found[1, : group_of(name)].any() and found[1].any()


# what is illegal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("codes_are_zero", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.5, -6e-8])
@pytest.mark.parametrize("name", TYPES)
def test_illegal_scales(monkeypatch, name, value, codes_are_zero, chunk):
    monkeypatch.setattr(group_scales, "STEP_WEIGHTS", chunk)
    codes, scales = example(name)
    scales[4, -1] = value
    if codes_are_zero:
        codes[4, -group_of(name) :] = 1
    held = matrix(name, codes, scales)
    group_scales.check(held, slice(0, 4))
    group_scales.check(held, slice(5, 6))
    message = f"row 4, group {scales.shape[1] - 1}: scale {scales[4, -1]}, limit: finite"
    with pytest.raises(ValueError, match=message):
        group_scales.check(held, slice(1, None))
    with pytest.raises(ValueError, match=message):
        list(group_scales.unpack(held)[1])


@pytest.mark.parametrize("column", [0, 63, 64, 130, 639])
@pytest.mark.parametrize("name", TYPES)
def test_code_3(name, column):
    codes, scales = example(name)
    codes[1, column] = 3
    scales[1] = 0  # which makes no code legal
    with pytest.raises(ValueError, match="row 1: code 3"):
        group_scales.check(matrix(name, codes, scales), slice(None))


@pytest.mark.parametrize("name", ["planes 64", "planes 128"])
def test_biases_that_are_not_the_scales_negated(name):
    codes, scales = example(name)
    biases = -scales
    biases[3, 2] = np.nextafter(biases[3, 2], np.float16(0))
    with pytest.raises(ValueError, match=r"row 3, group 2: bias -.* of scale .*limit: -scale"):
        group_scales.check(planes(codes, scales, biases), slice(None))
    scales[0, 0], biases = 0, -scales
    biases[0, 0] = 0  # not -0: equal all the same
    group_scales.check(planes(codes, scales, biases), slice(None))
    group_scales.check(planes(codes, scales), slice(None))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
@pytest.mark.parametrize("type_name", ["TQ1_0", "TQ2_0", "PTQ1_0", "PQ2_0", "Q2_0_G64"])
def test_illegal_scales_of_what_is_repacked(type_name, value):
    codes = example(type_name, n_cols=512)[0]
    scales = np.full((6, 2), 0.5, np.float16)
    scales[2, 1] = value
    codes[2, 256:] = 1
    n_groups = ternary_layouts.quantization_of(type_name).n_groups(512)
    data = pack(type_name, codes, np.repeat(scales, n_groups // 2, axis=1))
    with pytest.raises(ValueError, match=f"scale {value} of group {n_groups // 2} in row 2"):
        list(ternary_layouts.unpack_groups(type_name, data, 6, 512))


@pytest.mark.parametrize("type_name", ["TQ2_0", "PQ2_0"])
def test_code_3_of_what_is_repacked_names_its_row(monkeypatch, type_name):
    monkeypatch.setattr(ternary_layouts, "STEP_WEIGHTS", 1024)
    codes = example(type_name, n_cols=512)[0]
    codes[4, 300] = 3
    data = pack(type_name, codes, 0.5)
    with pytest.raises(ValueError, match="row 4: code 3"):
        list(ternary_layouts.unpack_groups(type_name, data, 6, 512))


# whether groups differ ----------------------------------------------------------------------------


def test_groups_that_differ():
    codes = example("TQ2_0", n_cols=768)[0]
    scales = np.repeat(np.linspace(0.5, 1, 6).astype(np.float16)[:, None], 3, axis=1)

    def differ():
        return ternary_layouts.groups_differ("TQ2_0", pack("TQ2_0", codes, scales), 6, 768)

    assert not differ()  # one for each row
    codes[2, 256:512], scales[2, 1] = 1, 0  # a group without weights
    assert not differ()
    scales[2, 1] = 0.25
    assert not differ()
    codes[2, 256] = 0
    assert differ()
    scales[2, 1] = 0  # under a weight that is not 0: it makes it 0
    assert differ()
    assert not ternary_layouts.groups_differ("I2_S", pack("I2_S", codes, 0.5), 6, 768)


# the same weights ---------------------------------------------------------------------------------


def test_equal_weights_have_equal_canonical_bytes():
    codes, scales = example("PQ2_0")
    pairs = np.repeat(scales, 2, axis=1)
    scales[1, 2], pairs[1, 4], pairs[1, 5] = 0.0, 0.0, -0.0  # whatever their codes
    other = codes.copy()
    other[1, 256:384] = 2
    codes[0, :64], other[0, :64], pairs[0, 0] = 1, 1, 0.0  # a group without weights
    found = {
        group_scales.canonical(held)
        for held in (
            matrix("PQ2_0", codes, scales), matrix("Q2_0_G64", other, pairs),
            matrix("planes 64", codes, pairs), matrix("planes 128", other, scales),
        )
    }  # fmt: skip
    assert len(found) == 1
    codes[5, 7] = (codes[5, 7] + 1) % 3
    assert group_scales.canonical(matrix("PQ2_0", codes, scales)) not in found


# packing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", group_scales.PACKED)
def test_packing_equals_the_writer_of_these_tests(name):
    codes, scales = example(name, n_cols=768)
    n_groups = ternary_layouts.quantization_of(name).n_groups(768)
    scales = scales[:, :n_groups]
    found = group_scales.pack(name, scales.astype(np.float32), codes)
    assert (found.reshape(-1) == pack(name, codes, scales)).all()


def test_wider_groups_take_what_is_equal():
    codes, scales = example("Q2_0_G64", n_cols=256)
    scales = np.repeat(scales[:, ::2], 2, axis=1).astype(np.float32)
    assert (group_scales.regroup(scales, codes, 128) == scales[:, ::2]).all()
    assert (group_scales.regroup(scales[:, ::2], codes, 64) == scales).all()
    codes[3, :64], scales[3, 0] = 1, 0  # as writers of groups of 64 store those without weights
    assert (group_scales.regroup(scales, codes, 128)[3] == scales[3, 1::2]).all()
    scales[4, 2] /= 2
    with pytest.raises(ValueError, match=r"group scales 0\..* and 0\..* in row 4, limit: one"):
        group_scales.regroup(scales, codes, 128)


@pytest.mark.parametrize("value", [1 / 3, 65536.0, 2.0**-25, 1 + 2.0**-11])
def test_scales_that_float16_does_not_hold(value):
    scales = np.full((4, 3), 0.5, np.float32)
    scales[2, 1] = value
    with pytest.raises(ValueError, match=r"row 12: scale .* of group 1, limit: one that float16"):
        group_scales.to_float16(scales, 10)


def test_subnormal_scales_are_held():
    scales = np.float32([[2.0**-24, 1.1e-5, 0.0]]).astype(np.float16).astype(np.float32)
    assert (group_scales.to_float16(scales) == scales).all() and scales.all(axis=0)[:2].all()


# floats that are ternary by group -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["PQ2_0", "Q2_0_G64"])
def test_floats_that_are_ternary_by_group(name):
    codes, scales = example(name)
    values = dense(codes, scales).astype(np.float32)
    assert group_scales.group_of(values) == (group_of(name), 0)
    found, back = group_scales.split_floats(values, group_of(name))
    assert (found == scales).all() and (back == codes).all()


def test_floats_that_are_not():
    codes, scales = example("PQ2_0")
    values = dense(codes, scales).astype(np.float32)
    values[4, 130] = np.nextafter(scales[4, 1].astype(np.float32), np.float32(1))
    assert group_scales.group_of(values) == (128, 1)  # most rows are: it is told which is not
    with pytest.raises(ValueError, match=r"row 24, column 1[23].: weight .* limit: 0 or "):
        group_scales.split_floats(values, 128, 20)
    values[1, 3] = np.nan
    with pytest.raises(ValueError, match="row 1, column 3: weight nan, limit: 0 or "):
        group_scales.split_floats(values, 128)
    rng = np.random.default_rng(1)
    assert group_scales.group_of(rng.standard_normal((6, 640)).astype(np.float32)) is None
    assert group_scales.group_of(np.zeros((6, 96), np.float32)) is None
