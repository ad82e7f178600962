# The allocator under the pool: two-level segregated fit over blocks from mmap. C only: no Python,
# no lock. memory.pyx includes this file, and its Pool holds the mutex around every call.
#
# Free chunks lie in lists by size class: one class per ALIGN bytes up to 64 * ALIGN, then 32 an
# octave. Two levels of bit masks find the next class that has a chunk. Freeing joins neighbours.

from libc.errno cimport errno
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef extern from *:
    """
    #include <sys/mman.h>
    #ifndef MAP_ANONYMOUS
    #define MAP_ANONYMOUS MAP_ANON
    #endif
    static char *map_anonymous(size_t size) {
        void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return base == MAP_FAILED ? NULL : (char *)base;
    }
    static void advise_huge_pages(char *base, size_t size) {
    #ifdef MADV_HUGEPAGE
        madvise(base, size, MADV_HUGEPAGE);
    #else
        (void)base; (void)size;
    #endif
    }
    """
    char* map_anonymous(size_t size) nogil
    void advise_huge_pages(char* base, size_t size) nogil
    int munmap(void* base, size_t size) nogil
    int highest_zeros "__builtin_clzll"(uint64_t) nogil
    int lowest_zeros "__builtin_ctzll"(uint64_t) nogil

cdef enum:
    HUGE_PAGE = 2 << 20             # blocks of at least this are aligned to it and advised
    MIN_BLOCK = 2 << 20             # blocks aim at an eighth of what is reserved, between these
    MAX_BLOCK = 64 << 20
    SCAN = 16                       # chunks of the request's own class that are looked at first


cdef inline size_t round_up(size_t n, size_t unit) noexcept nogil:
    """n rounded up to a multiple of unit, a power of two."""
    return (n + unit - 1) & ~(unit - 1)


cdef inline int class_of(size_t size) noexcept nogil:
    cdef uint64_t units = size // ALIGN
    cdef int shift = 0
    if units >= 64:
        shift = 58 - highest_zeros(units)           # leaves units >> shift in 32 .. 63
    return 32 * shift + <int>(units >> shift)


cdef void link(Heap* heap, Chunk* chunk) noexcept nogil:
    """Put a chunk at the head of the free list of its class."""
    cdef int c = class_of(chunk.size)
    chunk.owner = NULL
    chunk.previous = NULL
    chunk.next = heap.free[c]
    if chunk.next is not NULL:
        chunk.next.previous = chunk
    heap.free[c] = chunk
    heap.lists[c >> 6] |= <uint64_t>1 << (c & 63)
    heap.words |= <uint64_t>1 << (c >> 6)


cdef void unlink(Heap* heap, Chunk* chunk) noexcept nogil:
    cdef int c = class_of(chunk.size)
    if chunk.next is not NULL:
        chunk.next.previous = chunk.previous
    if chunk.previous is not NULL:
        chunk.previous.next = chunk.next
        return
    heap.free[c] = chunk.next
    if chunk.next is NULL:
        heap.lists[c >> 6] &= ~(<uint64_t>1 << (c & 63))
        if heap.lists[c >> 6] == 0:
            heap.words &= ~(<uint64_t>1 << (c >> 6))


cdef Chunk* smallest_fit(Chunk* chunk, size_t size, size_t n_chunks) noexcept nogil:
    """The smallest of the first n_chunks of a list that holds `size` bytes, or NULL."""
    cdef Chunk* best = NULL
    while chunk is not NULL and n_chunks > 0:
        if chunk.size == size:
            return chunk
        if chunk.size > size and (best is NULL or chunk.size < best.size):
            best = chunk
        chunk = chunk.next
        n_chunks -= 1
    return best


cdef Chunk* find(Heap* heap, size_t size) noexcept nogil:
    """A free chunk of at least `size` bytes, or NULL when there is none."""
    cdef int c = class_of(size)
    cdef int word
    cdef uint64_t bits
    cdef Chunk* chunk = smallest_fit(heap.free[c], size, SCAN)      # a KV page finds a KV page
    if chunk is not NULL:
        return chunk
    word = (c + 1) >> 6                                             # any of a larger class will do
    bits = heap.lists[word] & (~<uint64_t>0 << ((c + 1) & 63))
    if bits == 0:
        bits = heap.words & (~<uint64_t>0 << (word + 1))
        if bits == 0:
            return smallest_fit(heap.free[c], size, <size_t>-1)     # before more is reserved
        word = lowest_zeros(bits)
        bits = heap.lists[word]
    return heap.free[64 * word + lowest_zeros(bits)]


cdef char* map_block(size_t size, size_t page) noexcept nogil:
    """`size` bytes of zeros from the OS; large ones aligned to huge pages. NULL on failure."""
    cdef char* raw
    cdef char* base
    cdef size_t slack = HUGE_PAGE - page
    if size < HUGE_PAGE:
        return map_anonymous(size)
    raw = map_anonymous(size + slack)
    if raw is NULL:
        return NULL
    base = <char*>round_up(<uintptr_t>raw, HUGE_PAGE)
    if base > raw:
        munmap(raw, base - raw)
    if base < raw + slack:
        munmap(base + size, raw + slack - base)
    advise_huge_pages(base, size)
    return base


cdef void release(Heap* heap, Block* block) noexcept nogil:
    """Return a wholly free block to the OS."""
    if munmap(block.first.data, block.size) != 0:       # too many maps to split one: keep it, free
        return
    unlink(heap, &block.first)
    if heap.spare is block:
        heap.spare = NULL
    if block.next is not NULL:
        block.next.previous = block.previous
    if block.previous is not NULL:
        block.previous.next = block.next
    else:
        heap.blocks = block.next
    heap.reserved -= block.size
    free(block)


cdef Block* grow(Heap* heap, size_t size) noexcept nogil:
    """A new free block that holds `size` bytes; NULL at the limit or when the OS refuses."""
    cdef size_t needed = round_up(size, heap.page)
    cdef size_t aim = min(max(heap.reserved // 8, <size_t>MIN_BLOCK), <size_t>MAX_BLOCK)
    cdef size_t n_bytes = round_up(size * ((aim + size - 1) // size), heap.page)  # no remainder
    cdef size_t left = heap.limit - heap.reserved
    cdef Block* block
    heap.os_error = 0
    if needed > left and heap.spare is not NULL:
        release(heap, heap.spare)
        left = heap.limit - heap.reserved
    if needed > left:
        return NULL
    n_bytes = min(n_bytes, left & ~(heap.page - 1))
    block = <Block*>malloc(sizeof(Block))
    if block is not NULL:
        memset(block, 0, sizeof(Block))
        block.first.data = map_block(n_bytes, heap.page)
        if block.first.data is NULL:
            n_bytes = needed
            block.first.data = map_block(n_bytes, heap.page)
    if block is NULL or block.first.data is NULL:
        heap.os_error = errno
        free(block)
        return NULL
    block.first.size = block.size = n_bytes
    block.first.block = block
    block.next = heap.blocks
    if block.next is not NULL:
        block.next.previous = block
    heap.blocks = block
    heap.reserved += n_bytes
    link(heap, &block.first)
    return block


cdef void split(Heap* heap, Chunk* chunk, size_t size) noexcept nogil:
    """Cut a chunk down to `size` bytes; the rest becomes a free chunk after it."""
    cdef Chunk* rest
    if chunk.size == size:
        return
    rest = <Chunk*>malloc(sizeof(Chunk))
    if rest is NULL:                                    # the caller gets more than was asked for
        return
    rest.data = chunk.data + size
    rest.size = chunk.size - size
    rest.block = chunk.block
    rest.before = chunk
    rest.after = chunk.after
    if rest.after is not NULL:
        rest.after.before = rest
    chunk.after = rest
    chunk.size = size
    link(heap, rest)


cdef void absorb(Chunk* chunk) noexcept nogil:
    """Let a chunk swallow the one after it, which is in no list."""
    cdef Chunk* after = chunk.after
    chunk.size += after.size
    chunk.after = after.after
    if chunk.after is not NULL:
        chunk.after.before = chunk
    free(after)


cdef Chunk* take(Heap* heap, size_t size, char** owner) noexcept nogil:
    """Hand out a chunk of at least `size` bytes, *owner pointing at it; NULL if there is none."""
    cdef Chunk* chunk
    cdef Block* block
    size = round_up(size, ALIGN)
    chunk = find(heap, size)
    if chunk is NULL:
        block = grow(heap, size)
        if block is NULL:
            return NULL
        chunk = &block.first
    if chunk.block is heap.spare:
        heap.spare = NULL
    unlink(heap, chunk)
    split(heap, chunk, size)
    chunk.owner = owner
    owner[0] = chunk.data
    heap.in_use += chunk.size
    heap.peak = max(heap.peak, heap.in_use)
    heap.n_in_use += 1
    return chunk


cdef void give(Heap* heap, Chunk* chunk) noexcept nogil:
    """Take a chunk back and join it with free neighbours; a second free block goes to the OS."""
    heap.in_use -= chunk.size
    heap.n_in_use -= 1
    chunk.owner[0] = NULL
    if chunk.after is not NULL and chunk.after.owner is NULL:
        unlink(heap, chunk.after)
        absorb(chunk)
    if chunk.before is not NULL and chunk.before.owner is NULL:
        chunk = chunk.before
        unlink(heap, chunk)
        absorb(chunk)
    link(heap, chunk)
    if chunk.before is not NULL or chunk.after is not NULL:
        return
    if heap.spare is NULL and chunk.size <= MAX_BLOCK:
        heap.spare = chunk.block
    else:
        release(heap, chunk.block)


cdef size_t largest_free(Heap* heap) noexcept nogil:
    """Bytes of the largest free chunk."""
    cdef int word
    cdef Chunk* chunk
    cdef size_t largest = 0
    if heap.words == 0:
        return 0
    word = 63 - highest_zeros(heap.words)
    chunk = heap.free[64 * word + 63 - highest_zeros(heap.lists[word])]
    while chunk is not NULL:
        largest = max(largest, chunk.size)
        chunk = chunk.next
    return largest


cdef size_t largest_possible(Heap* heap) noexcept nogil:
    """Bytes of the largest chunk that can be had, from the OS included."""
    cdef size_t left = heap.limit - heap.reserved
    if heap.spare is not NULL:
        left += heap.spare.size
    return max(largest_free(heap), left & ~(heap.page - 1))


cdef void clear(Heap* heap) noexcept nogil:
    """Return everything to the OS; owners of chunks in use find NULL."""
    cdef Block* block = heap.blocks
    cdef Block* next_block
    cdef Chunk* chunk
    cdef Chunk* after
    while block is not NULL:
        next_block = block.next
        chunk = &block.first
        while chunk is not NULL:
            after = chunk.after
            if chunk.owner is not NULL:
                chunk.owner[0] = NULL
            if chunk is not &block.first:
                free(chunk)
            chunk = after
        munmap(block.first.data, block.size)
        free(block)
        block = next_block
    heap.blocks = heap.spare = NULL
    heap.reserved = heap.in_use = heap.n_in_use = 0
    heap.words = 0
    memset(heap.lists, 0, sizeof(heap.lists))
    memset(heap.free, 0, sizeof(heap.free))
