# The KV cache of one sequence: a ring of reference-counted pages, taken from a pool as it grows.
#
# A page holds PAGE positions of one layer: keys, transposed so that a kernel scores LANES positions
# with one vector, then values, in int8 also a float32 scale of each position's key and value;
# kernels/kv_page.h has what lies where. Page number p of a layer (positions from p * PAGE) lies in
# kv_slot_of(p) of its n_pages slots.
#
#   0 .. sinks ......... start ................ length ............ writable
#     kept     dropped         held, readable          reserved          (== length until reserve)
#
# start is a multiple of PAGE, 0 unless there are sinks: then, beyond the capacity, page 0 stays
# for its first positions, the sinks, and the other slots are a ring. Held are the pages that cover
# start .. writable - 1 and page 0; forks may share those of positions below length, the others
# belong to this cache alone.
from .pool cimport Pool

cdef extern from "kv_page.h":
    cpdef enum:                     # cpdef: Python imports them from this module
        PAGE
        LANES

cdef class PageSet:                 # the pages of all layers for the same PAGE positions
    cdef list pages                 # n_layers Allocations
    cdef int n_holders              # caches that hold it; atomic, as forks may be in other threads

cdef class KVCache:
    cdef char** pages               # [n_layers][n_pages], NULL where none is held; NULL when closed
    cdef readonly Py_ssize_t n_layers
    cdef readonly Py_ssize_t n_kv_heads
    cdef readonly Py_ssize_t head_dim
    cdef readonly Py_ssize_t n_pages        # slots of each layer
    cdef readonly Py_ssize_t length         # positions written so far, dropped ones included
    cdef readonly Py_ssize_t start          # first position held, the sinks apart
    cdef readonly Py_ssize_t capacity       # positions that are held at once
    cdef readonly str dtype
    cdef readonly int type                  # the dtype's number in kernels/kv_page.h
    cdef readonly Pool pool
    cdef Py_ssize_t n_sinks                 # 0: no window, ContextFull at the capacity
    cdef Py_ssize_t writable                # end of the reserved positions
    cdef size_t page_bytes
    cdef list slots                         # n_pages of PageSet or None

    cpdef Py_ssize_t reservable(self, Py_ssize_t n) except -1
    cdef int check(self) except -1
    cdef int check_sinks(self, Py_ssize_t n) except -1
    cdef PageSet new_page_set(self, PageSet source)
    cdef void hold(self, Py_ssize_t slot, PageSet page_set)
    cdef void drop_from(self, Py_ssize_t position)
    cdef void release(self)
    cdef page_data(self, Py_ssize_t layer, Py_ssize_t page)
    cdef arrays(self, data)
    cdef vectors(self, Py_ssize_t layer, Py_ssize_t position)
