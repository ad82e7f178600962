# Rotary positions, keys and values in their pages (kv_page.h), and attention over pages.

ctypedef void (*WeightedSum)(float* out, Py_ssize_t out_stride, const float* a,
                             Py_ssize_t a_stride, const void* m, Py_ssize_t stride,
                             Py_ssize_t column, Py_ssize_t n_heads, Py_ssize_t n,
                             Py_ssize_t n_vectors, const char* ahead) noexcept nogil

cdef extern from "weighted_sum.h" nogil:
    enum: WEIGHTED_SUM_VECTORS          # vectors of sums at once, those of all heads together
    WeightedSum weighted_sum_f32, weighted_sum_f16, weighted_sum_i8

cdef enum:
    # query heads that share one pass over keys and values: an item is converted once for all
    PASS_HEADS = 4
    # bytes left of some keys or values that are worth a prefetch
    MIN_PREFETCH = 2048


cdef void rope(float* x, const float* cosines, const float* sines, int interleaved,
               Py_ssize_t head_dim) noexcept nogil:
    """Rotate the pairs (j, j + D/2), or (2j, 2j + 1) where interleaved (llama-arch GGUF)."""
    cdef Py_ssize_t j, half = head_dim // 2
    cdef float a, b
    if interleaved:
        for j in range(half):
            a, b = x[2 * j], x[2 * j + 1]
            x[2 * j] = a * cosines[j] - b * sines[j]
            x[2 * j + 1] = b * cosines[j] + a * sines[j]
        return
    for j in range(half):
        a, b = x[j], x[j + half]
        x[j] = a * cosines[j] - b * sines[j]
        x[j + half] = b * cosines[j] + a * sines[j]


cdef void cos_sin(float* cosines, float* sines, const float* frequencies, Py_ssize_t position,
                  int is_rounded, Py_ssize_t n) noexcept nogil:
    """By additions and multiplications alone, which give the same bits on every machine; libm's and
    NumPy's cosines differ in the last place. Off by less than 6.1e-8 for positions up to 2^24, less
    than 3e-7 up to 2^30."""
    cdef Py_ssize_t j
    cdef int64_t quadrant
    cdef double x, k, r, z, c, s
    for j in range(n):
        x = <double>position * <double>frequencies[j]
        if is_rounded:
            x = <double>(<float>position * frequencies[j])
        k = (x * 0.63661977236758134 + 6755399441055744.0) - 6755399441055744.0     # 1.5 * 2^52
        # pi / 2 in three parts of 33 bits: k times the first two is exact for k < 2^20
        r = ((x - k * 1.5707963267341256e00) - k * 6.0771005063039660e-11) \
            - k * 2.0222662487959506e-21
        z = r * r
        s = r * (1 + z * (-1.0 / 6.0 + z * (1.0 / 120.0 + z * (-1.0 / 5040.0 + z * (
            1.0 / 362880.0 + z * (-1.0 / 39916800.0 + z * (
                1.0 / 6227020800.0 - z * (1.0 / 1307674368000.0))))))))
        c = 1 + z * (-1.0 / 2.0 + z * (1.0 / 24.0 + z * (-1.0 / 720.0 + z * (1.0 / 40320.0 + z * (
            -1.0 / 3628800.0 + z * (1.0 / 479001600.0 + z * (
                -1.0 / 87178291200.0 + z * (1.0 / 20922789888000.0))))))))
        quadrant = <int64_t>k
        if quadrant & 1:
            s, c = c, s
        cosines[j] = <float>(-c if (quadrant + 1) & 2 else c)
        sines[j] = <float>(-s if quadrant & 2 else s)


# ---------------------------------------------------------------------------------------- pages
cdef void store_kv(char* page, const float* k, const float* v, Py_ssize_t slot, int type,
                   Py_ssize_t n_kv_heads, Py_ssize_t head_dim) noexcept nogil:
    cdef Py_ssize_t h, key, value
    cdef float* scale
    for h in range(n_kv_heads):
        key = kv_key_item(h, slot, head_dim)
        value = kv_value_item(h, slot, n_kv_heads, head_dim)
        if type == KV_F32:
            store_f32(<float*>page + key, k + h * head_dim, LANES, head_dim)
            store_f32(<float*>page + value, v + h * head_dim, 1, head_dim)
        elif type == KV_F16:
            store_f16(<uint16_t*>page + key, k + h * head_dim, LANES, head_dim)
            store_f16(<uint16_t*>page + value, v + h * head_dim, 1, head_dim)
        else:
            scale = <float*>(page + kv_scale_offset(h, slot, n_kv_heads, head_dim))
            scale[0] = store_i8(<int8_t*>page + key, k + h * head_dim, LANES, head_dim)
            scale[n_kv_heads * PAGE] = store_i8(<int8_t*>page + value, v + h * head_dim, 1,
                                                head_dim)


cdef inline void store_f32(float* out, const float* x, Py_ssize_t step,
                           Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i * step] = x[i]


cdef inline void store_f16(uint16_t* out, const float* x, Py_ssize_t step,
                           Py_ssize_t n) noexcept nogil:
    cdef uint16_t halves[LANES]
    cdef Py_ssize_t i, j
    for i in range(0, n - LANES + 1, 16):
        f32_store_f16(halves, f32_load(x + i))
        for j in range(LANES):
            out[(i + j) * step] = halves[j]
    for i in range(n - n % LANES, n):
        out[i * step] = f16_of_f32(x[i])


cdef inline float store_i8(int8_t* out, const float* x, Py_ssize_t step,
                           Py_ssize_t n) noexcept nogil:
    """Codes = round half even (x * 127 / max |x|); returns their scale, max |x| / 127.

    Where one is not finite the scale is NaN and codes are 0: that cannot pass unseen.
    """
    cdef int8_t codes[LANES]
    cdef int32_t largest = largest_bits(x, n)
    cdef float biggest
    cdef f32x16 factor
    cdef Py_ssize_t i, j
    memcpy(&biggest, &largest, 4)
    biggest = biggest if biggest > <float>1e-30 else <float>1e-30      # 127 / biggest is finite
    factor = f32_set1(<float>127.0 / biggest if largest < 0x7F800000 else <float>0.0)
    for i in range(0, n, 16):
        if largest >= 0x7F800000:
            memset(codes, 0, sizeof(codes))
        else:
            f32_store_i8(codes, f32_mul(load_some(x + i, min(<Py_ssize_t>LANES, n - i)), factor))
        for j in range(min(<Py_ssize_t>LANES, n - i)):
            out[(i + j) * step] = codes[j]
    return biggest / <float>127.0 if largest < 0x7F800000 else <float>NAN


cdef inline float load_lane(const char* m, Py_ssize_t i, int type) noexcept nogil:
    if type == KV_F16:
        return f32_of_f16((<const uint16_t*>m)[i])
    if type == KV_INT8:
        return <float>(<const int8_t*>m)[i]
    return (<const float*>m)[i]


cdef inline const char* page_of(const View* view, Py_ssize_t page) noexcept nogil:
    return view.pages[kv_slot_of(page, view.n_pages)]


cdef inline const char* keys_of(const View* view, const char* page, Py_ssize_t slot) noexcept nogil:
    """The keys of the view's head from a slot on that is a multiple of LANES."""
    return page + kv_key_item(view.kv_head, slot, view.head_dim) * kv_item_bytes(view.type)


cdef inline const char* values_of(const View* view, const char* page,
                                  Py_ssize_t slot) noexcept nogil:
    return page + (kv_value_item(view.kv_head, slot, view.n_kv_heads, view.head_dim)
                   * kv_item_bytes(view.type))


cdef inline const float* scales_of(const View* view, const char* page) noexcept nogil:
    """PAGE scales of the keys; those of the values are n_kv_heads * PAGE further on."""
    return <const float*>(page + kv_scale_offset(view.kv_head, 0, view.n_kv_heads, view.head_dim))


# --------------------------------------------------------------------------------- prefetching
cdef struct PrefetchCursor:             # what is prefetched next: keys of a page, its values, ...
    const View* view                    # the view that it is in, NULL at the end
    const View* next                    # the view that comes after it, or NULL
    Py_ssize_t page, last               # the page that it is in, and the view's last one
    bint is_at_values                   # whether in the values of the page, not in its keys
    const char* at
    Py_ssize_t n_bytes                  # bytes left of these keys or values


cdef PrefetchCursor cursor_behind(const View* view, const View* next, Py_ssize_t page,
                                  Py_ssize_t last) noexcept nogil:
    """A cursor behind the keys of a page: its values are next, then the pages up to the last one,
    then the view ``next``."""
    return PrefetchCursor(view, next, page, last, False, <const char*>view, 0)


cdef void cursor_step(PrefetchCursor* cursor) noexcept nogil:
    """Move to the values of the page, the keys of the next one, or the first keys of the next view.

    Scales of a KV_INT8 page are prefetched with its keys: 16 cache lines at once.
    """
    cdef Py_ssize_t i, low, high
    cdef const View* view
    cdef const char* page
    cdef const float* scales
    if cursor.is_at_values:
        cursor.is_at_values = False
        cursor.page += 1
        if cursor.page > cursor.last:
            cursor.view, cursor.next = cursor.next, NULL
            if cursor.view is NULL:
                return
            cursor.page = cursor.view.first // PAGE
            cursor.last = cursor.view.last // PAGE
    else:
        cursor.is_at_values = True
    view = cursor.view
    page = page_of(view, cursor.page)
    low = max(view.first - cursor.page * PAGE, <Py_ssize_t>0)
    high = min(view.last - cursor.page * PAGE + 1, <Py_ssize_t>PAGE)
    if cursor.is_at_values:
        cursor.at = values_of(view, page, low)
    else:
        low -= low % LANES
        high = (high + LANES - 1) // LANES * LANES
        cursor.at = keys_of(view, page, low)
        scales = scales_of(view, page)
        for i in range(low, high if view.type == KV_INT8 else 0, 16):
            prefetch_t0(scales + i)
            prefetch_t0(scales + view.n_kv_heads * PAGE + i)
    cursor.n_bytes = (high - low) * view.head_dim * kv_item_bytes(view.type)


cdef inline const char* cursor_take(PrefetchCursor* cursor, Py_ssize_t n_bytes) noexcept nogil:
    """Address of the next n_bytes to be prefetched, which count as prefetched then."""
    cdef const char* at
    while cursor.n_bytes < MIN_PREFETCH and cursor.view is not NULL:
        cursor_step(cursor)
    at = cursor.at
    if cursor.view is not NULL:
        cursor.at += n_bytes
        cursor.n_bytes -= n_bytes
    return at


# ------------------------------------------------------------------------------------ attention
cdef void weighted_sum(float* out, Py_ssize_t out_stride, const float* a, Py_ssize_t a_stride,
                       const char* m, Py_ssize_t stride, Py_ssize_t column, int type,
                       Py_ssize_t n_heads, Py_ssize_t n, Py_ssize_t n_lanes,
                       PrefetchCursor* cursor) noexcept nogil:
    """out[g, lane] += sum over i, in order, of a[g, i] * m[i, lane], for up to PASS_HEADS heads g.

    column: items of m from 16 lanes to the next 16. As many bytes are prefetched as are read.
    Scores (m the transposed keys) and weighted values (m the values) alike: no horizontal sums,
    and a row of m is read and converted once for all heads.
    """
    cdef WeightedSum kernel = (weighted_sum_i8 if type == KV_INT8 else
                               weighted_sum_f16 if type == KV_F16 else weighted_sum_f32)
    cdef Py_ssize_t g, i, at, lane, v = 0, item = kv_item_bytes(type), n_vectors = n_lanes // LANES
    cdef Py_ssize_t n_at_once = WEIGHTED_SUM_VECTORS // n_heads
    cdef float total
    while v < n_vectors:
        kernel(out + v * LANES, out_stride, a, a_stride, m + v * column * item, stride, column,
               n_heads, n, min(n_at_once, n_vectors - v),
               cursor_take(cursor, n * n_at_once * LANES * item))
        v += n_at_once
    for lane in range(n_vectors * LANES, n_lanes):              # head_dim 100: the last 4 of a row
        at = n_vectors * column + lane % LANES
        for g in range(n_heads):
            total = out[g * out_stride + lane]
            for i in range(n):
                total += a[g * a_stride + i] * load_lane(m, i * stride + at, type)
            out[g * out_stride + lane] = total


cdef inline void scale_lanes(float* x, const float* scales, Py_ssize_t low,
                             Py_ssize_t high) noexcept nogil:
    """x[j] *= scales[j] for the vectors that hold low..high - 1."""
    cdef Py_ssize_t j
    for j in range(low - low % LANES, high, 16):
        f32_store(x + j, f32_mul(f32_load(x + j), f32_load(scales + j)))


cdef inline void round_to_13_bits(float* x, Py_ssize_t n) noexcept nogil:
    """Round x to 13 bits, so that its products with items of a page are exact. x has whole vectors.
    """
    cdef Py_ssize_t j
    for j in range(0, n, 16):
        f32_store(x + j, f32_round_to_13_bits(f32_load(x + j)))


cdef struct Partial:                    # attention of some query heads to the positions so far
    float* out                          # (n_heads, head_dim): sums of weighted values
    float* q                            # (n_heads, head_dim)
    Py_ssize_t n_heads
    float[PASS_HEADS] max_score
    float[PASS_HEADS] weight_sum        # sum of the weights, e^(score - max_score)


cdef float softmax_page(float* scores, float* max_score, float* weight_sum, float scale,
                        Py_ssize_t low, Py_ssize_t high) noexcept nogil:
    """Turn scores[low:high] of a page into weights relative to the running maximum.

    Updates the maximum and the running sum of weights; returns the factor for earlier sums
    (online softmax: Milakov and Gimelshein 2018). Lanes outside low..high - 1 become 0.
    """
    cdef Py_ssize_t j, begin = low - low % LANES, end = (high + LANES - 1) // LANES * LANES
    cdef float lanes[LANES]
    cdef float before = max_score[0]
    cdef f32x16 v, top, sums = f32_zero()
    for j in range(begin, low):
        scores[j] = -INFINITY
    for j in range(high, end):
        scores[j] = -INFINITY
    top = f32_set1(before)
    for j in range(begin, end, 16):
        v = f32_mul(f32_load(scores + j), f32_set1(scale))
        f32_store(scores + j, v)
        top = f32_max(top, v)
    f32_store(lanes, top)
    for j in range(LANES):
        if lanes[j] > max_score[0]:
            max_score[0] = lanes[j]
    for j in range(begin, end, 16):
        v = f32_exp(f32_sub(f32_load(scores + j), f32_set1(max_score[0])))
        f32_store(scores + j, v)
        sums = f32_add(sums, v)
    f32_store(lanes, f32_exp(f32_set1(before - max_score[0])))
    weight_sum[0] = weight_sum[0] * lanes[0] + f32_sum(sums)
    return lanes[0]


cdef void attend_page(Partial* partial, const View* view, Py_ssize_t page, Py_ssize_t low,
                      Py_ssize_t high, PrefetchCursor* cursor) noexcept nogil:
    """Add positions low..high - 1 of a page."""
    cdef float scores[PASS_HEADS * PAGE]
    cdef Py_ssize_t g, d, begin = low - low % LANES, end = (high + LANES - 1) // LANES * LANES
    cdef Py_ssize_t D = view.head_dim
    cdef float factor, scale = <float>1.0 / sqrtf(<float>D)
    cdef const char* data = page_of(view, page)
    cdef const float* scales = scales_of(view, data)
    memset(scores, 0, sizeof(scores))
    weighted_sum(scores + begin, PAGE, partial.q, D, keys_of(view, data, begin), LANES, LANES * D,
                 view.type, partial.n_heads, D, end - begin, cursor)
    for g in range(partial.n_heads):
        if view.type == KV_INT8:
            scale_lanes(scores + g * PAGE, scales, low, high)
        factor = softmax_page(scores + g * PAGE, &partial.max_score[g], &partial.weight_sum[g],
                              scale, low, high)
        for d in range(D):
            partial.out[g * D + d] *= factor
        if view.type == KV_INT8:
            scale_lanes(scores + g * PAGE, scales + view.n_kv_heads * PAGE, low, high)
        if view.type != KV_F32:
            round_to_13_bits(scores + g * PAGE + begin, high - begin)
    weighted_sum(partial.out, D, scores + low, PAGE, values_of(view, data, low), D, LANES,
                 view.type, partial.n_heads, high - low, D, cursor)


cdef void attend_split(Partial* partial, const View* view, Py_ssize_t split,
                       PrefetchCursor* cursor) noexcept nogil:
    """Set partial to the attention to the positions of a split; the split behind the last is the
    sinks.

    Pages and splits count by absolute position, so that the order of additions depends on first
    and last alone, not on threads, chunks of prefill or forks.
    """
    cdef float query[PASS_HEADS * MAX_HEAD_DIM]
    cdef Py_ssize_t page, low, high, g, n = partial.n_heads * view.head_dim
    cdef Py_ssize_t begin = (view.first // SPLIT + split) * SPLIT_PAGES
    cdef Py_ssize_t last = min(begin + SPLIT_PAGES - 1, view.last // PAGE)
    cdef bint has_sinks = split == kv_n_splits(view.first, view.last)
    cdef float* q = partial.q
    for g in range(partial.n_heads):
        partial.max_score[g] = -INFINITY
        partial.weight_sum[g] = 0
    memset(partial.out, 0, n * sizeof(float))
    memcpy(query, q, n * sizeof(float))
    if has_sinks:
        for g in range(partial.n_heads):
            rope(query + g * view.head_dim, view.cosines, view.sines, view.interleaved,
                 view.head_dim)
    if view.type != KV_F32:
        round_to_13_bits(query, n)
    partial.q = query
    if has_sinks:
        attend_page(partial, view, 0, 0, view.n_sinks, cursor)
        partial.q = q
        return
    begin = max(begin, view.first // PAGE)
    for page in range(begin, last + 1):
        low = max(view.first - page * PAGE, <Py_ssize_t>0)
        high = min(view.last - page * PAGE + 1, <Py_ssize_t>PAGE)
        attend_page(partial, view, page, low, high, cursor)
    partial.q = q


cdef void merge_partial(Partial* partial, const Partial* new, Py_ssize_t head_dim) noexcept nogil:
    """Add the attention of a split to that of the splits before it."""
    cdef float factors[LANES]
    cdef float top, factor, new_factor
    cdef Py_ssize_t g, d
    for g in range(partial.n_heads):
        top = max(partial.max_score[g], new.max_score[g])
        f32_store(factors, f32_exp(f32_set1(partial.max_score[g] - top)))
        factor = factors[0]
        f32_store(factors, f32_exp(f32_set1(new.max_score[g] - top)))
        new_factor = factors[0]
        partial.max_score[g] = top
        partial.weight_sum[g] = partial.weight_sum[g] * factor + new.weight_sum[g] * new_factor
        for d in range(g * head_dim, (g + 1) * head_dim):
            partial.out[d] = partial.out[d] * factor + new.out[d] * new_factor


cdef inline void normalize(Partial* partial, Py_ssize_t head_dim) noexcept nogil:
    cdef Py_ssize_t g, d
    for g in range(partial.n_heads):
        for d in range(g * head_dim, (g + 1) * head_dim):
            partial.out[d] /= partial.weight_sum[g]


cdef void attention(float* out, const float* q, const View* view, const View* next,
                    Py_ssize_t n_group) noexcept nogil:
    cdef float sums[PASS_HEADS * MAX_HEAD_DIM]
    cdef Partial partial, new
    cdef PrefetchCursor cursor
    cdef Py_ssize_t g, split
    for g in range(0, n_group, 4):
        partial.out, partial.q = out + g * view.head_dim, <float*>q + g * view.head_dim
        partial.n_heads = min(<Py_ssize_t>PASS_HEADS, n_group - g)
        new.out, new.q, new.n_heads = sums, partial.q, partial.n_heads
        cursor = cursor_behind(view, next if g + PASS_HEADS >= n_group else NULL,
                               view.first // PAGE, view.last // PAGE)
        attend_split(&partial, view, 0, &cursor)
        for split in range(1, kv_n_splits(view.first, view.last) + (view.n_sinks > 0)):
            attend_split(&new, view, split, &cursor)
            merge_partial(&partial, &new, view.head_dim)
        normalize(&partial, view.head_dim)


cdef void attention_split(float* partials, const float* q, const View* view, const View* next,
                          Py_ssize_t split, Py_ssize_t n_group) noexcept nogil:
    """Write a split's out (n_group, head_dim), max_score (n_group) and weight_sum (n_group)."""
    cdef float* max_scores = partials + n_group * view.head_dim
    cdef Py_ssize_t first_page = (view.first // SPLIT + split) * SPLIT_PAGES
    cdef Partial partial
    cdef PrefetchCursor cursor
    cdef Py_ssize_t g
    for g in range(0, n_group, 4):
        partial.out, partial.q = partials + g * view.head_dim, <float*>q + g * view.head_dim
        partial.n_heads = min(<Py_ssize_t>PASS_HEADS, n_group - g)
        cursor = cursor_behind(view, next if g + PASS_HEADS >= n_group else NULL,
                               max(first_page, view.first // PAGE),
                               min(first_page + SPLIT_PAGES - 1, view.last // PAGE))
        attend_split(&partial, view, split, &cursor)
        memcpy(max_scores + g, partial.max_score, partial.n_heads * sizeof(float))
        memcpy(max_scores + n_group + g, partial.weight_sum, partial.n_heads * sizeof(float))


cdef void attention_merge(float* out, const float* partials, Py_ssize_t n_splits,
                          Py_ssize_t n_group, Py_ssize_t head_dim) noexcept nogil:
    cdef Partial partial, new
    cdef const float* max_scores
    cdef Py_ssize_t g, split
    for g in range(0, n_group, 4):
        partial.out, partial.n_heads = out + g * head_dim, min(<Py_ssize_t>PASS_HEADS, n_group - g)
        new.n_heads = partial.n_heads
        for split in range(n_splits):
            new.out = <float*>partials + split * n_group * (head_dim + 2) + g * head_dim
            max_scores = partials + split * n_group * (head_dim + 2) + n_group * head_dim + g
            memcpy(new.max_score, max_scores, new.n_heads * sizeof(float))
            memcpy(new.weight_sum, max_scores + n_group, new.n_heads * sizeof(float))
            if split:
                merge_partial(&partial, &new, head_dim)
                continue
            memcpy(partial.out, new.out, new.n_heads * head_dim * sizeof(float))
            memcpy(partial.max_score, new.max_score, new.n_heads * sizeof(float))
            memcpy(partial.weight_sum, new.weight_sum, new.n_heads * sizeof(float))
        normalize(&partial, head_dim)
