# Ternary matrix times many tokens by tables of sums: see lookup.h.

cdef extern from "lookup.h" nogil:
    enum: HAS_LOOKUP                    # whether this instruction set gains by it
    enum: LOOKUP_COLS                   # byte columns, a table each, that are done together
    void lookup_index(uint8_t* index, const uint8_t* w, Py_ssize_t row_bytes,
                      Py_ssize_t n_rows) noexcept
    int32_t lookup_max_sum(const int8_t* x, Py_ssize_t x_stride, Py_ssize_t n_tokens) noexcept
    void lookup_columns(int8_t* columns, const int8_t* x, Py_ssize_t x_stride,
                        Py_ssize_t n_tokens) noexcept
    void lookup_tables(int16_t* tables, const int8_t* columns) noexcept
    void lookup_fold(int32_t* sums, int16_t* halves, Py_ssize_t n_rows) noexcept
    void lookup_rows(int16_t* halves, const int16_t* tables, const uint8_t* index,
                     Py_ssize_t n_rows) noexcept


cdef void ternary_lookup(int32_t* sums, char* work, const uint8_t* w, const int8_t* x,
                         Py_ssize_t x_stride, Py_ssize_t n_rows, Py_ssize_t n_tokens,
                         Py_ssize_t n_blocks) noexcept nogil:
    cdef Py_ssize_t b, g, i, n_groups = (n_tokens + 15) // 16, n = n_rows * 16
    cdef int32_t max_sum, bound = 0             # no sum in halves can be greater than bound
    cdef int8_t columns[BLOCK * 16]
    cdef int16_t* tables = <int16_t*>work
    cdef int16_t* halves = <int16_t*>(work + LOOKUP_TABLE_BYTES)        # (n_groups, n_rows, 16)
    cdef uint8_t* index = <uint8_t*>(halves + n_groups * n)             # (4, n_rows, 8)
    memset(sums, 0, n_groups * n * sizeof(int32_t))
    memset(halves, 0, n_groups * n * sizeof(int16_t))
    for b in range(n_blocks):
        max_sum = lookup_max_sum(x + b * BLOCK, x_stride, n_tokens)
        if bound + max_sum > INT16_MAX:
            fold(sums, halves, n_groups, n_rows)
            bound = 0
        bound += max_sum
        lookup_index(index, w + b * BLOCK_BYTES, n_blocks * BLOCK_BYTES, n_rows)
        for g in range(n_groups):
            lookup_columns(columns, x + 16 * g * x_stride + b * BLOCK, x_stride, n_tokens - 16 * g)
            for i in range(4):                  # eight byte columns at a time
                lookup_tables(tables, columns + i * LOOKUP_COLS * 16)
                lookup_rows(halves + g * n, tables, index + i * n_rows * LOOKUP_COLS, n_rows)
    fold(sums, halves, n_groups, n_rows)


cdef void fold(int32_t* sums, int16_t* halves, Py_ssize_t n_groups,
               Py_ssize_t n_rows) noexcept nogil:
    cdef Py_ssize_t g
    for g in range(n_groups):
        lookup_fold(sums + g * 16 * n_rows, halves + g * 16 * n_rows, n_rows)
