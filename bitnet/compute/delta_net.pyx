"""Layers with a state: the gated DeltaNet, and what gated attention has beside plain attention.

A state is two arrays of a sequence and a layer, read and written by whoever computes the layer:
    taps   float32 (n_taps - 1, n_channels), the latest inputs of the convolution, oldest first
    delta  float32 (n_heads, head_dim / 16, key_dim, 16), columns of a head's state in blocks of 16
"""
from cython.parallel cimport prange
from libc.string cimport memcpy, memmove

from .operands cimport Array, Batch, Matrix, check_rows, open_array
from .threads cimport threads_for
from ..kernels.table cimport MAX_TAPS
from ..runtime.dispatch cimport kernels

cdef enum:
    COLUMNS = 16                        # of a head's state that lie side by side


cdef class DeltaShape:
    """Heads of a DeltaNet layer: n_key_heads of key_dim, n_heads of head_dim.

    tiled: head j has the queries and keys of key head j mod n_key_heads, otherwise those of
    j // (n_heads / n_key_heads). ValueError for what no kernel takes.
    """
    cdef readonly Py_ssize_t n_key_heads, n_heads, key_dim, head_dim
    cdef readonly bint tiled

    def __cinit__(self, Py_ssize_t n_key_heads, Py_ssize_t n_heads, Py_ssize_t key_dim,
                  Py_ssize_t head_dim, bint tiled):
        if n_key_heads < 1 or n_heads < 1 or n_heads % n_key_heads:
            raise ValueError(f"{n_heads} heads, limit: a multiple of {n_key_heads} key heads")
        if key_dim < 4 or key_dim % 4 or head_dim < COLUMNS or head_dim % COLUMNS:
            raise ValueError(f"heads of {key_dim} and {head_dim}, limit: multiples of 4 and "
                             f"{COLUMNS}")
        self.n_key_heads, self.n_heads = n_key_heads, n_heads
        self.key_dim, self.head_dim, self.tiled = key_dim, head_dim, tiled

    cdef inline Py_ssize_t key_head(self, Py_ssize_t head) noexcept nogil:
        return (head % self.n_key_heads if self.tiled
                else head // (self.n_heads // self.n_key_heads))

    @property
    def n_channels(self):
        """Columns of queries, keys and values side by side."""
        return 2 * self.n_key_heads * self.key_dim + self.n_heads * self.head_dim

    @property
    def delta_shape(self):
        """Of a sequence's ``delta`` in a layer."""
        return self.n_heads, self.head_dim // COLUMNS, self.key_dim, COLUMNS


cdef list open_states(states, Batch batch, Py_ssize_t n_floats):
    """The arrays of the batch's sequences, one each, n_floats of float32."""
    cdef Array array
    opened = [open_array(state, c"f", 4, 1, True) for state in states]
    for array in opened:
        if array.view.shape[0] != n_floats:
            raise ValueError(f"a state of {array.view.shape[0]} numbers, not {n_floats}")
    if len(opened) != batch.n_sequences:
        raise ValueError(f"{len(opened)} states of {batch.n_sequences} sequences")
    return opened


cdef inline Py_ssize_t rows_of(Batch batch, Py_ssize_t first) noexcept nogil:
    """How many rows the sequence of a row has from there on."""
    cdef Py_ssize_t n = 1
    while (first + n < batch.n_tokens
           and batch.sequence_of[first + n] == batch.sequence_of[first]):
        n += 1
    return n


def causal_conv(Matrix out not None, Matrix x not None, weight, states, Batch batch not None):
    """out = silu of a convolution of the first columns of x over positions, channel by channel.

    out: (n_tokens or more, n_channels). x: (n_tokens or more, n_channels or more). weight: float32
    (n_taps, n_channels), the last tap is the row's own. states: of each sequence the inputs before
    its rows, float32 ((n_taps - 1) * n_channels,), oldest first; the latest ones afterwards.
    """
    cdef Py_ssize_t r, first, n, keep, i, n_channels = out.n_cols
    cdef Array taps = open_array(weight, c"f", 4, 2), state
    cdef Py_ssize_t n_taps = taps.view.shape[0]
    cdef const float* w = <const float*>taps.data
    cdef float* before
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n_channels)
    check_rows(batch, out.n_rows, taps.view.shape[1], n_channels, "out")
    if not 1 < n_taps <= MAX_TAPS or batch.n_tokens > x.n_rows or n_channels > x.n_cols:
        raise ValueError(f"{n_taps} taps (2 to {MAX_TAPS}); x is {x.n_rows} x {x.n_cols}, not "
                         f"{batch.n_tokens} x {n_channels} or more")
    first = 0
    for state in open_states(states, batch, (n_taps - 1) * n_channels):
        before, n = <float*>state.data, rows_of(batch, first)
        if team == 1:
            for r in range(n):
                conv_row(out, x, w, before, n_taps, first, r)
        else:
            for r in prange(n, nogil=True, schedule="static", num_threads=team):
                conv_row(out, x, w, before, n_taps, first, r)
        keep = max(<Py_ssize_t>0, n_taps - 1 - n)           # rows of the state that stay in it
        memmove(before, before + (n_taps - 1 - keep) * n_channels,
                keep * n_channels * sizeof(float))
        for i in range(keep, n_taps - 1):
            memcpy(before + i * n_channels, x.data + (first + n - (n_taps - 1) + i) * x.n_cols,
                   n_channels * sizeof(float))
        first += n


cdef void conv_row(Matrix out, Matrix x, const float* w, const float* before, Py_ssize_t n_taps,
                   Py_ssize_t first, Py_ssize_t row) noexcept nogil:
    """One row of a sequence, whose rows begin with first."""
    cdef const float* inputs[MAX_TAPS]
    cdef Py_ssize_t u, at
    for u in range(n_taps):
        at = row - (n_taps - 1) + u
        inputs[u] = (x.data + (first + at) * x.n_cols if at >= 0
                     else before + (n_taps - 1 + at) * out.n_cols)
    kernels.conv_silu(out.data + (first + row) * out.n_cols, w, inputs, n_taps, out.n_cols)


def delta_gates(Matrix gates not None, Matrix alpha not None, Matrix beta not None, a, dt,
                Batch batch not None):
    """gates = e^(a softplus(alpha + dt)) beside sigmoid(beta), head by head.

    gates: (n_tokens or more, 2 n_heads). alpha, beta: (n_tokens or more, n_heads). a, dt: float32
    (n_heads,), a <= 0.
    """
    cdef Py_ssize_t r, n = alpha.n_cols
    cdef Array of_a = open_array(a, c"f", 4, 1), of_dt = open_array(dt, c"f", 4, 1)
    cdef float* out
    check_rows(batch, gates.n_rows, gates.n_cols, 2 * n, "gates")
    check_rows(batch, alpha.n_rows, n, n, "alpha")
    check_rows(batch, beta.n_rows, beta.n_cols, n, "beta")
    if of_a.view.shape[0] != n or of_dt.view.shape[0] != n:
        raise ValueError(f"a of {of_a.view.shape[0]} and dt of {of_dt.view.shape[0]}, not {n}")
    for r in range(batch.n_tokens):
        out = gates.data + r * 2 * n
        kernels.delta_gates(out, out + n, alpha.data + r * n, beta.data + r * n,
                            <const float*>of_a.data, <const float*>of_dt.data, n)


def delta_rule(Matrix out not None, Py_ssize_t column, Matrix qkv not None, Matrix gates not None,
               states, DeltaShape shape not None, Batch batch not None):
    """The recurrence, token by token: out[:, column:] = what the heads read of their states.

    out: (n_tokens or more, at least column + n_heads * head_dim). qkv: (n_tokens or more,
    n_channels), queries and keys of length 1 (the queries scaled), then values. gates: of
    delta_gates. states: of each sequence float32 (size of delta_shape,), which is written.
    """
    cdef Py_ssize_t first = 0, n, h, width = shape.n_heads * shape.head_dim
    cdef Array state
    cdef float* heads
    cdef int team
    check_rows(batch, qkv.n_rows, qkv.n_cols, shape.n_channels, "qkv")
    check_rows(batch, gates.n_rows, gates.n_cols, 2 * shape.n_heads, "gates")
    if batch.n_tokens > out.n_rows or column < 0 or width > out.n_cols - column:
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, not {batch.n_tokens} x at least "
                         f"{width} from column {column}")
    for state in open_states(states, batch, width * shape.key_dim):
        heads, n = <float*>state.data, rows_of(batch, first)
        team = threads_for(batch.n_threads, n * width * shape.key_dim // 4)
        if team == 1:
            for h in range(shape.n_heads):
                delta_head(out, column, qkv, gates, heads, shape, first, n, h)
        else:
            for h in prange(shape.n_heads, nogil=True, schedule="dynamic", num_threads=team):
                delta_head(out, column, qkv, gates, heads, shape, first, n, h)
        first += n


cdef void delta_head(Matrix out, Py_ssize_t column, Matrix qkv, Matrix gates, float* heads,
                     DeltaShape shape, Py_ssize_t first, Py_ssize_t n_tokens,
                     Py_ssize_t head) noexcept nogil:
    """All rows of a sequence, a block of columns after the other: it stays in the first cache."""
    cdef Py_ssize_t key_width = shape.n_key_heads * shape.key_dim
    cdef const float* q = (qkv.data + first * qkv.n_cols + shape.key_head(head) * shape.key_dim)
    cdef const float* v = (qkv.data + first * qkv.n_cols + 2 * key_width + head * shape.head_dim)
    cdef float* state = heads + head * shape.head_dim * shape.key_dim
    cdef float* o = out.data + first * out.n_cols + column + head * shape.head_dim
    cdef const float* decays = gates.data + first * gates.n_cols + head
    cdef Py_ssize_t c
    for c in range(0, shape.head_dim, 16):
        kernels.delta_rule(state + c * shape.key_dim, o + c, out.n_cols, q, q + key_width, v + c,
                           qkv.n_cols, decays, decays + shape.n_heads, gates.n_cols, n_tokens,
                           shape.key_dim)


# ---------------------------------------------------------------------------- gated full attention
def split_queries(Matrix qkv not None, Matrix projected not None, Py_ssize_t n_heads,
                  Py_ssize_t head_dim, Batch batch not None):
    """qkv = projected without the gates: in it each query head is followed by its gate.

    qkv: (n_tokens or more, n_heads * head_dim + n_rest). projected: (n_tokens or more,
    2 * n_heads * head_dim + n_rest).
    """
    cdef Py_ssize_t r, h, width = n_heads * head_dim, n_rest = qkv.n_cols - width
    cdef const float* x
    cdef float* y
    check_gates(projected, width, n_heads, head_dim, batch)
    check_rows(batch, qkv.n_rows, projected.n_cols, 2 * width + n_rest, "projected")
    if n_rest < 0:
        raise ValueError(f"qkv is of {qkv.n_cols} columns, not {width} or more")
    for r in range(batch.n_tokens):
        x, y = projected.data + r * projected.n_cols, qkv.data + r * qkv.n_cols
        for h in range(n_heads):
            memcpy(y + h * head_dim, x + 2 * h * head_dim, head_dim * sizeof(float))
        memcpy(y + width, x + 2 * width, n_rest * sizeof(float))


def gate_heads(Matrix x not None, Matrix projected not None, Py_ssize_t n_heads,
               Py_ssize_t head_dim, Batch batch not None):
    """x = x times the sigmoid of its gates: of split_queries' projected.

    x: (n_tokens or more, n_heads * head_dim).
    """
    cdef Py_ssize_t r
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * x.n_cols // 2)
    check_gates(projected, n_heads * head_dim, n_heads, head_dim, batch)
    check_rows(batch, x.n_rows, x.n_cols, n_heads * head_dim, "x")
    if team == 1:
        for r in range(batch.n_tokens):
            gate_row(x, projected, n_heads, head_dim, r)
        return
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        gate_row(x, projected, n_heads, head_dim, r)


cdef void gate_row(Matrix x, Matrix projected, Py_ssize_t n_heads, Py_ssize_t head_dim,
                   Py_ssize_t r) noexcept nogil:
    cdef Py_ssize_t h
    cdef float* y = x.data + r * x.n_cols
    cdef const float* gates = projected.data + r * projected.n_cols + head_dim
    for h in range(n_heads):
        kernels.sigmoid_gate(y + h * head_dim, gates + 2 * h * head_dim, y + h * head_dim, head_dim)


cdef int check_gates(Matrix projected, Py_ssize_t width, Py_ssize_t n_heads, Py_ssize_t head_dim,
                     Batch batch) except -1:
    """ValueError where projected has no query and gate for each of n_heads of head_dim."""
    if (n_heads < 1 or head_dim < 1 or projected.n_cols < 2 * width
            or batch.n_tokens > projected.n_rows):
        raise ValueError(f"projected is {projected.n_rows} x {projected.n_cols}, not "
                         f"{batch.n_tokens} x at least {2 * n_heads} x {head_dim}")
    return 0
