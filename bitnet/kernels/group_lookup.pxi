# Rows with scales of groups times many tokens by tables of sums: see group_lookup.h.

cdef extern from "group_lookup.h" nogil:
    enum: HAS_GROUP_LOOKUP              # whether this instruction set gains by it
    void group_lookup_index(uint8_t* index, const uint8_t* w, Py_ssize_t row_bytes,
                            Py_ssize_t half, Py_ssize_t n_rows) noexcept
    void group_lookup_columns(int8_t* columns, const int8_t* x, Py_ssize_t x_stride,
                              Py_ssize_t n_tokens) noexcept
    void group_lookup_rows(int16_t* halves, int add, const int16_t* tables, const uint8_t* index,
                           Py_ssize_t n_rows) noexcept
    void group_lookup_fold_16(float* sums, const int16_t* high, const int16_t* low, int add,
                              const int16_t* tables, const uint8_t* index, const float* d,
                              const float* a, Py_ssize_t n_rows) noexcept
    void group_lookup_fold_8(float* sums, const int16_t* tables, const uint8_t* index,
                             const float* d, const float* a, Py_ssize_t n_rows) noexcept
    int group_lookup_token(int i, int bits) noexcept

cdef struct Tables:                     # what group_lookup works in: see table.pxd
    int16_t* tables
    int16_t* high                       # (n_rows, 16): sums of a unit, by plane
    int16_t* low
    uint8_t* index                      # (4, n_rows, 8)
    float* d                            # (2, n_rows): scales of the halves of a block
    float* sums                         # (n_sets, 4, n_rows, 16): of units, by their number mod 4


cdef void group_lookup(float* out, Py_ssize_t out_stride, char* work, const GroupRows* w,
                       Py_ssize_t first_row, const GroupInputs* x, Py_ssize_t token,
                       Py_ssize_t n_rows, Py_ssize_t n_tokens, int unit, bint add) noexcept nogil:
    cdef Tables t
    cdef Py_ssize_t block, s, n_sets = (n_tokens + 15) // 16
    cdef Py_ssize_t half, n_halves
    cdef const uint8_t* codes = w.codes + first_row * w.row_codes
    t.tables = <int16_t*>work
    t.high = <int16_t*>(work + LOOKUP_TABLE_BYTES)
    t.low = t.high + 16 * n_rows
    t.index = <uint8_t*>(t.low + 16 * n_rows)
    t.d = <float*>(t.index + 32 * n_rows)
    t.sums = t.d + 2 * n_rows
    memset(t.sums, 0, n_sets * 64 * n_rows * sizeof(float))
    for block in range((w.n_cols + 127) // 128):
        n_halves = min(<Py_ssize_t>2, w.n_cols // 64 - 2 * block)
        half = w.half_codes if n_halves == 2 else 0     # the first again, times zeros
        group_lookup_index(t.index, codes + block * w.block_codes, w.row_codes, half, n_rows)
        row_scales(t.d, w, first_row, block, n_halves, n_rows, unit)
        for s in range(n_sets):
            lookup_block(&t, x, token + 16 * s, min(<Py_ssize_t>16, n_tokens - 16 * s), s, block,
                         n_halves, n_rows, unit)
    for s in range(n_sets):
        write_sums(out + 16 * s * out_stride, out_stride, t.sums + 64 * s * n_rows, n_rows,
                   min(<Py_ssize_t>16, n_tokens - 16 * s), x.bits, add)


cdef void row_scales(float* d, const GroupRows* w, Py_ssize_t first_row, Py_ssize_t block,
                     Py_ssize_t n_halves, Py_ssize_t n_rows, int unit) noexcept nogil:
    """The scales of a block's halves; with units of 128 the larger one, for both."""
    cdef Py_ssize_t r
    cdef float first, second
    for r in range(n_rows):
        first = second = f32_of_f16(scale_bits(w, first_row + r, 2 * block))
        if n_halves == 2 and w.half_scales:
            second = f32_of_f16(scale_bits(w, first_row + r, 2 * block + 1))
        if unit == 128:
            first = second if second > first else first
        d[r], d[n_rows + r] = first, second


cdef void lookup_block(Tables* t, const GroupInputs* x, Py_ssize_t token, Py_ssize_t n_tokens,
                       Py_ssize_t s, Py_ssize_t block, Py_ssize_t n_halves, Py_ssize_t n_rows,
                       int unit) noexcept nogil:
    """128 columns of up to 16 tokens; a quarter of them, 32, has eight byte columns."""
    cdef int8_t[2][BLOCK * 16] columns              # by plane: high and low, or int8 alone
    cdef float a[16]
    cdef int i, quarter, per_unit = unit // 32
    cdef Py_ssize_t u, n_scales = QUAD_SCALES_INT8 if x.bits == 8 else QUAD_SCALES
    cdef Py_ssize_t at = (block // 2 * 32 * x.bits + block % 2 * 32)
    cdef const int8_t* codes = x.codes + token * x.codes_stride + at
    cdef const uint8_t* index
    cdef const float* d
    cdef float* sums
    cdef bint begins, ends
    group_lookup_columns(columns[0], codes, x.codes_stride, n_tokens)
    if x.bits == 16:
        group_lookup_columns(columns[1], codes + 256, x.codes_stride, n_tokens)
    for quarter in range(4 if n_halves == 2 or unit == 128 else 2):
        u = (4 * block + quarter) // per_unit
        begins, ends = quarter % per_unit == 0, quarter % per_unit == per_unit - 1
        index = t.index + quarter * n_rows * LOOKUP_COLS
        d = t.d + (quarter // 2 if unit < 128 else 0) * n_rows
        sums = t.sums + (4 * s + u % 4) * 16 * n_rows
        for i in range(16 if ends else 0):
            a[i] = 0
            if group_lookup_token(i, x.bits) < n_tokens:
                a[i] = (x.scales + (token + group_lookup_token(i, x.bits)) * x.scales_stride
                        + block // 4 * n_scales)[u % 16 if x.bits == 8 else block % 4]
        lookup_tables(t.tables, columns[0] + quarter * LOOKUP_COLS * 16)
        if x.bits == 8:
            group_lookup_fold_8(sums, t.tables, index, d, a, n_rows)
            continue
        group_lookup_rows(t.high, not begins, t.tables, index, n_rows)
        lookup_tables(t.tables, columns[1] + quarter * LOOKUP_COLS * 16)
        if ends:
            group_lookup_fold_16(sums, t.high, t.low, not begins, t.tables, index, d, a, n_rows)
        else:
            group_lookup_rows(t.low, not begins, t.tables, index, n_rows)


cdef void write_sums(float* out, Py_ssize_t out_stride, const float* sums, Py_ssize_t n_rows,
                     Py_ssize_t n_tokens, int bits, bint add) noexcept nogil:
    """out[t * out_stride + r] = or += (p0 + p1) + (p2 + p3)."""
    cdef Py_ssize_t r, n = 16 * n_rows
    cdef int i, t
    cdef const float* p
    cdef f32x16 total
    cdef float y[16]
    for r in range(n_rows):
        p = sums + 16 * r
        total = f32_add(f32_add(f32_load(p), f32_load(p + n)),
                        f32_add(f32_load(p + 2 * n), f32_load(p + 3 * n)))
        f32_store(y, total)
        for i in range(16):
            t = group_lookup_token(i, bits)
            if t < n_tokens:
                out[t * out_stride + r] = out[t * out_stride + r] + y[i] if add else y[i]
