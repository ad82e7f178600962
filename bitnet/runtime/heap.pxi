# The allocator under the pool: two-level segregated fit. C only: no Python, no lock. pool.pyx
# includes this file; its Pool holds the mutex around every call.

include "arena.pxi"


cdef bint split(Heap* heap, Chunk* chunk, size_t size) noexcept nogil:
    """Take a chunk off its list, cut down to `size` bytes; the rest becomes a free chunk after it.

    False, and nothing has changed, when there is no memory to describe the rest.
    """
    cdef Chunk* rest = NULL
    if chunk.size > size:
        rest = <Chunk*>malloc(sizeof(Chunk))
        if rest is NULL:
            return False
    unlink(heap, chunk)
    if rest is not NULL:
        rest.data = chunk.data + size
        rest.size = chunk.size - size
        rest.arena = chunk.arena
        rest.before = chunk
        rest.after = chunk.after
        if rest.after is not NULL:
            rest.after.before = rest
        chunk.after = rest
        chunk.size = size
        link(heap, rest, chunk.is_dirty)
    return True


cdef inline void count_in_use(Chunk* chunk, int sign) noexcept nogil:
    """Count a chunk as in use (1), or no longer (-1), by the huge pages that it lies in."""
    cdef size_t begin = offset_of(chunk)
    cdef size_t end = begin + chunk.size
    cdef size_t n
    while begin < end:
        n = min(end, round_down(begin, HUGE_PAGE) + HUGE_PAGE) - begin
        chunk.arena.in_use[begin // HUGE_PAGE] += sign * <int>n
        begin += n


cdef void absorb(Chunk* chunk) noexcept nogil:
    """Join a chunk with the one after it; both are in no list."""
    cdef Chunk* after = chunk.after
    chunk.size += after.size
    chunk.after = after.after
    if chunk.after is not NULL:
        chunk.after.before = chunk
    free(after)


cdef Chunk* next_free(Heap* heap, Chunk* chunk) noexcept nogil:
    """The free chunk that follows in any shared arena, the first one for NULL; NULL at the end."""
    cdef Arena* arena = heap.arenas
    if chunk is not NULL:
        arena = chunk.arena
        chunk = chunk.after
    elif arena is not NULL:
        chunk = &arena.first
    while arena is not NULL:
        while chunk is not NULL and arena.pages is not NULL:
            if chunk.owner is NULL:
                return chunk
            chunk = chunk.after
        arena = arena.next
        chunk = NULL if arena is NULL else &arena.first
    return NULL


cdef size_t whole_pages(Heap* heap, Chunk* chunk) noexcept nogil:
    """Bytes of the OS pages that lie inside a chunk."""
    cdef uintptr_t first = round_up(<uintptr_t>chunk.data, heap.page)
    cdef uintptr_t end = round_down(<uintptr_t>chunk.data + chunk.size, heap.page)
    return end - first if end > first else 0


cdef size_t usable_bytes(Heap* heap, Chunk* chunk, size_t left) noexcept nogil:
    """Bytes at the start of a free chunk that take at most `left` bytes of memory.

    All free pages being returned; its first and last page may be shared with chunks in use.
    """
    if whole_pages(heap, chunk) <= left:
        return chunk.size
    return (round_up(<uintptr_t>chunk.data, heap.page) - <uintptr_t>chunk.data
            + round_down(left, heap.page))


cdef Chunk* fit_by_pages(Heap* heap, size_t size) noexcept nogil:
    """A free chunk of which `size` bytes fit under the limit by pages alone, or NULL.

    Looks at all there are, and breaks the huge pages that the one it finds needs a part of.
    """
    cdef Chunk* chunk = next_free(heap, NULL)
    cdef size_t i, begin, end
    while chunk is not NULL:
        begin, end = offset_of(chunk), offset_of(chunk) + size
        if chunk.size >= size and uncommitted(
                heap, chunk.arena, round_down(begin, heap.page),
                round_up(end, heap.page)) <= heap.limit - heap.reserved:
            for i in range(begin // HUGE_PAGE, (end - 1) // HUGE_PAGE + 1):
                if not chunk.arena.broken >> i & 1:
                    break_huge_page(heap, chunk.arena, i)
            return chunk
        chunk = next_free(heap, chunk)
    return NULL


cdef Chunk* fit_under_limit(Heap* heap, Chunk* chunk, size_t size) noexcept nogil:
    """This chunk or another free one, of which `size` bytes fit under the limit, or NULL."""
    cdef Arena* arena = chunk.arena
    cdef size_t begin = offset_of(chunk)
    if heap.limit - heap.reserved > size + 2 * HUGE_PAGE:           # granules at both ends
        return chunk
    while uncommitted(heap, arena, floor_of(heap, arena, begin),
                      ceil_of(heap, arena, begin + size)) > heap.limit - heap.reserved:
        if not reclaim(heap, True):
            return fit_by_pages(heap, size)
    return chunk


cdef Chunk* allocate_chunk(Heap* heap, size_t size) noexcept nogil:
    """A chunk of `size` bytes of a shared arena, committed and in no list, or NULL."""
    cdef Arena* arena = NULL
    cdef Chunk* chunk = find_free(&heap.free[True], size)   # memory that is there already
    if chunk is NULL:
        chunk = find_free(&heap.free[False], size)
    if chunk is NULL:
        arena = map_arena(heap, size)
        if arena is NULL:
            return NULL
        chunk = &arena.first
        link(heap, chunk, False)
    chunk = fit_under_limit(heap, chunk, size)
    if chunk is not NULL and not split(heap, chunk, size):
        heap.os_error = errno
        chunk = NULL
    if arena is not NULL and (chunk is NULL or chunk.arena is not arena):
        unlink(heap, &arena.first)
        retire_arena(heap, arena)
    if chunk is NULL:
        return NULL
    if chunk.arena is heap.spare:
        heap.spare = NULL
    commit(heap, chunk.arena, floor_of(heap, chunk.arena, offset_of(chunk)),
           ceil_of(heap, chunk.arena, offset_of(chunk) + size))
    count_in_use(chunk, 1)
    return chunk


cdef Chunk* allocate_large(Heap* heap, size_t size) noexcept nogil:
    """An arena of its own for `size` bytes, committed, or NULL."""
    cdef size_t n_bytes = round_up(size, heap.page)
    cdef Arena* arena
    while n_bytes > heap.limit - heap.reserved:
        if not reclaim(heap, True):
            return NULL
    arena = map_arena(heap, size)
    if arena is NULL:
        return NULL
    arena.committed = n_bytes
    heap.reserved += n_bytes
    return &arena.first


cdef Chunk* heap_alloc(Heap* heap, size_t size, char** owner) noexcept nogil:
    """Hand out a chunk of `size` bytes, *owner pointing at it; NULL if there is none."""
    cdef Chunk* chunk
    size = round_up(size, ALIGN)
    heap.os_error = 0
    if size > heap.limit - heap.in_use:
        return NULL
    chunk = allocate_chunk(heap, size) if size < MIN_LARGE else allocate_large(heap, size)
    if chunk is NULL:
        return NULL
    chunk.owner = owner
    owner[0] = chunk.data
    heap.in_use += size
    heap.peak = max(heap.peak, heap.in_use)
    heap.n_in_use += 1
    heap.n_made += 1
    return_surplus(heap)                                # a huge page was committed for a part of it
    return chunk


cdef void heap_dealloc(Heap* heap, Chunk* chunk) noexcept nogil:
    """Take a chunk back, join it with free neighbours, and return what is not kept to the OS."""
    cdef Arena* arena = chunk.arena
    cdef size_t begin = offset_of(chunk)
    cdef size_t end = begin + chunk.size
    cdef bint is_dirty = False
    heap.in_use -= chunk.size
    heap.n_in_use -= 1
    chunk.owner[0] = NULL
    chunk.owner = NULL
    if arena.pages is NULL:
        unmap_arena(heap, arena)
        return
    count_in_use(chunk, -1)
    if chunk.after is not NULL and chunk.after.owner is NULL:
        is_dirty = chunk.after.is_dirty
        unlink(heap, chunk.after)
        absorb(chunk)
    if chunk.before is not NULL and chunk.before.owner is NULL:
        chunk = chunk.before
        is_dirty = is_dirty or chunk.is_dirty
        unlink(heap, chunk)
        absorb(chunk)
    if chunk.before is NULL and chunk.after is NULL:
        retire_arena(heap, arena)
    else:       # every granule that the chunk touched is committed: is one of them free now?
        begin = max(floor_of(heap, arena, begin), ceil_of(heap, arena, offset_of(chunk)))
        end = min(ceil_of(heap, arena, end), floor_of(heap, arena, offset_of(chunk) + chunk.size))
        link(heap, chunk, is_dirty or begin < end)
    return_surplus(heap)


cdef size_t trim(Heap* heap) noexcept nogil:
    """Return all free memory to the OS; says how many bytes that were."""
    cdef size_t before = heap.reserved
    while reclaim(heap, True):
        pass
    if heap.spare is not NULL:
        unlink(heap, &heap.spare.first)
        unmap_arena(heap, heap.spare)
        heap.spare = NULL
    return before - heap.reserved


cdef bint set_limit(Heap* heap, size_t limit) noexcept nogil:
    """Change the limit, returning free memory where it must; false when too much is in use."""
    while heap.reserved > limit and reclaim(heap, True):
        pass
    if heap.reserved > limit:
        return False
    heap.limit = limit
    return True


cdef size_t largest_possible(Heap* heap) noexcept nogil:
    """Bytes of the largest chunk that the limit has room for; looks at every chunk."""
    cdef size_t largest, left = heap.limit
    cdef Arena* arena = heap.arenas
    cdef Chunk* chunk = next_free(heap, NULL)
    while arena is not NULL:
        left -= arena.committed if arena.pages is NULL else arena.size
        arena = arena.next
    while chunk is not NULL:
        left += whole_pages(heap, chunk)
        chunk = next_free(heap, chunk)
    largest = round_down(left, heap.page)
    chunk = next_free(heap, NULL)
    while chunk is not NULL:
        largest = max(largest, min(usable_bytes(heap, chunk, left), <size_t>MIN_LARGE - ALIGN))
        chunk = next_free(heap, chunk)
    return largest


cdef void clear(Heap* heap) noexcept nogil:
    """Return everything to the OS; owners of chunks in use find NULL."""
    cdef Arena* arena = heap.arenas
    cdef Arena* following
    cdef Chunk* chunk
    cdef Chunk* after
    while arena is not NULL:
        following = arena.next
        chunk = &arena.first
        while chunk is not NULL:
            after = chunk.after
            if chunk.owner is not NULL:
                chunk.owner[0] = NULL
            if chunk is not &arena.first:
                free(chunk)
            chunk = after
        munmap(arena.first.data, arena.size)
        free(arena.pages)
        free(arena)
        arena = following
    heap.arenas = heap.spare = NULL
    heap.reserved = heap.in_use = heap.n_in_use = 0
    memset(heap.free, 0, sizeof(heap.free))


cdef size_t list_chunks(Heap* heap, Chunk* copies) noexcept nogil:
    """How many chunks there are; copied to `copies` where it is not NULL."""
    cdef size_t n = 0
    cdef Arena* arena = heap.arenas
    cdef Chunk* chunk
    while arena is not NULL:
        chunk = &arena.first
        while chunk is not NULL:
            if copies is not NULL:
                copies[n] = chunk[0]
            n += 1
            chunk = chunk.after
        arena = arena.next
    return n
