# The kernels, written once; every module beside includes this, compiled with flags of its own.
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, NAN, sqrtf
from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .simd cimport (
    AHEAD, ROWS, ROWS_1, TOKENS, f16_of_f32, f32_add, f32_div, f32_exp, f32_load, f32_load_bf16,
    f32_load_f16, f32_max, f32_mul, f32_of_f16, f32_set1, f32_store, f32_store_f16,
    f32_store_i8, f32_sub, f32_sum, f32_zero, f32x16, prefetch, ternary_row, ternary_row_tokens,
    ternary_tile, ternary_tile_1,
)
from .table cimport Kernels

cdef enum:
    LANES = 16                      # partial sums; as a step loops say 16: Cython wants a literal
    BLOCK_BYTES = 32                # 128 ternary codes
    PAGE = 128                      # positions of a KV page
    GROUP = 4                       # query heads that share one pass over keys and values
    CHUNK = 256                     # decoded weights at a time: a Q6_K block, 8 of Q8_0

cdef enum:                          # ggml's type numbers
    F32 = 0
    F16 = 1
    Q8_0 = 8
    Q6_K = 14
    BF16 = 30


# ------------------------------------------------------------------------------------ ternary
cdef void ternary_matmul(int32_t* out, Py_ssize_t out_stride, const uint8_t* w, const int8_t* x,
                         Py_ssize_t x_stride, Py_ssize_t n_rows, Py_ssize_t n_tokens,
                         Py_ssize_t n_blocks) noexcept nogil:
    """Tiles of rows and tokens; the tokens that do not fill a tile one by one."""
    cdef Py_ssize_t i, r, t, row_bytes = n_blocks * BLOCK_BYTES
    cdef Py_ssize_t rest = n_tokens % TOKENS
    for i in range(n_rows // ROWS if rest < n_tokens else 0):
        r = i * ROWS
        for t in range(0, n_tokens - rest, 4):
            ternary_tile(out + t * out_stride + r, out_stride, w + r * row_bytes, row_bytes,
                         x + t * x_stride, x_stride, n_blocks)
    for r in range(n_rows - n_rows % ROWS, n_rows):
        for t in range(0, n_tokens - rest, 4):
            ternary_row_tokens(out + t * out_stride + r, out_stride, w + r * row_bytes, row_bytes,
                               x + t * x_stride, x_stride, n_blocks)
    for t in range(n_tokens - rest, n_tokens):
        ternary_matvec(out + t * out_stride, w, x + t * x_stride, n_rows, n_blocks)


cdef void ternary_matvec(int32_t* out, const uint8_t* w, const int8_t* x, Py_ssize_t n_rows,
                         Py_ssize_t n_blocks) noexcept nogil:
    cdef Py_ssize_t i, r, row_bytes = n_blocks * BLOCK_BYTES
    for i in range(n_rows // ROWS_1):
        r = i * ROWS_1
        ternary_tile_1(out + r, w + r * row_bytes, row_bytes, x, n_blocks)
    for r in range(n_rows - n_rows % ROWS_1, n_rows):
        ternary_row(out + r, w + r * row_bytes, row_bytes, x, n_blocks)


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


# ------------------------------------------------------------------------- embedding and head rows
cdef void decode_q8_0(float* out, const uint8_t* row, Py_ssize_t n) noexcept nogil:
    """Blocks of 32 in 34 bytes: f16 d, int8 q; d * q."""
    cdef Py_ssize_t b, j
    cdef uint16_t half
    cdef float d
    for b in range(n // 32):
        memcpy(&half, row + 34 * b, 2)
        d = f32_of_f16(half)
        for j in range(32):
            out[32 * b + j] = d * <float>(<const int8_t*>row)[34 * b + 2 + j]


cdef void decode_q6_k(float* out, const uint8_t* row, Py_ssize_t n) noexcept nogil:
    """Blocks of 256 in 210 bytes: low bits 128, high bits 64, int8 scales 16, f16 d (ggml)."""
    cdef Py_ssize_t b, h, j
    cdef int quarter, code
    cdef uint16_t half
    cdef const uint8_t* low
    cdef const uint8_t* high
    cdef const int8_t* scales
    cdef float d
    for b in range(n // 256):
        memcpy(&half, row + 208, 2)
        d = f32_of_f16(half)
        for h in range(2):
            low, high = row + 64 * h, row + 128 + 32 * h
            scales = <const int8_t*>row + 192 + 8 * h
            for quarter in range(4):
                for j in range(32):
                    code = low[32 * (quarter & 1) + j] >> (4 * (quarter >> 1)) & 15
                    code |= (high[j] >> (2 * quarter) & 3) << 4
                    out[32 * quarter + j] = (d * <float>scales[2 * quarter + j // 16]) * (code - 32)
            out += 128
        row += 210


cdef void decode_row(float* out, const uint8_t* row, int type, Py_ssize_t n_cols) noexcept nogil:
    cdef Py_ssize_t i
    cdef uint16_t half
    cdef uint32_t bits
    if type == Q8_0:
        decode_q8_0(out, row, n_cols)
    elif type == Q6_K:
        decode_q6_k(out, row, n_cols)
    elif type == F32:
        memcpy(out, row, n_cols * 4)
    else:
        for i in range(n_cols):
            memcpy(&half, row + 2 * i, 2)
            if type == F16:
                out[i] = f32_of_f16(half)
            else:
                bits = <uint32_t>half << 16
                memcpy(out + i, &bits, 4)


cdef inline f32x16 load_row(const uint8_t* row, int type, Py_ssize_t i) noexcept nogil:
    if type == F16:
        return f32_load_f16(<const uint16_t*>row + i)
    if type == BF16:
        return f32_load_bf16(<const uint16_t*>row + i)
    return f32_load(<const float*>row + i)


cdef inline f32x16 dot_lanes(f32x16 acc, const uint8_t* row, const float* x, int type,
                             Py_ssize_t n) noexcept nogil:
    """acc plus the products of a whole row of F32, F16 or BF16, sixteen at a time."""
    cdef float tail[LANES]
    cdef Py_ssize_t i, rest = n % LANES
    for i in range(0, n - LANES + 1, 16):
        acc = f32_add(acc, f32_mul(load_row(row, type, i), f32_load(x + i)))
    if rest:
        memset(tail, 0, sizeof(tail))
        decode_row(tail, row + (n - rest) * (4 if type == F32 else 2), type, rest)
        acc = f32_add(acc, f32_mul(f32_load(tail), load_some(x + n - rest, rest)))
    return acc


cdef void four_rows(float* out, const uint8_t* rows, const float* x, int type,
                    Py_ssize_t row_bytes, Py_ssize_t n) noexcept nogil:
    """Four F32, F16 or BF16 rows at once, n a multiple of 16: four chains hide an addition's time.

    The next four are asked for meanwhile: their streams are too short for the hardware to guess.
    """
    cdef f32x16 v, acc0 = f32_zero(), acc1 = f32_zero(), acc2 = f32_zero(), acc3 = f32_zero()
    cdef const uint8_t* next_rows = rows + 4 * row_bytes
    cdef Py_ssize_t i, r, item = 4 if type == F32 else 2
    for i in range(0, n, 16):
        for r in range(4):
            prefetch(next_rows + r * row_bytes + i * item)
        v = f32_load(x + i)
        acc0 = f32_add(acc0, f32_mul(load_row(rows, type, i), v))
        acc1 = f32_add(acc1, f32_mul(load_row(rows + row_bytes, type, i), v))
        acc2 = f32_add(acc2, f32_mul(load_row(rows + 2 * row_bytes, type, i), v))
        acc3 = f32_add(acc3, f32_mul(load_row(rows + 3 * row_bytes, type, i), v))
    out[0], out[1], out[2], out[3] = f32_sum(acc0), f32_sum(acc1), f32_sum(acc2), f32_sum(acc3)


cdef void rows_dot(float* out, const uint8_t* rows, const float* x, int type,
                   Py_ssize_t row_bytes, Py_ssize_t n_rows, Py_ssize_t n_cols) noexcept nogil:
    cdef float decoded[CHUNK]
    cdef f32x16 acc
    cdef Py_ssize_t r = 0, i, n, bytes_a_chunk = 272 if type == Q8_0 else 210
    if type == Q8_0 or type == Q6_K:
        for r in range(n_rows):
            acc = f32_zero()
            for i in range(0, n_cols, 256):
                n = min(<Py_ssize_t>CHUNK, n_cols - i)
                decode_row(decoded, rows + r * row_bytes + i // CHUNK * bytes_a_chunk, type, n)
                acc = dot_lanes(acc, <const uint8_t*>decoded, x + i, F32, n)
            out[r] = f32_sum(acc)
        return
    if n_cols % LANES == 0:
        while r + 4 <= n_rows:
            four_rows(out + r, rows + r * row_bytes, x, type, row_bytes, n_cols)
            r += 4
    for i in range(r, n_rows):
        out[i] = f32_sum(dot_lanes(f32_zero(), rows + i * row_bytes, x, type, n_cols))


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
    rows_dot=rows_dot, decode_row=decode_row, exp=exp, read=read)
capsule = PyCapsule_New(&table, "bitnet.kernels", NULL)
