# Rotary positions, keys and values in their pages (kv_page.h), and what of them is prefetched.

cdef enum:
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
        key = kv_key_item(type, h, slot, head_dim)
        value = kv_value_item(type, h, slot, n_kv_heads, head_dim)
        if type == KV_F32:
            store_f32(<float*>page + key, k + h * head_dim, LANES, head_dim)
            store_f32(<float*>page + value, v + h * head_dim, 1, head_dim)
        elif type == KV_F16:
            store_f16(<uint16_t*>page + key, k + h * head_dim, LANES, head_dim)
            store_f16(<uint16_t*>page + value, v + h * head_dim, 1, head_dim)
        else:
            scale = <float*>(page + kv_scale_offset(h, slot, n_kv_heads, head_dim))
            scale[0] = store_i8(<int8_t*>page + key, k + h * head_dim, 1, 4 * LANES, head_dim,
                                kv_key_width(type, head_dim))
            scale[n_kv_heads * PAGE] = store_i8(<int8_t*>page + value, v + h * head_dim, 4, 16,
                                                head_dim, head_dim)
            if scale[n_kv_heads * PAGE] != scale[n_kv_heads * PAGE]:
                scale[0] = NAN          # the score is NaN then, and so what it is summed into


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


cdef inline float store_i8(int8_t* out, const float* x, Py_ssize_t step, Py_ssize_t quad_step,
                           Py_ssize_t n, Py_ssize_t width) noexcept nogil:
    """Codes = round half even (x * 127 / max |x|); returns their scale, max |x| / 127.

    Four of them lie step apart, then the next four quad_step behind these. Zeros from n to width.
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
    for i in range(0, width, 16):
        if largest >= 0x7F800000:
            memset(codes, 0, sizeof(codes))
        elif i + LANES <= n:
            f32_store_i8(codes, f32_mul(f32_load(x + i), factor))
        else:
            f32_store_i8(codes, f32_mul(load_some(x + i, n - i), factor))
        for j in range(min(<Py_ssize_t>LANES, width - i)):
            out[(i + j) // 4 * quad_step + j % 4 * step] = codes[j]
    return biggest / <float>127.0 if largest < 0x7F800000 else <float>NAN


cdef inline float load_lane(const char* m, Py_ssize_t i, int type) noexcept nogil:
    return f32_of_f16((<const uint16_t*>m)[i]) if type == KV_F16 else (<const float*>m)[i]


cdef inline const char* page_of(const View* view, Py_ssize_t page) noexcept nogil:
    return view.pages[kv_slot_of(page, view.n_pages)]


cdef inline const char* keys_of(const View* view, const char* page, Py_ssize_t slot) noexcept nogil:
    """The keys of the view's head from a slot on that is a multiple of LANES."""
    return page + (kv_key_item(view.type, view.kv_head, slot, view.head_dim)
                   * kv_item_bytes(view.type))


cdef inline const char* values_of(const View* view, const char* page,
                                  Py_ssize_t slot) noexcept nogil:
    """The values of the view's head from a slot on; in int8 that is a multiple of 4."""
    return page + (kv_value_item(view.type, view.kv_head, slot, view.n_kv_heads, view.head_dim)
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
            cursor.page = first_seen(cursor.view, 0) // PAGE
            cursor.last = last_seen(cursor.view) // PAGE
    else:
        cursor.is_at_values = True
    view = cursor.view
    page = page_of(view, cursor.page)
    low = max(first_seen(view, 0) - cursor.page * PAGE, <Py_ssize_t>0)
    high = min(last_seen(view) - cursor.page * PAGE + 1, <Py_ssize_t>PAGE)
    if not cursor.is_at_values or view.type == KV_INT8:
        low -= low % LANES
        high = (high + LANES - 1) // LANES * LANES
    if cursor.is_at_values:
        cursor.at = values_of(view, page, low)
    else:
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
