"""Rotated activations: the normalised Walsh-Hadamard transform of blocks of columns, and the order
of heads in which weights were rotated."""
from cython.parallel cimport prange
from libc.string cimport memcpy

import numpy as np

from .operands cimport Array, Batch, Matrix, check_rows, open_array
from .threads cimport threads_for
from ..runtime.dispatch cimport kernels


cdef class Hadamard:
    """H and signs for rows of n columns.

    block: a power of two that divides n. signs: float32 (n,) of 1 and -1, or None for ones.
    """

    cdef Array owner
    cdef const float* signs             # (n,), NULL for ones
    cdef readonly Py_ssize_t n, block
    cdef float scale                    # the float32 nearest to block^-1/2

    def __cinit__(self, signs, Py_ssize_t block, Py_ssize_t n):
        if block < 1 or block & (block - 1) or n < block or n % block:
            raise ValueError(f"blocks of {block} in {n} columns, limit: a power of two that "
                             f"divides them")
        if signs is not None:
            self.owner = open_array(signs, c"f", 4, 1)
            self.signs = <const float*>self.owner.data
            if self.owner.view.shape[0] != n:
                raise ValueError(f"{self.owner.view.shape[0]} signs of {n} columns")
        self.n, self.block = n, block
        self.scale = np.float32(np.float64(block) ** -0.5)


def rotate(Matrix x not None, Hadamard h not None, Batch batch not None, bint inverse=False):
    """x = H (signs x) in place, block by block; inverse: x = signs (H x).

    x: (n_tokens or more, n of h).
    """
    cdef Py_ssize_t r, n = h.n
    cdef const float* before = NULL if inverse else h.signs
    cdef const float* after = h.signs if inverse else NULL
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n)
    check_rows(batch, x.n_rows, x.n_cols, n, "x")
    if team == 1:
        for r in range(batch.n_tokens):
            kernels.hadamard(x.data + r * n, before, after, h.scale, h.block, n)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        kernels.hadamard(x.data + r * n, before, after, h.scale, h.block, n)


def group_heads(Matrix out not None, Matrix x not None, Py_ssize_t n_key_heads, Py_ssize_t n_heads,
                Batch batch not None):
    """out = x with its heads in grouped order: head j of tiled order, which has key head j mod
    n_key_heads, goes behind the others of that key head.

    out, x: (n_tokens or more, n), n a multiple of n_heads, and that of n_key_heads.
    """
    cdef Py_ssize_t r, j, to, n = x.n_cols, size
    if n_key_heads < 1 or n_heads < 1 or n_heads % n_key_heads or n % n_heads or out is x:
        raise ValueError(f"{n} columns of {n_heads} heads and {n_key_heads} key heads")
    check_rows(batch, x.n_rows, n, n, "x")
    check_rows(batch, out.n_rows, out.n_cols, n, "out")
    size = n // n_heads
    for r in range(batch.n_tokens):
        for j in range(n_heads):
            to = j % n_key_heads * (n_heads // n_key_heads) + j // n_key_heads
            memcpy(out.data + r * n + to * size, x.data + r * n + j * size, size * sizeof(float))
