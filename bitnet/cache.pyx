"""The KV cache: a ring of reference-counted pages that forks share until they write."""
cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from .memory cimport Allocation, Pool

cdef extern from *:
    int add_and_fetch "__atomic_add_fetch"(int* counter, int n, int order) noexcept nogil
    int load "__atomic_load_n"(int* counter, int order) noexcept nogil
    enum: __ATOMIC_ACQ_REL
    enum: __ATOMIC_ACQUIRE

ITEM_BYTES = {"f16": 2, "f32": 4}


class ContextFull(Exception):
    """A sequence of `length` positions has no room for `requested` more within `capacity`."""

    def __init__(self, length, requested, capacity):
        super().__init__(length, requested, capacity)
        self.length = length
        self.requested = requested
        self.capacity = capacity

    def __str__(self):
        return (f"no room for {self.requested} more positions after {self.length}: "
                f"the capacity is {self.capacity}")


cdef inline Py_ssize_t pages_of(Py_ssize_t n_positions) noexcept nogil:
    """Pages that cover positions 0 .. n_positions - 1."""
    return (n_positions + PAGE - 1) // PAGE


@cython.final
@cython.no_gc                       # refers to Allocations, which do not refer back
cdef class PageSet:
    pass


@cython.final
@cython.no_gc                       # refers to its pool and pages, which do not refer back
cdef class KVCache:
    """Keys and values of one sequence; not for two threads at once, though its forks may be.

    n_layers, n_kv_heads, head_dim: of the model. capacity: positions that are held at once.
    dtype: "f16" or "f32", rounded to as they are written. overwrite: when full, give up the oldest
    pages, a page at a time, instead of raising ContextFull. ValueError for what makes no sense.
    """

    def __cinit__(self, Pool pool not None, *, n_layers, n_kv_heads, head_dim, capacity,
                  dtype="f16", overwrite=False):
        sizes = {"n_layers": n_layers, "n_kv_heads": n_kv_heads, "head_dim": head_dim,
                 "capacity": capacity}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {size} (at least 1)")
        if dtype not in ITEM_BYTES:
            raise ValueError(f"dtype: {dtype!r} ({' or '.join(ITEM_BYTES)})")
        self.pool = pool
        self.n_layers, self.n_kv_heads, self.head_dim = n_layers, n_kv_heads, head_dim
        self.capacity, self.overwrite = capacity, overwrite
        self.is_f16 = dtype == "f16"
        self.page_bytes = 2 * n_kv_heads * PAGE * head_dim * ITEM_BYTES[dtype]
        # the page being overwritten holds too few positions, so one more is needed
        self.n_pages = (capacity + PAGE - 1) // PAGE + self.overwrite
        self.slots = [None] * self.n_pages
        self.pages = <char**>calloc(self.n_layers * self.n_pages, sizeof(char*))
        if self.pages is NULL:
            raise MemoryError(f"no memory for a table of {n_layers} x {self.n_pages} pages")

    def __dealloc__(self):
        self.release()

    def __repr__(self):
        state = "closed" if self.pages is NULL else f"positions {self.start} to {self.length}"
        return f"<KVCache {self.dtype}, {state}, capacity {self.capacity}, {self.nbytes} bytes>"

    @property
    def dtype(self):
        """"f16" or "f32"."""
        return "f16" if self.is_f16 else "f32"

    @property
    def nbytes(self):
        """Bytes of the pages held, reserved ones included; shared ones count in each holder."""
        if self.pages is NULL:
            return 0
        n_held = pages_of(self.writable) - self.start // PAGE
        return n_held * self.n_layers * self.page_bytes

    @property
    def full_nbytes(self):
        """Bytes of all the pages the ring may hold."""
        return self.n_pages * self.n_layers * self.page_bytes

    def reserve(self, Py_ssize_t n):
        """Make positions length .. length + n - 1 writable.

        Takes pages from the pool and copies a partly filled page that a fork shares. With overwrite
        the oldest pages are given up (at least capacity + 1 - n older positions stay).
        ContextFull, PoolExhausted: the cache is as it was before.
        """
        cdef Py_ssize_t page, slot, end
        cdef PageSet old
        self.check()
        if n < 0:
            raise ValueError(f"n: {n} (at least 0)")
        if n > self.capacity - (0 if self.overwrite else self.length):
            raise ContextFull(self.length, n, self.capacity)
        if self.length + n <= self.writable:
            return
        end = pages_of(self.length + n)
        taken = []
        for page in range(self.length // PAGE, end):
            slot = page % self.n_pages
            old = self.slots[slot]
            if old is None or load(&old.n_holders, __ATOMIC_ACQUIRE) > 1:
                taken.append((slot, self.take(old if page * PAGE < self.length else None)))
        for slot, page_set in taken:                    # from here on nothing can fail
            self.put(slot, page_set)
        self.writable = self.length + n
        if self.overwrite:
            self.start = max(self.start, (end - self.n_pages) * PAGE)

    def advance(self, Py_ssize_t n):
        """Count n reserved positions as written; ValueError when they are not reserved."""
        self.check()
        if not 0 <= n <= self.writable - self.length:
            raise ValueError(f"n: {n} (0 to {self.writable - self.length}, what is reserved)")
        self.length += n

    def trim(self, Py_ssize_t length):
        """Forget the positions from `length` on, and what is reserved; whole pages are given back.

        ValueError when there are fewer, or when positions would be needed that are given up.
        """
        self.check()
        if not self.start <= length <= self.length:
            raise ValueError(f"length: {length} ({self.start} to {self.length}, what is held)")
        self.give_up(length)
        self.length = length

    def reset(self):
        """Forget everything and give all pages back."""
        self.check()
        self.give_up(self.start)
        self.length = self.start = self.writable = 0

    def fork(self):
        """A second cache with the same contents; it shares all pages until either one writes.

        What is reserved here and not yet written is given back first.
        """
        cdef Py_ssize_t page
        cdef KVCache other
        self.check()
        other = KVCache(self.pool, n_layers=self.n_layers, n_kv_heads=self.n_kv_heads,
                        head_dim=self.head_dim, capacity=self.capacity, dtype=self.dtype,
                        overwrite=self.overwrite)
        self.give_up(self.length)
        for page in range(self.start // PAGE, pages_of(self.length)):
            other.put(page % self.n_pages, self.slots[page % self.n_pages])
        other.start, other.length, other.writable = self.start, self.length, self.writable
        return other

    def close(self):
        """Give all pages back; any later use raises ValueError. May be repeated."""
        self.release()

    def read(self, Py_ssize_t layer, Py_ssize_t position):
        """(keys, values) of a held or reserved position: float32 copies (n_kv_heads, head_dim)."""
        keys, values = self.views(layer, position)
        return keys.astype(np.float32), values.astype(np.float32)

    def write(self, Py_ssize_t layer, Py_ssize_t position, keys, values):
        """Round (n_kv_heads, head_dim) keys and values into a reserved position."""
        if position < self.length:
            raise ValueError(f"position: {position} (reserved ones begin at {self.length})")
        to_keys, to_values = self.views(layer, position)
        if np.shape(keys) != to_keys.shape or np.shape(values) != to_values.shape:
            raise ValueError(f"keys {np.shape(keys)}, values {np.shape(values)} "
                             f"(both {to_keys.shape})")
        to_keys[...] = keys
        to_values[...] = values

    def export_page(self, Py_ssize_t layer, Py_ssize_t page):
        """Positions from page * PAGE of a layer, as they lie: a uint8 view, or a copy of the last.

        What lies behind the last position was another sequence's: it is 0 in the copy.
        """
        data, n_filled = self.page_data(layer, page), self.length - page * PAGE
        if n_filled >= PAGE:
            data.flags.writeable = False
            return data.view(np.uint8)
        data = data.copy()
        keys, values = data.reshape(2, self.n_kv_heads, -1)
        keys = keys.reshape(self.n_kv_heads, PAGE // LANES, self.head_dim, LANES)
        keys[:, n_filled // LANES, :, n_filled % LANES:] = 0
        keys[:, n_filled // LANES + 1:] = 0
        values.reshape(self.n_kv_heads, PAGE, self.head_dim)[:, n_filled:] = 0
        return data.view(np.uint8)

    def import_page(self, Py_ssize_t layer, Py_ssize_t page, data):
        """Write what export_page gave into reserved positions; ValueError for another size."""
        if page * PAGE < self.length:
            raise ValueError(f"page: {page} (reserved positions begin at {self.length})")
        self.page_data(layer, page).view(np.uint8)[...] = data

    cdef page_data(self, Py_ssize_t layer, Py_ssize_t page):
        """A view of a held page, (n,) in its dtype."""
        cdef PageSet page_set
        self.check()
        if not 0 <= layer < self.n_layers or not self.start <= page * PAGE < self.writable:
            raise IndexError(f"layer {layer}, page {page} ({self.n_layers} layers, positions "
                             f"{self.start} to {self.writable - 1})")
        page_set = self.slots[page % self.n_pages]
        return np.frombuffer(page_set.pages[layer], np.float16 if self.is_f16 else np.float32)

    cdef int check(self) except -1:
        if self.pages is NULL:
            raise ValueError("the KV cache is closed")
        if self.pool.is_closed:
            raise ValueError("the pool of the KV cache is closed")
        return 0

    cdef PageSet take(self, PageSet source):
        """New pages for all layers, copies of those of `source` where it is not None."""
        cdef PageSet taken = PageSet.__new__(PageSet)
        cdef Py_ssize_t layer
        taken.pages = [self.pool.allocate(self.page_bytes, "kv") for _ in range(self.n_layers)]
        if source is not None:
            for layer in range(self.n_layers):
                memcpy((<Allocation>taken.pages[layer]).data,
                       (<Allocation>source.pages[layer]).data, self.page_bytes)
        return taken

    cdef void put(self, Py_ssize_t slot, PageSet page_set):
        """Let go of what a slot of the ring holds and hold page_set, or nothing, instead."""
        cdef PageSet old = self.slots[slot]
        cdef Py_ssize_t layer
        cdef char* page
        if page_set is not None:
            add_and_fetch(&page_set.n_holders, 1, __ATOMIC_ACQ_REL)
        if old is not None:
            add_and_fetch(&old.n_holders, -1, __ATOMIC_ACQ_REL)
        self.slots[slot] = page_set
        for layer in range(self.n_layers):
            page = NULL if page_set is None else (<Allocation>page_set.pages[layer]).data
            self.pages[layer * self.n_pages + slot] = page

    cdef void give_up(self, Py_ssize_t position):
        """Let go of the pages that begin at or after a position."""
        cdef Py_ssize_t page
        for page in range(pages_of(position), pages_of(self.writable)):
            self.put(page % self.n_pages, None)
        self.writable = position

    cdef void release(self):
        if self.pages is not NULL:
            self.give_up(self.start)
            free(self.pages)
            self.pages = NULL

    cdef views(self, Py_ssize_t layer, Py_ssize_t position):
        """Keys and values of a position: views (n_kv_heads, head_dim) in the page's dtype."""
        self.check()
        if not 0 <= layer < self.n_layers:
            raise IndexError(f"layer: {layer} (0 to {self.n_layers - 1})")
        if not self.start <= position < self.writable:
            raise IndexError(f"position: {position} ({self.start} to {self.writable - 1})")
        page = self.page_data(layer, position // PAGE)
        keys, values = page.reshape(2, self.n_kv_heads, -1)
        keys = keys.reshape(self.n_kv_heads, PAGE // LANES, self.head_dim, LANES)
        keys = keys[:, position % PAGE // LANES, :, position % LANES]
        values = values.reshape(self.n_kv_heads, PAGE, self.head_dim)[:, position % PAGE]
        return keys, values
