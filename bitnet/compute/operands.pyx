"""The arrays a graph works on, bound once: a call with them costs well under a microsecond.

Their shapes are checked here; what they hold is in arrays.pxd. What a call works on (how many
tokens, of which sequences, at which positions, with how many threads) is one Batch.
"""
import numpy as np

from libc.stdint cimport int8_t, int32_t, uint8_t

from ..formats import ggml_types
from ..runtime.kv_cache cimport KVCache

ROW_TYPES = {                           # ggml's number, weights and bytes of a block
    name: (ggml_types.TYPES[name].number, ggml_types.TYPES[name].n_values, ggml_types.TYPES[name].n_bytes)
    for name in ggml_types.ROW_TYPES
}
SCREEN_LIMITS = SCREEN_BEST, SCREEN_TOKENS, SCREEN_COLS     # best logits, rows of a step, columns
MAX_COLS = 131072                       # 127 * 131,072 < 2^24: a dot product is exact in float32


def row_bytes(str type, Py_ssize_t n_cols):
    """Bytes of an embedding or head row of the type; ValueError where n_cols does not fit it."""
    if type not in ROW_TYPES:
        raise ValueError(f"rows of type {type}, limit: one of {', '.join(ROW_TYPES)}")
    _, block, size = ROW_TYPES[type]
    if n_cols % block:
        raise ValueError(f"rows of {n_cols} {type}, limit: {type} comes in blocks of {block}")
    return n_cols // block * size


cdef class Matrix:
    """float32 (n_rows, n_cols), writable; keeps its array alive."""

    def __init__(self, float[:, ::1] array not None):
        self.view = array
        self.n_rows, self.n_cols = array.shape[0], array.shape[1]
        self.data = &array[0, 0] if self.n_rows and self.n_cols else NULL

    def array(self):
        """The NumPy array, the same memory."""
        return np.asarray(self.view)


cdef class Norm:
    """An RMSNorm's weight, float32 (n,), and its epsilon."""

    def __init__(self, const float[::1] weight not None, float eps):
        self.weight, self.eps = weight, eps


cdef class QuantizedActivations:
    """Activations quantised per token: int8 (n_rows, padded n_cols), 1 / scale, sums of codes."""

    def __init__(self, int8_t[:, ::1] codes not None, float[::1] inv_scale not None,
                 int32_t[::1] sums not None):
        if not codes.shape[0] == inv_scale.shape[0] == sums.shape[0] or codes.shape[1] % BLOCK:
            raise ValueError(f"codes are {codes.shape[0]} x {codes.shape[1]} (a multiple of "
                             f"{BLOCK}), scales {inv_scale.shape[0]}, sums {sums.shape[0]}")
        self.codes, self.inv_scale, self.sums = codes, inv_scale, sums

    def arrays(self):
        """(codes, 1 / scale, sums) as NumPy arrays, the same memory."""
        return np.asarray(self.codes), np.asarray(self.inv_scale), np.asarray(self.sums)


cdef class Linear:
    """Up to four ternary matrices of equal width, stacked: their outputs lie side by side.

    parts: (codes, scales) pairs; codes uint8 (n_rows, padded columns / 4) in the I2_S layout, rows
    padded to 128 columns, read in place; scales float32 (n_rows,) or (1,), which multiply the
    integer dot product. n_cols: columns before padding.
    """

    def __init__(self, parts, Py_ssize_t n_cols):
        cdef const uint8_t[:, ::1] codes
        cdef const float[::1] scales
        cdef Part* part
        if not 1 <= len(parts) <= MAX_PARTS or not 0 < n_cols <= MAX_COLS:
            raise ValueError(f"{len(parts)} parts (1 to {MAX_PARTS}) of {n_cols} columns "
                             f"(1 to {MAX_COLS})")
        self.n_cols, self.n_blocks = n_cols, (n_cols + BLOCK - 1) // BLOCK
        self.owners = []
        for codes, scales in parts:
            if (codes.shape[1] != self.n_blocks * BLOCK_BYTES or not codes.shape[0]
                    or scales.shape[0] not in (1, codes.shape[0])):
                raise ValueError(f"codes are {codes.shape[0]} x {codes.shape[1]} bytes, not rows "
                                 f"of {self.n_blocks * BLOCK_BYTES}; scales {scales.shape[0]}")
            part = &self.parts[self.n_parts]
            part.codes, part.scales = &codes[0, 0], &scales[0]
            part.scale_step = scales.shape[0] > 1
            part.n_rows = codes.shape[0]
            part.first_row, part.first_chunk = self.n_rows, self.n_chunks
            self.n_rows += part.n_rows
            self.n_chunks += (part.n_rows + CHUNK - 1) // CHUNK
            self.n_parts += 1
            self.owners.append((codes, scales))
        self.fewest_rows = min([codes.shape[0] for codes, _ in self.owners])


cdef class QuantizedRows:
    """Rows of an embedding or a head, read in place: uint8 (n_rows, bytes of a row) of a type."""

    def __init__(self, const uint8_t[:, ::1] data not None, str type, Py_ssize_t n_cols):
        if not data.shape[0] or data.shape[1] != row_bytes(type, n_cols) or n_cols <= 0:
            raise ValueError(f"rows of {n_cols} {type} take {row_bytes(type, n_cols)} bytes, "
                             f"not {data.shape[1]}")
        self.data, self.type = data, ROW_TYPES[type][0]
        self.n_rows, self.n_cols = data.shape[0], n_cols


cdef class Rope:
    """Rotary positions (Su et al. 2021): frequencies, and what a batch's positions make of them.

    frequencies: float32 (head_dim / 2,). cos_sin: writable float32 (2, n, head_dim / 2), n the rows
    of a batch and behind them its sequences. Angles of positions below n_trained are rounded to
    float32, as transformers does: at position 4000 by 2e-4, the largest difference between
    engines. Beyond, where it would grow to 0.06 at 10^6, they are exact.
    """

    def __init__(self, const float[::1] frequencies not None, float[:, :, ::1] cos_sin not None,
                 bint interleaved, Py_ssize_t n_trained):
        if (cos_sin.shape[0] != 2 or cos_sin.shape[2] != frequencies.shape[0]
                or not cos_sin.shape[2]):
            raise ValueError(f"cos_sin is {cos_sin.shape[0]} x {cos_sin.shape[1]} x {cos_sin.shape[2]}, "
                             f"not 2 x rows x {frequencies.shape[0]} frequencies")
        self.frequencies, self.cos_sin = frequencies, cos_sin
        self.interleaved, self.n_trained = interleaved, n_trained


cdef class Screen:
    """An int8 copy of a head's rows with bounds of its error, and what screening works in.

    codes: int8 (n_rows, n_cols), within +-127; bounds: float32 (n_rows, 3), see screen_bounds.pxi.
    array: f(shape, dtype), where work arrays come from.
    """

    def __init__(self, const int8_t[:, ::1] codes not None, const float[:, ::1] bounds not None,
                 array=np.empty):
        cdef Py_ssize_t n_rows = codes.shape[0], n_cols = codes.shape[1]
        if not 0 < n_cols <= SCREEN_COLS or not n_rows or (
                (bounds.shape[0], bounds.shape[1]) != (n_rows, 3)):
            raise ValueError(f"codes are {n_rows} x {n_cols} (at most {SCREEN_COLS}), "
                             f"bounds {bounds.shape[0]} x {bounds.shape[1]}")
        self.codes, self.bounds, self.n_rows, self.n_cols = codes, bounds, n_rows, n_cols
        self.inputs, self.best, self.survivors = [
            array(shape, dtype) for shape, dtype in screen_work(n_rows, n_cols)]


def screen_work(Py_ssize_t n_rows, Py_ssize_t n_cols):
    """[(shape, dtype)] of the work arrays of a Screen."""
    n_chunks = (n_rows + CHUNK - 1) // CHUNK
    return [((SCREEN_TOKENS, 2 * n_cols), np.int16), ((SCREEN_TOKENS, n_chunks), np.float64),
            ((n_rows // 4 + 1,), np.int32)]


cdef class Batch:
    """The rows of one forward pass: tokens of several sequences, and the threads to use."""

    def __init__(self, Py_ssize_t max_tokens, Py_ssize_t max_sequences, int n_threads=1):
        if max_tokens < 1 or max_sequences < 1 or n_threads < 1:
            raise ValueError(f"{max_tokens} tokens, {max_sequences} sequences, {n_threads} threads")
        self.max_tokens, self.max_sequences, self.n_threads = max_tokens, max_sequences, n_threads
        self.positions = np.zeros(max_tokens, np.int32)
        self.sequence_of = np.zeros(max_tokens, np.int32)
        self.storage = np.zeros(max_sequences * sizeof(Sequence), np.uint8)
        self.sequences = <Sequence*>&self.storage[0]
        self.workspace = np.zeros((0, 0), np.uint8)
        self.found = np.zeros(0, np.float32)

    def rows_only(self, Py_ssize_t n_tokens):
        """Rows without sequences: all that linears, norms and gates need."""
        if not 0 <= n_tokens <= self.max_tokens:
            raise ValueError(f"{n_tokens} rows, at most {self.max_tokens}")
        self.n_tokens, self.n_sequences, self.caches = n_tokens, 0, None
        return self

    def set(self, list sequences):
        """sequences: (KVCache, n_tokens) in row order; room is reserved in each cache.

        ContextFull or PoolExhausted where a cache has no room: no cache has moved then.
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
        self.caches = [cache for cache, _ in sequences]
        return self
