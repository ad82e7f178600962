"""The layouts of weights, in NumPy: the definition the kernels are tested against. Knows no file.

A ternary weight is -1, 0 or +1; its code is 0, 1 or 2, two bits, and code 3 is illegal.
A matrix is (rows, columns) = (outputs, inputs).

I2_S, the layout the kernels read: 128 columns in 32 bytes, the first in the highest bits.
    byte[j] = code[j] << 6 | code[32 + j] << 4 | code[64 + j] << 2 | code[96 + j]        j = 0..31
For the kernels every row is padded to whole blocks with code 1, which is weight 0. A GGUF holds one
stream without padding, so that blocks straddle rows where n_cols is not a multiple of 128.

HF packed: four blocks of R = ceil(n_rows / 4) rows share their bytes, the first in the lowest bits.
    byte[p, k] = code[p, k] | code[p + R, k] << 2 | code[p + 2R, k] << 4 | code[p + 3R, k] << 6
"""

import numpy as np

BLOCK = 128
BLOCK_BYTES = 32
CHUNK = 1 << 17  # weights a step of the streaming functions: 512 KiB as float32, inside a cache
MIN_ABSMEAN = np.float32(1e-5)


def padded(n_cols):
    """n_cols rounded up to whole blocks."""
    return -(-n_cols // BLOCK) * BLOCK


def pack_i2_s(codes):
    """uint8 codes (n_rows, n_cols) -> uint8 (n_rows, padded(n_cols) // 4)."""
    n_rows, n_cols = codes.shape
    full = np.ones((n_rows, padded(n_cols)), np.uint8)
    full[:, :n_cols] = codes
    quarters = full.reshape(n_rows, -1, 4, BLOCK_BYTES)
    bytes_ = quarters[:, :, 0] << 6
    for i, shift in ((1, 4), (2, 2), (3, 0)):
        bytes_ |= quarters[:, :, i] << shift
    return bytes_.reshape(n_rows, -1)


def unpack_i2_s(data, n_cols=None):
    """uint8 (n_rows, bytes) of whole blocks -> uint8 codes (n_rows, n_cols), None: all columns."""
    n_rows, n_bytes = data.shape
    blocks = data.reshape(n_rows, -1, 1, BLOCK_BYTES)
    shifts = np.array([6, 4, 2, 0], np.uint8).reshape(4, 1)
    return ((blocks >> shifts) & 3).reshape(n_rows, 4 * n_bytes)[:, :n_cols]


def has_code_3(data):
    """Whether any two-bit field of the bytes is 3."""
    return bool((data & data >> 1 & 0b01010101).any())


def pack_hf(codes):
    """uint8 codes (n_rows, n_cols) -> uint8 (ceil(n_rows / 4), n_cols); missing rows are 0."""
    n_rows, n_cols = codes.shape
    quarter = -(-n_rows // 4)
    full = np.zeros((4 * quarter, n_cols), np.uint8)
    full[:n_rows] = codes
    a, b, c, d = full.reshape(4, quarter, n_cols)
    return a | b << 2 | c << 4 | d << 6


def unpack_hf(packed, n_rows):
    """uint8 (ceil(n_rows / 4), n_cols) -> uint8 codes (n_rows, n_cols)."""
    return np.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)])[:n_rows]


def repack_hf(packed, n_rows):
    """HF packed uint8 (ceil(n_rows / 4), n_cols) -> the rows in I2_S, in order and in chunks."""
    quarter, n_cols = packed.shape
    step = max(1, CHUNK // n_cols)
    for shift in (0, 2, 4, 6):
        first = shift // 2 * quarter
        for at in range(0, min(quarter, n_rows - first), step):
            stop = min(at + step, quarter, n_rows - first)
            yield pack_i2_s((packed[at:stop] >> shift) & 3)


def repack_stream(data, n_rows, n_cols):
    """An I2_S stream, uint8 (n_rows * n_cols // 4,), of whole blocks -> padded rows, in chunks."""
    whole = BLOCK // np.gcd(BLOCK, n_cols)  # so many rows begin and end on a block
    step = max(1, CHUNK // (n_cols * whole)) * whole
    for at in range(0, n_rows, step):
        rows = min(step, n_rows - at)
        part = data[at * n_cols // 4 : (at + rows) * n_cols // 4]
        yield pack_i2_s(unpack_i2_s(part.reshape(1, -1)).reshape(rows, n_cols))


def absmean(type_name, data, n_cols):
    """The mean of |w| of master weights, uint8 (n_rows, bytes): float32, at least 1e-5, or NaN."""
    total = 0.0
    for rows in _float_chunks(type_name, data, n_cols):
        total += float(np.abs(rows).sum(dtype=np.float64))
    return np.maximum(np.float32(total / (len(data) * n_cols)), MIN_ABSMEAN)


def quantize_masters(type_name, data, n_cols, mean):
    """Master weights, uint8 (n_rows, bytes) of F32, F16 or BF16 -> rows in I2_S, in chunks.

    As transformers in float32: s = 1 / mean, code = clip(round_half_even(w * s), -1, 1) + 1, and
    the weight it stands for is (code - 1) / s: the scale is 1 / s, which is not quite mean.
    """
    inverse = np.float32(1) / mean
    for rows in _float_chunks(type_name, data, n_cols):
        scaled = rows * inverse
        yield pack_i2_s(np.uint8(1) + (scaled > 0.5) - (scaled < -0.5))  # 0.5 itself goes to 0


def _float_chunks(type_name, data, n_cols):
    step = max(1, CHUNK // n_cols)
    for at in range(0, len(data), step):
        yield dequantize(type_name, data[at : at + step], n_cols)


def dequantize(type_name, data, n_cols):
    """Rows as they lie in a file, uint8 (n_rows, row_bytes), to float32 (n_rows, n_cols)."""
    data = np.ascontiguousarray(data)
    if type_name == "F32":
        return data.view("<f4")
    if type_name == "F16":
        return data.view("<f2").astype(np.float32)
    if type_name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if type_name == "Q8_0":
        return _dequantize_q8_0(data.reshape(-1, 34)).reshape(-1, n_cols)
    if type_name == "Q6_K":
        return _dequantize_q6_k(data.reshape(-1, 210)).reshape(-1, n_cols)
    raise ValueError(f"type {type_name}: not one of F32, F16, BF16, Q8_0, Q6_K")


def _dequantize_q8_0(blocks):
    """f16 d, int8 q[32]: value d * q."""
    return blocks[:, :2].copy().view("<f2").astype(np.float32) * blocks[:, 2:].view(np.int8)


def _dequantize_q6_k(blocks):
    """low nibbles[128], high bit pairs[64], int8 scale[16], f16 d: value d * scale * (q - 32)."""
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)) & 3
    q = (low | high << 4).reshape(-1, 16, 16).astype(np.int8) - np.int8(32)
    scale = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    scale *= blocks[:, 208:210].copy().view("<f2").astype(np.float32)
    return (scale[:, :, None] * q).reshape(-1, 256)
