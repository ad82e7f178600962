# The memory under the pool: blocks of addresses from mmap, what of them is committed, and the lists
# of free chunks. C only: no Python, no lock. memory.pxi includes this file.
#
# Free chunks lie in lists by size class: one class per ALIGN bytes up to 64 * ALIGN, then 32 an
# octave. Two levels of bit masks find the next class that has a chunk.

from libc.errno cimport errno
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free, malloc
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
    static void advise_huge_pages(char *base, size_t size, int wanted) {
    #ifdef MADV_HUGEPAGE
        madvise(base, size, wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    #else
        (void)base; (void)size; (void)wanted;
    #endif
    }
    static int return_memory(char *base, size_t size) {     /* keeps the addresses; 0 on success */
    #ifdef __linux__
        return madvise(base, size, MADV_DONTNEED);
    #else                                                   /* where DONTNEED is a mere hint */
        return mmap(base, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                    -1, 0) == MAP_FAILED;
    #endif
    }
    #if defined(__linux__) && !defined(MADV_POPULATE_WRITE)
    #define MADV_POPULATE_WRITE 23                          /* since Linux 5.14 */
    #endif
    static void populate(char *data, size_t size, size_t page) {    /* contents are lost */
        char *begin = (char *)((size_t)data & ~(page - 1));
    #ifdef MADV_POPULATE_WRITE
        if (madvise(begin, data + size - begin, MADV_POPULATE_WRITE) == 0)
            return;
    #endif
        *(volatile char *)data = 0;
        for (begin += page; begin < data + size; begin += page)
            *(volatile char *)begin = 0;
    }
    """
    char* map_anonymous(size_t size) nogil
    void advise_huge_pages(char* base, size_t size, bint wanted) nogil
    int return_memory(char* base, size_t size) nogil
    void populate(char* data, size_t size, size_t page) nogil
    int munmap(void* base, size_t size) nogil
    int highest_zeros "__builtin_clzll"(uint64_t) nogil
    int lowest_zeros "__builtin_ctzll"(uint64_t) nogil
    int n_ones "__builtin_popcountll"(uint64_t) nogil

cdef enum:
    HUGE_PAGE = 2 << 20
    LARGE = 4 << 20                 # allocations from here on have a block of their own
    SCAN = 16                       # chunks of the request's own class that are looked at first
    KEPT_SHARE = 16                 # this part of what is in use may be free and kept,
    MIN_KEPT = 2 << 20              # but at least this
    MAX_KEPT = 64 << 20             # and at most this: to return it takes 1 to 5 ms
    BROKEN_SHARE = 12               # above this part, huge pages are broken to return more

cdef enum Change:
    LOOK
    COMMIT
    RETURN


cdef inline size_t round_up(size_t n, size_t unit) noexcept nogil:
    """n rounded up to a multiple of unit, a power of two."""
    return (n + unit - 1) & ~(unit - 1)


cdef inline size_t round_down(size_t n, size_t unit) noexcept nogil:
    return n & ~(unit - 1)


cdef inline int class_of(size_t size) noexcept nogil:
    cdef uint64_t units = size // ALIGN
    cdef int shift = 0
    if units >= 64:
        shift = 58 - highest_zeros(units)           # leaves units >> shift in 32 .. 63
    return 32 * shift + <int>(units >> shift)


# ----------------------------------------------------------------------------- lists of free chunks
cdef void link(Heap* heap, Chunk* chunk, bint is_dirty) noexcept nogil:
    """Put a chunk at the head of the free list of its class."""
    cdef FreeLists* lists = &heap.free[is_dirty]
    cdef int c = class_of(chunk.size)
    chunk.owner = NULL
    chunk.is_dirty = is_dirty
    chunk.previous = NULL
    chunk.next = lists.first[c]
    if chunk.next is not NULL:
        chunk.next.previous = chunk
    lists.first[c] = chunk
    lists.lists[c >> 6] |= <uint64_t>1 << (c & 63)
    lists.words |= <uint64_t>1 << (c >> 6)


cdef void unlink(Heap* heap, Chunk* chunk) noexcept nogil:
    cdef FreeLists* lists = &heap.free[chunk.is_dirty]
    cdef int c = class_of(chunk.size)
    if chunk.next is not NULL:
        chunk.next.previous = chunk.previous
    if chunk.previous is not NULL:
        chunk.previous.next = chunk.next
        return
    lists.first[c] = chunk.next
    if chunk.next is NULL:
        lists.lists[c >> 6] &= ~(<uint64_t>1 << (c & 63))
        if lists.lists[c >> 6] == 0:
            lists.words &= ~(<uint64_t>1 << (c >> 6))


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


cdef Chunk* find(FreeLists* lists, size_t size) noexcept nogil:
    """A free chunk of at least `size` bytes, or NULL when there is none."""
    cdef int c = class_of(size)
    cdef int word
    cdef uint64_t bits
    cdef Chunk* chunk
    if lists.words == 0:
        return NULL
    chunk = smallest_fit(lists.first[c], size, SCAN)                # a KV page finds a KV page
    if chunk is not NULL:
        return chunk
    word = (c + 1) >> 6                                             # any of a larger class will do
    bits = lists.lists[word] & (~<uint64_t>0 << ((c + 1) & 63))
    if bits == 0:
        bits = lists.words & (~<uint64_t>0 << (word + 1))
        if bits == 0:
            return smallest_fit(lists.first[c], size, <size_t>-1)
        word = lowest_zeros(bits)
        bits = lists.lists[word]
    return lists.first[64 * word + lowest_zeros(bits)]


cdef Chunk* largest_dirty(Heap* heap) noexcept nogil:
    """A chunk of the highest class that may hold committed granules, or NULL."""
    cdef FreeLists* lists = &heap.free[True]
    cdef int word
    if lists.words == 0:
        return NULL
    word = 63 - highest_zeros(lists.words)
    return lists.first[64 * word + 63 - highest_zeros(lists.lists[word])]


# ------------------------------------------------------------------ the memory behind the addresses
# Places are bytes from the beginning of a block. A huge page that is not broken is committed as a
# whole or not at all.

cdef inline size_t begin_of(Chunk* chunk) noexcept nogil:
    """The place of a chunk."""
    return chunk.data - chunk.block.first.data


cdef inline size_t granule_at(Heap* heap, Block* block, size_t place) noexcept nogil:
    return heap.page if block.broken >> (place // HUGE_PAGE) & 1 else HUGE_PAGE


cdef inline size_t floor_of(Heap* heap, Block* block, size_t place) noexcept nogil:
    """The beginning of the granule that a place lies in."""
    return round_down(place, granule_at(heap, block, place))


cdef inline size_t ceil_of(Heap* heap, Block* block, size_t place) noexcept nogil:
    """The end of the granule that the byte before a place lies in."""
    return round_up(place, granule_at(heap, block, place - 1)) if place > 0 else 0


cdef size_t committed(Heap* heap, Block* block, size_t begin, size_t end,
                      Change change) noexcept nogil:
    """Bytes of the pages begin .. end that are committed; then commit or return all of them."""
    cdef int shift = lowest_zeros(heap.page)
    cdef size_t page = begin >> shift
    cdef size_t n_pages = (end - begin) >> shift
    cdef size_t n, n_set = 0
    cdef uint64_t mask, bits
    while n_pages > 0:
        n = min(64 - (page & 63), n_pages)
        mask = (~<uint64_t>0 >> (64 - n)) << (page & 63)
        bits = block.pages[page >> 6] & mask
        n_set += n if bits == mask else 0 if bits == 0 else <size_t>n_ones(bits)
        if change == COMMIT:
            block.pages[page >> 6] |= mask
        elif change == RETURN:
            block.pages[page >> 6] &= ~mask
        page += n
        n_pages -= n
    return n_set << shift


cdef inline size_t missing(Heap* heap, Block* block, size_t begin, size_t end) noexcept nogil:
    """Bytes of begin .. end that are not committed."""
    return end - begin - committed(heap, block, begin, end, LOOK)


cdef void commit(Heap* heap, Block* block, size_t begin, size_t end) noexcept nogil:
    cdef size_t n_bytes = end - begin - committed(heap, block, begin, end, COMMIT)
    block.committed += n_bytes
    heap.reserved += n_bytes


cdef void give_back(Heap* heap, Block* block, size_t begin, size_t end) noexcept nogil:
    """Return the memory of free pages to the OS, which may refuse (locked memory, for one)."""
    cdef size_t n_bytes = 0
    if begin < end:
        n_bytes = committed(heap, block, begin, end, LOOK)
    if n_bytes > 0 and return_memory(block.first.data + begin, end - begin) == 0:
        committed(heap, block, begin, end, RETURN)
        block.committed -= n_bytes
        heap.reserved -= n_bytes


cdef void clean(Heap* heap, Chunk* chunk) noexcept nogil:
    """Return the granules inside a free chunk; broken huge pages inside it become whole again."""
    cdef Block* block = chunk.block
    cdef size_t begin = begin_of(chunk)
    cdef size_t end = begin + chunk.size
    cdef uint64_t inside
    unlink(heap, chunk)
    link(heap, chunk, False)
    give_back(heap, block, ceil_of(heap, block, begin), floor_of(heap, block, end))
    begin, end = round_up(begin, HUGE_PAGE), round_down(end, HUGE_PAGE)
    if begin < end and block.size == BLOCK:
        inside = ((<uint64_t>1 << ((end - begin) // HUGE_PAGE)) - 1) << (begin // HUGE_PAGE)
        if block.broken & inside:
            advise_huge_pages(block.first.data + begin, end - begin, True)
            block.broken &= ~inside


cdef void break_up(Heap* heap, Block* block, size_t i) noexcept nogil:
    """Break the i-th huge page of a block, and return the free pages in it."""
    cdef Chunk* chunk = &block.first
    cdef size_t begin = i * HUGE_PAGE
    cdef size_t end = begin + HUGE_PAGE
    advise_huge_pages(block.first.data + begin, HUGE_PAGE, False)   # it would fill the holes
    block.broken |= <uint64_t>1 << i
    while chunk is not NULL and begin_of(chunk) < end:
        if chunk.owner is NULL:
            give_back(heap, block, max(begin, round_up(begin_of(chunk), heap.page)),
                      min(end, round_down(begin_of(chunk) + chunk.size, heap.page)))
        chunk = chunk.after


cdef bint break_emptiest(Heap* heap) noexcept nogil:
    """Break the huge page with the most free bytes; false when none has a page's worth of them."""
    cdef Block* block = heap.blocks
    cdef Block* emptiest = NULL
    cdef size_t i, found = 0, least = HUGE_PAGE - heap.page + 1
    while block is not NULL:
        for i in range(<size_t>N_HUGE):
            if (block.in_use[i] < least and block.pages is not NULL and not block.broken >> i & 1
                    and missing(heap, block, i * HUGE_PAGE, i * HUGE_PAGE + heap.page) == 0):
                emptiest, found, least = block, i, block.in_use[i]
        block = block.next
    if emptiest is NULL:
        return False
    break_up(heap, emptiest, found)
    return True


cdef bint reclaim(Heap* heap, bint may_break) noexcept nogil:
    """Return some free memory to the OS; false when there is none."""
    cdef Chunk* chunk = largest_dirty(heap)
    if chunk is not NULL:
        clean(heap, chunk)
        return True
    return may_break and break_emptiest(heap)


cdef void return_surplus(Heap* heap) noexcept nogil:
    """Return free memory to the OS until no more is left than what is kept to be used again."""
    cdef size_t kept = MIN_KEPT
    if heap.reserved - heap.in_use <= kept:
        return
    kept = min(max(heap.in_use // KEPT_SHARE, kept), <size_t>MAX_KEPT)
    while heap.reserved - heap.in_use > kept and reclaim(heap, False):
        pass
    kept = max(heap.in_use // BROKEN_SHARE, <size_t>MIN_KEPT)
    while heap.reserved - heap.in_use > kept and reclaim(heap, True):
        pass


# ------------------------------------------------------------------------------------------- blocks
cdef char* map_aligned(size_t size, size_t page) noexcept nogil:
    """`size` bytes of zeros from the OS, aligned to huge pages and advised; NULL on failure."""
    cdef size_t slack = HUGE_PAGE - page
    cdef char* raw = map_anonymous(size + slack)
    cdef char* base
    if raw is NULL:
        return NULL
    base = <char*>round_up(<uintptr_t>raw, HUGE_PAGE)
    if base > raw:
        munmap(raw, base - raw)
    if base < raw + slack:
        munmap(base + size, raw + slack - base)
    advise_huge_pages(base, size, True)
    return base


cdef Block* grow(Heap* heap, size_t size) noexcept nogil:
    """A new block with one chunk of at least `size` bytes, in no list; NULL when the OS refuses.

    Its memory is not committed yet.
    """
    cdef bint is_shared = size < LARGE
    cdef size_t needed = round_up(size, heap.page)
    cdef Block* block = <Block*>calloc(1, sizeof(Block))
    if block is NULL:
        heap.os_error = errno
        return NULL
    block.size = BLOCK if is_shared else needed
    block.first.data = map_aligned(block.size, heap.page)
    if block.first.data is NULL:
        block.size, block.broken = needed, ~<uint64_t>0
        block.first.data = map_anonymous(needed)
    if is_shared and block.first.data is not NULL:
        block.pages = <uint64_t*>calloc(block.size // heap.page // 64 + 1, sizeof(uint64_t))
        if block.pages is NULL:
            munmap(block.first.data, block.size)
            block.first.data = NULL
    if block.first.data is NULL:
        heap.os_error = errno
        free(block)
        return NULL
    block.first.size = block.size if is_shared else size
    block.first.block = block
    block.next = heap.blocks
    if block.next is not NULL:
        block.next.previous = block
    heap.blocks = block
    return block


cdef void remove(Heap* heap, Block* block) noexcept nogil:
    """Return a wholly free block, its chunk in no list, to the OS."""
    heap.reserved -= block.committed
    block.committed = 0
    if munmap(block.first.data, block.size) != 0:       # too many maps to split one: clear() will
        return_memory(block.first.data, block.size)
        free(block.pages)
        block.pages = NULL
        return
    if block.next is not NULL:
        block.next.previous = block.previous
    if block.previous is not NULL:
        block.previous.next = block.next
    else:
        heap.blocks = block.next
    free(block.pages)
    free(block)


cdef void settle(Heap* heap, Block* block) noexcept nogil:
    """Keep a wholly free block, its chunk in no list, as the spare one, or return it to the OS."""
    if heap.spare is NULL:
        heap.spare = block
        link(heap, &block.first, True)
    else:
        remove(heap, block)
