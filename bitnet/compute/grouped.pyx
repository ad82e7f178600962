"""Ternary matrices whose groups of columns have scales, and activations rounded by groups.

The layouts are those of kernels/group_rows.h, the order of sums that of kernels/group.h.
"""
import numpy as np

from cython.parallel cimport prange, threadid
from libc.stdint cimport int8_t, int32_t, uint8_t

from .operands import MAX_LINEAR_COLS

from .operands cimport (
    CHUNK, MAX_STACKED, Array, Batch, Matrix, asarray, check_product, check_rows, is_streamed,
    open_array,
)
from .threads cimport ThreadTimes, begin_operation, end_item, end_operation, threads_for
from ..kernels.group_rows cimport (
    GROUP_BAD_SCALE, GROUP_CODE_3, GROUP_HALVES_DIFFER, QUAD, QUAD_SCALES, QUAD_SCALES_INT8,
    QUAD_SUMS, QUAD_SUMS_INT8, GroupInputs, GroupRows,
)
from ..kernels.table cimport group_work_bytes
from ..runtime.dispatch cimport kernels

GROUPS = {16: 128, 8: 32}               # bits of activations: columns that share a scale

cdef enum:
    # An item of work by tables: rows, and sets of 16 tokens. Making tables is then some 5 % of its
    # work, and all but the sums, 160 KB of the rows and 393 KB a set, stays in L2.
    LOOKUP_ROWS = 1536
    LOOKUP_SETS = 2
    LOOKUP_MIN_ROWS = 256               # of a matrix; with fewer, tables take longer than they save
    LOOKUP_MAX_REST = 10                # tokens beyond whole sets; so many take less time by tiles
    MIN_STREAMED_LAYER = 1 << 20        # bytes of a layer that is read past the caches: linear.pyx


cdef struct LookupPlan:                 # how the work that is done by tables is divided
    Py_ssize_t n_tokens                 # the first ones of the batch; tiles take the others
    Py_ssize_t n_sets                   # of 16 tokens in an item
    Py_ssize_t n_set_items              # items of the same rows
    Py_ssize_t n_rows                   # of an item at most
    Py_ssize_t n_items


def grouped_workspace_bytes(Py_ssize_t n_rows):
    """Bytes that each thread needs for large batches; 0 where tables do not pay for n_rows."""
    if kernels.group_lookup is NULL or n_rows < LOOKUP_MIN_ROWS:
        return 0
    return group_work_bytes(LOOKUP_ROWS, LOOKUP_SETS)


cdef class GroupedLinear:
    """Up to four ternary matrices of equal width with scales of groups, stacked, read in place.

    matrices: (type, data, scales) each, by type:
        "PQ2_0"     data uint8 (n_rows, n_cols / 128 * 34), scales None
        "Q2_0_G64"  data uint8 (n_rows, n_cols / 64 * 18), scales None
        "planes"    data uint8 (n_rows, n_cols / 4), scales uint8 (n_rows, 2 * n_groups), the bytes
                    of float16, for groups of 64 or 128 columns
    n_cols: a multiple of 64.
    """

    def __cinit__(self, matrices, Py_ssize_t n_cols):
        cdef GroupedMatrix* matrix
        if not 1 <= len(matrices) <= MAX_STACKED or not 0 < n_cols <= MAX_LINEAR_COLS or (
                n_cols % 64):
            raise ValueError(f"{len(matrices)} matrices (1 to {MAX_STACKED}) of {n_cols} columns "
                             f"(1 to {MAX_LINEAR_COLS}, a multiple of 64)")
        self.n_cols, self.owners = n_cols, []
        for type, data, scales in matrices:
            matrix = &self.matrices[self.n_matrices]
            self.owners += place(&matrix.rows, n_cols, type, data, scales)
            matrix.n_rows = len(data)
            matrix.first_row, matrix.first_chunk = self.n_rows, self.n_chunks
            matrix.unit = 64 if matrix.rows.half_scales else 128
            self.min_rows = min(matrix.n_rows, self.min_rows) if self.n_rows else matrix.n_rows
            self.n_rows += matrix.n_rows
            self.n_chunks += (matrix.n_rows + CHUNK - 1) // CHUNK
            self.n_matrices += 1

    @property
    def units(self):
        """Columns of each matrix whose products are summed before they are scaled: 128, or 64 where
        the halves of 128 may have different scales. scan_groups finds out."""
        return [self.matrices[i].unit for i in range(self.n_matrices)]


cdef list place(GroupRows* rows, Py_ssize_t n, str type, data, scales):
    """Where the rows of n columns of a matrix lie, and the arrays to keep open. ValueError where an
    array is of another shape."""
    cdef Array codes = open_array(data, c"u", 1, 2), floats = codes
    cdef Py_ssize_t n_groups
    rows.n_cols, rows.row_codes = n, codes.view.shape[1]
    rows.codes = <const uint8_t*>codes.data
    rows.scales, rows.row_scales = rows.codes, rows.row_codes
    if type == "PQ2_0" and n % 128 == 0 and rows.row_codes == n // 128 * 34:
        rows.codes += 2
        rows.block_codes = rows.block_scales = 34
        rows.half_codes, rows.half_scales = 16, 0
    elif type == "Q2_0_G64" and rows.row_codes == n // 64 * 18:
        rows.codes += 2
        rows.block_codes = rows.block_scales = 36
        rows.half_codes = rows.half_scales = 18
    elif type == "planes" and rows.row_codes == n // 4:
        floats = open_array(scales, c"u", 1, 2)
        rows.scales, rows.row_scales = <const uint8_t*>floats.data, floats.view.shape[1]
        n_groups = rows.row_scales // 2
        if (floats.view.shape[0] != codes.view.shape[0] or rows.row_scales % 2
                or n not in (64 * n_groups, 128 * n_groups)):
            raise ValueError(f"scales of {floats.view.shape[0]} x {rows.row_scales} bytes beside "
                             f"{codes.view.shape[0]} rows of {n} columns")
        rows.block_codes, rows.half_codes = 32, 16
        rows.half_scales = 2 if n == 64 * n_groups else 0
        rows.block_scales = 4 if n == 64 * n_groups else 2
    else:
        raise ValueError(f"rows of {rows.row_codes} bytes are not {n} columns of {type}")
    if not codes.view.shape[0]:
        raise ValueError(f"no rows of {type}")
    return [codes, floats]


cdef class GroupedActivations:
    """Activations rounded by groups of columns: 16 bits with a scale for each 128, or 8 with one
    for each 32; all arrays are written.

    arrays: codes int8, scales float32, sums int32, of the shapes that activation_shapes gives.
    """

    def __cinit__(self, codes, scales, sums, int bits):
        self.owner_of_codes = open_array(codes, c"i", 1, 2, True)
        self.owner_of_scales = open_array(scales, c"f", 4, 2, True)
        self.owner_of_sums = open_array(sums, c"i", 4, 2, True)
        self.n_rows = self.owner_of_codes.view.shape[0]
        shapes = [(array.shape[0], array.shape[1]) for array in (codes, scales, sums)]
        if bits in GROUPS:
            self.max_cols = shapes[0][1] // (bits // 8)
        if bits not in GROUPS or shapes != activation_shapes(self.n_rows, self.max_cols, bits):
            raise ValueError(f"codes, scales and sums of {shapes}, {bits} bits")
        self.codes = <int8_t*>self.owner_of_codes.data
        self.scales = <float*>self.owner_of_scales.data
        self.sums = <int32_t*>self.owner_of_sums.data
        self.inputs = GroupInputs(self.codes, self.scales, self.sums, shapes[0][1], shapes[1][1],
                                  shapes[2][1], bits)

    @property
    def bits(self):
        """Bits of a code: 16 or 8."""
        return self.inputs.bits

    def arrays(self):
        """(codes, scales, sums) as NumPy arrays, the same memory."""
        return (asarray(self.owner_of_codes), asarray(self.owner_of_scales),
                asarray(self.owner_of_sums))


def activation_shapes(Py_ssize_t n_rows, Py_ssize_t n_cols, int bits):
    """The shapes of codes, scales and sums for n_rows of up to n_cols columns."""
    cdef Py_ssize_t n_quads = (n_cols + QUAD - 1) // QUAD
    n_scales = QUAD_SCALES if bits == 16 else QUAD_SCALES_INT8
    n_sums = QUAD_SUMS if bits == 16 else QUAD_SUMS_INT8
    return [(n_rows, n_quads * QUAD * (bits // 8)), (n_rows, n_quads * n_scales),
            (n_rows, n_quads * n_sums)]


cdef int quantize_groups(GroupedActivations out, Matrix x, Batch batch) except -1:
    """See elementwise.quantize."""
    cdef Py_ssize_t r, n = x.n_cols
    cdef int team = threads_for(batch.n_threads, batch.n_tokens * n)
    check_rows(batch, x.n_rows, n, n, "x")
    if batch.n_tokens > out.n_rows or n > out.max_cols:
        raise ValueError(f"codes are {out.n_rows} x {out.max_cols}, not {batch.n_tokens} x {n}")
    out.n_cols = n
    if team == 1:
        for r in range(batch.n_tokens):
            quantize_row(out, x, r)
        return 0
    for r in prange(batch.n_tokens, nogil=True, schedule="static", num_threads=team):
        quantize_row(out, x, r)
    return 0


cdef void quantize_row(GroupedActivations out, Matrix x, Py_ssize_t r) noexcept nogil:
    kernels.group_quantize(out.codes + r * out.inputs.codes_stride,
                           out.scales + r * out.inputs.scales_stride,
                           out.sums + r * out.inputs.sums_stride, x.data + r * x.n_cols, x.n_cols,
                           out.inputs.bits)


cdef int grouped_linear(Matrix out, GroupedLinear weights, GroupedActivations x, Batch batch,
                        bint add, Py_ssize_t column) except -1:
    """See linear.linear."""
    cdef Py_ssize_t c
    cdef int team = threads_for(batch.n_threads, weights.n_rows * weights.n_cols
                                * batch.n_tokens // 32)
    cdef ThreadTimes times
    check_product(batch, out, column, weights.n_rows, weights.n_cols, x.n_rows, x.n_cols)
    cdef LookupPlan plan = lookup_plan(weights, batch, team)
    cdef Py_ssize_t n_done = plan.n_tokens
    if team == 1:
        for c in range(plan.n_items):
            lookup_item(out, weights, x, batch, add, column, &plan, c, 0)
        for c in range(weights.n_chunks if n_done < batch.n_tokens else 0):
            grouped_chunk(out, weights, x, n_done, batch.n_tokens, add, column, c)
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
            grouped_chunk(out, weights, x, n_done, batch.n_tokens, add, column, c)
            end_item(&times, threadid())
        end_operation(&times, team)
    return 0


cdef LookupPlan lookup_plan(GroupedLinear weights, Batch batch, int team) noexcept:
    """Whole sets of 16 tokens, in few large items, or as many as there are threads."""
    cdef LookupPlan plan = LookupPlan(0, LOOKUP_SETS, 0, LOOKUP_ROWS, 0)
    cdef Py_ssize_t i, n_sets = batch.n_tokens // 16 + (batch.n_tokens % 16 > LOOKUP_MAX_REST)
    if (n_sets == 0 or kernels.group_lookup is NULL or weights.min_rows < LOOKUP_MIN_ROWS
            or batch.n_workspaces < team
            or batch.workspace_bytes < group_work_bytes(LOOKUP_ROWS, LOOKUP_SETS)):
        return plan
    plan.n_tokens = min(batch.n_tokens, 16 * n_sets)
    while True:
        plan.n_set_items = (n_sets + plan.n_sets - 1) // plan.n_sets
        plan.n_items = 0
        for i in range(weights.n_matrices):
            plan.n_items += plan.n_set_items * n_ranges(&weights.matrices[i], plan.n_rows)
        if plan.n_items >= 2 * team or plan.n_rows < 2 * LOOKUP_MIN_ROWS:
            return plan
        if plan.n_sets > 1:
            plan.n_sets = 1
        else:
            plan.n_rows //= 2


cdef inline Py_ssize_t n_ranges(const GroupedMatrix* matrix, Py_ssize_t n_rows) noexcept nogil:
    """How many ranges of at most n_rows a matrix is divided into."""
    return (matrix.n_rows + n_rows - 1) // n_rows


cdef void lookup_item(Matrix out, GroupedLinear weights, GroupedActivations x, Batch batch,
                      bint add, Py_ssize_t column, const LookupPlan* plan, Py_ssize_t item,
                      Py_ssize_t thread) noexcept nogil:
    """A range of rows times some sets of tokens; items next to each other have the same rows."""
    cdef Py_ssize_t token = 16 * plan.n_sets * (item % plan.n_set_items)
    cdef Py_ssize_t n_tokens = min(16 * plan.n_sets, plan.n_tokens - token)
    cdef Py_ssize_t at = item // plan.n_set_items, first, n_rows
    cdef const GroupedMatrix* matrix = &weights.matrices[0]
    while at >= n_ranges(matrix, plan.n_rows):
        at -= n_ranges(matrix, plan.n_rows)
        matrix += 1
    n_rows = n_ranges(matrix, plan.n_rows)                  # ranges of about the same size
    n_rows = (matrix.n_rows + n_rows - 1) // n_rows
    first = at * n_rows
    n_rows = min(n_rows, matrix.n_rows - first)
    kernels.group_lookup(out.data + token * out.n_cols + column + matrix.first_row + first,
                         out.n_cols, batch.workspace + thread * batch.workspace_bytes,
                         &matrix.rows, first, &x.inputs, token, n_rows, n_tokens,
                         unit_of(matrix, x), add)


cdef inline int unit_of(const GroupedMatrix* matrix, GroupedActivations x) noexcept nogil:
    return matrix.unit if x.inputs.bits == 16 else 32


cdef const GroupedMatrix* matrix_of(GroupedLinear weights, Py_ssize_t chunk) noexcept nogil:
    cdef Py_ssize_t i = weights.n_matrices - 1
    while weights.matrices[i].first_chunk > chunk:
        i -= 1
    return &weights.matrices[i]


cdef void grouped_chunk(Matrix out, GroupedLinear weights, GroupedActivations x,
                        Py_ssize_t first_token, Py_ssize_t n_tokens, bint add, Py_ssize_t column,
                        Py_ssize_t chunk) noexcept nogil:
    """One chunk of rows times the tokens from first_token on."""
    cdef const GroupedMatrix* matrix = matrix_of(weights, chunk)
    cdef Py_ssize_t first = (chunk - matrix.first_chunk) * CHUNK
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, matrix.n_rows - first)
    cdef bint streaming = is_streamed(weights.n_rows * weights.n_cols // 4, MIN_STREAMED_LAYER)
    kernels.group_matmul(out.data + first_token * out.n_cols + column + matrix.first_row + first,
                         out.n_cols, &matrix.rows, first, &x.inputs, first_token, n_rows,
                         n_tokens - first_token, unit_of(matrix, x), add, streaming)


def scan_groups(GroupedLinear weights not None, int n_threads=1):
    """Look once at every code and scale of the matrices, and find their units.

    (matrix of the stack, row) of the first row with a code 3, which stands for no weight, or a
    scale that is negative, infinite or NaN; None where all are legal.
    """
    cdef Py_ssize_t c, row
    cdef Array owner = open_array(np.zeros(weights.n_chunks, np.int32), c"i", 4, 1, True)
    cdef int32_t* of_chunk = <int32_t*>owner.data
    cdef int found = 0, team = threads_for(n_threads, weights.n_rows * weights.n_cols // 32)
    cdef GroupedMatrix* matrix
    for c in prange(weights.n_chunks, nogil=True, schedule="static", num_threads=team):
        of_chunk[c] = scan_chunk(weights, c)
    for c in range(weights.n_chunks):
        matrix = <GroupedMatrix*>matrix_of(weights, c)
        if c == matrix.first_chunk:
            found = 0
        found |= of_chunk[c]
        if found & (GROUP_CODE_3 | GROUP_BAD_SCALE):
            row = (c - matrix.first_chunk) * CHUNK
            while not kernels.group_scan(&matrix.rows, row) & (GROUP_CODE_3 | GROUP_BAD_SCALE):
                row += 1
            return matrix - &weights.matrices[0], row
        matrix.unit = 64 if found & GROUP_HALVES_DIFFER else 128
    return None


cdef int scan_chunk(GroupedLinear weights, Py_ssize_t chunk) noexcept nogil:
    cdef const GroupedMatrix* matrix = matrix_of(weights, chunk)
    cdef Py_ssize_t row, first = (chunk - matrix.first_chunk) * CHUNK
    cdef int found = 0
    for row in range(first, min(first + CHUNK, matrix.n_rows)):
        found |= kernels.group_scan(&matrix.rows, row)
    return found


cdef void grouped_row(float* out, GroupedLinear weights, Py_ssize_t row) noexcept nogil:
    """A row of the first matrix as float32 (n_cols)."""
    kernels.group_dequantize_row(out, &weights.matrices[0].rows, row)
