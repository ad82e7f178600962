# The KV cache of one sequence: a ring of reference-counted pages, taken from a pool as it grows.
#
# A page holds PAGE positions of one layer: keys[kv_head][PAGE / LANES][head_dim][LANES], transposed
# so that a kernel scores LANES positions with one vector, then values[kv_head][PAGE][head_dim].
# Position p of layer l lies in pages[l * n_pages + (p // PAGE) % n_pages].
#
#   0 ......... start ................ length ............ writable
#     given up        held, readable          reserved          (== length until reserve)
#
# start is a multiple of PAGE. Held are exactly the pages that cover start .. writable - 1; forks
# may share those of start .. length - 1, the others belong to this cache alone.
from .memory cimport Pool

cpdef enum:
    PAGE = 128                      # positions
    LANES = 16

cdef class PageSet:                 # the pages of all layers for the same PAGE positions
    cdef list pages                 # n_layers Allocations
    cdef int n_holders              # caches that hold it; atomic, since forks may live in threads

cdef class KVCache:
    cdef char** pages               # [n_layers][n_pages], NULL where none is held; NULL when closed
    cdef readonly Py_ssize_t n_layers
    cdef readonly Py_ssize_t n_kv_heads
    cdef readonly Py_ssize_t head_dim
    cdef readonly Py_ssize_t n_pages        # a layer: the slots of the ring
    cdef readonly Py_ssize_t length         # positions written so far, those given up included
    cdef readonly Py_ssize_t start          # first position still held
    cdef readonly Py_ssize_t capacity       # positions that are held at once
    cdef readonly int is_f16                # otherwise f32
    cdef readonly bint overwrite            # when full: give up the oldest pages
    cdef readonly Pool pool
    cdef Py_ssize_t writable                # end of the reserved positions
    cdef size_t page_bytes
    cdef list slots                         # n_pages of PageSet or None

    cdef int check(self) except -1
    cdef PageSet take(self, PageSet source)
    cdef void put(self, Py_ssize_t slot, PageSet page_set)
    cdef void give_up(self, Py_ssize_t position)
    cdef void release(self)
    cdef page_data(self, Py_ssize_t layer, Py_ssize_t page)
    cdef views(self, Py_ssize_t layer, Py_ssize_t position)
