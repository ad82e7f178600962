"""Operations of one row or one number at a time: embedding, norms, rotation, activations; and what
sampling and benchmarks ask of a whole array.

Shapes are checked here, rows split over threads (threads.pyx), kernels called.
"""
import logging
import time

import numpy as np

from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.string cimport memmove

from .grouped cimport GroupedActivations, GroupedLinear, grouped_row, quantize_groups
from .operands cimport (
    Array, Batch, Matrix, Norm, QuantizedActivations, QuantizedRows, Rope, Sequence, check_rows,
    is_streamed, open_array,
)
from .threads cimport granted_threads, threads_for
from ..kernels.table cimport BLOCK
from ..runtime.dispatch cimport kernels

log = logging.getLogger("bitnet")

cdef enum:
    READ_CHUNK = 1 << 18                # bytes that a thread reads at a time; they fit a cache

ctypedef void (*Gate)(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil


def embed(Matrix out not None, rows not None, token_ids, Batch batch not None, float scale=1.0):
    """out[i] = scale times row token_ids[i], as float32.

    rows: QuantizedRows, or a GroupedLinear of one matrix. out: (n_tokens or more, n_cols of rows).
    token_ids: int32 (n_tokens,), each below n_rows.
    """
    cdef Py_ssize_t i, j, n_rows, n_cols
    cdef float* row
    cdef bint is_grouped = type(rows) is GroupedLinear
    cdef QuantizedRows plain = None if is_grouped else rows
    cdef GroupedLinear grouped = rows if is_grouped else None
    n_rows = grouped.n_rows if is_grouped else plain.n_rows
    n_cols = grouped.n_cols if is_grouped else plain.n_cols
    cdef Array array = open_array(token_ids, c"i", 4, 1)
    cdef const int32_t* ids = <const int32_t*>array.data
    check_rows(batch, out.n_rows, out.n_cols, n_cols, "out")
    if array.view.shape[0] != batch.n_tokens:
        raise ValueError(f"{array.view.shape[0]} token ids for {batch.n_tokens} rows")
    for i in range(batch.n_tokens):
        if not 0 <= ids[i] < n_rows:
            raise ValueError(f"token id {ids[i]} is not in 0..{n_rows - 1}")
    for i in range(batch.n_tokens):
        row = out.data + i * out.n_cols
        if is_grouped:
            grouped_row(row, grouped, ids[i])
        else:
            kernels.dequantize_row(row, plain.data + ids[i] * plain.row_bytes, plain.type, n_cols)
        for j in range(n_cols if scale != 1.0 else 0):
            row[j] *= scale


def gather_rows(Matrix out not None, Matrix x not None, list rows not None):
    """out[i] = x[rows[i]]. out: (len(rows) or more, n), x: (m, n)."""
    cdef Py_ssize_t i = 0, r, n = x.n_cols
    if len(rows) > out.n_rows or out.n_cols != n:
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, not {len(rows)} x {n}")
    for r in rows:
        if not 0 <= r < x.n_rows:
            raise ValueError(f"row {r} of {x.n_rows}")
        memmove(out.data + i * n, x.data + r * n, n * sizeof(float))
        i += 1


# ------------------------------------------------------------------------------- norms and codes
def rms_norm(Matrix out not None, Norm norm not None, Matrix x not None, Batch batch not None):
    """out = x / sqrt(mean(x^2) + eps) * weight, row by row; out may be x.

    out, x: (n_tokens or more, n of norm).
    """
    cdef Py_ssize_t r, n = x.n_cols
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n // 2)
    check_rows(batch, x.n_rows, norm.n, n, "norm")
    check_rows(batch, out.n_rows, out.n_cols, n, "out")
    if team == 1:
        for r in range(batch.n_tokens):
            kernels.rms_norm(out.data + r * n, norm.weight, x.data + r * n, norm.eps, n)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        kernels.rms_norm(out.data + r * n, norm.weight, x.data + r * n, norm.eps, n)


def head_norm(Matrix x not None, Norm norm not None, Py_ssize_t first_head, Py_ssize_t n_heads,
              Batch batch not None):
    """RMSNorm in place of each of n_heads heads of a row, from first_head on, as wide as norm.

    x: (n_tokens or more, at least (first_head + n_heads) * n of norm).
    """
    cdef Py_ssize_t r, head_dim = norm.n
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
            norm_heads(heads + r * x.n_cols, norm, n_heads)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        norm_heads(heads + r * x.n_cols, norm, n_heads)


cdef void norm_heads(float* x, Norm norm, Py_ssize_t n_heads) noexcept nogil:
    cdef Py_ssize_t h
    for h in range(n_heads):
        kernels.rms_norm(x + h * norm.n, norm.weight, x + h * norm.n, norm.eps, norm.n)


def quantize(out not None, Matrix x not None, Batch batch not None):
    """Codes of each row of x, padded with zeros: QuantizedActivations with one scale a row, or
    GroupedActivations with scales of groups.

    out: (n_tokens or more, at least the padded columns). x: (n_tokens or more, n).
    """
    if type(out) is GroupedActivations:
        quantize_groups(out, x, batch)
    else:
        quantize_rows(out, x, batch)


cdef int quantize_rows(QuantizedActivations out, Matrix x, Batch batch) except -1:
    """int8 codes with one scale a row, up to a multiple of 128."""
    cdef Py_ssize_t r, n = x.n_cols
    cdef Py_ssize_t padded = (n + BLOCK - 1) // BLOCK * BLOCK
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n // 2)
    check_rows(batch, x.n_rows, n, n, "x")
    if batch.n_tokens > out.n_rows or padded > out.stride:
        raise ValueError(f"codes are {out.n_rows} x {out.stride}, not {batch.n_tokens} x {padded}")
    out.n_cols = n
    if team == 1:
        for r in range(batch.n_tokens):
            kernels.quantize(out.codes + r * out.stride, out.inv_scale + r, out.sums + r,
                             x.data + r * n, n, padded)
        return 0
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        kernels.quantize(out.codes + r * out.stride, out.inv_scale + r, out.sums + r,
                         x.data + r * n, n, padded)
    return 0


# -------------------------------------------------------------------------------------- rotation
def rope_table(Rope rope not None, Batch batch not None):
    """Make the cosines and sines of a batch's positions: once, before ops.rope of any layer.

    For each sequence whose window has moved also those that rotate a query back, so that its sinks
    seem to stand right before the window: a distance that the model was trained for.
    """
    cdef Py_ssize_t i, j, row
    cdef Sequence* s
    if batch.max_tokens + batch.max_sequences > rope.n_rows:
        raise ValueError(f"cos_sin is of {rope.n_rows} rows, not {batch.max_tokens} and "
                         f"{batch.max_sequences}")
    for i in range(batch.n_tokens):
        fill_table(rope, i, batch.positions[i])
        for j in range(rope.half if rope.factor != 1 else 0):
            rope.cosines[i * rope.half + j] *= rope.factor
            rope.sines[i * rope.half + j] *= rope.factor
    for i in range(batch.n_sequences):
        s = &batch.sequences[i]
        if s.n_sinks:
            row = batch.max_tokens + i
            fill_table(rope, row, s.start - s.n_sinks)
            for j in range(rope.half):
                rope.sines[row * rope.half + j] *= -1


cdef void fill_table(Rope rope, Py_ssize_t row, Py_ssize_t position) noexcept:
    """Make one row's cosines and sines."""
    kernels.cos_sin(rope.cosines + row * rope.half, rope.sines + row * rope.half, rope.frequencies,
                    position, position < rope.n_trained, rope.half)


def rope(Matrix x not None, Rope rope not None, Py_ssize_t n_heads, Batch batch not None,
         Py_ssize_t head_dim=0):
    """Rotate the first n_heads heads of a row by its position, which ops.rope_table has seen.

    x: (n_tokens or more, at least n_heads * head_dim). head_dim: 0 for what rope rotates; of a
    wider head the other columns stay.
    """
    cdef Py_ssize_t r, h, n = 2 * rope.half
    head_dim = head_dim or n
    if (n_heads < 0 or head_dim < n or n_heads > x.n_cols // head_dim
            or batch.n_tokens > min(x.n_rows, rope.n_rows)):
        raise ValueError(f"x is {x.n_rows} x {x.n_cols}, cos_sin {rope.n_rows} x {rope.half}, "
                         f"{n_heads} heads of {head_dim}, {batch.n_tokens} rows")
    for r in range(batch.n_tokens):
        for h in range(n_heads):
            kernels.rope(x.data + r * x.n_cols + h * head_dim, rope.cosines + r * rope.half,
                         rope.sines + r * rope.half, rope.interleaved, n)


# ------------------------------------------------------------------------------------ activations
def gated_activation(Matrix out not None, Matrix gate_up not None, str act, Batch batch not None,
                     Py_ssize_t column=0):
    """out = act(gate) * up, act "relu2", "silu" or "gelu" (its tanh form).

    out: (n_tokens or more, n). gate_up: (n_tokens or more, column + 2 n), the gate from column on
    and up behind it, the last ones.
    """
    cdef Py_ssize_t r, n = out.n_cols, stride = gate_up.n_cols
    cdef const float* gate = gate_up.data + column
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n // 2)
    cdef Gate kernel = gate_kernel(act)
    if column < 0:
        raise ValueError(f"column is {column}")
    check_rows(batch, gate_up.n_rows, stride, column + 2 * n, "gate_up")
    check_rows(batch, out.n_rows, n, n, "out")
    if team == 1:
        for r in range(batch.n_tokens):
            kernel(out.data + r * n, gate + r * stride, gate + r * stride + n, n)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        kernel(out.data + r * n, gate + r * stride, gate + r * stride + n, n)


cdef Gate gate_kernel(str act) except NULL:
    if act == "relu2":
        return kernels.relu2_gate
    if act == "silu":
        return kernels.silu_gate
    if act == "gelu":
        return kernels.gelu_gate
    raise ValueError(f"act is {act!r}, not relu2, silu or gelu")


# ----------------------------------------------------------------------------------- whole arrays
def argmax(x):
    """The index of the largest of float32 (n,), the lowest of equal ones, or of the first NaN, as
    NumPy's, which copies read-only arrays."""
    cdef Array array = open_array(x, c"f", 4, 1)
    cdef const float* values = <const float*>array.data
    cdef Py_ssize_t i, best = 0
    cdef float largest = -INFINITY
    if array.view.shape[0] == 0:
        raise ValueError("argmax of nothing")
    for i in range(array.view.shape[0]):
        if not values[i] <= largest:                    # or it is NaN
            best, largest = i, values[i]
            if largest != largest:
                break
    return best


def exp(x, out=None):
    """e^x of float32 (n,): the same bits on every CPU, within 2 units in the last place.

    out: float32 (n,), which may be x; None: a new array.
    """
    cdef Array source = open_array(x, c"f", 4, 1), target
    cdef Py_ssize_t n = source.view.shape[0]
    if out is None:
        out = np.empty(n, np.float32)
    target = open_array(out, c"f", 4, 1, True)
    if target.view.shape[0] != n:
        raise ValueError(f"out has {target.view.shape[0]} items, not {n}")
    if n:
        kernels.exp(<float*>target.data, <const float*>source.data, n)
    return out


def read_bandwidth(data, int n_threads=1):
    """Seconds that a plain read of uint8 (n,) takes with n_threads: no kernel can be faster."""
    cdef Array array = open_array(data, c"u", 1, 1)
    cdef Py_ssize_t c, n = array.view.shape[0], n_chunks = (n + READ_CHUNK - 1) // READ_CHUNK
    cdef uint64_t total = 0
    cdef const uint8_t* p = <const uint8_t*>array.data
    if n == 0:
        raise ValueError("nothing to read: data is empty")
    begin = time.perf_counter()
    for c in prange(n_chunks, nogil=True, schedule="static",
                    num_threads=granted_threads(n_threads, n // 16)):
        total ^= kernels.read(p + c * READ_CHUNK, min(<Py_ssize_t>READ_CHUNK, n - c * READ_CHUNK),
                              is_streamed(n, 0))
    seconds = time.perf_counter() - begin
    log.debug("read %d bytes, checksum %d", n, total)   # used: no compiler may drop the loop
    return seconds
