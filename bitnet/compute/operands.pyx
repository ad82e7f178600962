"""The operands of operations, bound once: a call with them costs well under a microsecond.

Their types and shapes are checked here; what they hold is in operands.pxd. What a call works on
(how many tokens, of which sequences, at which positions, with how many threads) is one Batch.

Arrays come in by the buffer protocol: NumPy's, or any other C-contiguous one of the type that is
named. ValueError for another type or shape and for read-only memory that is to be written.
"""
import numpy as np

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.stdlib cimport calloc, free

from ..kernels.table cimport (
    BLOCK, BLOCK_BYTES, ROWS_BF16, ROWS_F16, ROWS_F32, ROWS_IQ4_NL, ROWS_Q4_0, ROWS_Q4_1,
    ROWS_Q4_K, ROWS_Q5_0, ROWS_Q5_1, ROWS_Q5_K, ROWS_Q6_K, ROWS_Q8_0,
)
from ..runtime.kv_cache cimport KVCache

from ..formats.float_blocks import BLOCKS
from ..runtime.cpu import is_amd

ROW_TYPES = {                           # name in formats/ggml_types.py: number for kernels
    "F32": ROWS_F32, "F16": ROWS_F16, "BF16": ROWS_BF16, "Q8_0": ROWS_Q8_0, "Q4_0": ROWS_Q4_0,
    "Q4_1": ROWS_Q4_1, "Q5_0": ROWS_Q5_0, "Q5_1": ROWS_Q5_1, "Q4_K": ROWS_Q4_K,
    "Q5_K": ROWS_Q5_K, "Q6_K": ROWS_Q6_K, "IQ4_NL": ROWS_IQ4_NL,
}
I2_S_BLOCK = BLOCK, BLOCK_BYTES          # as kernels read it; a test compares formats/ggml_types.py
SCREEN_LIMITS = SCREEN_MAX_BEST, SCREEN_MAX_TOKENS, SCREEN_MAX_COLS
# columns of a ternary matrix: 127 * 131,072 < 2^24, so that a dot product is exact in float32
MAX_LINEAR_COLS = 131072

cdef bint on_amd = is_amd()


cdef class Array:

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef Array open_array(source, char kind, Py_ssize_t itemsize, int n_dims, bint is_written=False):
    cdef Array array = Array.__new__(Array)
    cdef Py_buffer* view = &array.view
    cdef int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if is_written else 0)
    PyObject_GetBuffer(source, view, flags)
    if view.ndim != n_dims or view.itemsize != itemsize or kind != kind_of(view.format):
        name = {c"f": "float", c"i": "int", c"u": "uint"}[kind]
        item_format = "B" if view.format is NULL else view.format.decode()
        raise ValueError(f"an array of {view.ndim} dimensions, items of format {item_format!r} "
                         f"and "
                         f"{view.itemsize} bytes, not {n_dims} of {name}{8 * itemsize}")
    array.data = view.buf if view.len else NULL
    return array


cdef char kind_of(const char* format) noexcept:
    """The kind of a format of the struct module in the machine's byte order; 0 for another one."""
    if format is NULL:                  # bytes
        return c"u"
    if format[0] in b"@=^":
        format += 1
    if format[0] == 0 or format[1] != 0:
        return 0
    return (c"f" if format[0] in b"efdg" else c"i" if format[0] in b"bhilqn"
            else c"u" if format[0] in b"BHILQN" else 0)


cdef asarray(Array array):
    """The NumPy array that was opened, or one of the same memory."""
    return np.asarray(<object>array.view.obj)


def row_bytes(str type, Py_ssize_t n_cols):
    """Bytes of an embedding or head row of the type; ValueError where n_cols does not fit it."""
    if type not in ROW_TYPES:
        raise ValueError(f"rows of type {type}, limit: one of {', '.join(ROW_TYPES)}")
    block, size = BLOCKS[type]
    if n_cols % block:
        raise ValueError(f"rows of {n_cols} {type}, limit: {type} comes in blocks of {block}")
    return n_cols // block * size


cdef class Matrix:
    """float32 (n_rows, n_cols), writable; keeps its array alive."""

    def __cinit__(self, array):
        self.owner = open_array(array, c"f", 4, 2, True)
        self.data = <float*>self.owner.data
        self.n_rows, self.n_cols = self.owner.view.shape[0], self.owner.view.shape[1]

    def array(self):
        """The NumPy array, the same memory."""
        return asarray(self.owner)


cdef class Norm:
    """An RMSNorm's weight, float32 (n,), and its epsilon."""

    def __cinit__(self, weight, float eps):
        self.owner = open_array(weight, c"f", 4, 1)
        self.weight, self.n = <const float*>self.owner.data, self.owner.view.shape[0]
        self.eps = eps


cdef class QuantizedActivations:
    """Activations quantised per token: int8 codes (n_rows, padded n_cols), float32 1 / scale
    (n_rows,), int32 sums of codes (n_rows,); all are written."""

    def __cinit__(self, codes, inv_scale, sums):
        self.owner_of_codes = open_array(codes, c"i", 1, 2, True)
        self.owner_of_scales = open_array(inv_scale, c"f", 4, 1, True)
        self.owner_of_sums = open_array(sums, c"i", 4, 1, True)
        cdef Py_ssize_t n_scales = self.owner_of_scales.view.shape[0]
        cdef Py_ssize_t n_sums = self.owner_of_sums.view.shape[0]
        self.n_rows = self.owner_of_codes.view.shape[0]
        self.stride = self.owner_of_codes.view.shape[1]
        if not self.n_rows == n_scales == n_sums or self.stride % BLOCK:
            raise ValueError(f"codes are {self.n_rows} x {self.stride} (a multiple of {BLOCK}), "
                             f"scales {n_scales}, sums {n_sums}")
        self.codes = <int8_t*>self.owner_of_codes.data
        self.inv_scale = <float*>self.owner_of_scales.data
        self.sums = <int32_t*>self.owner_of_sums.data

    def arrays(self):
        """(codes, 1 / scale, sums) as NumPy arrays, the same memory."""
        return (asarray(self.owner_of_codes), asarray(self.owner_of_scales),
                asarray(self.owner_of_sums))


cdef class Linear:
    """Up to four ternary matrices of equal width, stacked: their outputs lie side by side.

    matrices: (codes, scales) pairs; codes uint8 (n_rows, padded columns / 4) in the I2_S layout,
    rows padded to 128 columns, read in place; scales float32 (n_rows, 1), or (1, 1) for all rows,
    which multiply the integer dot product. n_cols: columns before padding.
    """

    def __cinit__(self, matrices, Py_ssize_t n_cols):
        cdef Array codes, scales
        cdef StackedMatrix* matrix
        cdef Py_ssize_t n_rows, row_bytes
        if not 1 <= len(matrices) <= MAX_STACKED or not 0 < n_cols <= MAX_LINEAR_COLS:
            raise ValueError(f"{len(matrices)} matrices (1 to {MAX_STACKED}) of {n_cols} columns "
                             f"(1 to {MAX_LINEAR_COLS})")
        self.n_cols, self.n_blocks = n_cols, (n_cols + BLOCK - 1) // BLOCK
        self.owners = []
        for arrays in matrices:
            codes = open_array(arrays[0], c"u", 1, 2)
            scales = open_array(arrays[1], c"f", 4, 2)
            n_rows, row_bytes = codes.view.shape[0], codes.view.shape[1]
            shape = scales.view.shape[0], scales.view.shape[1]
            if (row_bytes != self.n_blocks * BLOCK_BYTES or not n_rows
                    or shape not in ((1, 1), (n_rows, 1))):
                raise ValueError(f"codes are {n_rows} x {row_bytes} bytes, not rows of "
                                 f"{self.n_blocks * BLOCK_BYTES}; scales {shape[0]} x {shape[1]}")
            matrix = &self.matrices[self.n_matrices]
            matrix.codes, matrix.scales = <const uint8_t*>codes.data, <const float*>scales.data
            matrix.scale_step = shape[0] > 1
            matrix.n_rows = n_rows
            matrix.first_row, matrix.first_chunk = self.n_rows, self.n_chunks
            self.min_rows = min(n_rows, self.min_rows) if self.n_matrices else n_rows
            self.n_rows += n_rows
            self.n_chunks += (n_rows + CHUNK - 1) // CHUNK
            self.n_matrices += 1
            self.owners += [codes, scales]


cdef class QuantizedRows:
    """Rows of an embedding or a head, read in place: uint8 (n_rows, bytes of a row) of a type."""

    def __cinit__(self, data, str type, Py_ssize_t n_cols):
        cdef Array owner = open_array(data, c"u", 1, 2)
        if (not owner.view.shape[0] or owner.view.shape[1] != row_bytes(type, n_cols)
                or n_cols <= 0):
            raise ValueError(f"rows of {n_cols} {type} take {row_bytes(type, n_cols)} bytes, "
                             f"not {owner.view.shape[1]}")
        self.owner, self.data, self.type = owner, <const uint8_t*>owner.data, ROW_TYPES[type]
        self.n_rows, self.row_bytes = owner.view.shape[0], owner.view.shape[1]
        self.n_cols = n_cols


cdef class Rope:
    """Rotary positions (Su et al. 2021): frequencies, and what a batch's positions make of them.

    frequencies: float32 (head_dim / 2,). cos_sin: writable float32 (2, n, head_dim / 2), n the rows
    of a batch and behind them its sequences. Angles of positions below n_trained are rounded to
    float32, as transformers does: at position 4000 by 2e-4, the largest difference between
    engines. Beyond, where it would grow to 0.06 at 10^6, they are exact. factor: what cosines and
    sines are multiplied with.
    """

    def __cinit__(self, frequencies, cos_sin, bint interleaved, Py_ssize_t n_trained,
                  float factor=1):
        self.owner_of_frequencies = open_array(frequencies, c"f", 4, 1)
        self.owner_of_table = open_array(cos_sin, c"f", 4, 3, True)
        cdef const Py_ssize_t* shape = self.owner_of_table.view.shape
        self.half, self.n_rows = self.owner_of_frequencies.view.shape[0], shape[1]
        if shape[0] != 2 or shape[2] != self.half or not self.half:
            raise ValueError(f"cos_sin is {shape[0]} x {shape[1]} x {shape[2]}, "
                             f"not 2 x rows x {self.half} frequencies")
        self.frequencies = <const float*>self.owner_of_frequencies.data
        self.cosines = <float*>self.owner_of_table.data
        self.sines = self.cosines + self.n_rows * self.half
        self.interleaved, self.n_trained, self.factor = interleaved, n_trained, factor


cdef class Screen:
    """An int8 copy of a head's rows with bounds of its error, and what screening works in.

    codes: int8 (n_rows, n_cols), within +-127; bounds: float32 (n_rows, 3), see screen_bounds.pyx.
    array: f(shape, dtype), where work arrays come from.
    """

    def __cinit__(self, codes, bounds, array=np.empty):
        cdef Array of_codes = open_array(codes, c"i", 1, 2)
        cdef Array of_bounds = open_array(bounds, c"f", 4, 2)
        cdef Array inputs, best, survivors
        cdef Py_ssize_t n_rows = of_codes.view.shape[0], n_cols = of_codes.view.shape[1]
        if not 0 < n_cols <= SCREEN_MAX_COLS or not n_rows or (
                (of_bounds.view.shape[0], of_bounds.view.shape[1]) != (n_rows, 3)):
            raise ValueError(f"codes are {n_rows} x {n_cols} (at most {SCREEN_MAX_COLS}), "
                             f"bounds {of_bounds.view.shape[0]} x {of_bounds.view.shape[1]}")
        work = [array(shape, dtype) for shape, dtype in screen_work(n_rows, n_cols)]
        inputs, best = open_array(work[0], c"i", 2, 2, True), open_array(work[1], c"f", 8, 2, True)
        survivors = open_array(work[2], c"i", 4, 1, True)
        self.owners = [of_codes, of_bounds, inputs, best, survivors]
        self.codes, self.bounds = <const int8_t*>of_codes.data, <const float*>of_bounds.data
        self.inputs, self.best = <int16_t*>inputs.data, <double*>best.data
        self.survivors, self.max_survivors = <int32_t*>survivors.data, survivors.view.shape[0]
        self.n_rows, self.n_cols, self.n_chunks = n_rows, n_cols, best.view.shape[1]


def screen_work(Py_ssize_t n_rows, Py_ssize_t n_cols):
    """[(shape, dtype)] of the work arrays of a Screen."""
    n_chunks = (n_rows + CHUNK - 1) // CHUNK
    return [((SCREEN_MAX_TOKENS, 2 * n_cols), np.int16),
            ((SCREEN_MAX_TOKENS, n_chunks), np.float64), ((n_rows // 4 + 1,), np.int32)]


cdef class Batch:
    """The rows of one forward pass: tokens of several sequences, and the threads to use.

    partials: float32 (n,), n of ops.partials_floats, or None: threads do not share the positions of
    a sequence then. workspace: see set_workspace.
    """

    def __cinit__(self, Py_ssize_t max_tokens, Py_ssize_t max_sequences, int n_threads=1, *,
                  partials=None, workspace=None):
        if max_tokens < 1 or max_sequences < 1 or n_threads < 1:
            raise ValueError(f"{max_tokens} tokens, {max_sequences} sequences, {n_threads} threads")
        self.positions = <int32_t*>calloc(max_tokens, sizeof(int32_t))
        self.sequence_of = <int32_t*>calloc(max_tokens, sizeof(int32_t))
        self.sequences = <Sequence*>calloc(max_sequences, sizeof(Sequence))
        if self.positions is NULL or self.sequence_of is NULL or self.sequences is NULL:
            raise MemoryError(f"no memory for {max_tokens} tokens of {max_sequences} sequences")
        self.max_tokens, self.max_sequences, self.n_threads = max_tokens, max_sequences, n_threads
        if partials is not None:
            self.owner_of_partials = open_array(partials, c"f", 4, 1, True)
            self.partials = <float*>self.owner_of_partials.data
            self.n_partials = self.owner_of_partials.view.shape[0]
        if workspace is not None:
            self.set_workspace(workspace)

    def __dealloc__(self):
        free(self.positions)
        free(self.sequence_of)
        free(self.sequences)

    def set_workspace(self, workspace):
        """Give each thread bytes to work in: uint8 (n_threads, n), n of ops.workspace_bytes.

        Large batches are faster where there is a row for every thread; results are the same.
        """
        self.owner_of_workspace = open_array(workspace, c"u", 1, 2, True)
        self.workspace = <char*>self.owner_of_workspace.data
        self.n_workspaces = self.owner_of_workspace.view.shape[0]
        self.workspace_bytes = self.owner_of_workspace.view.shape[1]

    def rows_only(self, Py_ssize_t n_tokens):
        """Make it a batch of rows without sequences: enough for linears, norms and gates."""
        if not 0 <= n_tokens <= self.max_tokens:
            raise ValueError(f"{n_tokens} rows, at most {self.max_tokens}")
        self.n_tokens, self.n_sequences, self.caches, self.states = n_tokens, 0, None, ()
        return self

    def set(self, list sequences, tuple states=()):
        """Make it a batch of these sequences: [(KVCache, n_tokens)] in the order of its rows.

        Room is reserved in each cache. states: what else layers remember of these sequences, kept
        as they are. ContextFull or PoolExhausted where a cache has no room: none has moved then.
        """
        cdef KVCache cache
        cdef Py_ssize_t i, n, row = 0, s = 0
        if not 0 < len(sequences) <= self.max_sequences:
            raise ValueError(f"{len(sequences)} sequences, 1 to {self.max_sequences}")
        if len({id(cache) for cache, _ in sequences}) < len(sequences):
            raise ValueError("a cache appears twice in a batch")
        for cache, n in sequences:
            if n < 1 or row + n > self.max_tokens:
                raise ValueError(f"{row + n} rows, at most {self.max_tokens}; {n} of one sequence")
            if s == 0:
                self.n_kv_heads, self.head_dim = cache.n_kv_heads, cache.head_dim
                self.type = cache.type
            elif (cache.n_kv_heads, cache.head_dim, cache.type) != (
                    self.n_kv_heads, self.head_dim, self.type):
                raise ValueError("the sequences' caches differ in shape or dtype")
            cache.reserve(n)
            for i in range(n):
                self.positions[row + i] = <int32_t>(cache.length + i)
                self.sequence_of[row + i] = <int32_t>s
            self.sequences[s] = Sequence(cache.pages, cache.n_pages, cache.start,
                                         cache.n_sinks if cache.start else 0)
            row += n
            s += 1
        self.n_tokens, self.n_sequences = row, s
        self.caches, self.states = [cache for cache, _ in sequences], states
        return self


cdef int check_rows(Batch batch, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t n_cols,
                    str what) except -1:
    if batch.n_tokens > rows or cols != n_cols:
        raise ValueError(f"{what} is {rows} x {cols}, not {batch.n_tokens} x {n_cols}")
    return 0


cdef int check_product(Batch batch, Matrix out, Py_ssize_t column, Py_ssize_t n_rows,
                       Py_ssize_t n_cols, Py_ssize_t x_rows, Py_ssize_t x_cols) except -1:
    if x_cols != n_cols or batch.n_tokens > x_rows:
        raise ValueError(f"x is {x_rows} x {x_cols}, not {batch.n_tokens} x {n_cols}")
    if (batch.n_tokens > out.n_rows or column < 0 or column > out.n_cols
            or n_rows > out.n_cols - column):
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, not {batch.n_tokens} x at least "
                         f"{n_rows} from column {column}")
    return 0


cdef bint is_streamed(Py_ssize_t n_bytes, Py_ssize_t min_bytes) noexcept nogil:
    """On AMD alone, where it was measured to be faster: an Intel core has more requests underway to
    its second cache than to the first, a Zen 5 as many."""
    return on_amd and n_bytes >= min_bytes
