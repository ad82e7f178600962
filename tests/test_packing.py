"""The layouts of weights: one block by hand, round trips, and vectors made by other programs."""

import itertools
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bitnet.formats import packing

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def vectors():
    """One code matrix and one float matrix in several layouts, written by other programs."""
    with np.load(DATA / "packing.npz", allow_pickle=False) as stored:
        return dict(stored)


def random_codes(n_rows, n_cols, seed=0):
    return np.random.default_rng(seed).integers(0, 3, (n_rows, n_cols), dtype=np.uint8)


def test_one_block_by_hand():
    codes = np.ones((1, 128), np.uint8)
    codes[0, [0, 33, 66, 99]] = [2, 0, 2, 0]  # columns 0..31 are bits 7:6, 32..63 bits 5:4, ...
    block = packing.pack_i2_s(codes)[0]
    assert (
        block.tolist()
        == [0b10_01_01_01, 0b01_00_01_01, 0b01_01_10_01, 0b01_01_01_00] + [0b01_01_01_01] * 28
    )


def test_padding_is_weight_zero():
    packed = packing.pack_i2_s(np.full((2, 130), 2, np.uint8))
    assert packed.shape == (2, 64)
    assert packing.unpack_i2_s(packed)[:, 130:].tolist() == [[1] * 126] * 2
    assert (packing.unpack_i2_s(packed, 130) == 2).all()


@pytest.mark.parametrize("n_cols", [1, 31, 127, 128, 129, 255, 256, 640])
def test_i2_s_round_trip(n_cols):
    codes = random_codes(5, n_cols)
    assert (packing.unpack_i2_s(packing.pack_i2_s(codes), n_cols) == codes).all()


def test_i2_s_equals_the_reference(vectors):
    codes = (vectors["q"] + 1).astype(np.uint8)
    n = codes.size // 4
    assert (packing.pack_i2_s(codes).reshape(-1) == vectors["i2_s"][:n]).all()
    assert vectors["i2_s"][n : n + 4].view("<f4")[0] == vectors["scale"]


def test_hf_by_hand():
    codes = np.array([[0], [1], [2], [1], [2]], np.uint8)  # R = 2: byte rows {0, 2, 4} and {1, 3}
    assert packing.pack_hf(codes).tolist() == [[0b00_10_10_00], [0b00_00_01_01]]


def joined(chunks):
    return np.concatenate([chunk.copy() for chunk in chunks])


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 7, 64])
def test_hf_round_trip(n_rows):
    codes = random_codes(n_rows, 6)
    assert (packing.unpack_hf(packing.pack_hf(codes), n_rows) == codes).all()


def test_hf_equals_the_reference(vectors):
    assert (packing.pack_hf((vectors["q"] + 1).astype(np.uint8)) == vectors["hf_packed"]).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (6, 128), (64, 96), (9, 300)])
@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_codes_of_hf_in_chunks(monkeypatch, shape, chunk):
    monkeypatch.setattr(packing, "CHUNK", chunk)
    codes = random_codes(*shape)
    assert (joined(packing.codes_hf(packing.pack_hf(codes), shape[0])) == codes).all()


@pytest.mark.parametrize("shape", [(2, 64), (32, 4), (8, 96), (64, 130), (16, 320), (3, 8640 * 2)])
@pytest.mark.parametrize("chunk", [1, 3000, 1 << 20])
def test_streams_whose_blocks_straddle_rows(monkeypatch, shape, chunk):
    monkeypatch.setattr(packing, "CHUNK", chunk)
    codes = random_codes(*shape)
    n = 1000 if chunk == 1 else 7
    pieces = np.array_split(codes, min(n, shape[0]))
    stream = np.concatenate(list(packing.pack_i2_s_stream(pieces)))
    assert (stream == packing.pack_i2_s(codes.reshape(-1, 128)).reshape(-1)).all()
    data = np.concatenate([stream, np.float32([0.5]).view(np.uint8), np.arange(28, dtype=np.uint8)])
    scales, chunks = packing.unpack("I2_S", data, *shape)
    assert scales.tolist() == [0.5] and (joined(chunks) == codes).all()


def test_a_stream_that_ends_inside_a_block_is_refused():
    with pytest.raises(ValueError, match="72 weights after the last block of 128"):
        list(packing.pack_i2_s_stream([random_codes(5, 40)]))
    with pytest.raises(ValueError, match="5 x 40 weights do not fill blocks of 128"):
        packing.unpack("I2_S", np.zeros(82, np.uint8), 5, 40)


# the blocks of other engines ----------------------------------------------------------------------

STORED = {
    "I2_S": "i2_s", "I2_S_64": "i2_s_64_16", "I2_S_4ROW": "i2_s_4row", "TQ1_0": "tq1_0",
    "TQ2_0": "tq2_0", "IQ1_BN": "iq1_bn", "IQ2_BN": "iq2_bn", "Q2_0_G64": "q2_0_group64",
    "Q2_0_G128": "q2_0_group128",
}  # fmt: skip


@pytest.mark.parametrize("type_name", STORED)
@pytest.mark.parametrize("chunk", [1, 1300, 1 << 20])
def test_unpack_equals_the_reference(monkeypatch, vectors, type_name, chunk):
    monkeypatch.setattr(packing, "CHUNK", chunk)
    scales, chunks = packing.unpack(type_name, vectors[STORED[type_name]], 16, 512)
    assert scales.dtype == np.float32 and scales.tolist() == [vectors["scale"]]
    assert (joined(chunks) == vectors["q"] + 1).all()


def five_in_a_byte(digits):
    """Codes (..., 5), the most significant first -> the byte that stands for them."""
    value = (digits.astype(int) * [81, 27, 9, 3, 1]).sum(-1)
    return -(-value * 256 // 243)


def tq1_0(codes, scales):
    """codes (n_rows, n_cols), scales (n_rows, n_blocks), as FORMATS of llama.cpp has it."""
    out = []
    for row, row_scales in zip(codes, scales, strict=True):
        for block, d in zip(row.reshape(-1, 256), row_scales, strict=True):
            qs = [block[m:160:32] for m in range(32)]
            qs += [block[160 + m : 240 : 16] for m in range(16)]
            qh = [[*block[240 + m :: 4], 0] for m in range(4)]
            data = five_in_a_byte(np.array([*qs, *qh])).astype(np.uint8)
            out.append(data.tobytes() + np.float16(d).tobytes())
    return np.frombuffer(b"".join(out), np.uint8)


def tq2_0(codes, scales):
    out = []
    for row, row_scales in zip(codes, scales, strict=True):
        for block, d in zip(row.reshape(-1, 256), row_scales, strict=True):
            halves = block.reshape(2, 4, 32)
            data = sum(halves[:, i].astype(int) << 2 * i for i in range(4)).astype(np.uint8)
            out.append(data.tobytes() + np.float16(d).tobytes())
    return np.frombuffer(b"".join(out), np.uint8)


def q2_0(group, codes, scales):
    out = []
    for row, row_scales in zip(codes, scales, strict=True):
        for block, d in zip(row.reshape(-1, group), row_scales, strict=True):
            data = sum(block[i::4].astype(int) << 2 * i for i in range(4)).astype(np.uint8)
            out.append(np.float16(d).tobytes() + data.tobytes())
    return np.frombuffer(b"".join(out), np.uint8)


def iq1_bn(codes, scales):
    out = []
    for row, d in zip(codes, scales, strict=True):
        out.append(np.float16(d).tobytes())
        for block in row.reshape(-1, 64):
            groups = block.reshape(4, 16)
            fives = groups[:, :15].reshape(12, 5)[:, ::-1]
            last = np.array([[0, *groups[::-1, 15]]])
            out.append(five_in_a_byte(np.concatenate([fives, last])).astype(np.uint8).tobytes())
    return np.frombuffer(b"".join(out), np.uint8)


def iq2_bn(codes, scales):
    out = []
    for row, d in zip(codes, scales, strict=True):
        fields = row.reshape(-1, 4, 16).astype(int)
        data = sum(fields[:, i] << 2 * i for i in range(4)).astype(np.uint8)
        out.append(np.float32(d).tobytes() + data.tobytes())
    return np.frombuffer(b"".join(out), np.uint8)


def iq2_bn_r4(codes, scales):
    out = []
    for rows, d in zip(codes.reshape(-1, 4, codes.shape[1]), scales.reshape(-1, 4), strict=True):
        data = np.zeros((codes.shape[1] // 64, 64), np.uint8)
        for r, l, i, t in itertools.product(range(4), repeat=4):
            data[:, 16 * l + 4 * r + i] |= rows[r, 16 * l + i + 4 * t :: 64] << 2 * t
        out.append(d.astype("<f4").tobytes() + data.tobytes())
    return np.frombuffer(b"".join(out), np.uint8)


IN_BLOCKS = {  # type: (pack, weights a scale)
    "TQ1_0": (tq1_0, 256), "TQ2_0": (tq2_0, 256), "Q2_0_G64": (partial(q2_0, 64), 64),
    "Q2_0_G128": (partial(q2_0, 128), 128),
}  # fmt: skip
IN_ROWS = {"IQ1_BN": iq1_bn, "IQ2_BN": iq2_bn, "IQ2_BN_R4": iq2_bn_r4}


@pytest.mark.parametrize("type_name", IN_ROWS)
@pytest.mark.parametrize("shape", [(4, 64), (8, 192), (12, 448)])
def test_rows_with_scales(type_name, shape):
    codes, rng = random_codes(*shape), np.random.default_rng(4)
    scales = rng.uniform(0.5, 2, shape[0]).astype(np.float16).astype(np.float32)
    found, chunks = packing.unpack(type_name, IN_ROWS[type_name](codes, scales), *shape)
    assert (found == scales).all() and (joined(chunks) == codes).all()
    scales[:] = 0.25
    codes[2] = 1  # nothing but zeros: what its scale says does not matter
    for odd in (0.0, -1.0, np.nan):
        scales[2] = odd
        found, chunks = packing.unpack(type_name, IN_ROWS[type_name](codes, scales), *shape)
        assert found.tolist() == [0.25] and (joined(chunks) == codes).all()
        with pytest.raises(ValueError, match="scale"):
            packing.unpack(type_name, IN_ROWS[type_name](random_codes(*shape), scales), *shape)


@pytest.mark.parametrize("type_name", IN_BLOCKS)
@pytest.mark.parametrize("shape", [(1, 256), (3, 512), (5, 768)])
def test_blocks_with_scales(type_name, shape):
    pack, group = IN_BLOCKS[type_name]
    n_rows, n_blocks = shape[0], shape[1] // group
    codes, scales = random_codes(*shape), np.full((n_rows, n_blocks), 0.5)
    scales *= np.arange(1, n_rows + 1)[:, None]
    found, chunks = packing.unpack(type_name, pack(codes, scales), *shape)
    assert found.tolist() == scales[:, 0].tolist() and (joined(chunks) == codes).all()
    scales[:] = 0.5
    codes[0, :group] = 1
    for odd in (0.0, np.nan, 3.0):  # of a block of zeros
        scales[0, 0] = odd
        found, chunks = packing.unpack(type_name, pack(codes, scales), *shape)
        assert found.tolist() == [0.5 if codes.size > group else 1.0]
        assert (joined(chunks) == codes).all()
    codes[:] = 1
    assert packing.unpack(type_name, pack(codes, scales * 0), *shape)[0].tolist() == [1]


@pytest.mark.parametrize("type_name", IN_BLOCKS)
@pytest.mark.parametrize(
    ("scale", "message"),
    [(0.25, "group scales, 0.25 and 0.5 in row 1"), (np.nan, "NaN"), (np.inf, "infinite"),
     (-0.5, "group scales, -0.5"), (0.0, "group scales, 0 and")],
)  # fmt: skip
def test_group_scales_and_impossible_ones_are_refused(type_name, scale, message):
    pack, group = IN_BLOCKS[type_name]
    scales = np.full((2, 512 // group), 0.5)
    scales[1, 1] = scale
    with pytest.raises(ValueError, match=message):
        packing.unpack(type_name, pack(random_codes(2, 512), scales), 2, 512)


@pytest.mark.parametrize("type_name", [*IN_BLOCKS, *IN_ROWS])
def test_no_illegal_byte_passes(type_name):
    """Every byte of the codes set to every value: either five (four) legal codes, or a 3."""
    n_cols = 256
    if type_name in IN_ROWS:
        good = IN_ROWS[type_name](random_codes(4, n_cols), np.ones(4, np.float32))
        at = len(good) - 5
    else:
        pack, group = IN_BLOCKS[type_name]
        good = pack(random_codes(4, n_cols), np.ones((4, n_cols // group)))
        at = 9
    for value in range(256):
        data = good.copy()
        data[at] = value
        codes = joined(packing.unpack(type_name, data, 4, n_cols)[1])
        if type_name in ("TQ1_0", "IQ1_BN"):
            legal = value in five_in_a_byte(np.array(list(itertools.product(range(3), repeat=5))))
        else:
            legal = not packing.has_code_3(np.uint8([value]))
        assert (codes.max() <= 2) == legal


def test_rows_that_lie_together():
    for type_name in ("I2_S_4ROW", "IQ2_BN_R4"):
        with pytest.raises(ValueError, match="6 rows"):
            packing.unpack(type_name, np.zeros(1000, np.uint8), 6, 128)


def test_code_3_is_seen_in_each_field():
    for shift in (0, 2, 4, 6):
        data = np.full(64, 0b10_01_00_10, np.uint8)
        assert not packing.has_code_3(data)
        data[63] |= 3 << shift
        assert packing.has_code_3(data)


def test_masters_as_transformers_quantises_them(monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 1000)
    weights = np.random.default_rng(3).standard_normal((40, 200)).astype(np.float32)
    data = weights.view(np.uint8).reshape(40, -1)
    mean = packing.absmean("F32", data, 200)
    assert mean.dtype == np.float32
    assert abs(mean - np.abs(weights.astype(np.float64)).mean()) <= np.spacing(mean) / 2
    codes = joined(packing.codes_masters("F32", data, 200, mean))
    expected = np.clip(np.rint(weights * (np.float32(1) / mean)), -1, 1) + 1
    assert codes.dtype == np.uint8 and (codes == expected).all()


@pytest.mark.parametrize("scale", [0.0371, 1e-4, 40.0])
def test_weights_that_are_ternary_already(scale):
    codes = random_codes(40, 200)
    values = (codes.astype(np.float32) - 1) * np.float32(scale)
    data = values.view(np.uint8).reshape(40, -1)
    assert packing.peak("F32", data, 200) == np.float32(scale)
    assert (joined(packing.codes_dequantized("F32", data, 200, np.float32(scale))) == codes).all()
    values[3, 7] = 0.6 * scale
    with pytest.raises(ValueError, match="weight"):
        joined(packing.codes_dequantized("F32", data, 200, np.float32(scale)))


def test_masters_round_half_to_even():
    weights = np.array([[0.5, -0.5, 1.5, 2.5, 0.50001, 0.0]], np.float32)
    codes = packing.codes_masters("F32", weights.view(np.uint8), 6, np.float32(1))
    assert next(codes).tolist() == [[1, 1, 2, 2, 2, 1]]


@pytest.mark.parametrize(
    ("value", "mean"), [(0.0, np.float32(1e-5)), (1e-6, np.float32(1e-5)), (np.nan, np.nan)]
)
def test_absmean_is_clamped_but_nan_stays(value, mean):
    data = np.full((2, 8), value, np.float32).view(np.uint8)
    assert packing.absmean("F32", data, 8) == pytest.approx(mean, rel=0, abs=0, nan_ok=True)


def test_reading_needs_memory_for_a_chunk_not_for_the_matrix(monkeypatch, vectors):
    monkeypatch.setattr(packing, "CHUNK", 1 << 16)
    masters = np.ones((2048, 2048), np.float32).view(np.uint8)  # 16 MiB
    packed = np.full((512, 2048), 0b01010101, np.uint8)
    blocks = tq2_0(np.ones((1, 2048), np.uint8), np.ones((1, 8)))
    blocks = np.tile(blocks, 2048)
    tracemalloc.start()
    try:
        packing.absmean("F32", masters, 2048)
        for chunks in (
            packing.codes_masters("F32", masters, 2048, np.float32(1)),
            packing.codes_hf(packed, 2048),
            packing.unpack("I2_S_4ROW", packed.reshape(-1), 2048, 2048)[1],
            packing.unpack("TQ2_0", blocks, 2048, 2048)[1],
        ):
            for _ in packing.pack_i2_s_stream(chunks):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * packing.CHUNK
