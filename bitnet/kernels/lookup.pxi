# Ternary matrix times many tokens by tables of sums: see lookup.h.


cdef void ternary_lookup(int32_t* sums, char* work, const uint8_t* w, const int8_t* x,
                         Py_ssize_t x_stride, Py_ssize_t n_rows, Py_ssize_t n_tokens,
                         Py_ssize_t n_blocks) noexcept nogil:
    cdef Py_ssize_t b, g, i, n_groups = (n_tokens + 15) // 16, n = n_rows * 16
    cdef int32_t most, held = 0                 # what nothing in halves can exceed
    cdef int8_t columns[128 * 16]
    cdef int16_t* tables = <int16_t*>work
    cdef int16_t* halves = tables + LOOKUP_COLS * LOOKUP_ENTRIES * 16   # (n_groups, n_rows, 16)
    cdef uint8_t* index = <uint8_t*>(halves + n_groups * n)             # (4, n_rows, 8)
    memset(sums, 0, n_groups * n * sizeof(int32_t))
    memset(halves, 0, n_groups * n * sizeof(int16_t))
    for b in range(n_blocks):
        most = lookup_most(x + b * 128, x_stride, n_tokens)
        if held + most > INT16_MAX:
            fold(sums, halves, n_groups, n_rows)
            held = 0
        held += most
        lookup_index(index, w + b * BLOCK_BYTES, n_blocks * BLOCK_BYTES, n_rows)
        for g in range(n_groups):
            lookup_columns(columns, x + 16 * g * x_stride + b * 128, x_stride, n_tokens - 16 * g)
            for i in range(4):                  # eight byte columns at a time
                lookup_tables(tables, columns + i * LOOKUP_COLS * 16)
                lookup_rows(halves + g * n, tables, index + i * n_rows * LOOKUP_COLS, n_rows)
    fold(sums, halves, n_groups, n_rows)


cdef void fold(int32_t* sums, int16_t* halves, Py_ssize_t n_groups,
               Py_ssize_t n_rows) noexcept nogil:
    cdef Py_ssize_t g
    for g in range(n_groups):
        lookup_fold(sums + g * 16 * n_rows, halves + g * 16 * n_rows, n_rows)
