# The allocator under the pool: two-level segregated fit. C only: no Python, no lock. memory.pyx
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
        rest.block = chunk.block
        rest.before = chunk
        rest.after = chunk.after
        if rest.after is not NULL:
            rest.after.before = rest
        chunk.after = rest
        chunk.size = size
        link(heap, rest, chunk.is_dirty)
    return True


cdef inline void count(Chunk* chunk, int sign) noexcept nogil:
    """Count a chunk as in use (1), or no longer (-1), by the huge pages that it lies in."""
    cdef size_t begin = begin_of(chunk)
    cdef size_t end = begin + chunk.size
    cdef size_t n
    while begin < end:
        n = min(end, round_down(begin, HUGE_PAGE) + HUGE_PAGE) - begin
        chunk.block.in_use[begin // HUGE_PAGE] += sign * <int>n
        begin += n


cdef void absorb(Chunk* chunk) noexcept nogil:
    """Let a chunk swallow the one after it; both are in no list."""
    cdef Chunk* after = chunk.after
    chunk.size += after.size
    chunk.after = after.after
    if chunk.after is not NULL:
        chunk.after.before = chunk
    free(after)


cdef Chunk* next_free(Heap* heap, Chunk* chunk) noexcept nogil:
    """The free chunk that follows in any shared block, the first one for NULL; NULL at the end."""
    cdef Block* block = heap.blocks
    if chunk is not NULL:
        block = chunk.block
        chunk = chunk.after
    elif block is not NULL:
        chunk = &block.first
    while block is not NULL:
        while chunk is not NULL and block.pages is not NULL:
            if chunk.owner is NULL:
                return chunk
            chunk = chunk.after
        block = block.next
        chunk = NULL if block is NULL else &block.first
    return NULL


cdef size_t whole_pages(Heap* heap, Chunk* chunk) noexcept nogil:
    """Bytes of the OS pages that lie inside a chunk."""
    cdef uintptr_t first = round_up(<uintptr_t>chunk.data, heap.page)
    cdef uintptr_t end = round_down(<uintptr_t>chunk.data + chunk.size, heap.page)
    return end - first if end > first else 0


cdef size_t affordable(Heap* heap, Chunk* chunk, size_t left) noexcept nogil:
    """Bytes at the start of a free chunk that take at most `left` bytes of memory.

    All free pages being returned; its first and last page may be shared with chunks in use.
    """
    if whole_pages(heap, chunk) <= left:
        return chunk.size
    return (round_up(<uintptr_t>chunk.data, heap.page) - <uintptr_t>chunk.data
            + round_down(left, heap.page))


cdef Chunk* squeeze(Heap* heap, size_t size) noexcept nogil:
    """A free chunk of which `size` bytes fit under the limit by pages alone, or NULL.

    Looks at all there are, and breaks the huge pages that the one it finds needs a part of.
    """
    cdef Chunk* chunk = next_free(heap, NULL)
    cdef size_t i, begin, end
    while chunk is not NULL:
        begin, end = begin_of(chunk), begin_of(chunk) + size
        if chunk.size >= size and missing(heap, chunk.block, round_down(begin, heap.page),
                                          round_up(end, heap.page)) <= heap.limit - heap.reserved:
            for i in range(begin // HUGE_PAGE, (end - 1) // HUGE_PAGE + 1):
                if not chunk.block.broken >> i & 1:
                    break_up(heap, chunk.block, i)
            return chunk
        chunk = next_free(heap, chunk)
    return NULL


cdef Chunk* afford(Heap* heap, Chunk* chunk, size_t size) noexcept nogil:
    """This chunk or another free one, of which `size` bytes fit under the limit, or NULL."""
    cdef Block* block = chunk.block
    cdef size_t begin = begin_of(chunk)
    if heap.limit - heap.reserved > size + 2 * HUGE_PAGE:           # granules at both ends
        return chunk
    while missing(heap, block, floor_of(heap, block, begin),
                  ceil_of(heap, block, begin + size)) > heap.limit - heap.reserved:
        if not reclaim(heap, True):
            return squeeze(heap, size)
    return chunk


cdef Chunk* place(Heap* heap, size_t size) noexcept nogil:
    """A chunk of `size` bytes of a shared block, committed and in no list, or NULL."""
    cdef Block* block = NULL
    cdef Chunk* chunk = find(&heap.free[True], size)        # memory that is there already
    if chunk is NULL:
        chunk = find(&heap.free[False], size)
    if chunk is NULL:
        block = grow(heap, size)
        if block is NULL:
            return NULL
        chunk = &block.first
        link(heap, chunk, False)
    chunk = afford(heap, chunk, size)
    if chunk is not NULL and not split(heap, chunk, size):
        heap.os_error = errno
        chunk = NULL
    if block is not NULL and (chunk is NULL or chunk.block is not block):
        unlink(heap, &block.first)
        settle(heap, block)
    if chunk is NULL:
        return NULL
    if chunk.block is heap.spare:
        heap.spare = NULL
    commit(heap, chunk.block, floor_of(heap, chunk.block, begin_of(chunk)),
           ceil_of(heap, chunk.block, begin_of(chunk) + size))
    count(chunk, 1)
    return chunk


cdef Chunk* place_large(Heap* heap, size_t size) noexcept nogil:
    """A block of its own for `size` bytes, committed, or NULL."""
    cdef size_t n_bytes = round_up(size, heap.page)
    cdef Block* block
    while n_bytes > heap.limit - heap.reserved:
        if not reclaim(heap, True):
            return NULL
    block = grow(heap, size)
    if block is NULL:
        return NULL
    block.committed = n_bytes
    heap.reserved += n_bytes
    return &block.first


cdef Chunk* take(Heap* heap, size_t size, char** owner) noexcept nogil:
    """Hand out a chunk of `size` bytes, *owner pointing at it; NULL if there is none."""
    cdef Chunk* chunk
    size = round_up(size, ALIGN)
    heap.os_error = 0
    if size > heap.limit - heap.in_use:
        return NULL
    chunk = place(heap, size) if size < LARGE else place_large(heap, size)
    if chunk is NULL:
        return NULL
    chunk.owner = owner
    owner[0] = chunk.data
    heap.in_use += size
    heap.peak = max(heap.peak, heap.in_use)
    heap.n_in_use += 1
    heap.n_made += 1
    return_surplus(heap)                                # it may need but a part of a huge page
    return chunk


cdef void give(Heap* heap, Chunk* chunk) noexcept nogil:
    """Take a chunk back, join it with free neighbours, and return what is not kept to the OS."""
    cdef Block* block = chunk.block
    cdef size_t begin = begin_of(chunk)
    cdef size_t end = begin + chunk.size
    cdef bint is_dirty = False
    heap.in_use -= chunk.size
    heap.n_in_use -= 1
    chunk.owner[0] = NULL
    chunk.owner = NULL
    if block.pages is NULL:
        remove(heap, block)
        return
    count(chunk, -1)
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
        settle(heap, block)
    else:       # every granule that the piece touched is committed: is one of them free now?
        begin = max(floor_of(heap, block, begin), ceil_of(heap, block, begin_of(chunk)))
        end = min(ceil_of(heap, block, end), floor_of(heap, block, begin_of(chunk) + chunk.size))
        link(heap, chunk, is_dirty or begin < end)
    return_surplus(heap)


cdef size_t trim(Heap* heap) noexcept nogil:
    """Return all free memory to the OS; says how many bytes that were."""
    cdef size_t before = heap.reserved
    while reclaim(heap, True):
        pass
    if heap.spare is not NULL:
        unlink(heap, &heap.spare.first)
        remove(heap, heap.spare)
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
    cdef Block* block = heap.blocks
    cdef Chunk* chunk = next_free(heap, NULL)
    while block is not NULL:
        left -= block.committed if block.pages is NULL else block.size
        block = block.next
    while chunk is not NULL:
        left += whole_pages(heap, chunk)
        chunk = next_free(heap, chunk)
    largest = round_down(left, heap.page)
    chunk = next_free(heap, NULL)
    while chunk is not NULL:
        largest = max(largest, min(affordable(heap, chunk, left), <size_t>LARGE - ALIGN))
        chunk = next_free(heap, chunk)
    return largest


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
        free(block.pages)
        free(block)
        block = next_block
    heap.blocks = heap.spare = NULL
    heap.reserved = heap.in_use = heap.n_in_use = 0
    memset(heap.free, 0, sizeof(heap.free))


cdef size_t list_chunks(Heap* heap, Chunk* found) noexcept nogil:
    """How many chunks there are; copied to `found` where it is not NULL."""
    cdef size_t n = 0
    cdef Block* block = heap.blocks
    cdef Chunk* chunk
    while block is not NULL:
        chunk = &block.first
        while chunk is not NULL:
            if found is not NULL:
                found[n] = chunk[0]
            n += 1
            chunk = chunk.after
        block = block.next
    return n
