# Rotary positions, keys and values in their pages, and attention over pages.

cdef enum:
    I8 = 24                             # ggml's number, beside F32 and F16 of rows.pxi
    GROUP = 4                           # query heads that share one pass over keys and values
    SPAN = 4                            # pages that are summed apart, and may be by another thread
    MAX_HEAD_DIM = 1024


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
    """NumPy's and libm's cos differ between machines in the last place; additions and
    multiplications do not. Within 6.1e-8 up to 2^24, within 3e-7 up to 2^30."""
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
cdef inline Py_ssize_t item_bytes(int type) noexcept nogil:
    return 4 if type == F32 else 2 if type == F16 else 1


cdef inline float* scales_of(char* page, Py_ssize_t kv_head, Py_ssize_t n_kv_heads,
                             Py_ssize_t head_dim) noexcept nogil:
    """Of an I8 page, behind all codes: PAGE scales of a head's keys; its values' are n_kv_heads on.
    """
    return <float*>(page + 2 * n_kv_heads * PAGE * head_dim) + kv_head * PAGE


cdef void store_kv(char* page, const float* k, const float* v, Py_ssize_t slot, int type,
                   Py_ssize_t n_kv_heads, Py_ssize_t head_dim) noexcept nogil:
    """Keys go transposed, 16 positions together, so that attention scores 16 with a vector."""
    cdef Py_ssize_t h, key, value, n = n_kv_heads * head_dim
    cdef float* scales
    for h in range(n_kv_heads):
        key = (h * PAGE + slot - slot % LANES) * head_dim + slot % LANES
        value = n * PAGE + (h * PAGE + slot) * head_dim
        if type == F32:
            store_f32(<float*>page + key, k + h * head_dim, LANES, head_dim)
            store_f32(<float*>page + value, v + h * head_dim, 1, head_dim)
        elif type == F16:
            store_f16(<uint16_t*>page + key, k + h * head_dim, LANES, head_dim)
            store_f16(<uint16_t*>page + value, v + h * head_dim, 1, head_dim)
        else:
            scales = scales_of(page, h, n_kv_heads, head_dim) + slot
            scales[0] = store_i8(<int8_t*>page + key, k + h * head_dim, LANES, head_dim)
            scales[n_kv_heads * PAGE] = store_i8(<int8_t*>page + value, v + h * head_dim, 1,
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

    NaN, and codes 0, where one is not finite: it cannot pass unseen.
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
    if type == F16:
        return f32_of_f16((<const uint16_t*>m)[i])
    if type == I8:
        return <float>(<const int8_t*>m)[i]
    return (<const float*>m)[i]


# ------------------------------------------------------------------------------------ attention
cdef inline char* page_of(const View* view, Py_ssize_t page) noexcept nogil:
    cdef Py_ssize_t n = view.n_pages
    return view.pages[page if page < n else 1 + (page - 1) % (n - 1)]


cdef inline char* keys_of(const View* view, Py_ssize_t page) noexcept nogil:
    """Of its head; the values are n_kv_heads heads further on."""
    return page_of(view, page) + view.kv_head * PAGE * view.head_dim * item_bytes(view.type)


cdef struct Ahead:                      # keys and values that are worked on soon
    const View* view                    # whose they are, NULL at the end
    const View* next                    # and whose after these
    Py_ssize_t tile, last               # pages
    bint has_values                     # behind the keys
    const char* at
    Py_ssize_t n_bytes                  # there


cdef void go_ahead(Ahead* ahead) noexcept nogil:
    """To the values of a tile, the keys of the next one, or the first of the next view.

    Scales of an I8 tile are asked for with its keys: 16 lines at once.
    """
    cdef Py_ssize_t i, low, high, D
    cdef const View* view
    cdef const float* scales
    if ahead.has_values:
        ahead.has_values = False
        ahead.tile += 1
        if ahead.tile > ahead.last:
            ahead.view, ahead.next = ahead.next, NULL
            if ahead.view is NULL:
                return
            ahead.tile = ahead.view.first // PAGE
            ahead.last = ahead.view.last // PAGE
    else:
        ahead.has_values = True
    view = ahead.view
    D = view.head_dim * item_bytes(view.type)
    low = max(view.first - ahead.tile * PAGE, <Py_ssize_t>0)
    high = min(view.last - ahead.tile * PAGE + 1, <Py_ssize_t>PAGE)
    if ahead.has_values:
        ahead.at = keys_of(view, ahead.tile) + (view.n_kv_heads * PAGE + low) * D
    else:
        low -= low % LANES
        high = (high + LANES - 1) // LANES * LANES
        ahead.at = keys_of(view, ahead.tile) + low * D
        scales = scales_of(page_of(view, ahead.tile), view.kv_head, view.n_kv_heads, view.head_dim)
        for i in range(low, high if view.type == I8 else 0, 16):
            prefetch_first(scales + i)
            prefetch_first(scales + view.n_kv_heads * PAGE + i)
    ahead.n_bytes = (high - low) * D


cdef inline const char* ask(Ahead* ahead, Py_ssize_t n_bytes) noexcept nogil:
    """Where the next n_bytes are; less than 2 KiB left of keys or values come without asking."""
    cdef const char* at
    while ahead.n_bytes < 2048 and ahead.view is not NULL:
        go_ahead(ahead)
    at = ahead.at
    if ahead.view is not NULL:
        ahead.at += n_bytes
        ahead.n_bytes -= n_bytes
    return at


cdef void combine(float* out, Py_ssize_t out_stride, const float* a, Py_ssize_t a_stride,
                  const char* m, Py_ssize_t stride, Py_ssize_t column, int type,
                  Py_ssize_t n_heads, Py_ssize_t n, Py_ssize_t n_lanes,
                  Ahead* ahead) noexcept nogil:
    """out[g, lane] += sum over i, in order, of a[g, i] * m[i, lane], for up to GROUP heads g.

    column: numbers of m from 16 lanes to the next 16. As many bytes are asked for as are read.
    Scores (m the transposed keys) and weighted values (m the values) alike: no horizontal sums,
    and a row of m is read and converted once for all heads.
    """
    cdef Combine some = combine_i8 if type == I8 else combine_f16 if type == F16 else combine_f32
    cdef Py_ssize_t g, i, at, lane, v = 0, item = item_bytes(type), n_vectors = n_lanes // LANES
    cdef Py_ssize_t wide = COMBINE_SUMS // n_heads
    cdef float total
    while v < n_vectors:
        some(out + v * LANES, out_stride, a, a_stride, m + v * column * item, stride, column,
             n_heads, n, min(wide, n_vectors - v), ask(ahead, n * wide * LANES * item))
        v += wide
    for lane in range(n_vectors * LANES, n_lanes):              # head_dim 100: the last 4 of a row
        at = n_vectors * column + lane % LANES
        for g in range(n_heads):
            total = out[g * out_stride + lane]
            for i in range(n):
                total += a[g * a_stride + i] * load_lane(m, i * stride + at, type)
            out[g * out_stride + lane] = total


cdef inline void scale_lanes(float* x, const float* scales, Py_ssize_t low,
                             Py_ssize_t high) noexcept nogil:
    """x[j] *= scales[j] for the vectors that hold low..high."""
    cdef Py_ssize_t j
    for j in range(low - low % LANES, high, 16):
        f32_store(x + j, f32_mul(f32_load(x + j), f32_load(scales + j)))


cdef inline void shorten(float* x, Py_ssize_t n) noexcept nogil:
    """Round x to what has exact products with the numbers of a page; whole vectors are there."""
    cdef Py_ssize_t j
    for j in range(0, n, 16):
        f32_store(x + j, f32_shorten(f32_load(x + j)))


cdef float softmax_tile(float* scores, float* largest, float* total, float scale, Py_ssize_t low,
                        Py_ssize_t high) noexcept nogil:
    """Turn scores[low:high] of a tile into weights relative to the running maximum.

    Updates maximum and running total; returns the factor for what was summed before (online
    softmax: Milakov and Gimelshein 2018). Lanes outside low..high become 0.
    """
    cdef Py_ssize_t j, begin = low - low % LANES, end = (high + LANES - 1) // LANES * LANES
    cdef float lanes[LANES]
    cdef float before = largest[0]
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
        if lanes[j] > largest[0]:
            largest[0] = lanes[j]
    for j in range(begin, end, 16):
        v = f32_exp(f32_sub(f32_load(scores + j), f32_set1(largest[0])))
        f32_store(scores + j, v)
        sums = f32_add(sums, v)
    f32_store(lanes, f32_exp(f32_set1(before - largest[0])))
    total[0] = total[0] * lanes[0] + f32_sum(sums)
    return lanes[0]


cdef struct Heads:                      # up to GROUP query heads on their way through the pages
    float* out                          # (n, head_dim), sums of weighted values so far
    float* q                            # (n, head_dim)
    Py_ssize_t n
    float[GROUP] largest                # score so far
    float[GROUP] total                  # of the weights so far


cdef void attend_page(Heads* heads, const View* view, Py_ssize_t tile, Py_ssize_t low,
                      Py_ssize_t high, Ahead* ahead) noexcept nogil:
    """Positions low..high - 1 of a page."""
    cdef float scores[GROUP * PAGE]
    cdef Py_ssize_t g, d, begin = low - low % LANES, end = (high + LANES - 1) // LANES * LANES
    cdef Py_ssize_t D = view.head_dim, item = item_bytes(view.type)
    cdef float factor, scale = <float>1.0 / sqrtf(<float>D)
    cdef const char* keys = keys_of(view, tile)
    cdef const char* values = keys + view.n_kv_heads * PAGE * D * item
    cdef const float* scales = scales_of(page_of(view, tile), view.kv_head, view.n_kv_heads, D)
    memset(scores, 0, sizeof(scores))
    combine(scores + begin, PAGE, heads.q, D, keys + begin * D * item, LANES, LANES * D, view.type,
            heads.n, D, end - begin, ahead)
    for g in range(heads.n):
        if view.type == I8:
            scale_lanes(scores + g * PAGE, scales, low, high)
        factor = softmax_tile(scores + g * PAGE, &heads.largest[g], &heads.total[g], scale, low,
                              high)
        for d in range(D):
            heads.out[g * D + d] *= factor
        if view.type == I8:
            scale_lanes(scores + g * PAGE, scales + view.n_kv_heads * PAGE, low, high)
        if view.type != F32:
            shorten(scores + g * PAGE + begin, high - begin)
    combine(heads.out, D, scores + low, PAGE, values + low * D * item, D, LANES, view.type,
            heads.n, high - low, D, ahead)


cdef inline Py_ssize_t n_spans(const View* view) noexcept nogil:
    return view.last // (SPAN * PAGE) - view.first // (SPAN * PAGE) + 1


cdef void attend(Heads* heads, const View* view, Py_ssize_t part, Ahead* ahead) noexcept nogil:
    """A part: the positions of a span, or behind the last one the sinks.

    Tiles are pages by absolute position, spans SPAN of them, so that the order of additions depends
    on first and last alone, not on threads, chunks of prefill or forks.
    """
    cdef float query[GROUP * MAX_HEAD_DIM]
    cdef Py_ssize_t tile, low, high, g, n = heads.n * view.head_dim
    cdef Py_ssize_t begin = (view.first // (SPAN * PAGE) + part) * SPAN
    cdef Py_ssize_t last = min(begin + SPAN - 1, view.last // PAGE)
    cdef float* q = heads.q
    for g in range(heads.n):
        heads.largest[g] = -INFINITY
        heads.total[g] = 0
    memset(heads.out, 0, n * sizeof(float))
    memcpy(query, q, n * sizeof(float))
    if part == n_spans(view):
        for g in range(heads.n):
            rope(query + g * view.head_dim, view.cosines, view.sines, view.interleaved,
                 view.head_dim)
    if view.type != F32:
        shorten(query, n)
    heads.q = query
    if part == n_spans(view):
        attend_page(heads, view, 0, 0, view.n_sinks, ahead)
        heads.q = q
        return
    begin = max(begin, view.first // PAGE)
    for tile in range(begin, last + 1):
        low = max(view.first - tile * PAGE, <Py_ssize_t>0)
        high = min(view.last - tile * PAGE + 1, <Py_ssize_t>PAGE)
        attend_page(heads, view, tile, low, high, ahead)
    heads.q = q


cdef void merge(Heads* heads, const Heads* part, Py_ssize_t head_dim) noexcept nogil:
    """Add what a part has found to what those before it have."""
    cdef float factors[LANES]
    cdef float top, before, new
    cdef Py_ssize_t g, d
    for g in range(heads.n):
        top = max(heads.largest[g], part.largest[g])
        f32_store(factors, f32_exp(f32_set1(heads.largest[g] - top)))
        before = factors[0]
        f32_store(factors, f32_exp(f32_set1(part.largest[g] - top)))
        new = factors[0]
        heads.largest[g] = top
        heads.total[g] = heads.total[g] * before + part.total[g] * new
        for d in range(g * head_dim, (g + 1) * head_dim):
            heads.out[d] = heads.out[d] * before + part.out[d] * new


cdef inline void divide(Heads* heads, Py_ssize_t head_dim) noexcept nogil:
    cdef Py_ssize_t g, d
    for g in range(heads.n):
        for d in range(g * head_dim, (g + 1) * head_dim):
            heads.out[d] /= heads.total[g]


cdef Ahead ahead_of(const View* view, const View* next, Py_ssize_t tile,
                    Py_ssize_t last) noexcept nogil:
    """What comes behind the keys of a tile: its values, the tiles up to the last one, and next."""
    return Ahead(view, next, tile, last, False, <const char*>view, 0)


cdef void attention(float* out, const float* q, const View* view, const View* next,
                    Py_ssize_t n_group) noexcept nogil:
    cdef float sums[GROUP * MAX_HEAD_DIM]
    cdef Heads heads, new
    cdef Ahead ahead
    cdef Py_ssize_t g, part
    for g in range(0, n_group, 4):
        heads.out, heads.q = out + g * view.head_dim, <float*>q + g * view.head_dim
        heads.n = min(<Py_ssize_t>GROUP, n_group - g)
        new.out, new.q, new.n = sums, heads.q, heads.n
        ahead = ahead_of(view, next if g + GROUP >= n_group else NULL, view.first // PAGE,
                         view.last // PAGE)
        attend(&heads, view, 0, &ahead)
        for part in range(1, n_spans(view) + (view.n_sinks > 0)):
            attend(&new, view, part, &ahead)
            merge(&heads, &new, view.head_dim)
        divide(&heads, view.head_dim)


cdef void attention_part(float* found, const float* q, const View* view, const View* next,
                         Py_ssize_t part, Py_ssize_t n_group) noexcept nogil:
    cdef float* state = found + n_group * view.head_dim
    cdef Py_ssize_t span = view.first // (SPAN * PAGE) + part
    cdef Heads heads
    cdef Ahead ahead
    cdef Py_ssize_t g
    for g in range(0, n_group, 4):
        heads.out, heads.q = found + g * view.head_dim, <float*>q + g * view.head_dim
        heads.n = min(<Py_ssize_t>GROUP, n_group - g)
        ahead = ahead_of(view, next if g + GROUP >= n_group else NULL,
                         max(span * SPAN, view.first // PAGE),
                         min(span * SPAN + SPAN - 1, view.last // PAGE))
        attend(&heads, view, part, &ahead)
        memcpy(state + g, heads.largest, heads.n * sizeof(float))
        memcpy(state + n_group + g, heads.total, heads.n * sizeof(float))


cdef void attention_merge(float* out, const float* found, Py_ssize_t n_parts, Py_ssize_t n_group,
                          Py_ssize_t head_dim) noexcept nogil:
    cdef Heads heads, new
    cdef const float* state
    cdef Py_ssize_t g, part
    for g in range(0, n_group, 4):
        heads.out, heads.n = out + g * head_dim, min(<Py_ssize_t>GROUP, n_group - g)
        new.n = heads.n
        for part in range(n_parts):
            new.out = <float*>found + part * n_group * (head_dim + 2) + g * head_dim
            state = found + part * n_group * (head_dim + 2) + n_group * head_dim + g
            memcpy(new.largest, state, new.n * sizeof(float))
            memcpy(new.total, state + n_group, new.n * sizeof(float))
            if part:
                merge(&heads, &new, head_dim)
                continue
            memcpy(heads.out, new.out, new.n * head_dim * sizeof(float))
            memcpy(heads.largest, new.largest, new.n * sizeof(float))
            memcpy(heads.total, new.total, new.n * sizeof(float))
        divide(&heads, head_dim)
