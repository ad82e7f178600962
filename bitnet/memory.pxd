# The memory pool: everything writable that the engine owns is a piece of a few large blocks from
# the operating system, and every byte of it has a named purpose.
#
#   Pool -- Heap -- Block (one mmap) -- Chunk, Chunk, ... (pieces in address order, free or in use)
#                                         |
#   Allocation (Python object) -----------+   freed with its last reference
#
# Chunks are described outside the blocks (malloc), so a block holds user bytes only: whole pages
# stay whole, free memory is never touched, and an overrun cannot damage the allocator.

from libc.stdint cimport uint64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum:
    ALIGN = 64                      # every address and size is a multiple: a cache line
    N_WORDS = 20                    # 64 free lists each: classes up to 2**50 bytes

cdef struct Block

cdef struct Chunk:
    char* data
    size_t size                     # bytes, a multiple of ALIGN
    char** owner                    # the Allocation's data field; NULL while the chunk is free
    Chunk* before                   # neighbours in address order, NULL at the ends of the block
    Chunk* after
    Chunk* previous                 # neighbours in the free list of its class, while free
    Chunk* next
    Block* block

cdef struct Block:
    Chunk first                     # at the lowest address; lives as long as the block
    size_t size                     # bytes obtained from the OS
    Block* previous
    Block* next

cdef struct Heap:
    size_t limit                    # of `reserved`
    size_t reserved                 # bytes of all blocks
    size_t in_use                   # bytes of all chunks handed out
    size_t peak                     # the most `in_use` has been
    size_t n_in_use                 # chunks handed out
    size_t page                     # bytes of an OS page
    Block* blocks
    Block* spare                    # the one wholly free block that is kept, or NULL
    int os_error                    # errno of the mmap that failed, 0 when the limit was the reason
    uint64_t words                  # bit w: lists[w] has a bit set
    uint64_t lists[N_WORDS]         # bit b of word w: free[64 * w + b] is not empty
    Chunk* free[64 * N_WORDS]

cdef struct Purpose:
    size_t in_use
    size_t peak
    size_t count                    # allocations alive
    size_t n_views                  # of them

cdef enum Outcome:                  # of giving an Allocation back
    GIVEN_BACK
    ALREADY_FREED
    HAS_VIEWS

cdef class Allocation:
    cdef char* data                 # ALIGN-aligned; NULL once freed or when the pool was closed
    cdef size_t size                # bytes asked for; its chunk is the next multiple of ALIGN
    cdef Chunk* chunk               # valid while data is not NULL
    cdef size_t n_views             # live exports of the buffer protocol
    cdef Py_ssize_t purpose_index
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

    cpdef Allocation allocate(self, n_bytes, str purpose)
    cdef bint hand_out(self, Allocation allocation, int* os_error) noexcept
    cdef Outcome give_back(self, Allocation allocation) noexcept
    cdef bint count_view(self, Allocation allocation, int change) noexcept
    cdef size_t read(self, size_t* figure) noexcept
    cdef Py_ssize_t index_of(self, str purpose) except -1
    cdef exhausted(self, n_bytes, str purpose, int os_error)
