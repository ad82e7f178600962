"""group_rows.h as Cython sees it: rows with scales of groups, and their inputs."""
from libc.stdint cimport int8_t, int32_t, uint8_t


cdef extern from "group_rows.h" nogil:
    enum: QUAD
    enum: QUAD_SUMS
    enum: QUAD_SCALES
    enum: QUAD_SUMS_INT8
    enum: QUAD_SCALES_INT8
    enum: GROUP_CODE_3
    enum: GROUP_BAD_SCALE
    enum: GROUP_HALVES_DIFFER
    ctypedef struct GroupRows:
        const uint8_t* codes
        Py_ssize_t row_codes
        Py_ssize_t block_codes
        Py_ssize_t half_codes
        const uint8_t* scales
        Py_ssize_t row_scales
        Py_ssize_t block_scales
        Py_ssize_t half_scales
        Py_ssize_t n_cols
    ctypedef struct GroupInputs:
        const int8_t* codes
        const float* scales
        const int32_t* sums
        Py_ssize_t codes_stride
        Py_ssize_t scales_stride
        Py_ssize_t sums_stride
        int bits
