# The memory under the pool: arenas of addresses from mmap, what of them is committed, and the lists
# of free chunks. C only: no Python, no lock. heap.pxi includes this file.
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
    static void advise_huge_pages(char *base, size_t size, int is_on) {
    #ifdef MADV_HUGEPAGE
        madvise(base, size, is_on ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    #else
        (void)base; (void)size; (void)is_on;
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
    void advise_huge_pages(char* base, size_t size, bint is_on) nogil
    int return_memory(char* base, size_t size) nogil
    void populate(char* data, size_t size, size_t page) nogil
    int munmap(void* base, size_t size) nogil
    int highest_zeros "__builtin_clzll"(uint64_t) nogil
    int lowest_zeros "__builtin_ctzll"(uint64_t) nogil
    int n_ones "__builtin_popcountll"(uint64_t) nogil

cdef enum:
    MIN_LARGE = 4 << 20             # bytes of an allocation that has an arena of its own
    MAX_SCANNED = 16                # chunks of the request's own class that are looked at first
    # Free memory that is kept to be used again: a 16th of what is in use, at least MIN_KEPT bytes,
    # at most MAX_KEPT, which take 1 to 5 ms to return.
    KEPT_SHARE = 16
    MIN_KEPT = 2 << 20
    MAX_KEPT = 64 << 20
    BROKEN_SHARE = 12               # above a 12th, huge pages are broken to return more

cdef enum Change:                   # what to do with pages that are counted
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


cdef Chunk* find_free(FreeLists* lists, size_t size) noexcept nogil:
    """A free chunk of at least `size` bytes, or NULL when there is none."""
    cdef int c = class_of(size)
    cdef int word
    cdef uint64_t bits
    cdef Chunk* chunk
    if lists.words == 0:
        return NULL
    chunk = smallest_fit(lists.first[c], size, MAX_SCANNED)         # a KV page finds a KV page
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
# Offsets are bytes from the beginning of an arena. A huge page that is not broken is committed as a
# whole or not at all.

cdef inline size_t offset_of(Chunk* chunk) noexcept nogil:
    """Where a chunk begins."""
    return chunk.data - chunk.arena.first.data


cdef inline size_t granule_at(Heap* heap, Arena* arena, size_t offset) noexcept nogil:
    return heap.page if arena.broken >> (offset // HUGE_PAGE) & 1 else HUGE_PAGE


cdef inline size_t floor_of(Heap* heap, Arena* arena, size_t offset) noexcept nogil:
    """The beginning of the granule that an offset lies in."""
    return round_down(offset, granule_at(heap, arena, offset))


cdef inline size_t ceil_of(Heap* heap, Arena* arena, size_t offset) noexcept nogil:
    """The end of the granule that the byte before an offset lies in."""
    return round_up(offset, granule_at(heap, arena, offset - 1)) if offset > 0 else 0


cdef size_t committed(Heap* heap, Arena* arena, size_t begin, size_t end,
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
        bits = arena.pages[page >> 6] & mask
        n_set += n if bits == mask else 0 if bits == 0 else <size_t>n_ones(bits)
        if change == COMMIT:
            arena.pages[page >> 6] |= mask
        elif change == RETURN:
            arena.pages[page >> 6] &= ~mask
        page += n
        n_pages -= n
    return n_set << shift


cdef inline size_t uncommitted(Heap* heap, Arena* arena, size_t begin, size_t end) noexcept nogil:
    """Bytes of begin .. end that are not committed."""
    return end - begin - committed(heap, arena, begin, end, LOOK)


cdef void commit(Heap* heap, Arena* arena, size_t begin, size_t end) noexcept nogil:
    cdef size_t n_bytes = end - begin - committed(heap, arena, begin, end, COMMIT)
    arena.committed += n_bytes
    heap.reserved += n_bytes


cdef void decommit_range(Heap* heap, Arena* arena, size_t begin, size_t end) noexcept nogil:
    """Return the memory of free pages to the OS, which may refuse (locked memory, for one)."""
    cdef size_t n_bytes = 0
    if begin < end:
        n_bytes = committed(heap, arena, begin, end, LOOK)
    if n_bytes > 0 and return_memory(arena.first.data + begin, end - begin) == 0:
        committed(heap, arena, begin, end, RETURN)
        arena.committed -= n_bytes
        heap.reserved -= n_bytes


cdef void decommit(Heap* heap, Chunk* chunk) noexcept nogil:
    """Return the granules inside a free chunk; broken huge pages inside it become whole again."""
    cdef Arena* arena = chunk.arena
    cdef size_t begin = offset_of(chunk)
    cdef size_t end = begin + chunk.size
    cdef uint64_t inside
    unlink(heap, chunk)
    link(heap, chunk, False)
    decommit_range(heap, arena, ceil_of(heap, arena, begin), floor_of(heap, arena, end))
    begin, end = round_up(begin, HUGE_PAGE), round_down(end, HUGE_PAGE)
    if begin < end and arena.size == ARENA_BYTES:
        inside = ((<uint64_t>1 << ((end - begin) // HUGE_PAGE)) - 1) << (begin // HUGE_PAGE)
        if arena.broken & inside:
            advise_huge_pages(arena.first.data + begin, end - begin, True)
            arena.broken &= ~inside


cdef void break_huge_page(Heap* heap, Arena* arena, size_t i) noexcept nogil:
    """Break the i-th huge page of an arena, and return the free pages in it."""
    cdef Chunk* chunk = &arena.first
    cdef size_t begin = i * HUGE_PAGE
    cdef size_t end = begin + HUGE_PAGE
    advise_huge_pages(arena.first.data + begin, HUGE_PAGE, False)   # it would fill the holes
    arena.broken |= <uint64_t>1 << i
    while chunk is not NULL and offset_of(chunk) < end:
        if chunk.owner is NULL:
            decommit_range(heap, arena, max(begin, round_up(offset_of(chunk), heap.page)),
                           min(end, round_down(offset_of(chunk) + chunk.size, heap.page)))
        chunk = chunk.after


cdef bint break_emptiest(Heap* heap) noexcept nogil:
    """Break the huge page with the most free bytes; false when none has a page's worth of them."""
    cdef Arena* arena = heap.arenas
    cdef Arena* emptiest = NULL
    cdef size_t i, page = 0, fewest = HUGE_PAGE - heap.page + 1
    while arena is not NULL:
        for i in range(<size_t>N_HUGE):
            if (arena.in_use[i] < fewest and arena.pages is not NULL and not arena.broken >> i & 1
                    and uncommitted(heap, arena, i * HUGE_PAGE, i * HUGE_PAGE + heap.page) == 0):
                emptiest, page, fewest = arena, i, arena.in_use[i]
        arena = arena.next
    if emptiest is NULL:
        return False
    break_huge_page(heap, emptiest, page)
    return True


cdef bint reclaim(Heap* heap, bint may_break) noexcept nogil:
    """Return some free memory to the OS; false when there is none."""
    cdef Chunk* chunk = largest_dirty(heap)
    if chunk is not NULL:
        decommit(heap, chunk)
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


# ------------------------------------------------------------------------------------------- arenas
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


cdef Arena* map_arena(Heap* heap, size_t size) noexcept nogil:
    """A new arena with one chunk of at least `size` bytes, in no list; NULL when the OS refuses.

    Its memory is not committed yet.
    """
    cdef bint is_shared = size < MIN_LARGE
    cdef size_t needed = round_up(size, heap.page)
    cdef Arena* arena = <Arena*>calloc(1, sizeof(Arena))
    if arena is NULL:
        heap.os_error = errno
        return NULL
    arena.size = ARENA_BYTES if is_shared else needed
    arena.first.data = map_aligned(arena.size, heap.page)
    if arena.first.data is NULL:
        arena.size, arena.broken = needed, ~<uint64_t>0
        arena.first.data = map_anonymous(needed)
    if is_shared and arena.first.data is not NULL:
        arena.pages = <uint64_t*>calloc(arena.size // heap.page // 64 + 1, sizeof(uint64_t))
        if arena.pages is NULL:
            munmap(arena.first.data, arena.size)
            arena.first.data = NULL
    if arena.first.data is NULL:
        heap.os_error = errno
        free(arena)
        return NULL
    arena.first.size = arena.size if is_shared else size
    arena.first.arena = arena
    arena.next = heap.arenas
    if arena.next is not NULL:
        arena.next.previous = arena
    heap.arenas = arena
    return arena


cdef void unmap_arena(Heap* heap, Arena* arena) noexcept nogil:
    """Return a wholly free arena, its chunk in no list, to the OS."""
    heap.reserved -= arena.committed
    arena.committed = 0
    if munmap(arena.first.data, arena.size) != 0:       # too many maps to split one: clear() will
        return_memory(arena.first.data, arena.size)
        free(arena.pages)
        arena.pages = NULL
        return
    if arena.next is not NULL:
        arena.next.previous = arena.previous
    if arena.previous is not NULL:
        arena.previous.next = arena.next
    else:
        heap.arenas = arena.next
    free(arena.pages)
    free(arena)


cdef void retire_arena(Heap* heap, Arena* arena) noexcept nogil:
    """Keep a wholly free arena, its chunk in no list, as the spare one, or return it to the OS."""
    if heap.spare is NULL:
        heap.spare = arena
        link(heap, &arena.first, True)
    else:
        unmap_arena(heap, arena)
