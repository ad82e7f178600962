# Attention over the pages of keys and values.

ctypedef void (*WeightedSum)(float* out, Py_ssize_t out_stride, const float* a,
                             Py_ssize_t a_stride, const void* m, Py_ssize_t stride,
                             Py_ssize_t column, Py_ssize_t n_queries, Py_ssize_t n,
                             Py_ssize_t n_vectors, bint adds, const char* ahead) noexcept nogil

cdef extern from "weighted_sum.h" nogil:
    enum: WEIGHTED_SUM_QUERIES          # queries of a tile: an item is converted once for all
    WeightedSum weighted_sum_f32, weighted_sum_f16

cdef extern from "exact_sum.h" nogil:
    enum: EXACT_SUM_QUERIES             # the same of int8 items
    float MAX_CODE(Py_ssize_t n) noexcept
    int32_t code_at(const int8_t* codes, Py_ssize_t n, Py_ssize_t i) noexcept
    const int8_t* codes_from(const int8_t* codes, Py_ssize_t i) noexcept
    int32_t codes_store(int8_t* codes, const float* x, float factor, Py_ssize_t n) noexcept
    void exact_sum(int32_t* out, Py_ssize_t out_stride, const int8_t* codes, Py_ssize_t n,
                   const int32_t* code_sums, const int8_t* m, Py_ssize_t stride, Py_ssize_t column,
                   Py_ssize_t n_queries, Py_ssize_t n_quads, Py_ssize_t n_vectors,
                   const char* ahead) noexcept

cdef extern from "softmax.h" nogil:
    ctypedef struct page_weights:
        float sum, largest
    float scores_max(float* x, float scale, float before, Py_ssize_t low,
                     Py_ssize_t high) noexcept
    float scores_exp(float* x, float top, bint is_rounded, Py_ssize_t low,
                     Py_ssize_t high) noexcept
    float sums_max(float* x, const int32_t* sums, const float* scales, float before,
                   Py_ssize_t begin, Py_ssize_t low, Py_ssize_t high, Py_ssize_t end) noexcept
    page_weights weights_exp(float* x, float top, float scale, const float* scales,
                             Py_ssize_t begin, Py_ssize_t end) noexcept
    int32_t weights_store(int8_t* codes, const float* x, float largest, Py_ssize_t begin,
                          Py_ssize_t end, Py_ssize_t n_codes) noexcept
    void factors_of(float* factors, const float* before, const float* after, const float* scales,
                    Py_ssize_t n) noexcept
    void sums_add(float* out, const int32_t* sums, float factor, float scale,
                  Py_ssize_t n) noexcept

cdef enum:
    # vectors of 16 lanes that all tiles of queries pass over in turn, so that they stay in the
    # first cache: 16 KiB of float16
    STRIP = 4


cdef void weighted_sum(float* out, Py_ssize_t out_stride, const float* a, Py_ssize_t a_stride,
                       const char* m, Py_ssize_t stride, Py_ssize_t column, int type,
                       Py_ssize_t n_queries, Py_ssize_t n, Py_ssize_t n_lanes, bint adds,
                       PrefetchCursor* cursor) noexcept nogil:
    """out[g, lane] = or += sum over i, in order, of a[g, i] * m[i, lane], for queries g.

    column: items of m from 16 lanes to the next 16. As many bytes are prefetched as are read, or
    nothing where cursor is NULL. Scores (m the transposed keys) and weighted values (m the values)
    alike: no horizontal sums, and a row of m is read and converted once for a tile of queries.
    """
    cdef WeightedSum kernel = weighted_sum_f16 if type == KV_F16 else weighted_sum_f32
    cdef Py_ssize_t n_tiles = (n_queries + WEIGHTED_SUM_QUERIES - 1) // WEIGHTED_SUM_QUERIES
    cdef Py_ssize_t g, i, t, at, begin, end, lane, n_strip, v = 0, item = kv_item_bytes(type)
    cdef Py_ssize_t n_vectors = n_lanes // LANES
    cdef Py_ssize_t n_most = STRIP if n_tiles > 1 else 2 * STRIP
    cdef const char* strip
    cdef const char* ahead
    cdef float total
    while v < n_vectors:
        n_strip = min(n_most, n_vectors - v)
        ahead = strip = m + v * column * item
        if cursor is not NULL:
            ahead = cursor_take(cursor, n * n_strip * LANES * item)
        begin = 0
        for t in range(n_tiles):
            end = n_queries * (t + 1) // n_tiles
            kernel(out + begin * out_stride + v * LANES, out_stride, a + begin * a_stride,
                   a_stride, strip, stride, column, end - begin, n, n_strip, adds, ahead)
            begin, ahead = end, strip
        v += n_strip
    for lane in range(n_vectors * LANES, n_lanes):              # head_dim 100: the last 4 of a row
        at = n_vectors * column + lane % LANES
        for g in range(n_queries):
            total = out[g * out_stride + lane] if adds else 0
            for i in range(n):
                total += a[g * a_stride + i] * load_lane(m, i * stride + at, type)
            out[g * out_stride + lane] = total


cdef void exact_sums(int32_t* out, Py_ssize_t out_stride, const int8_t* codes, Py_ssize_t n_codes,
                     const int32_t* code_sums, const char* m, Py_ssize_t stride,
                     Py_ssize_t column, Py_ssize_t n_queries, Py_ssize_t n_quads,
                     Py_ssize_t n_lanes, PrefetchCursor* cursor) noexcept nogil:
    """out[g, lane] = sum over i < 4 n_quads of code i of query g times m[i / 4, lane, i % 4]: as
    weighted_sum of int8 items."""
    cdef Py_ssize_t n_tiles = (n_queries + EXACT_SUM_QUERIES - 1) // EXACT_SUM_QUERIES
    cdef Py_ssize_t g, i, t, begin, end, lane, n_strip, v = 0, n_vectors = n_lanes // LANES
    cdef Py_ssize_t n_most = STRIP if n_tiles > 1 else 2 * STRIP
    cdef const int8_t* strip
    cdef const int8_t* at
    cdef const char* ahead
    cdef int32_t total
    while v < n_vectors:
        n_strip = min(n_most, n_vectors - v)
        strip = <const int8_t*>m + v * column
        ahead = cursor_take(cursor, n_quads * n_strip * 4 * LANES)
        begin = 0
        for t in range(n_tiles):
            end = n_queries * (t + 1) // n_tiles
            exact_sum(out + begin * out_stride + v * LANES, out_stride,
                      codes + 2 * n_codes * begin, n_codes, code_sums + begin, strip, stride,
                      column, end - begin, n_quads, n_strip, ahead)
            begin, ahead = end, <const char*>strip
        v += n_strip
    for lane in range(n_vectors * LANES, n_lanes):
        at = <const int8_t*>m + n_vectors * column + lane % LANES * 4
        for g in range(n_queries):
            total = 0
            for i in range(4 * n_quads):
                total += (code_at(codes + 2 * n_codes * g, n_codes, i)
                          * at[i // 4 * stride + i % 4])
            out[g * out_stride + lane] = total


cdef struct Pass:                       # attention of some rows and heads to the positions so far
    const View* view
    const float* q                      # (n_rows, q_stride): n_heads of head_dim numbers each
    Py_ssize_t q_stride
    Py_ssize_t n_heads                  # query heads that share a pass over keys and values
    Py_ssize_t n_codes                  # of a query, head_dim filled up to vectors: KV_INT8
    float[MAX_QUERIES] score_scale      # of each query: what makes its score of a product
    int32_t[MAX_QUERIES] code_sum       # of a query's codes: KV_INT8
    float[MAX_QUERY_FLOATS] query       # (n_rows * n_heads, head_dim), or codes, rotated for sinks
    float[MAX_QUERY_FLOATS] out         # (n_rows * n_heads, head_dim): sums of weighted values
    float[MAX_QUERIES] max_score        # in units of score_scale
    float[MAX_QUERIES] weight_sum       # sum of the weights, e^(score - max_score)


cdef struct Rows:                       # rows begin..end - 1 see the slots low[r]..high[r] - 1
    Py_ssize_t begin, end
    Py_ssize_t[MAX_QUERIES] low
    Py_ssize_t[MAX_QUERIES] high
    Py_ssize_t first, last              # the smallest low, the largest high


cdef void set_queries(Pass* p, const Rows* rows, bint is_rotated) noexcept nogil:
    """Queries of some rows as the kernels multiply them. is_rotated: for the sinks."""
    cdef const View* view = p.view
    cdef Py_ssize_t r, g, i, D = view.head_dim
    cdef float rotated[MAX_HEAD_DIM]
    cdef const float* q
    for r in range(rows.begin, rows.end):
        for g in range(p.n_heads):
            i = r * p.n_heads + g
            p.score_scale[i] = <float>1.0 / sqrtf(<float>D)
            q = p.q + r * p.q_stride + g * D
            if is_rotated:
                memcpy(rotated, q, D * sizeof(float))
                rope(rotated, view.cosines, view.sines, view.interleaved, D)
                q = rotated
            if view.type == KV_INT8:
                encode_query(p, i, q)
            else:
                memcpy(p.query + i * D, q, D * sizeof(float))
    if view.type == KV_F16:
        round_to_13_bits(p.query + rows.begin * p.n_heads * D,
                         (rows.end - rows.begin) * p.n_heads * D)


cdef inline void start_sums(Pass* p, const Rows* rows) noexcept nogil:
    """Nothing is summed up yet."""
    cdef Py_ssize_t i, D = p.view.head_dim
    for i in range(rows.begin * p.n_heads, rows.end * p.n_heads):
        p.max_score[i], p.weight_sum[i] = -INFINITY, 0
        memset(p.out + i * D, 0, D * sizeof(float))


cdef inline void encode_query(Pass* p, Py_ssize_t i, const float* q) noexcept nogil:
    """Codes = round half even (q * MAX_CODE / max |q|); score_scale makes of sums of codes, times
    a key's scale, scores for powers of 2. Where one is not finite it is NaN."""
    cdef Py_ssize_t D = p.view.head_dim
    cdef int32_t largest = largest_bits(q, D)
    cdef float biggest
    memcpy(&biggest, &largest, 4)
    biggest = biggest if biggest > <float>1e-30 else <float>1e-30
    p.code_sum[i] = codes_store(<int8_t*>p.query + i * 2 * p.n_codes, q,
                                MAX_CODE(D) / biggest if largest < 0x7F800000 else <float>0.0, D)
    p.score_scale[i] *= biggest / MAX_CODE(D) * <float>M_LOG2E
    if largest >= 0x7F800000:
        p.score_scale[i] = NAN


cdef inline void round_to_13_bits(float* x, Py_ssize_t n) noexcept nogil:
    """Round x to 13 bits, so that its products with items of a page are exact. Whole vectors of x
    may be written, up to 15 numbers behind n."""
    cdef Py_ssize_t j
    for j in range(0, n, 16):
        f32_store(x + j, f32_round_to_13_bits(f32_load(x + j)))


cdef inline Py_ssize_t lanes_begin(Py_ssize_t low) noexcept nogil:
    return low - low % LANES


cdef inline Py_ssize_t lanes_end(Py_ssize_t high) noexcept nogil:
    return (high + LANES - 1) // LANES * LANES


cdef void attend_floats(Pass* p, const Rows* rows, const char* data,
                        PrefetchCursor* cursor) noexcept nogil:
    """Add positions of a page of floats."""
    cdef float scores[MAX_QUERIES * PAGE]
    cdef float before[MAX_QUERIES]
    cdef float factors[MAX_QUERIES]
    cdef const View* view = p.view
    cdef Py_ssize_t r, g, i, d, D = view.head_dim, n_heads = p.n_heads
    cdef Py_ssize_t begin = lanes_begin(rows.first), end = lanes_end(rows.last)
    cdef Py_ssize_t one = rows.begin * n_heads, n = (rows.end - rows.begin) * n_heads
    cdef Py_ssize_t low = rows.low[rows.end - 1], high = rows.high[rows.begin]
    weighted_sum(scores + one * PAGE + begin, PAGE, p.query + one * D, D,
                 keys_of(view, data, begin), LANES, LANES * D, view.type, n, D, end - begin,
                 False, cursor)
    memcpy(before + one, p.max_score + one, n * sizeof(float))
    for r in range(rows.begin, rows.end):
        for g in range(n_heads):
            i = r * n_heads + g
            p.max_score[i] = scores_max(scores + i * PAGE, p.score_scale[i], before[i],
                                        rows.low[r], rows.high[r])
    factors_of(factors + one, before + one, p.max_score + one, NULL, n)
    for r in range(rows.begin, rows.end):
        for g in range(n_heads):
            i = r * n_heads + g
            p.weight_sum[i] = p.weight_sum[i] * factors[i] + scores_exp(
                scores + i * PAGE, p.max_score[i], view.type != KV_F32, rows.low[r], rows.high[r])
            if factors[i] != 1 and before[i] != -INFINITY:
                for d in range(i * D, (i + 1) * D):
                    p.out[d] *= factors[i]
    # what all rows see they share; a row adds what only some see by itself, in the same order
    if low >= high:
        for r in range(rows.begin, rows.end):
            add_values(p, scores, data, r, r + 1, rows.low[r], rows.high[r],
                       cursor if r == rows.begin else NULL)
        return
    for r in range(rows.begin, rows.end):
        add_values(p, scores, data, r, r + 1, rows.low[r], low, NULL)
    add_values(p, scores, data, rows.begin, rows.end, low, high, cursor)
    for r in range(rows.begin, rows.end):
        add_values(p, scores, data, r, r + 1, high, rows.high[r], NULL)


cdef inline void add_values(Pass* p, const float* scores, const char* data, Py_ssize_t begin,
                            Py_ssize_t end, Py_ssize_t low, Py_ssize_t high,
                            PrefetchCursor* cursor) noexcept nogil:
    """Add the weighted values of slots low..high - 1 to the sums of rows begin..end - 1."""
    cdef Py_ssize_t D = p.view.head_dim, one = begin * p.n_heads
    if low < high:
        weighted_sum(p.out + one * D, D, scores + one * PAGE + low, PAGE,
                     values_of(p.view, data, low), D, LANES, p.view.type,
                     (end - begin) * p.n_heads, high - low, D, True, cursor)


cdef void attend_codes(Pass* p, const Rows* rows, const char* data,
                       PrefetchCursor* cursor) noexcept nogil:
    """Add positions of a page of int8: exact sums, scaled once for a query and page."""
    cdef float scores[MAX_QUERIES * PAGE]
    cdef int8_t codes[MAX_QUERIES * 2 * PAGE]
    cdef int32_t sums[MAX_QUERY_FLOATS]         # of at least MAX_QUERIES * PAGE
    cdef int32_t code_sums[MAX_QUERIES]
    cdef float before[MAX_QUERIES]
    cdef float factors[MAX_QUERIES]
    cdef float scales[MAX_QUERIES]
    cdef const View* view = p.view
    cdef const float* key_scales = scales_of(view, data)
    cdef const float* value_scales = key_scales + view.n_kv_heads * PAGE
    cdef Py_ssize_t r, g, i, D = view.head_dim, n_heads = p.n_heads
    cdef Py_ssize_t width = kv_key_width(KV_INT8, D)
    cdef Py_ssize_t begin = lanes_begin(rows.first), end = lanes_end(rows.last)
    cdef Py_ssize_t one = rows.begin * n_heads, n = (rows.end - rows.begin) * n_heads
    cdef page_weights w
    exact_sums(sums + one * PAGE + begin, PAGE, <int8_t*>p.query + one * 2 * p.n_codes, p.n_codes,
               p.code_sum + one, keys_of(view, data, begin), 4 * LANES, LANES * width, n,
               width // 4, end - begin, cursor)
    memcpy(before + one, p.max_score + one, n * sizeof(float))
    for r in range(rows.begin, rows.end):
        for g in range(n_heads):
            i = r * n_heads + g
            p.max_score[i] = sums_max(scores + i * PAGE, sums + i * PAGE, key_scales, before[i],
                                      begin, rows.low[r], rows.high[r], end)
    factors_of(factors + one, before + one, p.max_score + one, p.score_scale + one, n)
    for i in range(one, one + n):
        w = weights_exp(scores + i * PAGE, p.max_score[i], p.score_scale[i], value_scales, begin,
                        end)
        p.weight_sum[i] = p.weight_sum[i] * factors[i] + w.sum
        scales[i] = w.largest
    for i in range(one, one + n):       # apart: a division and its input are waited for together
        code_sums[i] = weights_store(codes + i * 2 * PAGE, scores + i * PAGE, scales[i], begin,
                                     end, PAGE)
        scales[i] /= MAX_CODE(PAGE)
    exact_sums(sums + one * D, D, codes_from(codes + one * 2 * PAGE, begin), PAGE, code_sums + one,
               values_of(view, data, begin), 4 * D, 4 * LANES, n, (end - begin) // 4, D, cursor)
    for i in range(one, one + n):
        sums_add(p.out + i * D, sums + i * D, factors[i], scales[i], D)


cdef inline void attend_page(Pass* p, const Rows* rows, const char* data,
                             PrefetchCursor* cursor) noexcept nogil:
    if p.view.type == KV_INT8:
        attend_codes(p, rows, data, cursor)
    else:
        attend_floats(p, rows, data, cursor)


cdef void finish_pass(Pass* p, const Rows* rows) noexcept nogil:
    """Scores for powers of e."""
    cdef Py_ssize_t i
    if p.view.type == KV_INT8:
        for i in range(rows.begin * p.n_heads, rows.end * p.n_heads):
            p.max_score[i] *= p.score_scale[i] * <float>M_LN2


cdef inline Rows all_rows(const View* view) noexcept nogil:
    cdef Rows rows
    rows.begin, rows.end = 0, view.n_rows
    return rows


cdef Rows rows_at(const View* view, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """The rows that see some of the positions first..last, and which of them, from first on."""
    cdef Rows rows
    cdef Py_ssize_t r
    rows.begin = max(<Py_ssize_t>0, first - view.position)
    rows.end = rows.begin
    rows.first, rows.last = last - first + 1, 0
    for r in range(rows.begin, view.n_rows):
        rows.low[r] = max(first_seen(view, r) - first, <Py_ssize_t>0)
        rows.high[r] = min(view.position + r, last) - first + 1
        if rows.low[r] >= rows.high[r]:
            break                       # the windows of rows behind it begin still later
        rows.first, rows.last = min(rows.first, rows.low[r]), max(rows.last, rows.high[r])
        rows.end = r + 1
    return rows


cdef Rows rows_with_sinks(const View* view) noexcept nogil:
    """The rows that see the sinks: those that see all that is held."""
    cdef Rows rows
    rows.begin, rows.end, rows.first, rows.last = 0, 0, 0, view.n_sinks
    while view.n_sinks and rows.end < view.n_rows and first_seen(view, rows.end) == view.start:
        rows.low[rows.end], rows.high[rows.end] = 0, view.n_sinks
        rows.end += 1
    return rows


cdef Rows attend_split(Pass* p, Py_ssize_t split, PrefetchCursor* cursor) noexcept nogil:
    """Attention to the positions of a split, for the rows that see some of them.

    Pages and splits count by absolute position, so that the order of additions depends on what a
    row sees alone, not on threads, chunks of prefill or forks.
    """
    cdef const View* view = p.view
    cdef Rows at_page, rows = rows_at(view, split * SPLIT, (split + 1) * SPLIT - 1)
    cdef Py_ssize_t page
    start_sums(p, &rows)
    for page in range(max(split * SPLIT_PAGES, first_seen(view, 0) // PAGE),
                      min((split + 1) * SPLIT_PAGES, last_seen(view) // PAGE + 1)):
        at_page = rows_at(view, page * PAGE, (page + 1) * PAGE - 1)
        attend_page(p, &at_page, page_of(view, page), cursor)
    finish_pass(p, &rows)
    return rows


cdef Rows attend_sinks(Pass* p, PrefetchCursor* cursor) noexcept nogil:
    cdef Rows rows = rows_with_sinks(p.view)
    if rows.end:
        set_queries(p, &rows, True)
        start_sums(p, &rows)
        attend_page(p, &rows, page_of(p.view, 0), cursor)
        finish_pass(p, &rows)
    return rows


cdef struct Partial:                    # attention of one query
    float* out                          # (head_dim,): sums of weighted values
    float max_score
    float weight_sum


cdef void merge_partial(Partial* partial, const Partial* new, Py_ssize_t head_dim) noexcept nogil:
    """Add the attention of a split to that of the splits before it."""
    cdef float factors[LANES]
    cdef float top = max(partial.max_score, new.max_score)
    cdef float factor, new_factor
    cdef Py_ssize_t d
    f32_store(factors, f32_exp(f32_set1(partial.max_score - top)))
    factor = factors[0]
    f32_store(factors, f32_exp(f32_set1(new.max_score - top)))
    new_factor = factors[0]
    partial.max_score = top
    partial.weight_sum = partial.weight_sum * factor + new.weight_sum * new_factor
    for d in range(head_dim):
        partial.out[d] = partial.out[d] * factor + new.out[d] * new_factor


cdef inline Partial partial_of(Pass* p, Py_ssize_t i) noexcept nogil:
    cdef float* out = p.out             # Cython would copy an array into the struct
    return Partial(out + i * p.view.head_dim, p.max_score[i], p.weight_sum[i])


cdef inline void normalize(Partial* partial, Py_ssize_t head_dim) noexcept nogil:
    cdef Py_ssize_t d
    for d in range(head_dim):
        partial.out[d] /= partial.weight_sum


cdef void merge_rows(Partial* totals, Pass* p, const Rows* rows) noexcept nogil:
    """Add a pass to the totals; its sums are those of a row that has none yet."""
    cdef Py_ssize_t i, D = p.view.head_dim
    cdef Partial new
    for i in range(rows.begin * p.n_heads, rows.end * p.n_heads):
        new = partial_of(p, i)
        if totals[i].max_score == -INFINITY and totals[i].weight_sum == 0:
            memcpy(totals[i].out, new.out, D * sizeof(float))
            totals[i].max_score, totals[i].weight_sum = new.max_score, new.weight_sum
        else:
            merge_partial(&totals[i], &new, D)


cdef void attention(float* out, Py_ssize_t out_stride, const float* q, Py_ssize_t q_stride,
                    const View* view, const View* next, Py_ssize_t n_group) noexcept nogil:
    cdef Partial totals[MAX_QUERIES]
    cdef Pass p
    cdef Rows rows
    cdef PrefetchCursor cursor
    cdef Py_ssize_t i, split, g = 0, n_heads = max_queries(view.head_dim) // view.n_rows
    while g < n_group:
        p.view, p.q, p.q_stride = view, q + g * view.head_dim, q_stride
        p.n_heads, p.n_codes = min(n_heads, n_group - g), lanes_end(view.head_dim)
        cursor = cursor_behind(view, next if g + n_heads >= n_group else NULL,
                               first_seen(view, 0) // PAGE, last_seen(view) // PAGE)
        for i in range(view.n_rows * p.n_heads):
            totals[i] = Partial(out + i // p.n_heads * out_stride
                                + (g + i % p.n_heads) * view.head_dim, -INFINITY, 0)
        rows = all_rows(view)
        set_queries(&p, &rows, False)
        for split in range(first_seen(view, 0) // SPLIT, last_seen(view) // SPLIT + 1):
            rows = attend_split(&p, split, &cursor)
            merge_rows(totals, &p, &rows)
        rows = attend_sinks(&p, &cursor)
        merge_rows(totals, &p, &rows)
        for i in range(view.n_rows * p.n_heads):
            normalize(&totals[i], view.head_dim)
        g += n_heads


cdef void attention_split(float* partials, const float* q, const View* view, const View* next,
                          Py_ssize_t split, Py_ssize_t n_group) noexcept nogil:
    """Write a split's out (n_group, head_dim), max_score (n_group) and weight_sum (n_group)."""
    cdef float* max_scores = partials + n_group * view.head_dim
    cdef Py_ssize_t at = first_seen(view, 0) // SPLIT + split
    cdef Py_ssize_t i, g = 0, n_heads = max_queries(view.head_dim)
    cdef Pass p
    cdef Rows rows = all_rows(view)
    cdef Partial new
    cdef PrefetchCursor cursor
    while g < n_group:
        p.view, p.q, p.q_stride = view, q + g * view.head_dim, 0
        p.n_heads, p.n_codes = min(n_heads, n_group - g), lanes_end(view.head_dim)
        cursor = cursor_behind(view, next if g + n_heads >= n_group else NULL,
                               max(at * SPLIT_PAGES, first_seen(view, 0) // PAGE),
                               min((at + 1) * SPLIT_PAGES - 1, last_seen(view) // PAGE))
        if at > last_seen(view) // SPLIT:
            attend_sinks(&p, &cursor)
        else:
            set_queries(&p, &rows, False)
            attend_split(&p, at, &cursor)
        for i in range(p.n_heads):
            new = partial_of(&p, i)
            memcpy(partials + (g + i) * view.head_dim, new.out, view.head_dim * sizeof(float))
            max_scores[g + i], max_scores[n_group + g + i] = new.max_score, new.weight_sum
        g += n_heads


cdef void attention_merge(float* out, const float* partials, Py_ssize_t n_splits,
                          Py_ssize_t n_group, Py_ssize_t head_dim) noexcept nogil:
    cdef Py_ssize_t g, split
    cdef const float* at
    cdef Partial total, new
    for g in range(n_group):
        total = Partial(out + g * head_dim, 0, 0)
        for split in range(n_splits):
            at = partials + split * n_group * (head_dim + 2)
            new = Partial(<float*>at + g * head_dim, at[n_group * head_dim + g],
                          at[n_group * (head_dim + 1) + g])
            if split:
                merge_partial(&total, &new, head_dim)
                continue
            memcpy(total.out, new.out, head_dim * sizeof(float))
            total.max_score, total.weight_sum = new.max_score, new.weight_sum
        normalize(&total, head_dim)
