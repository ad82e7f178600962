"""Operands whose groups of columns have scales of their own: bound once, pointers and sizes."""
from libc.stdint cimport int8_t, int32_t

from .operands cimport MAX_STACKED, Array, Batch, Matrix
from ..kernels.group_rows cimport GroupInputs, GroupRows

cdef struct GroupedMatrix:              # one matrix of a GroupedLinear
    GroupRows rows
    Py_ssize_t n_rows
    Py_ssize_t first_row                # counted over all matrices
    Py_ssize_t first_chunk              # counted so too
    int unit                            # columns with one scale: 128, or 64

cdef class GroupedLinear:
    cdef list owners
    cdef GroupedMatrix matrices[MAX_STACKED]
    cdef Py_ssize_t n_matrices, n_chunks
    cdef readonly Py_ssize_t n_rows, n_cols
    cdef readonly Py_ssize_t min_rows   # rows of the smallest matrix

cdef class GroupedActivations:
    cdef Array owner_of_codes, owner_of_scales, owner_of_sums
    cdef int8_t* codes
    cdef float* scales
    cdef int32_t* sums
    cdef GroupInputs inputs             # the same, as kernels read them
    cdef readonly Py_ssize_t n_rows, max_cols
    cdef public Py_ssize_t n_cols       # columns that were written last

cdef int grouped_linear(Matrix out, GroupedLinear weights, GroupedActivations x, Batch batch,
                        bint add, Py_ssize_t column) except -1
cdef int quantize_groups(GroupedActivations out, Matrix x, Batch batch) except -1
cdef void grouped_row(float* out, GroupedLinear weights, Py_ssize_t row) noexcept nogil
