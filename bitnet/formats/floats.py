"""x"""
import numpy as np
ROW_TYPES=("F32","F16","BF16","Q8_0","Q6_K")
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
