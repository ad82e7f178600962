# The arrays a graph works on, bound once: pointers, sizes, references that keep memory alive.
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t

cdef enum:
    CHUNK = 64                          # rows a thread takes at a time
    BLOCK = 128                         # columns of a ternary block
    BLOCK_BYTES = 32
    MAX_PARTS = 4
    SCREEN_BEST = 1024                  # logits that a row of a step may want
    SCREEN_TOKENS = 32                  # rows of a step that a head is screened for
    SCREEN_COLS = 8192                  # of a row at most: the kernels' sums hold no more

cdef struct Part:                       # one matrix of a stack
    const uint8_t* codes                # (n_rows, n_blocks * BLOCK_BYTES) packed I2_S
    const float* scales
    Py_ssize_t scale_step               # 1: a scale for each row; 0: one for all
    Py_ssize_t n_rows
    Py_ssize_t first_row                # in the stack
    Py_ssize_t first_chunk

cdef struct Sequence:
    char** pages                        # (layer, n_pages)
    Py_ssize_t n_pages
    Py_ssize_t start                    # first position still held, the sinks apart
    Py_ssize_t n_sinks                  # 0 where start is 0

cdef class Matrix:
    cdef float[:, ::1] view
    cdef float* data
    cdef readonly Py_ssize_t n_rows, n_cols

cdef class Norm:
    cdef const float[::1] weight
    cdef readonly float eps

cdef class QuantizedActivations:
    cdef int8_t[:, ::1] codes           # (n_rows, widest input, padded)
    cdef float[::1] inv_scale
    cdef int32_t[::1] sums
    cdef public Py_ssize_t n_cols       # of the activations last written, before padding

cdef class Linear:
    cdef Part parts[MAX_PARTS]
    cdef Py_ssize_t n_parts, n_blocks, n_chunks
    cdef readonly Py_ssize_t n_rows, n_cols
    cdef readonly Py_ssize_t fewest_rows        # of a part
    cdef list owners                    # memoryviews of codes and scales

cdef class QuantizedRows:
    cdef const uint8_t[:, ::1] data
    cdef int type                       # ROWS_F32, ... of kernels/table.pxd
    cdef readonly Py_ssize_t n_rows, n_cols

cdef class Rope:
    cdef const float[::1] frequencies   # (head_dim / 2)
    cdef float[:, :, ::1] cos_sin         # cosines, sines: (2, rows and then sequences, head_dim / 2)
    cdef Py_ssize_t n_trained
    cdef bint interleaved

cdef class Screen:
    cdef const int8_t[:, ::1] codes     # (n_rows, n_cols)
    cdef const float[:, ::1] bounds     # (n_rows, 3): scale, norm of the error, of the rest
    cdef int16_t[:, ::1] inputs         # (SCREEN_TOKENS, 2 * n_cols), as kernels read them
    cdef double[:, ::1] best            # (SCREEN_TOKENS, chunks): greatest lower bound of a chunk
    cdef int32_t[::1] survivors         # room for the ids of those that are rescored
    cdef readonly Py_ssize_t n_rows, n_cols

cdef class Batch:
    cdef int32_t[::1] positions         # of each row
    cdef int32_t[::1] sequence_of       # index of each row's sequence
    cdef uint8_t[::1] storage           # of the Sequence structs
    cdef Sequence* sequences
    cdef list caches                    # None: rows without sequences
    cdef Py_ssize_t max_tokens, max_sequences, n_kv_heads, head_dim
    cdef int type                       # of the caches
    cdef readonly Py_ssize_t n_tokens, n_sequences
    cdef public int n_threads
    cdef public uint8_t[:, ::1] workspace       # a row for each thread; none: nothing needs it
    cdef public float[::1] found                # by threads that share a sequence's positions
