# Rows of an embedding or a head, dequantized and multiplied: layouts and rounding are those of
# formats/float_blocks.py.

cdef enum:
    SUPERBLOCK = 256                    # weights: one block of the K types, eight of the others

cdef struct Superblock:                 # weight j = scale[j / 16] * code[j] + offset[j / 16]
    int8_t code[SUPERBLOCK]
    float scale[LANES]
    float offset[LANES]                 # -0.0 for none: adding it changes nothing, not even -0.0

cdef int8_t[16] IQ4_NL_VALUES = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


# ------------------------------------------------------------------- from bytes to codes and scales
cdef inline float half_at(const uint8_t* p) noexcept nogil:
    cdef uint16_t half
    memcpy(&half, p, 2)
    return f32_of_f16(half)


cdef inline void set_32(Superblock* c, Py_ssize_t i, float scale, float offset) noexcept nogil:
    """Scale and offset of the weights 32 i to 32 i + 31."""
    c.scale[2 * i] = c.scale[2 * i + 1] = scale
    c.offset[2 * i] = c.offset[2 * i + 1] = offset


cdef inline void split_nibbles(int8_t* code, const uint8_t* nibbles, Py_ssize_t n) noexcept nogil:
    """The low ones of n bytes, then the high ones."""
    cdef Py_ssize_t j
    for j in range(n):
        code[j] = nibbles[j] & 15
    for j in range(n):
        code[n + j] = nibbles[j] >> 4


cdef const uint8_t* unpack_q8_0(Superblock* c, const uint8_t* block,
                                Py_ssize_t n_blocks) noexcept nogil:
    """34 bytes: f16 d, int8 q; d q."""
    cdef Py_ssize_t b
    for b in range(n_blocks):
        set_32(c, b, half_at(block), -0.0)
        memcpy(c.code + 32 * b, block + 2, 32)
        block += 34
    return block


cdef inline uint64_t repeat_byte(uint64_t byte) noexcept nogil:
    """A byte eight times."""
    return byte * <uint64_t>0x0101010101010101


cdef inline uint64_t fifth_bits(uint32_t bits) noexcept nogil:
    """The lowest eight bits, each as 16 in a byte of its own."""
    # bit k alone in byte k; 127 more sets bit 7 where it is not 0
    cdef uint64_t apart = repeat_byte(bits & 255) & <uint64_t>0x8040201008040201
    return (apart + repeat_byte(127)) >> 3 & repeat_byte(16)


cdef inline const uint8_t* unpack_32(Superblock* c, const uint8_t* block, Py_ssize_t n_blocks,
                                     bint has_min, bint has_fifth) noexcept nogil:
    """f16 d, f16 m if any, u32 of fifth bits if any, 16 bytes of nibbles: d q + m, or d times q
    less half its range. Eight codes a word: gcc makes poor code of loops of 16 bytes."""
    cdef Py_ssize_t b, k
    cdef uint64_t codes, middle = 0 if has_min else 16 if has_fifth else 8
    cdef uint32_t fifth
    for b in range(n_blocks):
        set_32(c, b, half_at(block), half_at(block + 2) if has_min else <float>-0.0)
        block += 4 if has_min else 2
        if has_fifth:
            memcpy(&fifth, block, 4)
            block += 4
        for k in range(4):
            memcpy(&codes, block + 8 * (k & 1), 8)
            codes = codes >> (4 * (k >> 1)) & repeat_byte(15)
            if has_fifth:
                codes |= fifth_bits(fifth >> 8 * k)
            codes = (codes + repeat_byte(128 - middle)) ^ repeat_byte(128)  # less middle, signed
            memcpy(c.code + 32 * b + 8 * k, &codes, 8)
        block += 16
    return block


cdef const uint8_t* unpack_iq4_nl(Superblock* c, const uint8_t* block,
                                  Py_ssize_t n_blocks) noexcept nogil:
    """18 bytes: f16 d, nibbles that number the values of a table."""
    cdef Py_ssize_t b, j
    cdef int8_t* code
    for b in range(n_blocks):
        set_32(c, b, half_at(block), -0.0)
        code = c.code + 32 * b
        for j in range(16):
            code[j] = IQ4_NL_VALUES[block[2 + j] & 15]
            code[16 + j] = IQ4_NL_VALUES[block[2 + j] >> 4]
        block += 18
    return block


cdef inline const uint8_t* unpack_k(Superblock* c, const uint8_t* block,
                                    bint has_fifth) noexcept nogil:
    """f16 d, f16 dmin, 12 bytes of scales and minimums, 32 bytes of fifth bits if any, nibbles:
    d s q - dmin m for each 32. Bit i of fifth byte j belongs to weight 32 i + j."""
    cdef Py_ssize_t i, j
    cdef float d = half_at(block), d_min = half_at(block + 2)
    cdef const uint8_t* s = block + 4
    cdef const uint8_t* fifth = block + 16
    cdef const uint8_t* nibbles = block + 48 if has_fifth else block + 16
    for i in range(4):
        set_32(c, i, d * (s[i] & 63), -(d_min * (s[4 + i] & 63)))
        set_32(c, 4 + i, d * (s[8 + i] & 15 | s[i] >> 6 << 4),
               -(d_min * (s[8 + i] >> 4 | s[4 + i] >> 6 << 4)))
        split_nibbles(c.code + 64 * i, nibbles + 32 * i, 32)
    if has_fifth:
        for i in range(8):
            for j in range(32):
                c.code[32 * i + j] |= (fifth[j] >> i & 1) << 4
    return nibbles + 128


cdef const uint8_t* unpack_q6_k(Superblock* c, const uint8_t* block) noexcept nogil:
    """210 bytes: low nibbles 128, high bit pairs 64, int8 scales 16, f16 d; d s (q - 32)."""
    cdef Py_ssize_t h, i, j
    cdef float d = half_at(block + 208)
    cdef const uint8_t* low
    cdef const uint8_t* high
    cdef int8_t* code
    for i in range(16):
        c.scale[i] = d * <float>(<const int8_t*>block)[192 + i]
        c.offset[i] = -0.0
    for h in range(2):
        code, low, high = c.code + 128 * h, block + 64 * h, block + 128 + 32 * h
        for j in range(32):
            code[j] = (low[j] & 15 | (high[j] & 3) << 4) - 32
        for j in range(32):
            code[32 + j] = (low[32 + j] & 15 | (high[j] >> 2 & 3) << 4) - 32
        for j in range(32):
            code[64 + j] = (low[j] >> 4 | (high[j] >> 4 & 3) << 4) - 32
        for j in range(32):
            code[96 + j] = (low[32 + j] >> 4 | high[j] >> 6 << 4) - 32
    return block + 210


cdef const uint8_t* unpack(Superblock* c, const uint8_t* block, int type,
                           Py_ssize_t n) noexcept nogil:
    """The next n <= SUPERBLOCK weights of a row; returns where the ones after them are."""
    if type == ROWS_Q8_0:
        return unpack_q8_0(c, block, n // 32)
    if type == ROWS_Q4_0:
        return unpack_32(c, block, n // 32, False, False)
    if type == ROWS_Q4_1:
        return unpack_32(c, block, n // 32, True, False)
    if type == ROWS_Q5_0:
        return unpack_32(c, block, n // 32, False, True)
    if type == ROWS_Q5_1:
        return unpack_32(c, block, n // 32, True, True)
    if type == ROWS_IQ4_NL:
        return unpack_iq4_nl(c, block, n // 32)
    if type == ROWS_Q4_K:
        return unpack_k(c, block, False)
    if type == ROWS_Q5_K:
        return unpack_k(c, block, True)
    return unpack_q6_k(c, block)


# -------------------------------------------------------------------------------- sixteen weights
cdef inline bint is_float(int type) noexcept nogil:
    return type == ROWS_F32 or type == ROWS_F16 or type == ROWS_BF16


cdef inline f32x16 load_codes(const Superblock* c, Py_ssize_t i) noexcept nogil:
    return f32_add(f32_mul(f32_set1(c.scale[i]), f32_load_i8(c.code + LANES * i)),
                   f32_set1(c.offset[i]))


cdef inline f32x16 load_row(const uint8_t* row, int type, Py_ssize_t i) noexcept nogil:
    if type == ROWS_F16:
        return f32_load_f16(<const uint16_t*>row + i)
    if type == ROWS_BF16:
        return f32_load_bf16(<const uint16_t*>row + i)
    return f32_load(<const float*>row + i)


cdef inline f32x16 load_last(const uint8_t* row, int type, Py_ssize_t n) noexcept nogil:
    """The last n % 16 numbers of a row of n, and zeros."""
    cdef float padded[LANES]
    cdef Py_ssize_t rest = n % LANES, item = 4 if type == ROWS_F32 else 2
    memset(padded, 0, sizeof(padded))
    memcpy(padded, row + (n - rest) * item, rest * item)
    return load_row(<const uint8_t*>padded, type, 0)


cdef void dequantize_row(float* out, const uint8_t* row, int type,
                         Py_ssize_t n_cols) noexcept nogil:
    cdef Superblock block
    cdef Py_ssize_t i, j, n, rest = n_cols % LANES
    if is_float(type):
        for i in range(0, n_cols - LANES + 1, 16):
            f32_store(out + i, load_row(row, type, i))
        store_some(out + n_cols - rest, load_last(row, type, n_cols), rest)
        return
    for i in range(0, n_cols, 256):
        n = min(<Py_ssize_t>SUPERBLOCK, n_cols - i)
        row = unpack(&block, row, type, n)
        for j in range(n // LANES):
            f32_store(out + i + LANES * j, load_codes(&block, j))


cdef float block_row_dot(const uint8_t* row, const float* x, int type,
                         Py_ssize_t n_cols) noexcept nogil:
    cdef Superblock block
    cdef f32x16 acc = f32_zero()
    cdef Py_ssize_t i, j, n
    for i in range(0, n_cols, 256):
        n = min(<Py_ssize_t>SUPERBLOCK, n_cols - i)
        row = unpack(&block, row, type, n)
        for j in range(n // LANES):
            acc = f32_add(acc, f32_mul(load_codes(&block, j), f32_load(x + i + LANES * j)))
    return f32_sum(acc)


cdef float float_row_dot(const uint8_t* row, const float* x, int type,
                         Py_ssize_t n_cols) noexcept nogil:
    cdef f32x16 acc = f32_zero()
    cdef Py_ssize_t i, rest = n_cols % LANES
    for i in range(0, n_cols - LANES + 1, 16):
        acc = f32_add(acc, f32_mul(load_row(row, type, i), f32_load(x + i)))
    if rest:
        acc = f32_add(acc, f32_mul(load_last(row, type, n_cols),
                                   load_some(x + n_cols - rest, rest)))
    return f32_sum(acc)


cdef void four_rows(float* out, const uint8_t* rows, const float* x, int type,
                    Py_ssize_t row_bytes, Py_ssize_t n) noexcept nogil:
    """Four rows of floats at once, n a multiple of 16: four chains of additions hide their latency.

    The next four are prefetched meanwhile: rows are too short for the hardware's prefetcher.
    """
    cdef f32x16 v, acc0 = f32_zero(), acc1 = f32_zero(), acc2 = f32_zero(), acc3 = f32_zero()
    cdef const uint8_t* next_rows = rows + 4 * row_bytes
    cdef Py_ssize_t i, r, item = 4 if type == ROWS_F32 else 2
    for i in range(0, n, 16):
        for r in range(4):
            prefetch_t1(next_rows + r * row_bytes + i * item)
        v = f32_load(x + i)
        acc0 = f32_add(acc0, f32_mul(load_row(rows, type, i), v))
        acc1 = f32_add(acc1, f32_mul(load_row(rows + row_bytes, type, i), v))
        acc2 = f32_add(acc2, f32_mul(load_row(rows + 2 * row_bytes, type, i), v))
        acc3 = f32_add(acc3, f32_mul(load_row(rows + 3 * row_bytes, type, i), v))
    out[0], out[1], out[2], out[3] = f32_sum(acc0), f32_sum(acc1), f32_sum(acc2), f32_sum(acc3)


cdef void matvec_rows(float* out, const uint8_t* rows, const float* x, int type,
                      Py_ssize_t row_bytes, Py_ssize_t n_rows, Py_ssize_t n_cols) noexcept nogil:
    cdef Py_ssize_t i, r = 0
    if not is_float(type):
        for r in range(n_rows):
            out[r] = block_row_dot(rows + r * row_bytes, x, type, n_cols)
        return
    if n_cols % LANES == 0:
        while r + 4 <= n_rows:
            four_rows(out + r, rows + r * row_bytes, x, type, row_bytes, n_cols)
            r += 4
    for i in range(r, n_rows):
        out[i] = float_row_dot(rows + i * row_bytes, x, type, n_cols)


cdef void matvec_rows_4(float** out, const uint8_t* rows, const float** x, int type,
                        Py_ssize_t row_bytes, Py_ssize_t n_rows, Py_ssize_t n_cols) noexcept nogil:
    cdef Py_ssize_t r, t
    cdef float dots[4]
    for r in range(n_rows):
        if is_float(type):
            float_row_dots(dots, rows + r * row_bytes, x, type, n_cols)
        else:
            block_row_dots(dots, rows + r * row_bytes, x, type, n_cols)
        for t in range(4):
            out[t][r] = dots[t]


cdef void float_row_dots(float* out, const uint8_t* row, const float** x, int type,
                         Py_ssize_t n) noexcept nogil:
    """One row times four inputs: a number is read and converted once, the next row prefetched."""
    cdef f32x16 v, acc0 = f32_zero(), acc1 = f32_zero(), acc2 = f32_zero(), acc3 = f32_zero()
    cdef Py_ssize_t i, rest = n % LANES, item = 4 if type == ROWS_F32 else 2
    for i in range(0, n - LANES + 1, 16):
        prefetch_t1(row + (n + i) * item)
        v = load_row(row, type, i)
        acc0 = f32_add(acc0, f32_mul(v, f32_load(x[0] + i)))
        acc1 = f32_add(acc1, f32_mul(v, f32_load(x[1] + i)))
        acc2 = f32_add(acc2, f32_mul(v, f32_load(x[2] + i)))
        acc3 = f32_add(acc3, f32_mul(v, f32_load(x[3] + i)))
    if rest:
        i = n - rest
        v = load_last(row, type, n)
        acc0 = f32_add(acc0, f32_mul(v, load_some(x[0] + i, rest)))
        acc1 = f32_add(acc1, f32_mul(v, load_some(x[1] + i, rest)))
        acc2 = f32_add(acc2, f32_mul(v, load_some(x[2] + i, rest)))
        acc3 = f32_add(acc3, f32_mul(v, load_some(x[3] + i, rest)))
    out[0], out[1], out[2], out[3] = f32_sum(acc0), f32_sum(acc1), f32_sum(acc2), f32_sum(acc3)


cdef void block_row_dots(float* out, const uint8_t* row, const float** x, int type,
                         Py_ssize_t n_cols) noexcept nogil:
    cdef Superblock block
    cdef f32x16 v, acc0 = f32_zero(), acc1 = f32_zero(), acc2 = f32_zero(), acc3 = f32_zero()
    cdef Py_ssize_t i, j, k, n
    for i in range(0, n_cols, 256):
        n = min(<Py_ssize_t>SUPERBLOCK, n_cols - i)
        row = unpack(&block, row, type, n)
        for j in range(n // LANES):
            v = load_codes(&block, j)
            k = i + LANES * j
            acc0 = f32_add(acc0, f32_mul(v, f32_load(x[0] + k)))
            acc1 = f32_add(acc1, f32_mul(v, f32_load(x[1] + k)))
            acc2 = f32_add(acc2, f32_mul(v, f32_load(x[2] + k)))
            acc3 = f32_add(acc3, f32_mul(v, f32_load(x[3] + k)))
    out[0], out[1], out[2], out[3] = f32_sum(acc0), f32_sum(acc1), f32_sum(acc2), f32_sum(acc3)
