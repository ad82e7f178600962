# The kernels, written once; every module beside includes this, compiled with flags of its own.
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, NAN, sqrtf
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .lookup cimport (
    LOOKUP, LOOKUP_COLS, LOOKUP_ENTRIES, lookup_columns, lookup_index, lookup_rows, lookup_tables,
)
from .simd cimport (
    AHEAD, ROWS, ROWS_1, f16_of_f32, f32_add, f32_div, f32_exp, f32_load, f32_load_bf16,
    f32_load_f16, f32_load_i8, f32_max, f32_mul, f32_of_f16, f32_set1, f32_store, f32_store_f16,
    f32_store_i8, f32_sub, f32_sum, f32_zero, f32_zero_below, f32x16, prefetch, ternary_row,
    ternary_row_1, ternary_tile, ternary_tile_1,
)
from .table cimport Kernels

cdef enum:
    LANES = 16                      # partial sums; as a step loops say 16: Cython wants a literal
    BLOCK_BYTES = 32                # 128 ternary codes
    TOKENS = 4                      # of a tile; as a step loops say 4
    PAGE = 128                      # positions of a KV page
    GROUP = 4                       # query heads that share one pass over keys and values


# ------------------------------------------------------------------------------------ ternary
cdef void ternary_matmul(int32_t* out, Py_ssize_t out_stride, const uint8_t* w, const int8_t* x,
                         Py_ssize_t x_stride, Py_ssize_t n_rows, Py_ssize_t n_tokens,
                         Py_ssize_t n_blocks) noexcept nogil:
    """Tiles of rows and up to four tokens; a token that is left alone goes by itself."""
    cdef Py_ssize_t i, r, t, row_bytes = n_blocks * BLOCK_BYTES
    cdef Py_ssize_t together = n_tokens - 1 if n_tokens % TOKENS == 1 else n_tokens
    for i in range(n_rows // ROWS):
        r = i * ROWS
        for t in range(0, together, 4):
            ternary_tile(out + t * out_stride + r, out_stride, w + r * row_bytes, row_bytes,
                         x + t * x_stride, x_stride, min(<Py_ssize_t>TOKENS, together - t),
                         n_blocks)
    for r in range(n_rows - n_rows % ROWS, n_rows):
        for t in range(0, together, 4):
            ternary_row(out + t * out_stride + r, out_stride, w + r * row_bytes, row_bytes,
                        x + t * x_stride, x_stride, min(<Py_ssize_t>TOKENS, together - t),
                        n_blocks)
    if together < n_tokens:
        ternary_matvec(out + together * out_stride, w, x + together * x_stride, n_rows, n_blocks)


cdef void ternary_matvec(int32_t* out, const uint8_t* w, const int8_t* x, Py_ssize_t n_rows,
                         Py_ssize_t n_blocks) noexcept nogil:
    cdef Py_ssize_t i, r, row_bytes = n_blocks * BLOCK_BYTES
    for i in range(n_rows // ROWS_1):
        r = i * ROWS_1
        ternary_tile_1(out + r, w + r * row_bytes, row_bytes, x, n_blocks)
    for r in range(n_rows - n_rows % ROWS_1, n_rows):
        ternary_row_1(out + r, w + r * row_bytes, row_bytes, x, n_blocks)


cdef Py_ssize_t find_code_3(const uint8_t* w, Py_ssize_t n_bytes) noexcept nogil:
    cdef Py_ssize_t begin, i, end
    cdef uint8_t both
    for begin in range(0, n_bytes, 4096):       # bits of all codes of 4 KiB first, then which byte
        end = min(begin + 4096, n_bytes)
        both = 0
        for i in range(begin, end):
            both |= w[i] & (w[i] >> 1)
        if both & 0x55:
            for i in range(begin, end):
                if w[i] & (w[i] >> 1) & 0x55:
                    return i
    return -1


cdef void quantize(int8_t* out, float* inv_scale, int32_t* code_sum, const float* x,
                   Py_ssize_t n, Py_ssize_t n_padded) noexcept nogil:
    """Per-token absmax (BitNet b1.58): s = 127 / max(|x|, 1e-5), code = round half even (x s).

    A row with a NaN or an infinity gets codes 0 and 1 / s = NaN, so that it cannot pass unseen.
    """
    cdef const int32_t* bits = <const int32_t*>x
    cdef int32_t magnitude, largest = 0, total = 0
    cdef int8_t tail[LANES]
    cdef float biggest, scale
    cdef f32x16 factor
    cdef Py_ssize_t i
    for i in range(n):                          # as integers: in any order, and NaN is largest
        magnitude = bits[i] & 0x7FFFFFFF
        largest = magnitude if magnitude > largest else largest
    memset(out + n, 0, n_padded - n)
    if largest >= 0x7F800000:
        memset(out, 0, n)
        inv_scale[0] = NAN
        code_sum[0] = 0
        return
    memcpy(&biggest, &largest, 4)
    scale = 127.0 / (biggest if biggest > <float>1e-5 else <float>1e-5)
    factor = f32_set1(scale)
    for i in range(0, n - LANES + 1, 16):
        f32_store_i8(out + i, f32_mul(f32_load(x + i), factor))
    if n % LANES:
        i = n - n % LANES
        f32_store_i8(tail, f32_mul(load_some(x + i, n % LANES), factor))
        memcpy(out + i, tail, n % LANES)
    for i in range(n):
        total += out[i]
    inv_scale[0] = <float>1.0 / scale
    code_sum[0] = total


# -------------------------------------------------------------------------------- norm and gates
cdef inline f32x16 load_some(const float* x, Py_ssize_t n) noexcept nogil:
    """The n < 16 floats at x, and zeros."""
    cdef float padded[LANES]
    memset(padded, 0, sizeof(padded))
    memcpy(padded, x, n * sizeof(float))
    return f32_load(padded)


cdef inline void store_some(float* out, f32x16 x, Py_ssize_t n) noexcept nogil:
    cdef float padded[LANES]
    f32_store(padded, x)
    memcpy(out, padded, n * sizeof(float))


cdef void rms_norm(float* out, const float* weight, const float* x, float eps,
                   Py_ssize_t n) noexcept nogil:
    """out = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, as Llama has it)."""
    cdef f32x16 v, squares = f32_zero()
    cdef float inverse
    cdef Py_ssize_t i
    for i in range(0, n - LANES + 1, 16):
        v = f32_load(x + i)
        squares = f32_add(squares, f32_mul(v, v))
    if n % LANES:
        v = load_some(x + n - n % LANES, n % LANES)
        squares = f32_add(squares, f32_mul(v, v))
    inverse = <float>1.0 / sqrtf(f32_sum(squares) / <float>n + eps)
    for i in range(n):
        out[i] = (x[i] * inverse) * weight[i]


cdef void relu2_gate(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    """out = relu(gate)^2 * up; a NaN stays a NaN."""
    cdef Py_ssize_t i
    cdef float g
    for i in range(n):
        g = <float>0.0 if gate[i] < <float>0.0 else gate[i]
        out[i] = (g * g) * up[i]


cdef inline f32x16 silu(f32x16 g) noexcept nogil:
    """g / (1 + e^-g)"""
    return f32_div(g, f32_add(f32_set1(1.0), f32_exp(f32_sub(f32_zero(), g))))


cdef void silu_gate(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    """out = silu(gate) * up."""
    cdef Py_ssize_t i
    for i in range(0, n - LANES + 1, 16):
        f32_store(out + i, f32_mul(silu(f32_load(gate + i)), f32_load(up + i)))
    if n % LANES:
        i = n - n % LANES
        store_some(out + i, f32_mul(silu(load_some(gate + i, n % LANES)),
                                    load_some(up + i, n % LANES)), n % LANES)


cdef inline f32x16 gelu(f32x16 g) noexcept nogil:
    """g / 2 (1 + tanh(u)), u = sqrt(2 / pi) (g + 0.044715 g^3), which is g / (1 + e^-2u).

    Within 1e-6 of it for g > -3, within 4e-9 below; 0 where 2u < -87.33, which is g < -10.
    """
    cdef f32x16 t = f32_mul(f32_mul(g, g), f32_set1(0.0713548128))
    t = f32_mul(f32_add(t, f32_set1(1.5957691216)), g)
    g = f32_div(g, f32_add(f32_set1(1.0), f32_exp(f32_sub(f32_zero(), t))))
    return f32_zero_below(g, t, -87.33)


cdef void gelu_gate(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    """out = gelu(gate) * up."""
    cdef Py_ssize_t i
    for i in range(0, n - LANES + 1, 16):
        f32_store(out + i, f32_mul(gelu(f32_load(gate + i)), f32_load(up + i)))
    if n % LANES:
        i = n - n % LANES
        store_some(out + i, f32_mul(gelu(load_some(gate + i, n % LANES)),
                                    load_some(up + i, n % LANES)), n % LANES)


cdef void exp(float* out, const float* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(0, n - LANES + 1, 16):
        f32_store(out + i, f32_exp(f32_load(x + i)))
    if n % LANES:
        i = n - n % LANES
        store_some(out + i, f32_exp(load_some(x + i, n % LANES)), n % LANES)


# ------------------------------------------------------------------------------------ attention
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


cdef void store_kv(char* page, const float* k, const float* v, Py_ssize_t slot, int is_f16,
                   Py_ssize_t n_kv_heads, Py_ssize_t head_dim) noexcept nogil:
    """Keys go transposed, 16 positions together, so that attention scores 16 with a vector."""
    cdef Py_ssize_t h, key, value, n = n_kv_heads * head_dim
    for h in range(n_kv_heads):
        key = (h * PAGE + slot - slot % LANES) * head_dim + slot % LANES
        value = n * PAGE + (h * PAGE + slot) * head_dim
        if is_f16:
            store_f16(<uint16_t*>page + key, k + h * head_dim, LANES, head_dim)
            store_f16(<uint16_t*>page + value, v + h * head_dim, 1, head_dim)
        else:
            store_f32(<float*>page + key, k + h * head_dim, LANES, head_dim)
            store_f32(<float*>page + value, v + h * head_dim, 1, head_dim)


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


cdef inline void store_f32(float* out, const float* x, Py_ssize_t step,
                           Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i * step] = x[i]


cdef inline f32x16 load_lanes(const char* m, Py_ssize_t i, int is_f16) noexcept nogil:
    return f32_load_f16(<const uint16_t*>m + i) if is_f16 else f32_load(<const float*>m + i)


cdef inline float load_lane(const char* m, Py_ssize_t i, int is_f16) noexcept nogil:
    return f32_of_f16((<const uint16_t*>m)[i]) if is_f16 else (<const float*>m)[i]


cdef void combine(float* out, Py_ssize_t out_stride, const float* a, Py_ssize_t a_stride,
                  const char* m, Py_ssize_t stride, int is_f16, Py_ssize_t n_heads,
                  Py_ssize_t n, Py_ssize_t n_lanes) noexcept nogil:
    """out[g, lane] += sum over i, in order, of a[g, i] * m[i, lane], for up to GROUP heads g.

    Scores (m the transposed keys) and weighted values (m the values) alike: no horizontal sums,
    and a row of m is read and converted once for four heads.
    """
    cdef f32x16 row, acc0, acc1, acc2, acc3
    cdef Py_ssize_t g, i, lane
    cdef float total
    for lane in range(0, n_lanes - LANES + 1, 16):
        if n_heads == GROUP:
            acc0 = f32_load(out + lane)
            acc1 = f32_load(out + out_stride + lane)
            acc2 = f32_load(out + 2 * out_stride + lane)
            acc3 = f32_load(out + 3 * out_stride + lane)
            for i in range(n):
                row = load_lanes(m, i * stride + lane, is_f16)
                acc0 = f32_add(acc0, f32_mul(f32_set1(a[i]), row))
                acc1 = f32_add(acc1, f32_mul(f32_set1(a[a_stride + i]), row))
                acc2 = f32_add(acc2, f32_mul(f32_set1(a[2 * a_stride + i]), row))
                acc3 = f32_add(acc3, f32_mul(f32_set1(a[3 * a_stride + i]), row))
            f32_store(out + lane, acc0)
            f32_store(out + out_stride + lane, acc1)
            f32_store(out + 2 * out_stride + lane, acc2)
            f32_store(out + 3 * out_stride + lane, acc3)
            continue
        for g in range(n_heads):
            acc0 = f32_load(out + g * out_stride + lane)
            for i in range(n):
                row = load_lanes(m, i * stride + lane, is_f16)
                acc0 = f32_add(acc0, f32_mul(f32_set1(a[g * a_stride + i]), row))
            f32_store(out + g * out_stride + lane, acc0)
    for lane in range(n_lanes - n_lanes % LANES, n_lanes):      # head_dim 100: the last 4 of a row
        for g in range(n_heads):
            total = out[g * out_stride + lane]
            for i in range(n):
                total += a[g * a_stride + i] * load_lane(m, i * stride + lane, is_f16)
            out[g * out_stride + lane] = total


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


cdef void attention(float* out, const float* q, char** pages, Py_ssize_t n_pages,
                    Py_ssize_t first, Py_ssize_t last, int is_f16, Py_ssize_t kv_head,
                    Py_ssize_t n_kv_heads, Py_ssize_t n_group, Py_ssize_t head_dim) noexcept nogil:
    cdef Py_ssize_t g
    for g in range(0, n_group, 4):
        attend(out + g * head_dim, q + g * head_dim, pages, n_pages, first, last, is_f16, kv_head,
               n_kv_heads, min(<Py_ssize_t>GROUP, n_group - g), head_dim)


cdef void attend(float* out, const float* q, char** pages, Py_ssize_t n_pages,
                 Py_ssize_t first, Py_ssize_t last, int is_f16, Py_ssize_t kv_head,
                 Py_ssize_t n_kv_heads, Py_ssize_t n_heads, Py_ssize_t head_dim) noexcept nogil:
    """Up to GROUP heads in one pass. Tiles are pages by absolute position, so that the order of
    additions depends on first and last alone, not on chunks of prefill or forks."""
    cdef float scores[GROUP * PAGE]
    cdef float largest[GROUP]
    cdef float total[GROUP]
    cdef float factor
    cdef float scale = <float>1.0 / sqrtf(<float>head_dim)
    cdef Py_ssize_t item = 2 if is_f16 else 4
    cdef Py_ssize_t head_bytes = PAGE * head_dim * item
    cdef Py_ssize_t tile, low, high, j, g, d
    cdef const char* keys
    cdef const char* values
    for g in range(n_heads):
        largest[g] = -INFINITY
        total[g] = 0
    memset(out, 0, n_heads * head_dim * sizeof(float))
    for tile in range(first // PAGE, last // PAGE + 1):
        keys = pages[tile % n_pages] + kv_head * head_bytes
        values = keys + n_kv_heads * head_bytes
        low = max(first - tile * PAGE, <Py_ssize_t>0)
        high = min(last - tile * PAGE + 1, <Py_ssize_t>PAGE)
        memset(scores, 0, sizeof(scores))
        for j in range(low - low % LANES, high, 16):
            combine(scores + j, PAGE, q, head_dim, keys + j * head_dim * item, LANES, is_f16,
                    n_heads, head_dim, LANES)
        for g in range(n_heads):
            factor = softmax_tile(scores + g * PAGE, &largest[g], &total[g], scale, low, high)
            for d in range(head_dim):
                out[g * head_dim + d] *= factor
        combine(out, head_dim, scores + low, PAGE, values + low * head_dim * item, head_dim, is_f16,
                n_heads, high - low, head_dim)
    for g in range(n_heads):
        for d in range(head_dim):
            out[g * head_dim + d] /= total[g]


include "lookup.pxi"
include "rows.pxi"


cdef uint64_t read(const uint8_t* p, Py_ssize_t n_bytes) noexcept nogil:
    cdef uint64_t words[8]
    cdef uint64_t total = 0
    cdef Py_ssize_t begin, i
    for begin in range(0, n_bytes - 63, 64):
        prefetch(p + begin + AHEAD)             # as the kernels do, or it would be no bound
        memcpy(words, p + begin, 64)
        for i in range(8):
            total ^= words[i]
    return total


cdef Kernels table = Kernels(
    ternary_matmul=ternary_matmul, find_code_3=find_code_3, quantize=quantize, rms_norm=rms_norm,
    rope=rope, store_kv=store_kv, attention=attention, relu2_gate=relu2_gate, silu_gate=silu_gate,
    gelu_gate=gelu_gate, rows_dot=rows_dot, rows_dot_4=rows_dot_4, decode_row=decode_row, exp=exp,
    read=read, ternary_lookup=ternary_lookup)
if not LOOKUP:
    table.ternary_lookup = NULL
capsule = PyCapsule_New(&table, "bitnet.kernels", NULL)
