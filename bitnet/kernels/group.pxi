# Ternary rows whose groups of columns have scales of their own: see group.h.

cdef extern from "group.h" nogil:
    enum: GROUP_TOKENS                  # tokens of a tile at most
    void group_rows(float* out, Py_ssize_t out_stride, const GroupRows* w, Py_ssize_t first_row,
                    const GroupInputs* x, Py_ssize_t token, Py_ssize_t n_rows,
                    Py_ssize_t n_tokens, int unit, int add, int streaming) noexcept
    int scan_row(const GroupRows* w, Py_ssize_t row) noexcept
    void group_quantize_quad(int8_t* out, float* scales, int32_t* sums, const float* x,
                             int bits) noexcept


cdef void group_matmul(float* out, Py_ssize_t out_stride, const GroupRows* w,
                       Py_ssize_t first_row, const GroupInputs* x, Py_ssize_t token,
                       Py_ssize_t n_rows, Py_ssize_t n_tokens, int unit, bint add,
                       bint streaming) noexcept nogil:
    """As few passes over the rows as may be, of about as many tokens each."""
    cdef Py_ssize_t begin = 0, n_passes, n
    while begin < n_tokens:
        n_passes = (n_tokens - begin + GROUP_TOKENS - 1) // GROUP_TOKENS
        n = (n_tokens - begin + n_passes - 1) // n_passes
        group_rows(out + begin * out_stride, out_stride, w, first_row, x, token + begin, n_rows, n,
                   unit, add, streaming)
        begin += n


cdef void group_quantize(int8_t* out, float* scales, int32_t* sums, const float* x, Py_ssize_t n,
                         int bits) noexcept nogil:
    cdef float rest[QUAD]
    cdef Py_ssize_t at = 0
    while n - at >= QUAD:
        group_quantize_quad(out, scales, sums, x + at, bits)
        at += QUAD
        out += QUAD * (bits // 8)
        scales += QUAD_SCALES if bits == 16 else QUAD_SCALES_INT8
        sums += QUAD_SUMS if bits == 16 else QUAD_SUMS_INT8
    if at < n:
        memset(rest, 0, sizeof(rest))
        memcpy(rest, x + at, (n - at) * sizeof(float))
        group_quantize_quad(out, scales, sums, rest, bits)


cdef inline uint16_t scale_bits(const GroupRows* w, Py_ssize_t row, Py_ssize_t half) noexcept nogil:
    """The float16 of the 64 columns of this number."""
    cdef uint16_t bits
    memcpy(&bits, w.scales + row * w.row_scales + half // 2 * w.block_scales
           + half % 2 * w.half_scales, 2)
    return bits


cdef inline const uint8_t* codes_at(const GroupRows* w, Py_ssize_t row,
                                    Py_ssize_t half) noexcept nogil:
    """The 16 bytes of the 64 columns of this number."""
    return (w.codes + row * w.row_codes + half // 2 * w.block_codes + half % 2 * w.half_codes)


cdef int group_scan(const GroupRows* w, Py_ssize_t row) noexcept nogil:
    return scan_row(w, row)


cdef void group_dequantize_row(float* out, const GroupRows* w, Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t h, j, n_halves = w.n_cols // 64
    cdef const uint8_t* codes
    cdef float scale
    for h in range(n_halves):
        codes = codes_at(w, row, h)
        scale = f32_of_f16(scale_bits(w, row, h))
        for j in range(64):
            out[64 * h + j] = <float>((codes[j // 4] >> 2 * (j % 4) & 3) - 1) * scale
