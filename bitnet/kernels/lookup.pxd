"""lookup.h as Cython sees it."""
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t


cdef extern from "lookup.h" nogil:
    enum: LOOKUP                        # whether this instruction set gains by it
    enum: LOOKUP_COLS
    enum: LOOKUP_ENTRIES
    void lookup_index(uint8_t* index, const uint8_t* w, Py_ssize_t row_bytes,
                      Py_ssize_t n_rows) noexcept
    int32_t lookup_most(const int8_t* x, Py_ssize_t x_stride, Py_ssize_t n_tokens) noexcept
    void lookup_columns(int8_t* columns, const int8_t* x, Py_ssize_t x_stride,
                        Py_ssize_t n_tokens) noexcept
    void lookup_tables(int16_t* tables, const int8_t* columns) noexcept
    void lookup_fold(int32_t* sums, int16_t* halves, Py_ssize_t n_rows) noexcept
    void lookup_rows(int16_t* halves, const int16_t* tables, const uint8_t* index,
                     Py_ssize_t n_rows) noexcept
