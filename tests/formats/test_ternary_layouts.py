"""The layouts of weights: one block by hand, round trips, and vectors made by other programs."""

import contextlib
import itertools
import tracemalloc

import numpy as np
import pytest
from support.pack_layouts import BASE_3, LAYOUTS, WITH_SCALES, five_in_a_byte, pack, unpack_hf
from support.paths import DATA

from bitnet.formats import master_weights, tensor, ternary_layouts
from bitnet.formats.ternary_layouts import quantization_of

STORED = {
    "I2_S": "i2_s", "I2_S_64": "i2_s_64_16", "I2_S_4ROW": "i2_s_4row", "TQ1_0": "tq1_0",
    "TQ2_0": "tq2_0", "IQ1_BN": "iq1_bn", "IQ2_BN": "iq2_bn", "Q2_0_G64": "q2_0_group64",
    "Q2_0_G128": "q2_0_group128",
}  # fmt: skip
IN_BLOCKS = [name for name in WITH_SCALES if LAYOUTS[name][3] == "block"]
IN_ROWS = [name for name in WITH_SCALES if LAYOUTS[name][3] == "row"]


@pytest.fixture(scope="module")
def vectors():
    """One code matrix and one float matrix in several layouts, written by other programs."""
    with np.load(DATA / "packing.npz", allow_pickle=False) as stored:
        return dict(stored)


def random_codes(n_rows, n_cols, seed=0):
    return np.random.default_rng(seed).integers(0, 3, (n_rows, n_cols), dtype=np.uint8)


def joined(chunks):
    return np.concatenate([chunk.copy() for chunk in chunks])


# what the kernels read ----------------------------------------------------------------------------


def test_one_block_by_hand():
    codes = np.ones((1, 128), np.uint8)
    codes[0, [0, 33, 66, 99]] = [2, 0, 2, 0]  # columns 0..31 are bits 7:6, 32..63 bits 5:4, ...
    block = ternary_layouts.pack_i2_s(codes)[0]
    assert (
        block.tolist()
        == [0b10_01_01_01, 0b01_00_01_01, 0b01_01_10_01, 0b01_01_01_00] + [0b01_01_01_01] * 28
    )


def test_padding_is_weight_zero():
    packed = ternary_layouts.pack_i2_s(np.full((2, 130), 2, np.uint8))
    assert packed.shape == (2, 64)
    assert ternary_layouts.unpack_i2_s(packed)[:, 130:].tolist() == [[1] * 126] * 2
    assert (ternary_layouts.unpack_i2_s(packed, 130) == 2).all()


@pytest.mark.parametrize("n_cols", [1, 31, 127, 128, 129, 255, 256, 640])
def test_i2_s_round_trip(n_cols):
    codes = random_codes(5, n_cols)
    assert (ternary_layouts.unpack_i2_s(ternary_layouts.pack_i2_s(codes), n_cols) == codes).all()


def test_i2_s_equals_the_reference(vectors):
    codes = (vectors["q"] + 1).astype(np.uint8)
    n = codes.size // 4
    assert (ternary_layouts.pack_i2_s(codes).reshape(-1) == vectors["i2_s"][:n]).all()
    assert vectors["i2_s"][n : n + 4].view("<f4")[0] == vectors["scale"]


# Hugging Face -------------------------------------------------------------------------------------


def test_hf_by_hand():
    codes = np.array([[0], [1], [2], [1], [2]], np.uint8)  # R = 2: byte rows {0, 2, 4} and {1, 3}
    packed = ternary_layouts.pack_hf(codes)
    assert packed.tolist() == [[0b00_10_10_00], [0b00_00_01_01]]
    assert joined(ternary_layouts.codes_hf(packed, 5)).tolist() == codes.tolist()


def test_hf_equals_the_reference(vectors):
    codes = (vectors["q"] + 1).astype(np.uint8)
    assert (ternary_layouts.pack_hf(codes) == vectors["hf_packed"]).all()
    assert (joined(ternary_layouts.codes_hf(vectors["hf_packed"], 16)) == codes).all()


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 7, 9, 64])
@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_hf_in_chunks(monkeypatch, n_rows, chunk):
    monkeypatch.setattr(ternary_layouts, "STEP_WEIGHTS", chunk)
    codes = random_codes(n_rows, 130)
    packed = ternary_layouts.pack_hf(codes)
    assert (unpack_hf(packed, n_rows) == codes).all()
    assert (joined(ternary_layouts.codes_hf(packed, n_rows)) == codes).all()


def test_code_3_in_hf_is_refused_but_not_in_rows_that_are_not_there():
    packed = ternary_layouts.pack_hf(random_codes(7, 40))
    packed[1, 5] |= 0b11_00_00_00  # row 7 of 8
    assert len(joined(ternary_layouts.codes_hf(packed, 7))) == 7
    with pytest.raises(ValueError, match="code 3"):
        joined(ternary_layouts.codes_hf(packed, 8))


# every layout of a GGUF ---------------------------------------------------------------------------


def test_every_layout_has_a_writer():
    assert ternary_layouts.LAYOUTS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("type_name", STORED)
@pytest.mark.parametrize("chunk", [1, 1300, 1 << 20])
def test_unpack_equals_the_reference(monkeypatch, vectors, type_name, chunk):
    monkeypatch.setattr(ternary_layouts, "STEP_WEIGHTS", chunk)
    scales, chunks = ternary_layouts.unpack(type_name, vectors[STORED[type_name]], 16, 512)
    assert scales.dtype == np.float32 and scales.tolist() == [[vectors["scale"]]]
    assert (joined(chunks) == vectors["q"] + 1).all()


@pytest.mark.parametrize("type_name", STORED)
def test_the_writers_of_these_tests_equal_the_reference(vectors, type_name):
    codes, scale = (vectors["q"] + 1).astype(np.uint8), vectors["scale"]
    if type_name in ("TQ1_0", "TQ2_0"):  # whose quantiser gives blocks of zeros the scale 0
        scale = np.where((codes == 1).reshape(16, 2, 256).all(axis=2), 0, scale)
    n = -28 if type_name not in WITH_SCALES else None  # bytes of no meaning
    assert pack(type_name, codes, scale)[:n].tolist() == vectors[STORED[type_name]][:n].tolist()


@pytest.mark.parametrize(("type_name", "stored"), [("PQ2_0", "q2_0_g128"), ("PTQ1_0", "ptq1_0")])
def test_blocks_of_128_equal_the_reference(type_name, stored):
    """Scales of groups as other programs wrote them, 0 and subnormal ones among them."""
    with np.load(DATA / "packing_group.npz", allow_pickle=False) as vectors:
        data, codes, scales = vectors[stored], vectors["q"] + 1, vectors["d_128"]
    layout = ternary_layouts.LAYOUTS[type_name]
    found, packed = ternary_layouts._split(layout, data, *codes.shape)
    assert found.tobytes() == scales.astype(np.float32).tobytes()
    assert (layout.decode(packed).reshape(codes.shape) == codes).all()
    assert (pack(type_name, codes.astype(np.uint8), scales) == data).all()


def test_a_published_block_of_ptq1_0():
    block = "96c143c85706103296c247d58182879620212fa2b451d2605fe4003e"
    data = np.frombuffer(bytes.fromhex(block), np.uint8)
    scales, chunks = ternary_layouts.unpack("PTQ1_0", data, 1, 128)
    j = np.arange(128)
    assert scales.tolist() == [[1.5]]
    assert (joined(chunks)[0] == (j * j + 3 * j + 7) // 5 % 3).all()


@pytest.mark.parametrize("type_name", ["TQ1_0", "TQ2_0"])
def test_the_pypi_quantiser_agrees(type_name):
    gguf = pytest.importorskip("gguf")
    codes = random_codes(6, 768)
    values = (codes.astype(np.float32) - 1) * np.float32(0.25)
    data = gguf.quantize(values, gguf.GGMLQuantizationType[type_name])
    scales, chunks = ternary_layouts.unpack(type_name, data.reshape(-1), 6, 768)
    assert scales.tolist() == [[0.25]] and (joined(chunks) == codes).all()
    assert (pack(type_name, codes, 0.25) == data.reshape(-1)).all()


@pytest.mark.parametrize("type_name", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 256), (8, 768), (12, 2560)])
@pytest.mark.parametrize("chunk", [1, 5000, 1 << 20])
def test_round_trips(monkeypatch, type_name, shape, chunk):
    monkeypatch.setattr(ternary_layouts, "STEP_WEIGHTS", chunk)
    codes = random_codes(*shape, seed=shape[0])
    data = pack(type_name, codes, 0.5)
    assert len(data) == ternary_layouts.n_bytes(type_name, *shape)
    unaligned = np.concatenate([[np.uint8(7)], data])[1:]
    unaligned.flags.writeable = False
    scales, chunks = ternary_layouts.unpack(type_name, unaligned, *shape)
    assert scales.dtype == np.float32 and scales.tolist() == [[0.5]]
    pieces = [piece.copy() for piece in chunks]
    assert len(pieces) > 1 or chunk > 1 or shape[0] == 4
    assert all(piece.dtype == np.uint8 for piece in pieces)
    assert (np.concatenate(pieces) == codes).all()


@pytest.mark.parametrize("shape", [(2, 64), (32, 4), (8, 96), (64, 130), (16, 320), (2, 8640)])
@pytest.mark.parametrize("chunk", [1, 3000, 1 << 20])
def test_streams_whose_blocks_straddle_rows(monkeypatch, shape, chunk):
    monkeypatch.setattr(ternary_layouts, "STEP_WEIGHTS", chunk)
    codes = random_codes(*shape)
    for type_name in ("I2_S", "I2_S_64"):
        scales, chunks = ternary_layouts.unpack(type_name, pack(type_name, codes, 0.5), *shape)
        assert scales.tolist() == [[0.5]] and (joined(chunks) == codes).all()


@pytest.mark.parametrize("type_name", ["I2_S_64", "Q2_0_G64", "IQ1_BN", "IQ2_BN", "IQ2_BN_R4"])
def test_rows_of_half_a_block_of_128(type_name):
    codes = random_codes(4, 320)
    scales, chunks = ternary_layouts.unpack(type_name, pack(type_name, codes, 2), 4, 320)
    assert scales.tolist() == [[2]] and (joined(chunks) == codes).all()


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
def test_pack_a_stream_from_any_chunks(rows):
    codes = random_codes(64, 130)
    stream = ternary_layouts.pack_i2_s_stream(codes[at : at + rows] for at in range(0, 64, rows))
    pieces = list(stream)
    assert all(piece.ndim == 1 and len(piece) % 32 == 0 for piece in pieces)
    assert (np.concatenate(pieces) == pack("I2_S", codes, 1)[:-32]).all()


def test_a_chunk_may_be_overwritten_once_the_next_is_asked_for():
    codes, buffer = random_codes(64, 130), np.empty((1, 130), np.uint8)

    def chunks():
        for row in codes:
            buffer[0] = row
            yield buffer
            buffer[0] = 3

    stream = np.concatenate(list(ternary_layouts.pack_i2_s_stream(chunks())))
    assert (stream == pack("I2_S", codes, 1)[:-32]).all()


def test_a_stream_that_ends_inside_a_block_is_refused():
    with pytest.raises(ValueError, match="72 codes left over, limit: a multiple of 128"):
        list(ternary_layouts.pack_i2_s_stream([random_codes(5, 40)]))


@pytest.mark.parametrize(
    ("type_name", "shape", "message"),
    [
        ("I2_S", (5, 40), "I2_S needs a multiple of 128"),
        ("I2_S_64", (5, 40), "I2_S_64 needs a multiple of 64"),
        ("I2_S_4ROW", (6, 128), "I2_S_4ROW needs a multiple of 4 rows"),
        ("IQ2_BN_R4", (6, 128), "IQ2_BN_R4 needs a multiple of 4 rows"),
        ("TQ1_0", (4, 384), "TQ1_0 needs a multiple of 256"),
        ("TQ2_0", (4, 128), "TQ2_0 needs a multiple of 256"),
        ("Q2_0_G128", (2, 192), "Q2_0_G128 needs a multiple of 128"),
        ("IQ1_BN", (2, 96), "IQ1_BN needs a multiple of 64"),
        ("IQ2_BN", (4, 128), r"IQ2_BN 4 x 128: 1000 bytes, limit: 144"),
        ("I2_S", (4, 128), r"I2_S 4 x 128: 1000 bytes, limit: 160"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(type_name, shape, message):
    with pytest.raises(ValueError, match=message):
        ternary_layouts.unpack(type_name, np.zeros(1000, np.uint8), *shape)


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_no_illegal_byte_passes(type_name):
    """Every byte of the codes is set to a value no encoder writes, and one byte to every value."""
    shape = (4, 256)
    good = pack(type_name, random_codes(*shape), 1)
    fives = [sum(d) for d in itertools.product(*([0, p, 2 * p] for p in (1, 3, 9, 27, 81)))]
    legal = {five_in_a_byte(v) for v in fives} if type_name in BASE_3 else {
        b for b in range(256) if 3 not in (b & 3, b >> 2 & 3, b >> 4 & 3, b >> 6)
    }  # fmt: skip
    assert len(legal) == (243 if type_name in BASE_3 else 81)
    for value in range(256):
        data = good.copy()
        data[20] = value
        chunks = ternary_layouts.unpack(type_name, data, *shape)[1]
        if value in legal:
            joined(chunks)
        else:
            with pytest.raises(ValueError, match="not ternary: code 3, or a byte that no encoder"):
                joined(chunks)


@pytest.mark.parametrize("type_name", BASE_3)
def test_a_byte_of_four_digits_has_no_fifth(type_name):
    """The last bytes of a block hold four codes: 81 values are written, not 243."""
    data = pack(type_name, random_codes(1, 256), 1)
    at = {"TQ1_0": 48, "PTQ1_0": 24, "IQ1_BN": 2 + 12}[type_name]
    n_legal = 0
    for value in range(256):
        data[at] = value
        with contextlib.suppress(ValueError):
            n_legal += len(joined(ternary_layouts.unpack(type_name, data, 1, 256)[1]))
    assert n_legal == 81


# scales -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", WITH_SCALES)
def test_a_scale_for_each_row(type_name):
    codes = random_codes(8, 512)
    scales = np.arange(1, 9) / 8
    found, chunks = ternary_layouts.unpack(
        type_name, pack(type_name, codes, scales[:, None]), 8, 512
    )
    assert found.dtype == np.float32 and found[:, 0].tolist() == scales.tolist()
    assert (joined(chunks) == codes).all()


@pytest.mark.parametrize("type_name", IN_BLOCKS)
@pytest.mark.parametrize("odd", [0, 0.25, 3, -1, np.nan, np.inf])
def test_the_scale_of_a_block_of_zeros_does_not_count(type_name, odd):
    codes, n_blocks = random_codes(3, 1024), 1024 // LAYOUTS[type_name][0]
    scales = np.full((3, n_blocks), 0.5)
    scales[1], scales[2] = 0.75, odd
    scales[1, 1] = scales[0, 0] = odd
    codes.reshape(3, n_blocks, -1)[[0, 1], [0, 1]] = codes[2] = 1
    found, chunks = ternary_layouts.unpack(type_name, pack(type_name, codes, scales), 3, 1024)
    assert found.tolist() == [[0.5], [0.75], [0.5]] and (joined(chunks) == codes).all()
    scales[1, [0, *range(2, n_blocks)]] = 0.5
    assert ternary_layouts.unpack(type_name, pack(type_name, codes, scales), 3, 1024)[
        0
    ].tolist() == [[0.5]]


@pytest.mark.parametrize("type_name", IN_ROWS)
@pytest.mark.parametrize("odd", [0, 3, -1, np.nan, np.inf])
def test_the_scale_of_a_row_of_zeros_does_not_count(type_name, odd):
    codes, scales = random_codes(8, 192), np.full((8, 1), 0.5)
    codes[5], scales[5] = 1, odd
    found, chunks = ternary_layouts.unpack(type_name, pack(type_name, codes, scales), 8, 192)
    assert found.tolist() == [[0.5]] and (joined(chunks) == codes).all()


@pytest.mark.parametrize("type_name", LAYOUTS)
def test_a_matrix_of_zeros_has_scale_one(type_name):
    codes = np.ones((4, 512), np.uint8)
    found, chunks = ternary_layouts.unpack(type_name, pack(type_name, codes, 0), 4, 512)
    assert found.tolist() == [[1]] and (joined(chunks) == 1).all()


@pytest.mark.parametrize("type_name", IN_BLOCKS)
def test_group_scales_are_told_apart(type_name):
    codes, scales = random_codes(3, 1024), np.full((3, 1024 // LAYOUTS[type_name][0]), 0.5)
    scales[2, 1] = 0.25
    found, chunks = ternary_layouts.unpack(type_name, pack(type_name, codes, scales), 3, 1024)
    assert found.dtype == np.float32 and found.tolist() == scales.tolist()
    assert (joined(chunks) == codes).all()
    assert found.shape[1] == quantization_of(type_name).n_groups(1024)


@pytest.mark.parametrize("type_name", LAYOUTS)
@pytest.mark.parametrize("scale", [0, -0.5, np.nan, np.inf])
def test_impossible_scales_are_refused(type_name, scale):
    codes = random_codes(4, 512)
    with pytest.raises(ValueError, match=f"scale {float(scale)}, limit: finite and above 0"):
        ternary_layouts.unpack(type_name, pack(type_name, codes, scale), 4, 512)
    if type_name in WITH_SCALES:
        scales = np.array([[1], [1], [scale], [1]])
        with pytest.raises(ValueError, match=f"scale {float(scale)}, limit: finite and above 0"):
            ternary_layouts.unpack(type_name, pack(type_name, codes, scales), 4, 512)


# memory -------------------------------------------------------------------------------------------


def test_reading_needs_memory_for_a_chunk_not_for_the_matrix(monkeypatch):
    for module in (ternary_layouts, tensor):
        monkeypatch.setattr(module, "STEP_WEIGHTS", 1 << 16)
    masters = np.ones((2048, 2048), np.float32).view(np.uint8)  # 16 MiB
    packed = np.full((512, 2048), 0b01010101, np.uint8)
    zeros = np.ones((4, 2048), np.uint8)
    tensors = {name: np.tile(pack(name, zeros, 1), 512) for name in WITH_SCALES}
    tensors["I2_S"] = np.concatenate([packed.reshape(-1), np.float32([1] * 8).view(np.uint8)])
    tracemalloc.start()
    try:
        master_weights.absmean("F32", masters, 2048)
        master_weights.peak("F32", masters, 2048)
        sources = [
            master_weights.codes_masters("F32", masters, 2048, np.float32(2)),
            ternary_layouts.codes_hf(packed, 2048),
            *(ternary_layouts.unpack(name, data, 2048, 2048)[1] for name, data in tensors.items()),
        ]
        for chunks in sources:
            for _ in ternary_layouts.pack_i2_s_stream(chunks):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * ternary_layouts.STEP_WEIGHTS
