# The kernels, written once; every module beside includes this, compiled with flags of its own.
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport INFINITY, M_LN2, M_LOG2E, NAN, sqrtf
from libc.stdint cimport (
    INT16_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy, memset

from .group_rows cimport (
    QUAD, QUAD_SCALES, QUAD_SCALES_INT8, QUAD_SUMS, QUAD_SUMS_INT8, GroupInputs, GroupRows,
)
from .kv_page cimport (
    KV_F16, KV_F32, KV_INT8, LANES, PAGE, SPLIT, SPLIT_PAGES, kv_item_bytes, kv_key_item,
    kv_key_width, kv_scale_offset, kv_slot_of, kv_value_item,
)
from .simd cimport (
    PREFETCH_DISTANCE, f16_of_f32, f32_add, f32_div, f32_exp, f32_load, f32_load_bf16,
    f32_load_f16, f32_load_i8, f32_max, f32_mul, f32_of_f16, f32_round_to_13_bits, f32_set1,
    f32_store, f32_store_f16, f32_store_i8, f32_sub, f32_sum, f32_zero, f32_zero_below, f32x16,
    prefetch_nta, prefetch_t0, prefetch_t1,
)
from .table cimport (
    BLOCK, BLOCK_BYTES, LOOKUP_TABLE_BYTES, MAX_HEAD_DIM, MAX_QUERIES, MAX_QUERY_FLOATS,
    ROWS_BF16, ROWS_F16, ROWS_F32, ROWS_IQ4_NL, ROWS_Q4_0, ROWS_Q4_1, ROWS_Q4_K, ROWS_Q5_0,
    ROWS_Q5_1, ROWS_Q5_K, ROWS_Q6_K, ROWS_Q8_0, CoarseInputs, Kernels, View, first_seen, last_seen,
    max_queries,
)

# There are LANES = 16 partial sums. Loops step by a literal 16, for Cython makes a plain C loop of
# a step that it knows.


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


ctypedef f32x16 (*Activation)(f32x16 g) noexcept nogil


cdef inline void gated(float* out, const float* gate, const float* up, Py_ssize_t n,
                       Activation act) noexcept nogil:
    """out = act(gate) * up; act is a constant where this is inlined."""
    cdef Py_ssize_t i
    for i in range(0, n - LANES + 1, 16):
        f32_store(out + i, f32_mul(act(f32_load(gate + i)), f32_load(up + i)))
    if n % LANES:
        i = n - n % LANES
        store_some(out + i, f32_mul(act(load_some(gate + i, n % LANES)),
                                    load_some(up + i, n % LANES)), n % LANES)


cdef inline f32x16 relu2(f32x16 g) noexcept nogil:
    """max(0, g)^2; f32_max gives its second argument where one is NaN."""
    g = f32_max(f32_zero(), g)
    return f32_mul(g, g)


cdef void relu2_gate(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    """out = relu(gate)^2 * up; a NaN stays a NaN."""
    gated(out, gate, up, n, relu2)


cdef inline f32x16 silu(f32x16 g) noexcept nogil:
    """g / (1 + e^-g)"""
    return f32_div(g, f32_add(f32_set1(1.0), f32_exp(f32_sub(f32_zero(), g))))


cdef void silu_gate(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    """out = silu(gate) * up."""
    gated(out, gate, up, n, silu)


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
    gated(out, gate, up, n, gelu)


cdef void exp(float* out, const float* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(0, n - LANES + 1, 16):
        f32_store(out + i, f32_exp(f32_load(x + i)))
    if n % LANES:
        i = n - n % LANES
        store_some(out + i, f32_exp(load_some(x + i, n % LANES)), n % LANES)


cdef inline int32_t largest_bits(const float* x, Py_ssize_t n) noexcept nogil:
    """The bits of the largest |x|: as integers they may be compared in any order, NaN is largest"""
    cdef const int32_t* bits = <const int32_t*>x
    cdef int32_t magnitude, largest = 0
    cdef Py_ssize_t i
    for i in range(n):
        magnitude = bits[i] & 0x7FFFFFFF
        largest = magnitude if magnitude > largest else largest
    return largest


cdef void quantize(int8_t* out, float* inv_scale, int32_t* code_sum, const float* x,
                   Py_ssize_t n, Py_ssize_t n_padded) noexcept nogil:
    """Per-token absmax (BitNet b1.58): s = 127 / max(|x|, 1e-5), code = round half even (x s).

    A row with a NaN or an infinity gets codes 0 and 1 / s = NaN, so that it cannot pass unseen.
    """
    cdef int32_t largest = largest_bits(x, n), total = 0
    cdef int8_t tail[LANES]
    cdef float biggest, scale
    cdef f32x16 factor
    cdef Py_ssize_t i
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


include "delta.pxi"
include "hadamard.pxi"
include "ternary.pxi"
include "lookup.pxi"
include "group.pxi"
include "group_lookup.pxi"
include "kv.pxi"
include "attention.pxi"
include "rows.pxi"
include "screen.pxi"


cdef uint64_t read(const uint8_t* p, Py_ssize_t n_bytes, bint streaming) noexcept nogil:
    cdef uint64_t words[8]
    cdef uint64_t total = 0
    cdef Py_ssize_t begin, i
    for begin in range(0, n_bytes - 63, 64):
        if streaming:                           # as the kernels prefetch, or it would be no bound
            prefetch_nta(p + begin + PREFETCH_DISTANCE)
        else:
            prefetch_t1(p + begin + PREFETCH_DISTANCE)
        memcpy(words, p + begin, 64)
        for i in range(8):
            total ^= words[i]
    return total


cdef Kernels table = Kernels(
    ternary_matmul=ternary_matmul, find_code_3=find_code_3, quantize=quantize, rms_norm=rms_norm,
    rope=rope, store_kv=store_kv, attention=attention, relu2_gate=relu2_gate,
    silu_gate=silu_gate, gelu_gate=gelu_gate, matvec_rows=matvec_rows, matvec_rows_4=matvec_rows_4,
    dequantize_row=dequantize_row, exp=exp, read=read, cos_sin=cos_sin,
    attention_split=attention_split, attention_merge=attention_merge, screen_dot=screen_dot,
    ternary_lookup=ternary_lookup, apply_scales=apply_scales, screen_coarse=screen_coarse,
    group_matmul=group_matmul, group_quantize=group_quantize, group_scan=group_scan,
    group_dequantize_row=group_dequantize_row, group_lookup=group_lookup,
    sigmoid_gate=sigmoid_gate, conv_silu=conv_silu, delta_gates=delta_gates,
    delta_rule=delta_rule, hadamard=hadamard, tile_tokens=TILE_TOKENS, plane_bits=PLANE_BITS)
if not HAS_LOOKUP:
    table.ternary_lookup = NULL
if not HAS_GROUP_LOOKUP:
    table.group_lookup = NULL
if not HAS_COARSE:
    table.screen_coarse = NULL
capsule = PyCapsule_New(&table, "bitnet.kernels", NULL)
