"""The memory pool: a general allocator with a hard limit that knows what every byte is for."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.number cimport PyNumber_Index
from libc.stdlib cimport realloc
from libc.string cimport memcpy

import math
import os
from dataclasses import dataclass

import numpy as np

from ..checks import format_bytes
from ..errors import PoolExhausted

include "heap.pxi"

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)

cdef extern from "<unistd.h>" nogil:
    enum: _SC_PAGESIZE
    long sysconf(int name)

cdef size_t MAX_POOL_BYTES = 1 << 48    # bytes that 48-bit addresses reach
cdef size_t NO_QUOTA = <size_t>-1
MAX_LIMIT = MAX_POOL_BYTES


@dataclass(frozen=True)
class PoolStats:
    """One moment of a pool; sizes in bytes, every allocation rounded up to a multiple of 64."""
    limit: int
    reserved: int                   # memory taken from the OS: in_use <= reserved <= limit
    in_use: int                     # sum of the live allocations
    peak: int                       # the most in_use has been
    n_allocations: int              # alive
    n_made: int                     # allocations ever made
    largest_free: int               # with limit - reserved: the largest allocation there can be
    by_purpose: dict                # {purpose: (in_use, peak, live allocations)}
    quotas: dict                    # {purpose: bytes}, of purposes that have one

    @property
    def utilisation(self):
        """in_use / reserved: the share of the memory taken from the OS that serves someone."""
        return self.in_use / self.reserved if self.reserved else 1.0

    @property
    def fragmentation(self):
        """The share of what is left of the limit that cannot be one allocation."""
        left = self.limit - self.in_use
        largest = self.largest_free + self.limit - self.reserved
        return max(0.0, 1 - largest / left) if left else 0.0


@cython.final
@cython.no_gc                       # refers to its pool alone, which does not refer back
cdef class Allocation:
    """Bytes of a pool, 64-byte aligned, contents undefined; freed with the last reference.

    Supports the buffer protocol (writable bytes, 1-D); cannot be freed while a view is alive.
    """

    def __init__(self):
        raise TypeError("an Allocation is made by Pool.allocate")

    def __dealloc__(self):
        if self.pool is not None:
            self.pool.dealloc(self)

    def __repr__(self):
        state = "freed" if self.data is NULL else f"at {<uintptr_t>self.data:#x}"
        return f"<Allocation of {self.size} bytes for {self.purpose!r}, {state}>"

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.pool is None or not self.pool.count_view(self, 1):
            raise ValueError(f"the allocation for {self.purpose!r} is freed")
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)

    def __releasebuffer__(self, Py_buffer* view):
        self.pool.count_view(self, -1)

    @property
    def address(self):
        """Address of the first byte; ValueError once freed."""
        if self.data is NULL:
            raise ValueError(f"the allocation for {self.purpose!r} is freed")
        return <uintptr_t>self.data

    @property
    def nbytes(self):
        """Bytes that were asked for."""
        return self.size

    def free(self):
        """Give the bytes back now: ValueError if they already are, BufferError with live views."""
        cdef Outcome outcome = ALREADY_FREED if self.pool is None else self.pool.dealloc(self)
        if outcome == ALREADY_FREED:
            raise ValueError(f"the allocation for {self.purpose!r} is freed already")
        if outcome == HAS_VIEWS:
            raise BufferError(f"views of the allocation for {self.purpose!r} are alive")


@cython.final
@cython.no_gc                       # refers to names and numbers
cdef class Pool:
    """Pool(limit, quotas={}): memory for many purposes, at most `limit` bytes taken from the OS.

    quotas: {purpose: bytes} that a purpose may have in use; the others share what the limit leaves.
    ValueError when limit is less than a page of the operating system, or a quota than 0. Safe to
    use from any thread. As a context manager it closes itself.
    """

    def __cinit__(self, limit, quotas=None):
        pthread_mutex_init(&self.mutex, NULL)
        self.heap.page = sysconf(_SC_PAGESIZE)
        self.indices = {}
        self.limit = limit
        for purpose, quota in (quotas or {}).items():
            self.set_quota(purpose, quota)

    def __dealloc__(self):
        clear(&self.heap)
        free(self.purposes)
        pthread_mutex_destroy(&self.mutex)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        return (f"<Pool: {format_bytes(self.in_use)} in use, {format_bytes(self.reserved)} "
                f"reserved, limit {format_bytes(self.limit)}>")

    cpdef Allocation allocate(self, n_bytes, str purpose, bint prefault=False):
        """n_bytes >= 1 of undefined contents for a purpose, or PoolExhausted.

        prefault: the OS provides the memory now, not as each page is first written.
        ValueError for less than one byte or when the pool is closed.
        """
        cdef Allocation allocation
        cdef Outcome outcome
        cdef int os_error = 0
        if purpose is None:
            raise TypeError("purpose must be a str, not None")
        n_bytes = PyNumber_Index(n_bytes)
        if n_bytes < 1:
            raise ValueError(f"n_bytes: {n_bytes} for {purpose!r} (at least 1)")
        if n_bytes > MAX_POOL_BYTES:
            raise self.exhausted(n_bytes, purpose, 0)
        allocation = Allocation.__new__(Allocation)
        allocation.size = n_bytes
        allocation.purpose = purpose
        allocation.purpose_index = -1
        allocation.pool = self
        outcome = self.alloc(allocation, &os_error)
        if outcome == NEW_PURPOSE:
            allocation.purpose_index = self.index_of(purpose)
            outcome = self.alloc(allocation, &os_error)
        if outcome == CLOSED:
            raise ValueError("the pool is closed")
        if outcome != DONE:
            raise self.exhausted(n_bytes, purpose, os_error, outcome == OVER_QUOTA)
        if prefault and self.count_view(allocation, 1):         # so that nobody unmaps it meanwhile
            with nogil:
                populate(allocation.data, allocation.size, self.heap.page)
            self.count_view(allocation, -1)
        return allocation

    def array(self, shape, dtype, str purpose not None):
        """C-contiguous array of undefined contents; it and its views keep the memory.

        PoolExhausted, and ValueError where it would have no bytes.
        """
        dtype = np.dtype(dtype)
        shape = tuple(shape) if np.iterable(shape) else (shape,)
        shape = tuple(PyNumber_Index(n) for n in shape)
        if min(shape, default=1) < 1:
            raise ValueError(f"shape: {shape} for {purpose!r} (at least 1 each)")
        n_bytes = math.prod(shape) * dtype.itemsize
        # frombuffer holds the view open for as long as the array lives; ndarray(buffer=) does not
        return np.frombuffer(self.allocate(n_bytes, purpose), dtype).reshape(shape)

    @property
    def limit(self):
        """Bytes that may be reserved; set it to change it: ValueError if more are in use."""
        return self.read(&self.heap.limit)

    @limit.setter
    def limit(self, limit):
        cdef bint is_set
        if not self.heap.page <= limit <= MAX_LIMIT:
            raise ValueError(f"limit: {limit} bytes ({self.heap.page} to {MAX_LIMIT})")
        cdef size_t n_bytes = PyNumber_Index(limit)
        pthread_mutex_lock(&self.mutex)
        is_set = set_limit(&self.heap, n_bytes)
        pthread_mutex_unlock(&self.mutex)
        if not is_set:
            raise ValueError(f"limit: {limit} bytes ({self.reserved} are in use)")

    def set_quota(self, str purpose not None, quota):
        """Let a purpose have at most `quota` bytes in use, None: what the limit allows.

        ValueError, and nothing changes, if more are in use.
        """
        cdef Py_ssize_t i = self.index_of(purpose)
        cdef size_t n_bytes, in_use
        if quota is not None and not 0 <= quota <= MAX_LIMIT:
            raise ValueError(f"quota: {quota} bytes for {purpose!r} (0 to {MAX_LIMIT})")
        n_bytes = NO_QUOTA if quota is None else PyNumber_Index(quota)
        pthread_mutex_lock(&self.mutex)
        in_use = self.purposes[i].in_use
        if in_use <= n_bytes:
            self.purposes[i].quota = n_bytes
        pthread_mutex_unlock(&self.mutex)
        if in_use > n_bytes:
            raise ValueError(f"quota: {quota} bytes for {purpose!r} ({in_use} are in use)")

    @property
    def reserved(self):
        """Bytes of memory taken from the operating system and not returned."""
        return self.read(&self.heap.reserved)

    @property
    def in_use(self):
        """Bytes of the live allocations, each rounded up to a multiple of 64."""
        return self.read(&self.heap.in_use)

    @property
    def peak(self):
        """The most bytes that have been in use."""
        return self.read(&self.heap.peak)

    def stats(self):
        """PoolStats of this moment; looks at every chunk of the pool."""
        cdef Heap now
        cdef Purpose* purposes
        cdef Py_ssize_t n_purposes
        cdef size_t largest
        pthread_mutex_lock(&self.mutex)
        now = self.heap
        largest = largest_possible(&self.heap)
        n_purposes = self.n_purposes
        purposes = <Purpose*>malloc((n_purposes + 1) * sizeof(Purpose))
        if purposes is not NULL and n_purposes > 0:
            memcpy(purposes, self.purposes, n_purposes * sizeof(Purpose))
        pthread_mutex_unlock(&self.mutex)
        if purposes is NULL:
            raise MemoryError("no memory for the statistics of the pool")
        try:
            names = [(name, i) for name, i in sorted(self.indices.copy().items()) if i < n_purposes]
            by_purpose = {name: (purposes[i].in_use, purposes[i].peak, purposes[i].count)
                          for name, i in names}
            quotas = {name: purposes[i].quota for name, i in names if purposes[i].quota != NO_QUOTA}
        finally:
            free(purposes)
        return PoolStats(now.limit, now.reserved, now.in_use, now.peak, now.n_in_use, now.n_made,
                         largest - (round_down(now.limit, now.page) - now.reserved),
                         by_purpose, quotas)

    def trim(self):
        """Return all free memory to the operating system; the number of bytes that were returned.

        Huge pages of which a part is free become small ones.
        """
        cdef size_t n_bytes
        pthread_mutex_lock(&self.mutex)
        n_bytes = trim(&self.heap)
        pthread_mutex_unlock(&self.mutex)
        return n_bytes

    def arenas(self):
        """[(address, nbytes)] of the addresses that the pool has mapped, in order.

        What is not reserved of them has no memory behind it.
        """
        cdef Arena* arena
        cdef size_t* pairs
        cdef Py_ssize_t i, n_arenas = 0
        pthread_mutex_lock(&self.mutex)
        arena = self.heap.arenas
        while arena is not NULL:
            n_arenas += 1
            arena = arena.next
        pairs = <size_t*>malloc((2 * n_arenas + 1) * sizeof(size_t))
        if pairs is not NULL:
            arena = self.heap.arenas
            for i in range(n_arenas):
                pairs[2 * i] = <uintptr_t>arena.first.data
                pairs[2 * i + 1] = arena.size
                arena = arena.next
        pthread_mutex_unlock(&self.mutex)
        if pairs is NULL:
            raise MemoryError("no memory for the list of the pool's arenas")
        try:
            return sorted((pairs[2 * i], pairs[2 * i + 1]) for i in range(n_arenas))
        finally:
            free(pairs)

    def allocations(self):
        """[(address, nbytes, purpose)] of all that arenas() has, purpose None where it is free."""
        cdef size_t n, i
        pthread_mutex_lock(&self.mutex)
        n = list_chunks(&self.heap, NULL)
        cdef Chunk* chunks = <Chunk*>malloc((n + 1) * sizeof(Chunk))
        if chunks is not NULL:
            list_chunks(&self.heap, chunks)
        pthread_mutex_unlock(&self.mutex)
        if chunks is NULL:
            raise MemoryError("no memory for the list of the pool's allocations")
        names = {index: name for name, index in self.indices.copy().items()}
        try:
            return sorted([(<uintptr_t>chunks[i].data, chunks[i].size,
                            None if chunks[i].owner is NULL else names[chunks[i].purpose])
                           for i in range(n)], key=lambda chunk: chunk[0])
        finally:
            free(chunks)

    def close(self):
        """Return everything to the operating system; every Allocation is freed. May be repeated.

        BufferError, and nothing happens, while views of any are alive.
        """
        cdef Py_ssize_t i, viewed = -1
        pthread_mutex_lock(&self.mutex)
        for i in range(self.n_purposes):
            if self.purposes[i].n_views > 0:
                viewed = i
        if viewed < 0:
            self.is_closed = True
            clear(&self.heap)
            for i in range(self.n_purposes):
                self.purposes[i].in_use = self.purposes[i].count = 0
        pthread_mutex_unlock(&self.mutex)
        if viewed >= 0:
            names = [name for name, i in self.indices.copy().items() if i == viewed]
            raise BufferError(f"views of the pool's memory for {names[0]!r} are alive")

    cdef Outcome alloc(self, Allocation allocation, int* os_error) noexcept:
        """Fill in a new Allocation, or say why not."""
        cdef Outcome outcome = CLOSED
        cdef Py_ssize_t i = allocation.purpose_index
        cdef Purpose* purpose
        pthread_mutex_lock(&self.mutex)
        if i < 0:                           # the same str as before, which is nearly always so?
            i = 0
            while i < self.n_purposes and self.purposes[i].name != <void*>allocation.purpose:
                i += 1
            allocation.purpose_index = i
        if i == self.n_purposes:
            outcome = NEW_PURPOSE
        elif not self.is_closed:
            purpose = &self.purposes[i]
            outcome = OVER_QUOTA
            if round_up(allocation.size, ALIGN) <= purpose.quota - purpose.in_use:
                outcome = NO_MEMORY
                allocation.chunk = heap_alloc(&self.heap, allocation.size, &allocation.data)
                os_error[0] = self.heap.os_error
            if allocation.data is not NULL:
                outcome = DONE
                allocation.chunk.purpose = i
                purpose.count += 1
                purpose.in_use += allocation.chunk.size
                purpose.peak = max(purpose.peak, purpose.in_use)
        pthread_mutex_unlock(&self.mutex)
        return outcome

    cdef Outcome dealloc(self, Allocation allocation) noexcept:
        """Free an Allocation, or say why not."""
        cdef Outcome outcome = ALREADY_FREED
        cdef Purpose* purpose
        pthread_mutex_lock(&self.mutex)
        if allocation.n_views > 0:
            outcome = HAS_VIEWS
        elif allocation.data is not NULL:
            outcome = DONE
            purpose = &self.purposes[allocation.purpose_index]
            purpose.count -= 1
            purpose.in_use -= allocation.chunk.size
            heap_dealloc(&self.heap, allocation.chunk)
        pthread_mutex_unlock(&self.mutex)
        return outcome

    cdef bint count_view(self, Allocation allocation, int change) noexcept:
        """Note that a view begins (1) or ends (-1); false when the allocation is freed."""
        cdef bint is_alive
        pthread_mutex_lock(&self.mutex)
        is_alive = allocation.data is not NULL
        if is_alive:
            allocation.n_views += change
            self.purposes[allocation.purpose_index].n_views += change
        pthread_mutex_unlock(&self.mutex)
        return is_alive

    cdef size_t read(self, size_t* figure) noexcept:
        cdef size_t value
        pthread_mutex_lock(&self.mutex)
        value = figure[0]
        pthread_mutex_unlock(&self.mutex)
        return value

    cdef Py_ssize_t index_of(self, str purpose) except -1:
        """Index into purposes, a new one for a name not seen before."""
        cdef Purpose* purposes
        cdef Py_ssize_t i
        index = self.indices.get(purpose)
        if index is not None:
            return index
        pthread_mutex_lock(&self.mutex)
        i = self.n_purposes
        purposes = <Purpose*>realloc(self.purposes, (i + 1) * sizeof(Purpose))
        if purposes is not NULL:
            memset(&purposes[i], 0, sizeof(Purpose))
            purposes[i].quota = NO_QUOTA
            self.purposes = purposes
            self.n_purposes = i + 1
        pthread_mutex_unlock(&self.mutex)
        if purposes is NULL:
            raise MemoryError(f"no memory to count what is for {purpose!r}")
        index = self.indices.setdefault(purpose, i)     # another thread may have been first
        if index == i:
            pthread_mutex_lock(&self.mutex)
            self.purposes[i].name = <void*>purpose
            pthread_mutex_unlock(&self.mutex)
        return index

    cdef exhausted(self, n_bytes, str purpose, int os_error, bint is_over_quota=False):
        """The exception that says why n_bytes cannot be had."""
        cdef size_t largest
        stats = self.stats()
        pthread_mutex_lock(&self.mutex)
        largest = largest_possible(&self.heap)
        pthread_mutex_unlock(&self.mutex)
        in_use = {name: counts[0] for name, counts in stats.by_purpose.items()}
        return PoolExhausted(n_bytes, purpose, stats.limit - stats.in_use, largest, stats.limit,
                             in_use, os.strerror(os_error) if os_error else None,
                             stats.quotas.get(purpose) if is_over_quota else None)
