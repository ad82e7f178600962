"""Attention over the pages of a batch's KV caches: keys and values into them, softmax(q k) v.

An item of work is some rows of one sequence and one key head, with the query heads that share it.
Where there are fewer items than threads, or some more, threads share the positions of a row: the
kernels sum SPLIT positions apart in any case, so that what the splits give is merged into the same
bits.
"""
from cython.parallel cimport prange
from libc.stdint cimport int32_t

from .operands cimport Batch, Matrix, Rope, Sequence, check_rows
from .threads cimport threads_for
from ..kernels.kv_page cimport PAGE, SPLIT, kv_n_splits, kv_slot_of
from ..kernels.table cimport MAX_HEAD_DIM, View, first_seen, max_queries
from ..runtime.dispatch cimport kernels
from ..runtime.kv_cache cimport KVCache

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # splits of all rows together: those of 16,384 positions, and one that is begun
    MAX_SPLITS = 33
    # items of work for each thread, or rows are not taken together
    MIN_ITEMS = 4


def partials_floats(Py_ssize_t n_heads, Py_ssize_t head_dim):
    """Floats of a Batch's partials. They are enough for rows that see 16,384 positions in all;
    beyond, threads share rows and heads alone."""
    return MAX_SPLITS * n_heads * (head_dim + 2)


cdef Py_ssize_t heads_of(Matrix qkv, Batch batch, Py_ssize_t layer) except -1:
    """How many query heads qkv (rows of q, k and v side by side) has; checks the batch's caches."""
    cdef KVCache cache
    cdef Py_ssize_t n_heads
    if batch.caches is None:
        raise ValueError("the batch has no sequences")
    cache = batch.caches[0]
    n_heads = qkv.n_cols // batch.head_dim - 2 * batch.n_kv_heads
    if (not 0 <= layer < cache.n_layers or batch.n_tokens > qkv.n_rows
            or qkv.n_cols % batch.head_dim or n_heads < 1 or n_heads % batch.n_kv_heads):
        raise ValueError(f"qkv is {qkv.n_rows} x {qkv.n_cols}; caches have {batch.n_kv_heads} "
                         f"heads of {batch.head_dim}, {cache.n_layers} layers; layer {layer}")
    return n_heads


def store_kv(Matrix qkv not None, Py_ssize_t layer, Batch batch not None):
    """Write every row's keys and values into its sequence's page, rounded to the cache's dtype.

    qkv: (n_tokens or more, (n_heads + 2 n_kv_heads) * head_dim), q, k and v side by side.
    """
    cdef Py_ssize_t r, n_heads = heads_of(qkv, batch, layer)
    cdef Py_ssize_t position, width = batch.n_kv_heads * batch.head_dim
    cdef Sequence* s
    cdef const float* k
    for r in range(batch.n_tokens):
        s = &batch.sequences[batch.sequence_of[r]]
        position = batch.positions[r]
        k = qkv.data + r * qkv.n_cols + n_heads * batch.head_dim
        kernels.store_kv(s.pages[layer * s.n_pages + kv_slot_of(position // PAGE, s.n_pages)], k,
                         k + width, position % PAGE, batch.type, batch.n_kv_heads, batch.head_dim)


def attention(Matrix out not None, Matrix qkv not None, Py_ssize_t layer, Rope rope not None,
              Batch batch not None, Py_ssize_t window=0):
    """out = causal softmax(q k / sqrt(head_dim)) v of each row.

    out: (n_tokens or more, n_heads * head_dim). qkv: as of store_kv, which has seen it. window:
    positions a row sees, its own included; 0: all that its cache holds. Queries that see sinks are
    rotated back for them by ``rope`` (see rope_table).
    """
    cdef Py_ssize_t i, n_heads = heads_of(qkv, batch, layer)
    cdef Py_ssize_t n_items = batch.n_tokens * batch.n_kv_heads
    cdef Py_ssize_t group = n_heads // batch.n_kv_heads
    cdef Py_ssize_t n_splits, n_rows, size = group * (batch.head_dim + 2)
    cdef int team
    check_rows(batch, out.n_rows, out.n_cols, n_heads * batch.head_dim, "out")
    if window < 0:
        raise ValueError(f"window is {window}, limit: 0 or more")
    if 2 * rope.half > batch.head_dim or batch.max_tokens + batch.max_sequences > rope.n_rows:
        raise ValueError(f"cos_sin is {rope.n_rows} x {rope.half}, not "
                         f"{batch.max_tokens} and {batch.max_sequences} x {batch.head_dim // 2}")
    for i in range(batch.n_sequences if 2 * rope.half < batch.head_dim else 0):
        if batch.sequences[i].n_sinks:
            raise ValueError(f"sinks are seen by a rotation of {batch.head_dim} columns, not "
                             f"{2 * rope.half}")
    if batch.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head_dim is {batch.head_dim}, limit: {MAX_HEAD_DIM}")
    team = threads_for(batch.n_threads, attention_work(batch, window) * group // 16)
    n_splits = max_splits(batch, window)
    if n_items % team and n_splits > 1 and n_items * n_splits * size <= batch.n_partials:
        for i in prange(n_items * n_splits, nogil=True, schedule="dynamic", num_threads=team):
            attention_split(qkv, layer, rope, batch, group, window, n_splits, i, team,
                            batch.partials + i * size)
        for i in range(n_items):
            merge_splits(out, batch, group, window, i, batch.partials + i * n_splits * size)
        return
    n_rows = max(<Py_ssize_t>1, min(max_queries(batch.head_dim) // group,
                                    n_items // (MIN_ITEMS * team)))
    n_items = (batch.n_tokens + n_rows - 1) // n_rows * batch.n_kv_heads
    if team == 1:
        for i in range(n_items):
            attention_item(out, qkv, layer, rope, batch, group, window, n_rows, i, 1)
        return
    for i in prange(n_items, nogil=True, schedule="dynamic", num_threads=team):
        attention_item(out, qkv, layer, rope, batch, group, window, n_rows, i, team)


cdef Py_ssize_t attention_work(Batch batch, Py_ssize_t window) noexcept:
    """Keys and values to read, about: rows times their positions."""
    cdef Py_ssize_t r, total = 0
    for r in range(batch.n_tokens):
        total += batch.positions[r] - first_position(batch, r, window) + 1
    return total * batch.n_kv_heads * batch.head_dim


cdef Py_ssize_t first_position(Batch batch, Py_ssize_t row, Py_ssize_t window) noexcept nogil:
    """The first position that a row sees."""
    cdef Py_ssize_t start = batch.sequences[batch.sequence_of[row]].start
    return max(start, batch.positions[row] - window + 1) if window else start


cdef View view_of(Py_ssize_t layer, Rope rope, Batch batch, Py_ssize_t window, Py_ssize_t kv_head,
                  Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """What rows of a sequence see: those from begin on, but none of another one nor beyond end."""
    cdef int32_t sequence = batch.sequence_of[begin]
    cdef Py_ssize_t row = batch.max_tokens + sequence
    cdef Sequence* s = &batch.sequences[sequence]
    cdef View view
    view.pages, view.n_pages = s.pages + layer * s.n_pages, s.n_pages
    view.type, view.n_kv_heads, view.head_dim = batch.type, batch.n_kv_heads, batch.head_dim
    view.kv_head, view.position, view.n_rows = kv_head, batch.positions[begin], 1
    while begin + view.n_rows < end and batch.sequence_of[begin + view.n_rows] == sequence:
        view.n_rows += 1
    view.start, view.n_sinks = s.start, s.n_sinks
    view.window = window if window else PY_SSIZE_T_MAX
    view.cosines, view.sines = rope.cosines + row * rope.half, rope.sines + row * rope.half
    view.interleaved = rope.interleaved
    return view


cdef Py_ssize_t kv_splits(Batch batch, Py_ssize_t window, Py_ssize_t r) noexcept nogil:
    """In how many splits the kernels sum what a row sees."""
    cdef Sequence* s = &batch.sequences[batch.sequence_of[r]]
    cdef Py_ssize_t first = first_position(batch, r, window)
    return kv_n_splits(first, batch.positions[r]) + (s.n_sinks > 0 and first == s.start)


cdef Py_ssize_t max_splits(Batch batch, Py_ssize_t window) noexcept nogil:
    cdef Py_ssize_t r, n = 0
    for r in range(batch.n_tokens):
        n = max(n, kv_splits(batch, window, r))
    return n


cdef void attention_item(Matrix out, Matrix qkv, Py_ssize_t layer, Rope rope, Batch batch,
                         Py_ssize_t n_group, Py_ssize_t window, Py_ssize_t n_rows, Py_ssize_t item,
                         Py_ssize_t ahead) noexcept nogil:
    """Rows n_rows * k and on, k = item // n_kv_heads, up to n_rows of them. Its thread will be
    given about the one that is ``ahead`` items further on: keys of that are prefetched."""
    cdef Py_ssize_t kv_head = item % batch.n_kv_heads, column = kv_head * n_group * batch.head_dim
    cdef Py_ssize_t r = item // batch.n_kv_heads * n_rows, end = min(r + n_rows, batch.n_tokens)
    cdef Py_ssize_t then = (item + ahead) // batch.n_kv_heads * n_rows
    cdef View next, view
    cdef bint has_next = then < batch.n_tokens
    if has_next:
        next = view_of(layer, rope, batch, window, (item + ahead) % batch.n_kv_heads, then,
                       min(then + n_rows, batch.n_tokens))
    while r < end:
        view = view_of(layer, rope, batch, window, kv_head, r, end)
        kernels.attention(out.data + r * out.n_cols + column, out.n_cols,
                          qkv.data + r * qkv.n_cols + column, qkv.n_cols, &view,
                          &next if has_next else NULL, n_group)
        r += view.n_rows


cdef void attention_split(Matrix qkv, Py_ssize_t layer, Rope rope, Batch batch, Py_ssize_t n_group,
                          Py_ssize_t window, Py_ssize_t n_splits, Py_ssize_t i, Py_ssize_t ahead,
                          float* partial) noexcept nogil:
    """Split i % n_splits of item i // n_splits, which is one row and one key head."""
    cdef Py_ssize_t kv_head = i // n_splits % batch.n_kv_heads, split = i % n_splits
    cdef Py_ssize_t r = i // n_splits // batch.n_kv_heads, then = i + ahead
    cdef Py_ssize_t column = kv_head * n_group * batch.head_dim
    cdef bint has_next = then < batch.n_tokens * batch.n_kv_heads * n_splits
    cdef View next, view
    if split >= kv_splits(batch, window, r):
        return
    view = view_of(layer, rope, batch, window, kv_head, r, r + 1)
    if has_next:
        r = then // n_splits // batch.n_kv_heads
        next = view_of(layer, rope, batch, window, then // n_splits % batch.n_kv_heads, r, r + 1)
        next.start = max(first_seen(&next, 0),
                         (first_seen(&next, 0) // SPLIT + then % n_splits) * SPLIT)
        has_next = next.start <= next.position                  # not the sinks
        next.window = PY_SSIZE_T_MAX
        next.position = min(next.position, next.start // SPLIT * SPLIT + SPLIT - 1)
    r = i // n_splits // batch.n_kv_heads
    kernels.attention_split(partial, qkv.data + r * qkv.n_cols + column, &view,
                            &next if has_next else NULL, split, n_group)


cdef void merge_splits(Matrix out, Batch batch, Py_ssize_t n_group, Py_ssize_t window,
                       Py_ssize_t item, const float* partials) noexcept nogil:
    cdef Py_ssize_t r = item // batch.n_kv_heads, kv_head = item % batch.n_kv_heads
    cdef float* into = out.data + r * out.n_cols + kv_head * n_group * batch.head_dim
    kernels.attention_merge(into, partials, kv_splits(batch, window, r), n_group, batch.head_dim)
