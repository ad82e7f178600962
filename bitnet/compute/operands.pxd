# The operands of the operations, bound once: pointers and sizes, beside the arrays they are of.
#
# A pointer is valid for as long as its operand lives, which keeps the array open. Nothing checks an
# index into it: what is made of a number from outside is checked first, by the sizes beside.
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t

cdef enum:
    CHUNK = 64                          # rows that a thread takes at a time
    MAX_STACKED = 4                     # matrices of one Linear: q, k, v and a gate
    SCREEN_MAX_BEST = 1024              # best logits that a query may ask for
    SCREEN_MAX_TOKENS = 32              # inputs of one screened step
    SCREEN_MAX_COLS = 8192              # columns of a screened head: sums of more overflow int32

cdef class Array:
    """A C-contiguous buffer of one type, held open."""
    cdef Py_buffer view
    cdef void* data                     # its first item, NULL where there is none

# kind: "f" float, "i" signed, "u" unsigned; of itemsize bytes. ValueError for another type, another
# number of dimensions, or read-only memory that is to be written; TypeError for what is no buffer.
cdef Array open_array(source, char kind, Py_ssize_t itemsize, int n_dims, bint is_written=*)

# The NumPy array that was opened, or one of the same memory.
cdef asarray(Array array)

cdef struct StackedMatrix:              # one matrix of a Linear
    const uint8_t* codes                # (n_rows, n_blocks * BLOCK_BYTES) packed I2_S
    const float* scales                 # (n_rows,) or (1,)
    Py_ssize_t scale_step               # 1: a scale for each row; 0: one for all
    Py_ssize_t n_rows
    Py_ssize_t first_row                # its first row, counted over all matrices of the Linear
    Py_ssize_t first_chunk              # its first chunk, counted so too

cdef struct Sequence:                   # the KV cache of one sequence, as attention reads it
    char** pages                        # (n_layers, n_pages)
    Py_ssize_t n_pages
    Py_ssize_t start                    # first position still held, the sinks apart
    Py_ssize_t n_sinks                  # sinks apart from the window; 0 while start is 0

cdef class Matrix:
    cdef Array owner
    cdef float* data
    cdef readonly Py_ssize_t n_rows, n_cols

cdef class Norm:
    cdef Array owner
    cdef const float* weight
    cdef readonly Py_ssize_t n
    cdef readonly float eps

cdef class QuantizedActivations:
    cdef Array owner_of_codes, owner_of_scales, owner_of_sums
    cdef int8_t* codes                  # (n_rows, stride)
    cdef float* inv_scale               # (n_rows,)
    cdef int32_t* sums                  # (n_rows,)
    cdef readonly Py_ssize_t n_rows
    cdef readonly Py_ssize_t stride     # codes from one row to the next: the widest input, padded
    cdef public Py_ssize_t n_cols       # columns that were written last, before padding

cdef class Linear:
    cdef list owners
    cdef StackedMatrix matrices[MAX_STACKED]
    cdef Py_ssize_t n_matrices, n_blocks, n_chunks
    cdef readonly Py_ssize_t n_rows, n_cols
    cdef readonly Py_ssize_t min_rows   # rows of the smallest matrix

cdef class QuantizedRows:
    cdef Array owner
    cdef const uint8_t* data            # (n_rows, row_bytes)
    cdef int type                       # ROWS_F32, ... of kernels/table.pxd
    cdef readonly Py_ssize_t n_rows, n_cols, row_bytes

cdef class Rope:
    cdef Array owner_of_frequencies, owner_of_table
    cdef const float* frequencies       # (half,)
    cdef float* cosines                 # (n_rows, half); rows of a batch and then its sequences
    cdef float* sines                   # (n_rows, half), behind the cosines
    cdef Py_ssize_t n_rows
    cdef Py_ssize_t half                # head_dim / 2
    cdef Py_ssize_t n_trained           # positions that the model was trained for
    cdef bint interleaved               # whether pairs (2j, 2j + 1) are rotated
    cdef float factor                   # what cosines and sines of a batch are multiplied with

cdef class Screen:
    cdef list owners
    cdef const int8_t* codes            # (n_rows, n_cols)
    cdef const float* bounds            # (n_rows, 3): scale, norm of the error, of the rest
    cdef int16_t* inputs                # (SCREEN_MAX_TOKENS, 2 * n_cols), as kernels read them
    cdef double* best                   # (SCREEN_MAX_TOKENS, n_chunks): a chunk's best lower bound
    cdef int32_t* survivors             # (max_survivors,): ids whose logits are computed
    cdef readonly Py_ssize_t n_rows, n_cols, n_chunks, max_survivors

cdef class Batch:
    cdef int32_t* positions             # (n_tokens,): the position of each row
    cdef int32_t* sequence_of           # (n_tokens,): the index of each row's sequence
    cdef Sequence* sequences            # (n_sequences,)
    cdef list caches                    # their KVCaches; None: rows without sequences
    cdef readonly tuple states          # whatever else layers remember of the sequences
    cdef readonly Py_ssize_t max_tokens, max_sequences
    cdef Py_ssize_t n_kv_heads, head_dim
    cdef int type                       # type of the caches: KV_F32, ... of kernels/kv_page.h
    cdef readonly Py_ssize_t n_tokens, n_sequences
    cdef public int n_threads
    cdef Array owner_of_partials, owner_of_workspace
    cdef float* partials                # attention of splits, where threads share positions
    cdef Py_ssize_t n_partials          # floats in it
    cdef char* workspace                # (n_workspaces, workspace_bytes): a row for each thread
    cdef readonly Py_ssize_t n_workspaces, workspace_bytes

# ValueError where an operand called `what` has too few rows for a batch, or not n_cols columns.
cdef int check_rows(Batch batch, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t n_cols,
                    str what) except -1

# ValueError where inputs x are not of n_cols, or out has no room for n_rows outputs from column on.
cdef int check_product(Batch batch, Matrix out, Py_ssize_t column, Py_ssize_t n_rows,
                       Py_ssize_t n_cols, Py_ssize_t x_rows, Py_ssize_t x_cols) except -1

# Whether so many bytes of weights (or more than min_bytes) are read past the caches.
cdef bint is_streamed(Py_ssize_t n_bytes, Py_ssize_t min_bytes) noexcept nogil
