"""The layouts of weights: one block by hand, round trips, and vectors made by other programs."""

import tracemalloc
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


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 7, 64])
def test_hf_round_trip(n_rows):
    codes = random_codes(n_rows, 6)
    assert (packing.unpack_hf(packing.pack_hf(codes), n_rows) == codes).all()


def test_hf_equals_the_reference(vectors):
    assert (packing.pack_hf((vectors["q"] + 1).astype(np.uint8)) == vectors["hf_packed"]).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (6, 128), (64, 96), (9, 300)])
@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_repack_hf_in_chunks(monkeypatch, shape, chunk):
    monkeypatch.setattr(packing, "CHUNK", chunk)
    codes = random_codes(*shape)
    rows = np.concatenate(list(packing.repack_hf(packing.pack_hf(codes), shape[0])))
    assert (rows == packing.pack_i2_s(codes)).all()


@pytest.mark.parametrize("shape", [(2, 64), (32, 4), (8, 96), (64, 130), (16, 320)])
@pytest.mark.parametrize("chunk", [1, 3000, 1 << 20])
def test_repack_a_stream_whose_blocks_straddle_rows(monkeypatch, shape, chunk):
    monkeypatch.setattr(packing, "CHUNK", chunk)
    codes = random_codes(*shape)
    stream = packing.pack_i2_s(codes.reshape(-1, 128)).reshape(-1)
    rows = np.concatenate(list(packing.repack_stream(stream, *shape)))
    assert (rows == packing.pack_i2_s(codes)).all()


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
    rows = np.concatenate(list(packing.quantize_masters("F32", data, 200, mean)))
    expected = np.clip(np.rint(weights * (np.float32(1) / mean)), -1, 1) + 1
    assert (packing.unpack_i2_s(rows, 200) == expected).all()


def test_masters_round_half_to_even():
    weights = np.array([[0.5, -0.5, 1.5, 2.5, 0.50001, 0.0]], np.float32)
    rows = packing.quantize_masters("F32", weights.view(np.uint8), 6, np.float32(1))
    assert packing.unpack_i2_s(next(rows), 6).tolist() == [[1, 1, 2, 2, 2, 1]]


@pytest.mark.parametrize(
    ("value", "mean"), [(0.0, np.float32(1e-5)), (1e-6, np.float32(1e-5)), (np.nan, np.nan)]
)
def test_absmean_is_clamped_but_nan_stays(value, mean):
    data = np.full((2, 8), value, np.float32).view(np.uint8)
    assert packing.absmean("F32", data, 8) == pytest.approx(mean, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q6_K"])
def test_dequantize_equals_the_reference(vectors, type_name):
    stored = vectors[f"float_{type_name.lower()}"].reshape(8, -1)
    values = packing.dequantize(type_name, stored, 512)
    assert values.dtype == np.float32
    assert (values == vectors[f"float_{type_name.lower()}_values"]).all()
    assert (packing.dequantize(type_name, stored[3:4], 512) == values[3]).all()


def test_unknown_type_is_refused():
    with pytest.raises(ValueError, match="Q4_0"):
        packing.dequantize("Q4_0", np.zeros((1, 18), np.uint8), 32)


def test_repacking_needs_memory_for_a_chunk_not_for_the_matrix(monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 1 << 16)
    masters = np.ones((2048, 2048), np.float32).view(np.uint8)  # 16 MiB
    packed = np.full((512, 2048), 0b01010101, np.uint8)
    tracemalloc.start()
    try:
        packing.absmean("F32", masters, 2048)
        for rows in packing.quantize_masters("F32", masters, 2048, np.float32(1)):
            assert (rows == 0b10101010).all()
        for rows in packing.repack_hf(packed, 2048):
            assert (rows == 0b01010101).all()
        for rows in packing.repack_stream(packed.reshape(-1), 2048, 2048):
            assert (rows == 0b01010101).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * packing.CHUNK
