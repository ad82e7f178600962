# Ternary matrices times int8 activations, and the scales of both: see ternary.h.

cdef extern from "ternary.h" nogil:
    enum: TILE_ROWS                     # rows of a tile, with two tokens or more
    enum: TILE_TOKENS                   # tokens of a tile at most
    enum: TILE_1_ROWS                   # rows of a tile with one token
    void ternary_tile(int32_t* out, Py_ssize_t out_stride, const uint8_t* w, Py_ssize_t row_bytes,
                      const int8_t* x, Py_ssize_t x_stride, Py_ssize_t n_tokens,
                      Py_ssize_t n_blocks) noexcept
    void ternary_row(int32_t* out, Py_ssize_t out_stride, const uint8_t* w, Py_ssize_t row_bytes,
                     const int8_t* x, Py_ssize_t x_stride, Py_ssize_t n_tokens,
                     Py_ssize_t n_blocks) noexcept
    void ternary_tile_1(int32_t* out, const uint8_t* w, Py_ssize_t row_bytes, const int8_t* x,
                        Py_ssize_t n_blocks) noexcept
    void ternary_tile_1_streaming(int32_t* out, const uint8_t* w, Py_ssize_t row_bytes,
                                  const int8_t* x, Py_ssize_t n_blocks) noexcept
    void ternary_row_1(int32_t* out, const uint8_t* w, Py_ssize_t row_bytes, const int8_t* x,
                       Py_ssize_t n_blocks) noexcept


cdef void ternary_matmul(int32_t* out, Py_ssize_t out_stride, const uint8_t* w, const int8_t* x,
                         Py_ssize_t x_stride, Py_ssize_t n_rows, Py_ssize_t n_tokens,
                         Py_ssize_t n_blocks, bint streaming) noexcept nogil:
    cdef Py_ssize_t i, r, row_bytes = n_blocks * BLOCK_BYTES
    if n_tokens == 1:
        ternary_matvec(out, w, x, n_rows, n_blocks, streaming)
        return
    for i in range(n_rows // TILE_ROWS):
        r = i * TILE_ROWS
        ternary_tile(out + r, out_stride, w + r * row_bytes, row_bytes, x, x_stride, n_tokens,
                     n_blocks)
    for r in range(n_rows - n_rows % TILE_ROWS, n_rows):
        ternary_row(out + r, out_stride, w + r * row_bytes, row_bytes, x, x_stride, n_tokens,
                    n_blocks)


cdef void ternary_matvec(int32_t* out, const uint8_t* w, const int8_t* x, Py_ssize_t n_rows,
                         Py_ssize_t n_blocks, bint streaming) noexcept nogil:
    """Rows times one token. The first bytes are prefetched here, as a thread's chunks lie apart:
    1.04 times the speed on two threads."""
    cdef Py_ssize_t i, r, row_bytes = n_blocks * BLOCK_BYTES
    cdef Py_ssize_t n_ahead = min(<Py_ssize_t>PREFETCH_DISTANCE, n_rows * row_bytes)
    for i in range(0, n_ahead if streaming else 0, 64):
        prefetch_nta(w + i)
    for i in range(n_rows // TILE_1_ROWS):
        r = i * TILE_1_ROWS
        if streaming:
            ternary_tile_1_streaming(out + r, w + r * row_bytes, row_bytes, x, n_blocks)
        else:
            ternary_tile_1(out + r, w + r * row_bytes, row_bytes, x, n_blocks)
    for r in range(n_rows - n_rows % TILE_1_ROWS, n_rows):
        ternary_row_1(out + r, w + r * row_bytes, row_bytes, x, n_blocks)


cdef void apply_scales(float* out, Py_ssize_t out_stride, const int32_t* sums,
                       Py_ssize_t sums_stride, const float* scales, Py_ssize_t scale_step,
                       const float* inv_scale, const int32_t* code_sums, Py_ssize_t n_rows,
                       Py_ssize_t n_tokens, bint add) noexcept nogil:
    cdef Py_ssize_t t
    cdef int32_t code_sum
    for t in range(n_tokens):
        code_sum = code_sums[t] if code_sums else 0
        if scale_step:                              # a constant 1 or 0, so that gcc vectorizes
            scale_row(out, sums, scales, 1, inv_scale[t], code_sum, n_rows, add)
        else:
            scale_row(out, sums, scales, 0, inv_scale[t], code_sum, n_rows, add)
        out += out_stride
        sums += sums_stride


cdef inline void scale_row(float* out, const int32_t* sums, const float* scales,
                           Py_ssize_t scale_step, float inv_scale, int32_t code_sum, Py_ssize_t n,
                           bint add) noexcept nogil:
    cdef Py_ssize_t i
    if add:
        for i in range(n):
            out[i] += <float>(sums[i] - code_sum) * (scales[i * scale_step] * inv_scale)
    else:
        for i in range(n):
            out[i] = <float>(sums[i] - code_sum) * (scales[i * scale_step] * inv_scale)


cdef Py_ssize_t find_code_3(const uint8_t* w, Py_ssize_t n_bytes) noexcept nogil:
    cdef Py_ssize_t begin, i, end
    cdef uint8_t both
    for begin in range(0, n_bytes, 4096):       # whether 4 KiB have one, only then which byte
        end = min(begin + 4096, n_bytes)
        both = 0
        for i in range(begin, end):
            both |= w[i] & (w[i] >> 1)
        if both & 0x55:
            for i in range(begin, end):
                if w[i] & (w[i] >> 1) & 0x55:
                    return i
    return -1
