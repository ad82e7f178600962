"""The KV cache: a ring of reference-counted pages that forks share until they write."""
cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy as np

from ..kernels.kv_page cimport (
    KV_F16, KV_F32, KV_INT8, kv_key_width, kv_page_bytes, kv_scale_offset, kv_slot_of,
)
from .pool cimport Allocation, Pool

from ..errors import ContextFull

cdef extern from *:
    int add_and_fetch "__atomic_add_fetch"(int* counter, int n, int order) noexcept nogil
    int load "__atomic_load_n"(int* counter, int order) noexcept nogil
    enum: __ATOMIC_ACQ_REL
    enum: __ATOMIC_ACQUIRE

DTYPES = {                              # name: (number in kernels/kv_page.h, NumPy's type)
    "f16": (KV_F16, np.float16), "f32": (KV_F32, np.float32), "int8": (KV_INT8, np.int8),
}
DEFAULT_KV_DTYPE = "f16"
MAX_POSITIONS = 1 << 30                 # positions of a sequence; int32 and cos_sin reach as far


cdef inline Py_ssize_t pages_of(Py_ssize_t n_positions) noexcept nogil:
    """Pages that cover positions 0 .. n_positions - 1."""
    return (n_positions + PAGE - 1) // PAGE


def check_window(Py_ssize_t capacity):
    """ValueError for a capacity too small for a moving window, which takes three pages: page 0, a
    full one and the latest."""
    if pages_of(capacity) < 3:
        raise ValueError(f"capacity: {capacity} (at least {2 * PAGE + 1} for a window)")


def codes_and_scales(x):
    """float32 (n, head_dim) as the kernels round it: int8 codes of the same shape, scales (n,)."""
    biggest = np.maximum(np.abs(x).max(1), np.float32(1e-30))
    return np.rint(x * (np.float32(127) / biggest)[:, None]), biggest / np.float32(127)


@cython.final
@cython.no_gc                       # refers to Allocations, which do not refer back
cdef class PageSet:
    pass


@cython.final
@cython.no_gc                       # refers to its pool and pages, which do not refer back
cdef class KVCache:
    """Keys and values of one sequence; not for two threads at once, though its forks may be.

    n_layers, n_kv_heads, head_dim: of the model. capacity: positions that are held at once.
    dtype: "f16", "f32" or "int8" (with a scale for each head and position), rounded to as they are
    written. sinks: what happens at the capacity. 0: ContextFull. More, up to 128: a window moves
    over the sequence, a page at a time, and this many positions are kept from its beginning (Xiao
    et al. 2023). Seen are then the sinks and the positions from start on: at least capacity - 255
    of them, at most capacity - 1. ValueError for what makes no sense, and where sinks are to be
    kept for a capacity below 257.
    """

    def __cinit__(self, Pool pool not None, *, n_layers, n_kv_heads, head_dim, capacity,
                  dtype=DEFAULT_KV_DTYPE, Py_ssize_t sinks=0):
        sizes = {"n_layers": n_layers, "n_kv_heads": n_kv_heads, "head_dim": head_dim,
                 "capacity": capacity}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: {size} (at least 1)")
        if dtype not in DTYPES:
            raise ValueError(f"dtype: {dtype!r} ({' or '.join(DTYPES)})")
        self.pool = pool
        self.n_layers, self.n_kv_heads, self.head_dim = n_layers, n_kv_heads, head_dim
        self.capacity, self.dtype = capacity, dtype
        self.type = DTYPES[dtype][0]
        self.page_bytes = kv_page_bytes(self.type, n_kv_heads, head_dim)
        self.n_pages = pages_of(capacity)
        self.slots = [None] * self.n_pages
        self.pages = <char**>calloc(self.n_layers * self.n_pages, sizeof(char*))
        if self.pages is NULL:
            raise MemoryError(f"no memory for a table of {n_layers} x {self.n_pages} pages")
        if sinks:
            self.check_sinks(sinks)
        self.n_sinks = sinks

    def __dealloc__(self):
        self.release()

    def __repr__(self):
        state = "closed" if self.pages is NULL else f"positions {self.start} to {self.length}"
        return f"<KVCache {self.dtype}, {state}, capacity {self.capacity}, {self.nbytes} bytes>"

    @property
    def sinks(self):
        """Positions kept from the beginning as a window moves, 0: none moves."""
        return self.n_sinks

    @property
    def nbytes(self):
        """Bytes of the pages held, reserved ones included; shared ones count in each holder."""
        if self.pages is NULL:
            return 0
        n_held = pages_of(self.writable) - self.start // PAGE + (self.start > 0)
        return n_held * self.n_layers * self.page_bytes

    @property
    def full_nbytes(self):
        """Bytes of all the pages the ring may hold."""
        return self.n_pages * self.n_layers * self.page_bytes

    cpdef Py_ssize_t reservable(self, Py_ssize_t n) except -1:
        """How many of the next n positions may be reserved at once: n, but no more than see the
        same window, so that what a position sees does not depend on how a text is cut."""
        self.check()
        if not self.n_sinks:
            return n
        if self.length < self.capacity:
            return min(n, self.capacity - self.length)
        return min(n, PAGE - self.length % PAGE)

    def reserve(self, Py_ssize_t n):
        """Make positions length .. length + n - 1 writable.

        Allocates pages and copies a partly filled page that a fork shares; beyond the capacity the
        window moves as far as the last position needs.
        ContextFull (also beyond reservable(n)), PoolExhausted: the cache is as it was before.
        """
        cdef Py_ssize_t page, slot, end
        cdef PageSet old
        self.check()
        if n < 0:
            raise ValueError(f"n: {n} (at least 0)")
        if n > (self.reservable(n) if self.n_sinks else self.capacity - self.length):
            raise ContextFull(self.length, n, self.capacity)
        if n > MAX_POSITIONS - self.length:
            raise ContextFull(self.length, n, MAX_POSITIONS)
        if self.length + n <= self.writable:
            return
        end = pages_of(self.length + n)
        new = []
        for page in range(self.length // PAGE, end):
            slot = kv_slot_of(page, self.n_pages)
            old = self.slots[slot]
            if old is None or load(&old.n_holders, __ATOMIC_ACQUIRE) > 1:
                new.append((slot, self.new_page_set(old if page * PAGE < self.length else None)))
        for slot, page_set in new:                      # from here on nothing can fail
            self.hold(slot, page_set)
        self.writable = self.length + n
        if self.writable > self.capacity:
            self.start = max(self.start, (end - self.n_pages + 1) * PAGE)

    def advance(self, Py_ssize_t n):
        """Count n reserved positions as written; ValueError when they are not reserved."""
        self.check()
        if not 0 <= n <= self.writable - self.length:
            raise ValueError(f"n: {n} (0 to {self.writable - self.length}, what is reserved)")
        self.length += n

    def trim(self, Py_ssize_t length):
        """Forget the positions from `length` on, and what is reserved; whole pages are freed.

        ValueError when there are fewer, or when positions would be needed that are dropped.
        """
        self.check()
        if not self.start <= length <= self.length:
            raise ValueError(f"length: {length} ({self.start} to {self.length}, what is held)")
        self.drop_from(length)
        self.length = length

    def reset(self):
        """Forget everything and free all pages."""
        self.check()
        self.drop_from(self.start)
        self.hold(0, None)
        self.length = self.start = self.writable = 0

    def fork(self, sinks=None):
        """A second cache with the same contents; it shares all pages until either one writes.

        sinks: of the second one, None for as many as here. What is reserved here and not yet
        written is freed first. ValueError, and nothing happens, where the constructor raises it,
        and for any number where the window has moved.
        """
        cdef Py_ssize_t page
        cdef KVCache other
        self.check()
        other = KVCache(self.pool, n_layers=self.n_layers, n_kv_heads=self.n_kv_heads,
                        head_dim=self.head_dim, capacity=self.capacity, dtype=self.dtype,
                        sinks=self.n_sinks if sinks is None else sinks)
        if sinks is not None:
            self.check_sinks(sinks)
        self.drop_from(self.length)
        other.hold(0, self.slots[0])
        for page in range(max(self.start // PAGE, <Py_ssize_t>1), pages_of(self.length)):
            other.hold(kv_slot_of(page, self.n_pages), self.slots[kv_slot_of(page, self.n_pages)])
        other.start, other.length, other.writable = self.start, self.length, self.writable
        return other

    def close(self):
        """Free all pages; any later use raises ValueError. May be repeated."""
        self.release()

    def read(self, Py_ssize_t layer, Py_ssize_t position):
        """(keys, values) of a held or reserved position: float32 copies (n_kv_heads, head_dim)."""
        return tuple(
            numbers.reshape(self.n_kv_heads, -1)[:, :self.head_dim].astype(np.float32)
            * (1 if scales is None else scales[:, None])
            for numbers, scales in self.vectors(layer, position))

    def write(self, Py_ssize_t layer, Py_ssize_t position, keys, values):
        """Round (n_kv_heads, head_dim) keys and values into a reserved position."""
        if position < self.length:
            raise ValueError(f"position: {position} (reserved ones begin at {self.length})")
        if np.shape(keys) != (self.n_kv_heads, self.head_dim) or np.shape(values) != np.shape(keys):
            raise ValueError(f"keys {np.shape(keys)}, values {np.shape(values)} "
                             f"(both {(self.n_kv_heads, self.head_dim)})")
        for (numbers, scales), x in zip(self.vectors(layer, position), (keys, values)):
            if scales is not None:
                x, scales[...] = codes_and_scales(np.asarray(x, np.float32))
            n_padding = numbers[0].size - self.head_dim
            numbers[...] = np.pad(x, ((0, 0), (0, n_padding))).reshape(numbers.shape)

    def export_page(self, Py_ssize_t layer, Py_ssize_t page):
        """Positions from page * PAGE of a layer, as they lie: a uint8 view, or a copy of the last.

        What lies behind the last position was another sequence's: it is 0 in the copy.
        """
        cdef Py_ssize_t n_filled = self.length - page * PAGE
        data = self.page_data(layer, page)
        if n_filled >= PAGE:
            data.flags.writeable = False
            return data
        data = data.copy()
        keys, values, scales = self.arrays(data)
        for numbers in keys, values:
            n_side = numbers.shape[2]
            numbers[:, n_filled // n_side, n_filled % n_side:] = 0
            numbers[:, n_filled // n_side + 1:] = 0
        if scales is not None:
            scales[..., n_filled:] = 0
        return data

    def import_page(self, Py_ssize_t layer, Py_ssize_t page, data):
        """Write what export_page gave into reserved positions; ValueError for another size."""
        if page * PAGE < self.length:
            raise ValueError(f"page: {page} (reserved positions begin at {self.length})")
        self.page_data(layer, page)[...] = data

    cdef page_data(self, Py_ssize_t layer, Py_ssize_t page):
        """The bytes of a page that is held, a uint8 view."""
        cdef PageSet page_set = None
        self.check()
        if 0 <= layer < self.n_layers and (
                self.start <= page * PAGE < self.writable or page == 0 < self.start):
            page_set = self.slots[kv_slot_of(page, self.n_pages)]
        if page_set is None:
            raise IndexError(f"layer {layer}, page {page} ({self.n_layers} layers, positions "
                             f"{self.start} to {self.writable - 1})")
        return np.frombuffer(page_set.pages[layer], np.uint8)

    cdef arrays(self, data):
        """Of a page's bytes: keys (n_kv_heads, PAGE / LANES, LANES, head_dim), values (n_kv_heads,
        PAGE / 4, 4, head_dim), views in the dtype; their scales (2, n_kv_heads, PAGE), or None.

        In int8 a key's numbers are in fours, and there may be some more: (head_dim / 4 up, 4).
        """
        cdef Py_ssize_t width = kv_key_width(self.type, self.head_dim)
        cdef Py_ssize_t n_heads = self.n_kv_heads
        scales, item = None, DTYPES[self.dtype][1]
        if self.type == KV_INT8:
            begin = kv_scale_offset(0, 0, n_heads, self.head_dim)
            scales = data[begin:].view(np.float32).reshape(2, n_heads, PAGE)
            data = data[:begin]
        data = data.view(item)
        keys, values = data[:n_heads * PAGE * width], data[n_heads * PAGE * width:]
        if self.type == KV_INT8:
            keys = keys.reshape(n_heads, PAGE // LANES, width // 4, LANES, 4)
            values = values.reshape(n_heads, PAGE // 4, self.head_dim, 4)
            return keys.swapaxes(2, 3), values.swapaxes(2, 3), scales
        keys = keys.reshape(n_heads, PAGE // LANES, width, LANES)
        return keys.swapaxes(2, 3), values.reshape(n_heads, PAGE // 4, 4, self.head_dim), scales

    cdef vectors(self, Py_ssize_t layer, Py_ssize_t position):
        """(keys, scales), (values, scales) of a position: views, as of arrays in the dtype, and
        (n_kv_heads,) or None."""
        cdef Py_ssize_t i = position % PAGE
        self.check()
        is_sink = 0 <= position < self.n_sinks and self.start > 0
        if not (is_sink or self.start <= position < self.writable):
            raise IndexError(f"position: {position} ({self.start} to {self.writable - 1})")
        keys, values, scales = self.arrays(self.page_data(layer, position // PAGE))
        of_keys, of_values = (None, None) if scales is None else scales[..., i]
        return (keys[:, i // LANES, i % LANES], of_keys), (values[:, i // 4, i % 4], of_values)

    cdef int check(self) except -1:
        if self.pages is NULL:
            raise ValueError("the KV cache is closed")
        if self.pool.is_closed:
            raise ValueError("the pool of the KV cache is closed")
        return 0

    cdef int check_sinks(self, Py_ssize_t n) except -1:
        self.check()
        if self.start:
            raise ValueError(f"sinks: {n} (the first {self.start} positions are not held any more)")
        if not 0 <= n <= PAGE:
            raise ValueError(f"sinks: {n} (0 to {PAGE})")
        if n:
            check_window(self.capacity)
        return 0

    cdef PageSet new_page_set(self, PageSet source):
        """New pages for all layers, copies of those of `source` where it is not None."""
        cdef PageSet new = PageSet.__new__(PageSet)
        cdef Py_ssize_t layer
        new.pages = [self.pool.allocate(self.page_bytes, "kv") for _ in range(self.n_layers)]
        if source is not None:
            for layer in range(self.n_layers):
                memcpy((<Allocation>new.pages[layer]).data,
                       (<Allocation>source.pages[layer]).data, self.page_bytes)
        return new

    cdef void hold(self, Py_ssize_t slot, PageSet page_set):
        """Hold page_set, or nothing, in a slot of the ring instead of what it holds."""
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

    cdef void drop_from(self, Py_ssize_t position):
        """Drop the pages that begin at or after a position."""
        cdef Py_ssize_t page
        for page in range(pages_of(position), pages_of(self.writable)):
            self.hold(kv_slot_of(page, self.n_pages), None)
        self.writable = position

    cdef void release(self):
        if self.pages is not NULL:
            self.drop_from(self.start)
            self.hold(0, None)
            free(self.pages)
            self.pages = NULL
