"""Writers of every ternary layout, for tests: each code is put where the format's description says.

The opposite of bitnet.formats.ternary_layouts, which slices and shifts whole blocks at once.
"""

import numpy as np

# type: codes a block, bytes of them, dtype of the scale, what has one
LAYOUTS = {
    "I2_S": (128, 32, "<f4", "tensor"),
    "I2_S_64": (64, 16, "<f4", "tensor"),
    "I2_S_4ROW": (None, None, "<f4", "tensor"),
    "TQ1_0": (256, 52, "<f2", "block"),
    "TQ2_0": (256, 64, "<f2", "block"),
    "Q2_0_G64": (64, 16, "<f2", "block"),
    "Q2_0_G128": (128, 32, "<f2", "block"),
    "PQ2_0": (128, 32, "<f2", "block"),
    "PTQ1_0": (128, 26, "<f2", "block"),
    "IQ1_BN": (64, 13, "<f2", "row"),
    "IQ2_BN": (64, 16, "<f4", "row"),
    "IQ2_BN_R4": (64, 64, "<f4", "row"),
}
BASE_3 = ("TQ1_0", "PTQ1_0", "IQ1_BN")
SCALE_FIRST = ("Q2_0_G64", "Q2_0_G128", "PQ2_0")
WITH_SCALES = tuple(name for name, (*_, owner) in LAYOUTS.items() if owner != "tensor")


def place(type_name, k, r):
    """(byte, weight) of code k of a block, in row r of four where rows are interleaved.

    weight: what the code is multiplied by; a byte of base 3 is encoded afterwards.
    """
    if type_name in ("I2_S", "I2_S_64"):
        width = LAYOUTS[type_name][1]
        return k % width, 64 >> 2 * (k // width)
    if type_name == "TQ2_0":
        return 32 * (k // 128) + k % 32, 4 ** (k % 128 // 32)
    if type_name in SCALE_FIRST:
        return k // 4, 4 ** (k % 4)
    if type_name == "IQ2_BN":
        return k % 16, 4 ** (k // 16)
    if type_name == "IQ2_BN_R4":
        return 16 * (k // 16) + 4 * r + k % 4, 4 ** (k % 16 // 4)
    if type_name == "IQ1_BN":
        g, i = divmod(k, 16)
        return (3 * g + i // 5, 3 ** (i % 5)) if i < 15 else (12, 3**g)
    parts = ((240, 48, 4), (160, 32, 16), (0, 0, 32))  # TQ1_0
    if type_name == "PTQ1_0":
        parts = ((120, 24, 2), (80, 16, 8), (0, 0, 16))
    for first, begin, width in parts:
        if k >= first:
            return begin + (k - first) % width, 3 ** (4 - (k - first) // width)


def five_in_a_byte(v):
    """A number below 243 as TQ1_0 and IQ1_BN store it."""
    return -(-v * 256 // 243)


def pack_blocks(type_name, rows):
    """uint8 codes (1 or 4 rows, n_cols) of whole blocks -> uint8 (n_blocks, bytes)."""
    n_codes, n_bytes, *_ = LAYOUTS[type_name]
    values = np.zeros((rows.shape[1] // n_codes, n_bytes), int)
    for r, row in enumerate(rows):
        blocks = row.reshape(-1, n_codes).astype(int)
        for k in range(n_codes):
            byte, weight = place(type_name, k, r)
            values[:, byte] += blocks[:, k] * weight
    if type_name in BASE_3:
        values = five_in_a_byte(values)
    return values.astype(np.uint8)


def pack(type_name, codes, scales):
    """uint8 (n_rows, n_cols) and the scales -> uint8 (n_bytes,) as a file holds them.

    scales: broadcast to one a block (n_rows, n_blocks), one a row (n_rows, 1), or one.
    """
    dtype, owner = LAYOUTS[type_name][2:]
    n_rows = len(codes)
    if owner == "tensor":
        tail = [np.float32([scales]).view(np.uint8), np.arange(28, dtype=np.uint8)]
        return np.concatenate([_stream(type_name, codes), *tail])
    if owner == "row":
        together = 4 if type_name == "IQ2_BN_R4" else 1
        parts = []
        scales = np.broadcast_to(scales, (n_rows, 1)).astype(dtype)
        for at in range(0, n_rows, together):
            parts.append(scales[at : at + together].copy().view(np.uint8).reshape(-1))
            parts.append(pack_blocks(type_name, codes[at : at + together]).reshape(-1))
        return np.concatenate(parts)
    blocks = pack_blocks(type_name, codes.reshape(1, -1))
    scales = np.broadcast_to(scales, (n_rows, len(blocks) // n_rows)).astype(dtype)
    parts = [scales.reshape(-1, 1).view(np.uint8), blocks]
    return np.concatenate(parts if type_name in SCALE_FIRST else parts[::-1], axis=1).ravel()


def _stream(type_name, codes):
    if type_name != "I2_S_4ROW":
        return pack_blocks(type_name, codes.reshape(1, -1)).reshape(-1)
    return sum(codes[r::4] << 6 - 2 * r for r in range(4)).astype(np.uint8).reshape(-1)


def unpack_hf(packed, n_rows):
    """uint8 (ceil(n_rows / 4), n_cols) -> uint8 codes (n_rows, n_cols)."""
    quarter = len(packed)
    rows = [packed[r % quarter] >> 2 * (r // quarter) & 3 for r in range(n_rows)]
    return np.array(rows, np.uint8)
