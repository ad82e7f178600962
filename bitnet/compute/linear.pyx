"""Linear layers: rows of packed ternary weights, split over threads, times a batch's tokens."""
from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, uint8_t

from .grouped cimport GroupedLinear, grouped_linear
from .operands cimport (
    CHUNK, Batch, Linear, Matrix, QuantizedActivations, StackedMatrix, check_product, is_streamed,
)
from .threads cimport ThreadTimes, begin_operation, end_item, end_operation, threads_for
from ..kernels.table cimport BLOCK_BYTES, LOOKUP_TABLE_BYTES, MAX_TILE_TOKENS
from ..runtime.dispatch cimport kernels

cdef enum:
    # An item of work by lookup tables is up to so many rows times so many groups of 16 tokens. The
    # 81 additions that make a table are then 5 % of its work, and its int16 sums and indices,
    # 240 KB, stay in L2.
    LOOKUP_ROWS = 1536
    LOOKUP_GROUPS = 4
    # rows of a matrix; with fewer, tables take longer than they save
    LOOKUP_MIN_ROWS = 256
    # tokens beyond whole groups of 16; up to so many take less time by tiles
    LOOKUP_MAX_REST = 8
    # bytes of an item's int32 sums
    SUM_BYTES = 4 * 16 * LOOKUP_ROWS * LOOKUP_GROUPS
    # bytes of all that an item works in: sums, tables, int16 sums and indices
    WORK_BYTES = SUM_BYTES + LOOKUP_TABLE_BYTES + 32 * LOOKUP_ROWS * (1 + LOOKUP_GROUPS)
    # bytes of a layer that is read past the caches: a model of such layers fits in none
    MIN_STREAMED_LAYER = 1 << 20

cdef struct LookupPlan:                 # how the work that is done by lookup tables is divided
    Py_ssize_t n_tokens                 # the first ones of the batch; tiles take the others
    Py_ssize_t n_sets                   # sets of groups of 16 tokens; an item has one
    Py_ssize_t n_groups                 # groups of a set
    Py_ssize_t n_rows                   # rows of an item at most
    Py_ssize_t n_items


def workspace_bytes(Py_ssize_t n_rows):
    """Bytes that each thread needs for large batches; 0 where tables do not pay for n_rows."""
    return WORK_BYTES if kernels.ternary_lookup and n_rows >= LOOKUP_MIN_ROWS else 0


def linear(Matrix out not None, weights not None, x not None, Batch batch not None,
           bint add=False, Py_ssize_t column=0):
    """out = x W^T with the scales of both multiplied in, or out += where ``add``.

    weights: a Linear, with QuantizedActivations x, or a GroupedLinear with GroupedActivations.
    x: (n_tokens or more, n_cols of weights), as ops.quantize has left it. out: (n_tokens or more,
    at least column + n_rows of weights). It takes the columns of out from ``column`` on, one for
    each row of W; others stay as they are.
    """
    if type(weights) is GroupedLinear:
        grouped_linear(out, weights, x, batch, add, column)
    else:
        row_scaled_linear(out, weights, x, batch, add, column)


cdef int row_scaled_linear(Matrix out, Linear weights, QuantizedActivations x, Batch batch,
                           bint add, Py_ssize_t column) except -1:
    """linear where each row of a matrix, or all of it, has one scale."""
    cdef Py_ssize_t c
    cdef Py_ssize_t n_products = weights.n_rows * weights.n_cols * batch.n_tokens
    cdef int team = threads_for(batch.n_threads, n_products // 64)
    check_product(batch, out, column, weights.n_rows, weights.n_cols, x.n_rows, x.n_cols)
    cdef LookupPlan plan = lookup_plan(weights, batch, team)
    cdef Py_ssize_t n_done = plan.n_tokens
    cdef ThreadTimes times
    if team == 1:
        for c in range(plan.n_items):
            lookup_item(out, weights, x, batch, add, column, &plan, c, 0)
        for c in range(weights.n_chunks if n_done < batch.n_tokens else 0):
            linear_chunk(out, weights, x, n_done, batch.n_tokens, add, column, c)
        return 0
    if n_done:
        begin_operation(&times, team)
        for c in prange(plan.n_items, nogil=True, schedule="dynamic", num_threads=team):
            lookup_item(out, weights, x, batch, add, column, &plan, c, threadid())
            end_item(&times, threadid())
        end_operation(&times, team)
    if n_done < batch.n_tokens:
        begin_operation(&times, team)
        for c in prange(weights.n_chunks, nogil=True, schedule="guided", num_threads=team):
            linear_chunk(out, weights, x, n_done, batch.n_tokens, add, column, c)
            end_item(&times, threadid())
        end_operation(&times, team)
    return 0


cdef const StackedMatrix* matrix_of(Linear weights, Py_ssize_t chunk) noexcept nogil:
    cdef Py_ssize_t i = weights.n_matrices - 1
    while weights.matrices[i].first_chunk > chunk:
        i -= 1
    return &weights.matrices[i]


cdef void linear_chunk(Matrix out, Linear weights, QuantizedActivations x, Py_ssize_t first_token,
                       Py_ssize_t n_tokens, bint add, Py_ssize_t column,
                       Py_ssize_t chunk) noexcept nogil:
    """One chunk of rows times the tokens from first_token on.

    As few passes as may be, of about as many tokens each: inputs stay in L1, codes in L2.
    """
    cdef int32_t sums[MAX_TILE_TOKENS * CHUNK]
    cdef const StackedMatrix* matrix = matrix_of(weights, chunk)
    cdef Py_ssize_t first = (chunk - matrix.first_chunk) * CHUNK
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, matrix.n_rows - first)
    cdef Py_ssize_t begin = first_token, n_passes, n
    cdef float* results = out.data + column + matrix.first_row + first
    cdef const uint8_t* codes = matrix.codes + first * weights.n_blocks * BLOCK_BYTES
    cdef bint streaming = is_streamed(weights.n_rows * weights.n_blocks * BLOCK_BYTES,
                                      MIN_STREAMED_LAYER)
    while begin < n_tokens:
        n_passes = (n_tokens - begin + kernels.tile_tokens - 1) // kernels.tile_tokens
        n = (n_tokens - begin + n_passes - 1) // n_passes
        kernels.ternary_matmul(sums, CHUNK, codes, x.codes + begin * x.stride, x.stride, n_rows, n,
                               weights.n_blocks, streaming)
        kernels.apply_scales(results + begin * out.n_cols, out.n_cols, sums, CHUNK,
                             matrix.scales + first * matrix.scale_step, matrix.scale_step,
                             x.inv_scale + begin, x.sums + begin, n_rows, n, add)
        begin += n


cdef LookupPlan lookup_plan(Linear weights, Batch batch, int team) noexcept:
    """Whole groups of 16 tokens, in few large items, or as many as there are threads."""
    cdef LookupPlan plan = LookupPlan(0, 1, LOOKUP_GROUPS, LOOKUP_ROWS, 0)
    cdef Py_ssize_t i, n_groups = batch.n_tokens // 16 + (batch.n_tokens % 16 > LOOKUP_MAX_REST)
    if (n_groups == 0 or not kernels.ternary_lookup or weights.min_rows < LOOKUP_MIN_ROWS
            or batch.n_workspaces < team or batch.workspace_bytes < WORK_BYTES):
        return plan
    plan.n_tokens = min(batch.n_tokens, 16 * n_groups)
    while True:
        plan.n_sets = (n_groups + plan.n_groups - 1) // plan.n_groups
        plan.n_items = 0
        for i in range(weights.n_matrices):
            plan.n_items += plan.n_sets * n_ranges(&weights.matrices[i], plan.n_rows)
        if plan.n_items >= 2 * team or plan.n_rows < 2 * LOOKUP_MIN_ROWS:
            return plan
        if plan.n_groups > 1:
            plan.n_groups = 1
        else:
            plan.n_rows //= 2


cdef inline Py_ssize_t n_ranges(const StackedMatrix* matrix, Py_ssize_t n_rows) noexcept nogil:
    """How many ranges of at most n_rows a matrix is divided into."""
    return (matrix.n_rows + n_rows - 1) // n_rows


cdef void lookup_item(Matrix out, Linear weights, QuantizedActivations x, Batch batch, bint add,
                      Py_ssize_t column, const LookupPlan* plan, Py_ssize_t item,
                      Py_ssize_t thread) noexcept nogil:
    """A range of rows times a set of groups; items next to each other have the same rows."""
    cdef Py_ssize_t begin = 16 * plan.n_groups * (item % plan.n_sets)
    cdef Py_ssize_t n_tokens = min(16 * plan.n_groups, plan.n_tokens - begin)
    cdef Py_ssize_t at = item // plan.n_sets, first, n_rows
    cdef const StackedMatrix* matrix = &weights.matrices[0]
    cdef int32_t* sums = <int32_t*>(batch.workspace + thread * batch.workspace_bytes)
    while at >= n_ranges(matrix, plan.n_rows):
        at -= n_ranges(matrix, plan.n_rows)
        matrix += 1
    n_rows = n_ranges(matrix, plan.n_rows)                  # ranges of about the same size
    n_rows = (matrix.n_rows + n_rows - 1) // n_rows
    first = at * n_rows
    n_rows = min(n_rows, matrix.n_rows - first)
    kernels.ternary_lookup(sums, <char*>sums + SUM_BYTES,
                           matrix.codes + first * weights.n_blocks * BLOCK_BYTES,
                           x.codes + begin * x.stride, x.stride, n_rows, n_tokens, weights.n_blocks)
    kernels.apply_scales(out.data + begin * out.n_cols + column + matrix.first_row + first,
                         out.n_cols, sums, n_rows, matrix.scales + first * matrix.scale_step,
                         matrix.scale_step, x.inv_scale + begin, NULL, n_rows, n_tokens, add)


def find_code_3(Linear weights not None, int n_threads=1):
    """(matrix of the stack, row) of the first code 3, which stands for no weight, or None."""
    cdef Py_ssize_t c, i, at, n_bad = 0, row_bytes = weights.n_blocks * BLOCK_BYTES
    cdef int team = threads_for(n_threads, weights.n_rows * row_bytes // 16)
    for c in prange(weights.n_chunks, nogil=True, schedule="static", num_threads=team):
        n_bad += has_code_3(weights, c)
    for i in range(weights.n_matrices if n_bad else 0):
        at = kernels.find_code_3(weights.matrices[i].codes, weights.matrices[i].n_rows * row_bytes)
        if at >= 0:
            return i, at // row_bytes
    return None


cdef bint has_code_3(Linear weights, Py_ssize_t chunk) noexcept nogil:
    cdef const StackedMatrix* matrix = matrix_of(weights, chunk)
    cdef Py_ssize_t first = (chunk - matrix.first_chunk) * CHUNK
    cdef Py_ssize_t row_bytes = weights.n_blocks * BLOCK_BYTES
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, matrix.n_rows - first)
    return kernels.find_code_3(matrix.codes + first * row_bytes, n_rows * row_bytes) >= 0
