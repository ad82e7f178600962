# Linear layers: rows of packed weights, split over threads, times the tokens of a batch.

cdef enum:
    TILE_TOKENS = 5                     # at most
    LOOKUP_ROWS = 1536                  # of an item: 81 additions a table are 5 % of its work, and
    LOOKUP_GROUPS = 4                   # int16 sums and numbers, 240 KB, stay in L2; of 16 tokens
    LOOKUP_FEWEST = 256                 # rows of a matrix for which tables pay
    SUM_BYTES = 4 * 16 * LOOKUP_ROWS * LOOKUP_GROUPS            # int32 sums of an item
    WORK_BYTES = SUM_BYTES + 20736 + 32 * LOOKUP_ROWS * (1 + LOOKUP_GROUPS)     # all it works in
    LOOKUP_REST = 8                     # tokens left over up to which tiles take less time
    ONCE_LINEAR = 1 << 20               # bytes of a layer's matrices from which all of a model's
    ONCE_SCREEN = 1 << 24               # are more than caches hold; of a head's copy

cdef struct Lookup:                     # how the tokens that tables take are divided
    Py_ssize_t n_tokens
    Py_ssize_t n_sets                   # of groups, an item each
    Py_ssize_t n_groups                 # of a set
    Py_ssize_t n_rows                   # of an item at most
    Py_ssize_t n_items


cdef inline bint is_read_once(Py_ssize_t n_bytes, Py_ssize_t least) noexcept nogil:
    """Whether weights are so many that no cache keeps their model, and need not go through all.

    Only where that was measured to be faster: an Intel core has more requests to its second cache
    than to the first, a Zen 5 as many.
    """
    return on_amd and n_bytes >= least


def workspace_bytes(Py_ssize_t n_rows):
    """Bytes a thread works in where a batch is large, 0 where matrices of n_rows gain nothing."""
    return WORK_BYTES if kernels.ternary_lookup and n_rows >= LOOKUP_FEWEST else 0


def linear(Matrix out not None, Linear weights not None, QuantizedActivations x not None, Batch batch not None,
           bint add=False, Py_ssize_t column=0):
    """out = x W^T with the scales of both multiplied in, or out += where ``add``.

    It takes the columns of out from ``column`` on, one for each row of W; others stay as they are.
    """
    cdef Py_ssize_t c
    cdef Py_ssize_t n_products = weights.n_rows * weights.n_cols * batch.n_tokens
    cdef int team = threads_for(batch.n_threads, n_products // 64)
    if x.n_cols != weights.n_cols or batch.n_tokens > x.codes.shape[0]:
        raise ValueError(f"x is {x.codes.shape[0]} x {x.n_cols}, not {batch.n_tokens} x "
                         f"{weights.n_cols}")
    if (batch.n_tokens > out.n_rows or column < 0 or column > out.n_cols
            or weights.n_rows > out.n_cols - column):
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, not {batch.n_tokens} x at least "
                         f"{weights.n_rows} from column {column}")
    cdef Lookup lookup = lookup_of(weights, batch, team)
    cdef Py_ssize_t n_done = lookup.n_tokens
    cdef Arrivals arrivals
    if team == 1:
        for c in range(lookup.n_items):
            lookup_item(out, weights, x, batch, add, column, &lookup, c, 0)
        for c in range(weights.n_chunks if n_done < batch.n_tokens else 0):
            linear_chunk(out, weights, x, n_done, batch.n_tokens, add, column, c)
        return
    if n_done:
        begin(&arrivals, team)
        for c in prange(lookup.n_items, nogil=True, schedule="dynamic", num_threads=team):
            lookup_item(out, weights, x, batch, add, column, &lookup, c, threadid())
            arrive(&arrivals, threadid())
        crowd.end(&arrivals, team)
    if n_done < batch.n_tokens:
        begin(&arrivals, team)
        for c in prange(weights.n_chunks, nogil=True, schedule="guided", num_threads=team):
            linear_chunk(out, weights, x, n_done, batch.n_tokens, add, column, c)
            arrive(&arrivals, threadid())
        crowd.end(&arrivals, team)


cdef const Part* part_of(Linear weights, Py_ssize_t chunk) noexcept nogil:
    cdef Py_ssize_t i = weights.n_parts - 1
    while weights.parts[i].first_chunk > chunk:
        i -= 1
    return &weights.parts[i]


cdef void linear_chunk(Matrix out, Linear weights, QuantizedActivations x, Py_ssize_t first_token,
                       Py_ssize_t n_tokens, bint add, Py_ssize_t column,
                       Py_ssize_t chunk) noexcept nogil:
    """One chunk of rows times the tokens from first_token on.

    As few passes as may be, of about as many tokens each: inputs stay in L1, codes in L2.
    """
    cdef int32_t sums[TILE_TOKENS * CHUNK]
    cdef const Part* part = part_of(weights, chunk)
    cdef Py_ssize_t first = (chunk - part.first_chunk) * CHUNK
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, part.n_rows - first)
    cdef Py_ssize_t stride = x.codes.shape[1], begin = first_token, n_passes, n
    cdef float* results = out.data + column + part.first_row + first
    cdef const uint8_t* codes = part.codes + first * weights.n_blocks * BLOCK_BYTES
    cdef bint once = is_read_once(weights.n_rows * weights.n_blocks * BLOCK_BYTES,
                                  ONCE_LINEAR)
    while begin < n_tokens:
        n_passes = (n_tokens - begin + kernels.tile_tokens - 1) // kernels.tile_tokens
        n = (n_tokens - begin + n_passes - 1) // n_passes
        kernels.ternary_matmul(sums, CHUNK, codes, &x.codes[begin, 0], stride, n_rows, n,
                               weights.n_blocks, once)
        kernels.apply_scales(results + begin * out.n_cols, out.n_cols, sums, CHUNK,
                             part.scales + first * part.scale_step, part.scale_step,
                             &x.inv_scale[begin], &x.sums[begin], n_rows, n, add)
        begin += n


cdef Lookup lookup_of(Linear weights, Batch batch, int team) noexcept:
    """Whole groups of 16 tokens, in few large items, or as many as there are threads."""
    cdef Lookup plan = Lookup(0, 1, LOOKUP_GROUPS, LOOKUP_ROWS, 0)
    cdef Py_ssize_t i, n_groups = batch.n_tokens // 16 + (batch.n_tokens % 16 > LOOKUP_REST)
    if (n_groups == 0 or not kernels.ternary_lookup or weights.fewest_rows < LOOKUP_FEWEST
            or batch.workspace.shape[0] < team or batch.workspace.shape[1] < WORK_BYTES):
        return plan
    plan.n_tokens = min(batch.n_tokens, 16 * n_groups)
    while True:
        plan.n_sets = (n_groups + plan.n_groups - 1) // plan.n_groups
        plan.n_items = 0
        for i in range(weights.n_parts):
            plan.n_items += plan.n_sets * n_ranges(&weights.parts[i], plan.n_rows)
        if plan.n_items >= 2 * team or plan.n_rows < 2 * LOOKUP_FEWEST:
            return plan
        if plan.n_groups > 1:
            plan.n_groups = 1
        else:
            plan.n_rows //= 2


cdef inline Py_ssize_t n_ranges(const Part* part, Py_ssize_t n_rows) noexcept nogil:
    return (part.n_rows + n_rows - 1) // n_rows


cdef void lookup_item(Matrix out, Linear weights, QuantizedActivations x, Batch batch, bint add,
                      Py_ssize_t column, const Lookup* plan, Py_ssize_t item,
                      Py_ssize_t thread) noexcept nogil:
    """A range of rows times a set of groups; neighbours have the same rows."""
    cdef Py_ssize_t begin = 16 * plan.n_groups * (item % plan.n_sets)
    cdef Py_ssize_t n_tokens = min(16 * plan.n_groups, plan.n_tokens - begin)
    cdef Py_ssize_t at = item // plan.n_sets, i = 0, first, n_rows
    cdef const Part* part = &weights.parts[0]
    cdef int32_t* sums = <int32_t*>&batch.workspace[thread, 0]
    while at >= n_ranges(part, plan.n_rows):
        at -= n_ranges(part, plan.n_rows)
        i += 1
        part = &weights.parts[i]
    n_rows = n_ranges(part, plan.n_rows)                    # ranges of about the same size
    n_rows = (part.n_rows + n_rows - 1) // n_rows
    first = at * n_rows
    n_rows = min(n_rows, part.n_rows - first)
    kernels.ternary_lookup(sums, <char*>sums + SUM_BYTES,
                           part.codes + first * weights.n_blocks * BLOCK_BYTES, &x.codes[begin, 0],
                           x.codes.shape[1], n_rows, n_tokens, weights.n_blocks)
    kernels.apply_scales(out.data + begin * out.n_cols + column + part.first_row + first,
                         out.n_cols, sums, n_rows, part.scales + first * part.scale_step,
                         part.scale_step, &x.inv_scale[begin], NULL, n_rows, n_tokens, add)


def find_code_3(Linear weights not None, int n_threads=1):
    """(part, row) of the first code 3, which stands for nothing, or None: a scan of all codes."""
    cdef Py_ssize_t c, i, at, n_bad = 0, row_bytes = weights.n_blocks * BLOCK_BYTES
    cdef int team = threads_for(n_threads, weights.n_rows * row_bytes // 16)
    for c in prange(weights.n_chunks, nogil=True, schedule="static", num_threads=team):
        n_bad += code_3_in_chunk(weights, c)
    for i in range(weights.n_parts if n_bad else 0):
        at = kernels.find_code_3(weights.parts[i].codes, weights.parts[i].n_rows * row_bytes)
        if at >= 0:
            return i, at // row_bytes
    return None


cdef Py_ssize_t code_3_in_chunk(Linear weights, Py_ssize_t chunk) noexcept nogil:
    cdef const Part* part = part_of(weights, chunk)
    cdef Py_ssize_t first = (chunk - part.first_chunk) * CHUNK
    cdef Py_ssize_t row_bytes = weights.n_blocks * BLOCK_BYTES
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, part.n_rows - first)
    return kernels.find_code_3(part.codes + first * row_bytes, n_rows * row_bytes) >= 0
