"""The operations of the graph: shapes are checked here, rows split over threads, kernels called.

The only module with OpenMP. Every operation takes arrays bound once (arrays.pyx) and a Batch.
"""
import logging
import os
import time

import numpy as np

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, fabs, nextafterf, sqrt
from libc.math cimport exp as exp_of_double
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from .operands cimport (
    BLOCK, BLOCK_BYTES, CHUNK, SCREEN_BEST, SCREEN_COLS, SCREEN_TOKENS, Batch, QuantizedActivations, Linear,
    Matrix, Norm, Part, Rope, QuantizedRows, Screen, Sequence,
)
from ..runtime.kv_cache cimport KVCache
from ..runtime.dispatch cimport kernels
from ..kernels.kv_page cimport PAGE, SPLIT, kv_n_splits, kv_slot_of
from ..kernels.table cimport MAX_HEAD_DIM, Coarse, View

from ..runtime.cpu import is_amd

log = logging.getLogger("bitnet")

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define BITNET_OPENMP 1
    #else
    #define BITNET_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    """
    bint BITNET_OPENMP
    int omp_get_max_threads() noexcept nogil

openmp = BITNET_OPENMP                  # False: built without, everything runs on one thread

cdef enum:
    READ_CHUNK = 1 << 18                # bytes
    WORTH = 20000                       # ns of work on one core for which other threads are woken

ctypedef void (*Gate)(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil

cdef bint on_amd = is_amd()
cdef int forked = 0                     # set in the child of a fork
cdef int n_offered = omp_get_max_threads()  # less later: somebody limits us, as threadpoolctl does


def _after_fork():
    """libgomp's threads are gone in a forked child: its next region would wait for them forever."""
    global forked
    forked = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


include "team.pxi"


cdef inline int most_threads(int n_threads, Py_ssize_t work) noexcept nogil:
    """Threads for work that takes one core about so many nanoseconds, whoever has their cores.

    An empty region of two threads costs 1 us, 16 to 50 where one is to be woken.
    """
    cdef int n_allowed = omp_get_max_threads()
    if forked or work < WORTH:
        return 1
    return min(n_threads, n_allowed) if n_allowed < n_offered else n_threads


cdef inline int threads_for(int n_threads, Py_ssize_t work) noexcept nogil:
    """Those of them whose cores are ours."""
    return crowd.size_at(most_threads(n_threads, work), nanoseconds() if crowd.left_out else 0)


cdef int check_rows(Batch batch, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t want,
                    str what) except -1:
    if batch.n_tokens > rows or cols != want:
        raise ValueError(f"{what} is {rows} x {cols}, not {batch.n_tokens} x {want}")
    return 0


# -------------------------------------------------------------------------------------- operations
def embed(Matrix out not None, QuantizedRows rows not None, const int32_t[::1] token_ids not None,
          Batch batch not None, float scale=1.0):
    """out[i] = scale times row token_ids[i], as float32."""
    cdef Py_ssize_t i, j
    cdef float* row
    check_rows(batch, out.n_rows, out.n_cols, rows.n_cols, "out")
    if token_ids.shape[0] != batch.n_tokens:
        raise ValueError(f"{token_ids.shape[0]} token ids for {batch.n_tokens} rows")
    for i in range(batch.n_tokens):
        if not 0 <= token_ids[i] < rows.n_rows:
            raise ValueError(f"token id {token_ids[i]} is not in 0..{rows.n_rows - 1}")
    for i in range(batch.n_tokens):
        row = out.data + i * out.n_cols
        kernels.dequantize_row(row, &rows.data[token_ids[i], 0], rows.type, rows.n_cols)
        for j in range(rows.n_cols if scale != 1.0 else 0):
            row[j] *= scale


def rms_norm(Matrix out not None, Norm norm not None, Matrix x not None, Batch batch not None):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row; out may be x."""
    cdef Py_ssize_t r, n = x.n_cols
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n // 2)
    check_rows(batch, x.n_rows, norm.weight.shape[0], n, "norm")
    check_rows(batch, out.n_rows, out.n_cols, n, "out")
    cdef const float* weight = &norm.weight[0]
    if team == 1:
        for r in range(batch.n_tokens):
            kernels.rms_norm(out.data + r * n, weight, x.data + r * n, norm.eps, n)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        kernels.rms_norm(out.data + r * n, weight, x.data + r * n, norm.eps, n)


def head_norm(Matrix x not None, Norm norm not None, Py_ssize_t first_head, Py_ssize_t n_heads,
              Batch batch not None):
    """RMSNorm in place of each of n_heads heads of a row, from first_head on, as wide as norm."""
    cdef Py_ssize_t r, head_dim = norm.weight.shape[0]
    cdef float* heads
    cdef int team
    if (batch.n_tokens > x.n_rows or head_dim < 1 or first_head < 0 or n_heads < 0
            or n_heads > x.n_cols // head_dim - first_head):
        raise ValueError(f"x is {x.n_rows} x {x.n_cols}, not {batch.n_tokens} x heads {first_head} "
                         f"to {first_head + n_heads} of {head_dim}")
    heads = x.data + first_head * head_dim
    team = threads_for(batch.n_threads, batch.n_tokens * n_heads * head_dim // 2)
    if team == 1:
        for r in range(batch.n_tokens):
            norm_heads(heads + r * x.n_cols, norm, head_dim, n_heads)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        norm_heads(heads + r * x.n_cols, norm, head_dim, n_heads)


cdef void norm_heads(float* x, Norm norm, Py_ssize_t head_dim, Py_ssize_t n_heads) noexcept nogil:
    cdef Py_ssize_t h
    for h in range(n_heads):
        kernels.rms_norm(x + h * head_dim, &norm.weight[0], x + h * head_dim, norm.eps, head_dim)


def quantize(QuantizedActivations out not None, Matrix x not None, Batch batch not None):
    """int8 codes of each row of x, padded with zeros to a multiple of 128."""
    cdef Py_ssize_t r, n = x.n_cols, stride = out.codes.shape[1]
    cdef Py_ssize_t padded = (n + BLOCK - 1) // BLOCK * BLOCK
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n // 2)
    check_rows(batch, x.n_rows, n, n, "x")
    if batch.n_tokens > out.codes.shape[0] or padded > stride:
        raise ValueError(f"codes are {out.codes.shape[0]} x {stride}, "
                         f"not {batch.n_tokens} x {padded}")
    out.n_cols = n
    if batch.n_tokens == 0:
        return
    cdef int8_t* codes = &out.codes[0, 0]
    if team == 1:
        for r in range(batch.n_tokens):
            kernels.quantize(codes + r * stride, &out.inv_scale[r], &out.sums[r], x.data + r * n, n,
                             padded)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        kernels.quantize(codes + r * stride, &out.inv_scale[r], &out.sums[r], x.data + r * n, n,
                         padded)


include "linear.pxi"


def rope_table(Rope rope not None, Batch batch not None):
    """Make the cosines and sines of a batch's positions: once, before ops.rope of any layer.

    And for each sequence whose window has moved those that turn a query back, as if its sinks stood
    right before the window: so far back that their distance stays one the model was trained for.
    """
    cdef Py_ssize_t i, j, n = rope.frequencies.shape[0]
    cdef Sequence* s
    if batch.max_tokens + batch.max_sequences > rope.cos_sin.shape[1]:
        raise ValueError(f"cos_sin is of {rope.cos_sin.shape[1]} rows, not {batch.max_tokens} and "
                         f"{batch.max_sequences}")
    for i in range(batch.n_tokens):
        make_cos_sin(rope, i, batch.positions[i])
    for i in range(batch.n_sequences):
        s = &batch.sequences[i]
        if s.n_sinks:
            make_cos_sin(rope, batch.max_tokens + i, s.start - s.n_sinks)
            for j in range(n):
                rope.cos_sin[1, batch.max_tokens + i, j] *= -1


cdef void make_cos_sin(Rope rope, Py_ssize_t row, Py_ssize_t position) noexcept:
    kernels.cos_sin(&rope.cos_sin[0, row, 0], &rope.cos_sin[1, row, 0], &rope.frequencies[0], position,
                  position < rope.n_trained, rope.frequencies.shape[0])


def rope(Matrix x not None, Rope rope not None, Py_ssize_t n_heads, Batch batch not None):
    """Rotate the first n_heads heads of a row by its position, which ops.rope_table has seen."""
    cdef Py_ssize_t r, h, head_dim = 2 * rope.frequencies.shape[0]
    if n_heads < 0 or n_heads > x.n_cols // head_dim or batch.n_tokens > min(
            x.n_rows, rope.cos_sin.shape[1]):
        raise ValueError(f"x is {x.n_rows} x {x.n_cols}, turns {rope.cos_sin.shape[1]} x "
                         f"{head_dim // 2}, {n_heads} heads, {batch.n_tokens} rows")
    for r in range(batch.n_tokens):
        for h in range(n_heads):
            kernels.rope(x.data + r * x.n_cols + h * head_dim, &rope.cos_sin[0, r, 0],
                         &rope.cos_sin[1, r, 0], rope.interleaved, head_dim)


def partials_floats(Py_ssize_t n_heads, Py_ssize_t head_dim):
    """Size of Batch.found: for rows that see 16,384 positions in all, beyond which heads are enough
    to share between threads or positions are not shared."""
    return 33 * n_heads * (head_dim + 2)


cdef Py_ssize_t heads_of(Matrix qkv, Batch batch, Py_ssize_t layer) except -1:
    """Query heads of qkv (rows of q, k and v side by side), checked against the batch's caches."""
    cdef KVCache cache
    cdef Py_ssize_t n_heads = qkv.n_cols // batch.head_dim - 2 * batch.n_kv_heads
    if batch.caches is None:
        raise ValueError("the batch has no sequences")
    cache = batch.caches[0]
    if (not 0 <= layer < cache.n_layers or batch.n_tokens > qkv.n_rows
            or qkv.n_cols % batch.head_dim or n_heads < 1 or n_heads % batch.n_kv_heads):
        raise ValueError(f"qkv is {qkv.n_rows} x {qkv.n_cols}; caches have {batch.n_kv_heads} "
                         f"heads of {batch.head_dim}, {cache.n_layers} layers; layer {layer}")
    return n_heads


def store_kv(Matrix qkv not None, Py_ssize_t layer, Batch batch not None):
    """Write every row's keys and values into its sequence's page, rounded to the cache's dtype."""
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
    """out (n_tokens, n_heads * head_dim) = causal softmax(q k / sqrt(head_dim)) v of each row.

    window: positions a row sees, its own included; 0: all that its cache holds. Queries that see
    sinks are turned back for them by ``rope`` (see turn).
    """
    cdef Py_ssize_t i, n_heads = heads_of(qkv, batch, layer)
    cdef Py_ssize_t n_items = batch.n_tokens * batch.n_kv_heads
    cdef Py_ssize_t group = n_heads // batch.n_kv_heads
    cdef Py_ssize_t n_parts, size = group * (batch.head_dim + 2)
    cdef int team
    check_rows(batch, out.n_rows, out.n_cols, n_heads * batch.head_dim, "out")
    if window < 0:
        raise ValueError(f"window is {window}, limit: 0 or more")
    if (2 * rope.frequencies.shape[0] != batch.head_dim
            or batch.max_tokens + batch.max_sequences > rope.cos_sin.shape[1]):
        raise ValueError(f"cos_sin is {rope.cos_sin.shape[1]} x {rope.frequencies.shape[0]}, not "
                         f"{batch.max_tokens} and {batch.max_sequences} x {batch.head_dim // 2}")
    if batch.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head_dim is {batch.head_dim}, limit: {MAX_HEAD_DIM}")
    team = threads_for(batch.n_threads, attention_work(batch, window) * group // 16)
    n_parts = most_parts(batch, window)
    if n_items % team and n_parts > 1 and n_items * n_parts * size <= batch.found.shape[0]:
        for i in prange(n_items * n_parts, nogil=True, schedule="dynamic", num_threads=team):
            attention_part(qkv, layer, rope, batch, group, window, n_parts, i, team,
                           &batch.found[i * size])
        for i in range(n_items):
            merge_parts(out, batch, group, window, i, &batch.found[i * n_parts * size])
        return
    if team == 1:
        for i in range(n_items):
            attention_item(out, qkv, layer, rope, batch, group, window, i, 1)
        return
    for i in prange(n_items, nogil=True, schedule="dynamic", num_threads=team):
        attention_item(out, qkv, layer, rope, batch, group, window, i, team)


cdef Py_ssize_t first_seen(Batch batch, Py_ssize_t row, Py_ssize_t window) noexcept nogil:
    """The first position that a row sees."""
    cdef Py_ssize_t start = batch.sequences[batch.sequence_of[row]].start
    return max(start, batch.positions[row] - window + 1) if window else start


cdef Py_ssize_t attention_work(Batch batch, Py_ssize_t window) noexcept:
    """Keys and values to read, about: rows times their positions."""
    cdef Py_ssize_t r, total = 0
    for r in range(batch.n_tokens):
        total += batch.positions[r] - first_seen(batch, r, window) + 1
    return total * batch.n_kv_heads * batch.head_dim


cdef View view_of(Py_ssize_t layer, Rope rope, Batch batch, Py_ssize_t window,
                  Py_ssize_t item) noexcept nogil:
    """What an item sees."""
    cdef Py_ssize_t r = item // batch.n_kv_heads
    cdef Py_ssize_t turn = batch.max_tokens + batch.sequence_of[r]
    cdef Sequence* s = &batch.sequences[batch.sequence_of[r]]
    cdef View view
    view.pages, view.n_pages = s.pages + layer * s.n_pages, s.n_pages
    view.type, view.n_kv_heads, view.head_dim = batch.type, batch.n_kv_heads, batch.head_dim
    view.kv_head = item % batch.n_kv_heads
    view.first, view.last = first_seen(batch, r, window), batch.positions[r]
    view.n_sinks = s.n_sinks if view.first == s.start else 0    # the model's own window hides them
    view.cosines, view.sines = &rope.cos_sin[0, turn, 0], &rope.cos_sin[1, turn, 0]
    view.interleaved = rope.interleaved
    return view


cdef Py_ssize_t parts_of(Batch batch, Py_ssize_t window, Py_ssize_t r) noexcept nogil:
    """In how many parts the kernels sum what a row sees."""
    cdef Sequence* s = &batch.sequences[batch.sequence_of[r]]
    cdef Py_ssize_t first = first_seen(batch, r, window)
    return kv_n_splits(first, batch.positions[r]) + (s.n_sinks > 0 and first == s.start)


cdef Py_ssize_t most_parts(Batch batch, Py_ssize_t window) noexcept nogil:
    cdef Py_ssize_t r, most = 0
    for r in range(batch.n_tokens):
        most = max(most, parts_of(batch, window, r))
    return most


# An item is one row and one key head, with the query heads that share it. After each, a thread gets
# about the one ``ahead`` further on, whose keys are asked for meanwhile.
cdef void attention_item(Matrix out, Matrix qkv, Py_ssize_t layer, Rope rope, Batch batch,
                         Py_ssize_t n_group, Py_ssize_t window, Py_ssize_t item,
                         Py_ssize_t ahead) noexcept nogil:
    cdef Py_ssize_t r = item // batch.n_kv_heads
    cdef Py_ssize_t column = item % batch.n_kv_heads * n_group * batch.head_dim
    cdef bint has_next = item + ahead < batch.n_tokens * batch.n_kv_heads
    cdef View next, view = view_of(layer, rope, batch, window, item)
    if has_next:
        next = view_of(layer, rope, batch, window, item + ahead)
    kernels.attention(out.data + r * out.n_cols + column, qkv.data + r * qkv.n_cols + column,
                      &view, &next if has_next else NULL, n_group)


cdef void attention_part(Matrix qkv, Py_ssize_t layer, Rope rope, Batch batch, Py_ssize_t n_group,
                         Py_ssize_t window, Py_ssize_t n_parts, Py_ssize_t i, Py_ssize_t ahead,
                         float* found) noexcept nogil:
    """Part i % n_parts of item i // n_parts."""
    cdef Py_ssize_t r = i // n_parts // batch.n_kv_heads, part = i % n_parts, then = i + ahead
    cdef Py_ssize_t column = i // n_parts % batch.n_kv_heads * n_group * batch.head_dim
    cdef bint has_next = then < batch.n_tokens * batch.n_kv_heads * n_parts
    cdef Py_ssize_t begin
    cdef View next, view
    if part >= parts_of(batch, window, r):
        return
    view = view_of(layer, rope, batch, window, i // n_parts)
    if has_next:
        next = view_of(layer, rope, batch, window, then // n_parts)
        begin = (next.first // SPLIT + then % n_parts) * SPLIT
        has_next = begin <= next.last                           # not the sinks
        next.first, next.last = max(next.first, begin), min(next.last, begin + SPLIT - 1)
    kernels.attention_split(found, qkv.data + r * qkv.n_cols + column, &view,
                            &next if has_next else NULL, part, n_group)


cdef void merge_parts(Matrix out, Batch batch, Py_ssize_t n_group, Py_ssize_t window,
                      Py_ssize_t item, const float* found) noexcept nogil:
    cdef Py_ssize_t r = item // batch.n_kv_heads, kv_head = item % batch.n_kv_heads
    cdef float* into = out.data + r * out.n_cols + kv_head * n_group * batch.head_dim
    kernels.attention_merge(into, found, parts_of(batch, window, r), n_group, batch.head_dim)


def gated_activation(Matrix out not None, Matrix gate_up not None, str act, Batch batch not None):
    """out = act(gate) * up, act "relu2", "silu" or "gelu" (its tanh form); gate_up holds both side
    by side."""
    cdef Py_ssize_t r, n = out.n_cols
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n // 2)
    cdef Gate kernel = gate_kernel(act)
    check_rows(batch, gate_up.n_rows, gate_up.n_cols, 2 * n, "gate_up")
    check_rows(batch, out.n_rows, n, n, "out")
    if team == 1:
        for r in range(batch.n_tokens):
            kernel(out.data + r * n, gate_up.data + r * 2 * n, gate_up.data + r * 2 * n + n, n)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        kernel(out.data + r * n, gate_up.data + r * 2 * n, gate_up.data + r * 2 * n + n, n)


cdef Gate gate_kernel(str act) except NULL:
    if act == "relu2":
        return kernels.relu2_gate
    if act == "silu":
        return kernels.silu_gate
    if act == "gelu":
        return kernels.gelu_gate
    raise ValueError(f"act is {act!r}, not relu2, silu or gelu")


def gather_rows(Matrix out not None, Matrix x not None, list rows not None):
    """out[i] = x[rows[i]]."""
    cdef Py_ssize_t i = 0, r, n = x.n_cols
    if len(rows) > out.n_rows or out.n_cols != n:
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, not {len(rows)} x {n}")
    for r in rows:
        if not 0 <= r < x.n_rows:
            raise ValueError(f"row {r} of {x.n_rows}")
        memmove(out.data + i * n, x.data + r * n, n * sizeof(float))
        i += 1


def head(Matrix out not None, QuantizedRows rows not None, Matrix x not None, Batch batch not None):
    """Logits: out[i] = rows x[i]."""
    cdef Py_ssize_t c, n = batch.n_tokens
    cdef Py_ssize_t n_chunks = (rows.n_rows + CHUNK - 1) // CHUNK
    cdef int team = threads_for(batch.n_threads, rows.n_rows * rows.n_cols * n // 8)
    if n > min(out.n_rows, x.n_rows) or out.n_cols != rows.n_rows or x.n_cols != rows.n_cols:
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, rows {rows.n_rows} x {rows.n_cols}, "
                         f"x {x.n_rows} x {x.n_cols}, {n} wanted")
    if team == 1:
        for c in range(n_chunks):
            head_chunk(out, rows, x, 0, n, c)
        return
    for c in prange(n_chunks, nogil=True, schedule="guided", num_threads=team):
        head_chunk(out, rows, x, 0, n, c)


cdef void head_chunk(Matrix out, QuantizedRows rows, Matrix x, Py_ssize_t first_token, Py_ssize_t n_tokens,
                     Py_ssize_t chunk) noexcept nogil:
    """Four tokens at a time; where there are fewer, the last of them again."""
    cdef Py_ssize_t first = chunk * CHUNK
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, rows.n_rows - first)
    cdef Py_ssize_t t, begin, n
    cdef float* outs[4]
    cdef const float* xs[4]
    for begin in range(first_token, first_token + n_tokens, 4):
        n = min(<Py_ssize_t>4, first_token + n_tokens - begin)
        for t in range(4):
            outs[t] = out.data + (begin + min(t, n - 1)) * out.n_cols + first
            xs[t] = x.data + (begin + min(t, n - 1)) * x.n_cols
        if n == 1:
            kernels.matvec_rows(outs[0], &rows.data[first, 0], xs[0], rows.type, rows.data.shape[1],
                             n_rows, rows.n_cols)
        else:
            kernels.matvec_rows_4(outs, &rows.data[first, 0], xs, rows.type, rows.data.shape[1],
                               n_rows, rows.n_cols)


include "gumbel.pxi"
include "screen_bounds.pxi"
include "screen.pxi"


def argmax(const float[::1] x not None):
    """The index of the largest, the lowest of equal ones (NumPy's copies read-only arrays)."""
    cdef Py_ssize_t i, best = 0
    cdef float most = -INFINITY
    if x.shape[0] == 0:
        raise ValueError("argmax of nothing")
    for i in range(x.shape[0]):
        if x[i] > most:
            best, most = i, x[i]
    return best


def exp(const float[::1] x not None, out=None):
    """e^x, float32: the same bits on every CPU, within 2 units in the last place. out may be x."""
    if out is None:
        out = np.empty(x.shape[0], np.float32)
    cdef float[::1] view = out
    if view.shape[0] != x.shape[0]:
        raise ValueError(f"out has {view.shape[0]} items, not {x.shape[0]}")
    if x.shape[0]:
        kernels.exp(&view[0], &x[0], x.shape[0])
    return out


def read_bandwidth(const uint8_t[::1] data not None, int n_threads=1):
    """Seconds that a plain read of ``data`` takes with n_threads: the bound of every kernel."""
    cdef Py_ssize_t c, n = data.shape[0], n_chunks = (data.shape[0] + READ_CHUNK - 1) // READ_CHUNK
    cdef uint64_t total = 0
    cdef const uint8_t* p
    if n == 0:
        raise ValueError("nothing to read: data is empty")
    p = &data[0]
    begin = time.perf_counter()
    for c in prange(n_chunks, nogil=True, schedule="static",
                    num_threads=most_threads(n_threads, n // 16)):
        total ^= kernels.read(p + c * READ_CHUNK, min(<Py_ssize_t>READ_CHUNK, n - c * READ_CHUNK),
                              on_amd)
    seconds = time.perf_counter() - begin
    log.debug("read %d bytes, checksum %d", n, total)   # used: no compiler may drop the loop
    return seconds
