# The memory pool: everything writable that the engine owns is allocated in a few large arenas of
# addresses, and every byte of it has a named purpose.
#
#   Pool -- Heap -- Arena -- Chunk, Chunk, ... (in address order, free or in use)
#                     |        |
#                     |      Allocation (Python object), freed with its last reference
#                     |
#                   committed or not: a bit for each page of the operating system
#
# Addresses cost nothing, so what is counted and held under the limit (`reserved`) is the memory
# behind them. It is taken and returned by granules: huge pages of 2 MiB, or the OS's pages where a
# huge page is broken. A granule is committed when a part of it is allocated. Free ones stay so,
# to be used again, up to a 16th of what is in use; beyond that the largest free chunks go back to
# the OS, and where that is not enough, huge pages are broken to return the free pages in them. So
# holes cost addresses and hardly any memory, and the pool is exhausted when the limit is.
#
# Chunks are described outside the arenas (malloc): free memory is never touched, and an overrun
# cannot damage the allocator.

from libc.stdint cimport uint32_t, uint64_t

from .mmap cimport HUGE_PAGE

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cpdef enum:
    ALIGN = 64                      # bytes; every address and size is a multiple: a cache line

cdef enum:
    ARENA_BYTES = 16 << 20          # bytes of addresses, unless an arena is one large chunk
    N_HUGE = 8                      # huge pages of an arena: ARENA_BYTES / HUGE_PAGE
    N_WORDS = 8                     # bit masks of 64 free lists: enough for classes up to an arena

cdef struct Arena

cdef struct Chunk:
    char* data
    size_t size                     # bytes, a multiple of ALIGN
    char** owner                    # the Allocation's data field; NULL while the chunk is free
    Chunk* before                   # neighbours in address order, NULL at the ends of the arena
    Chunk* after
    Chunk* previous                 # neighbours in the free list of its class, while free
    Chunk* next
    Arena* arena
    bint is_dirty                   # while free: may hold committed granules
    Py_ssize_t purpose              # while in use: index into the pool's purposes

cdef struct Arena:
    Chunk first                     # at the lowest address; lives as long as the arena
    size_t size                     # bytes of addresses
    size_t committed                # bytes of memory
    uint64_t* pages                 # a bit for each OS page: committed; NULL if one large chunk
    uint64_t broken                 # a bit for each huge page: it is committed by OS pages
    uint32_t in_use[N_HUGE]         # bytes of each huge page that are allocated
    Arena* previous
    Arena* next

cdef struct FreeLists:
    uint64_t words                  # bit w: lists[w] has a bit set
    uint64_t lists[N_WORDS]         # bit b of word w: first[64 * w + b] is not empty
    Chunk* first[64 * N_WORDS]

cdef struct Heap:
    size_t limit                    # bytes that `reserved` may be
    size_t reserved                 # bytes committed in all arenas
    size_t in_use                   # bytes of all allocated chunks
    size_t peak                     # the most `in_use` has been
    size_t n_in_use                 # allocated chunks
    size_t n_made                   # chunks ever allocated
    size_t page                     # bytes of an OS page
    int os_error                    # errno of what failed, 0 when the limit was the reason
    Arena* arenas
    Arena* spare                    # the one wholly free arena that is kept, or NULL
    FreeLists free[2]               # [is_dirty]

cdef struct Purpose:
    size_t in_use                   # bytes
    size_t peak                     # bytes, the most in_use has been
    size_t count                    # allocations alive
    size_t n_views                  # live exports of the buffer protocol of all of them
    size_t quota                    # bytes that in_use may be
    void* name                      # the str, which `indices` keeps alive

cdef enum Outcome:                  # what came of allocating or freeing an Allocation
    DONE
    NO_MEMORY
    OVER_QUOTA
    NEW_PURPOSE
    CLOSED
    ALREADY_FREED
    HAS_VIEWS

cdef class Allocation:
    cdef char* data                 # ALIGN-aligned; NULL once freed or when the pool was closed
    cdef size_t size                # bytes asked for; its chunk is the next multiple of ALIGN
    cdef Chunk* chunk               # valid while data is not NULL
    cdef size_t n_views             # live exports of the buffer protocol
    cdef Py_ssize_t purpose_index   # -1 while it is not known
    cdef readonly str purpose
    cdef Pool pool                  # kept alive; the pool does not refer back

cdef class Pool:
    # The mutex guards all below. Only C runs while it is held: Python code could collect garbage,
    # and that frees Allocations.
    cdef pthread_mutex_t mutex
    cdef Heap heap
    cdef Purpose* purposes
    cdef Py_ssize_t n_purposes
    cdef bint is_closed
    cdef dict indices               # {purpose: index into purposes}

    cpdef Allocation allocate(self, n_bytes, str purpose, bint prefault=*)
    cdef Outcome alloc(self, Allocation allocation, int* os_error) noexcept
    cdef Outcome dealloc(self, Allocation allocation) noexcept
    cdef bint count_view(self, Allocation allocation, int change) noexcept
    cdef size_t read(self, size_t* figure) noexcept
    cdef Py_ssize_t index_of(self, str purpose) except -1
    cdef exhausted(self, n_bytes, str purpose, int os_error, bint is_over_quota=*)
