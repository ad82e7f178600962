/* AVX-512 (F, BW, VL) with VNNI. */
#pragma once
#define DPBUSD_256 _mm256_dpbusd_epi32
#include "x86.h"

typedef struct { __m512 v; } f32x16;
static inline f32x16 f32_set1(float x) { return (f32x16){_mm512_set1_ps(x)}; }
static inline f32x16 f32_load(const float *p) { return (f32x16){_mm512_loadu_ps(p)}; }
static inline f32x16 f32_load_f16(const uint16_t *p) {
    return (f32x16){_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))};
}
static inline f32x16 f32_load_bf16(const uint16_t *p) {
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (f32x16){_mm512_castsi512_ps(_mm512_slli_epi32(u, 16))};
}
static inline f32x16 f32_load_i8(const int8_t *p) {
    return (f32x16){_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)))};
}
static inline f32x16 f32_load_i32(const int32_t *p) {
    return (f32x16){_mm512_cvtepi32_ps(_mm512_loadu_si512(p))};
}
static inline void f32_store(float *p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
static inline void f32_store_f16(uint16_t *p, f32x16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline f32x16 f32_add(f32x16 a, f32x16 b) { return (f32x16){_mm512_add_ps(a.v, b.v)}; }
static inline f32x16 f32_sub(f32x16 a, f32x16 b) { return (f32x16){_mm512_sub_ps(a.v, b.v)}; }
static inline f32x16 f32_mul(f32x16 a, f32x16 b) { return (f32x16){_mm512_mul_ps(a.v, b.v)}; }
static inline f32x16 f32_add_exact(f32x16 c, f32x16 a, f32x16 b) {
    return (f32x16){_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline f32x16 f32_div(f32x16 a, f32x16 b) { return (f32x16){_mm512_div_ps(a.v, b.v)}; }
static inline f32x16 f32_max(f32x16 a, f32x16 b) { return (f32x16){_mm512_max_ps(a.v, b.v)}; }
static inline f32x16 f32_min(f32x16 a, f32x16 b) { return (f32x16){_mm512_min_ps(a.v, b.v)}; }
static inline float f32_sum(f32x16 a) {
    __m256 s = _mm256_add_ps(_mm512_castps512_ps256(a.v),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
    return f32_sum_8(s);
}
static inline float f32_max_lanes(f32x16 a) { return _mm512_reduce_max_ps(a.v); }
static inline void f32_store_i8(int8_t *p, f32x16 a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
static inline f32x16 f32_pow2(f32x16 magic) {
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(magic.v), 23);
    return (f32x16){_mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3F800000)))};
}
static inline f32x16 f32_zero_below(f32x16 a, f32x16 x, float limit) {
    const __mmask16 kept = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ);
    return (f32x16){_mm512_maskz_mov_ps(kept, a.v)};
}

/* ------------------------------------------------------------------------------------ ternary.h */
typedef __m512i vec;
#define VEC_BYTES 64
#define TILE_ROWS 4             /* 4 x 5 sums stay in 32 registers, beside codes and an input */
#define TILE_TOKENS 5
#define TILE_1_ROWS 2
#define TILE_1_SUMS 4
#define PIN(v) __asm__("" : "+v"(v))
#define PIN_ADDRESS(p) __asm__("" : "+r"(p))
static inline vec vec_zero(void) { return _mm512_setzero_si512(); }
static inline ptrdiff_t vec_steps(ptrdiff_t n_blocks) { return n_blocks / 2; }
static inline vec vec_two(const void *low, const void *high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)),
                              _mm256_loadu_si256((const __m256i *)high), 1);
}
static inline vec vec_one(const void *low) {
    return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)low));
}
/* A step is two blocks; the last of an odd number stands alone: nothing behind it is read. */
#define VEC_HAS_TAIL(n_blocks) ((n_blocks) & 1)
static inline vec vec_codes(const uint8_t *w) { return _mm512_loadu_si512(w); }
static inline vec vec_input(const int8_t *x, ptrdiff_t step, int field) {
    x += 256 * step + 32 * field;
    return vec_two(x, x + 128);
}
static inline vec vec_codes_tail(const uint8_t *w) { return vec_one(w); }
static inline vec vec_input_tail(const int8_t *x, ptrdiff_t step, int field) {
    return vec_one(x + 256 * step + 32 * field);
}
static inline vec vec_field(vec p, int field) {
    return _mm512_and_si512(_mm512_srli_epi16(p, 6 - 2 * field), _mm512_set1_epi8(3));
}
static inline vec vec_dot(vec acc, vec code, vec x) {
    acc = _mm512_dpbusd_epi32(acc, code, x);
    PIN(acc);
    return acc;
}
/* A field left where it is counts 4^(3 - field) times, at most 2 * 64 * 127: no shifts. */
static inline vec vec_field_in_place(vec p, int field) {
    return _mm512_and_si512(p, _mm512_set1_epi8((char)(3 << (6 - 2 * field))));
}
static inline vec vec_scale_back(vec sum, int field) {
    return _mm512_srai_epi32(sum, 6 - 2 * field);
}
static inline vec vec_add(vec a, vec b) { return _mm512_add_epi32(a, b); }
/* out[i] = the sum of the lanes of the i-th of four vectors: 13 operations instead of 36 */
static inline void vec_sums(int32_t *out, vec a, vec b, vec c, vec d) {
    a = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    c = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    a = _mm512_add_epi32(_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c));
    const __m256i s = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(s),
                                                   _mm256_extracti128_si256(s, 1)));
}

/* ------------------------------------------------------------------------------------- screen.h */
#define SCREEN_WIDE 64
typedef struct { __m512i high, low; } screen_wide;
static inline screen_wide screen_wide_zero(void) {
    return (screen_wide){_mm512_setzero_si512(), _mm512_setzero_si512()};
}
static inline screen_wide screen_wide_add(screen_wide sum, const int8_t *w, const int16_t *x,
                                          ptrdiff_t n, ptrdiff_t j) {
    const int8_t *high = (const int8_t *)(x + n) + j;
    const __m512i u = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128));
    return (screen_wide){_mm512_dpbusd_epi32(sum.high, u, _mm512_loadu_si512(high)),
                         _mm512_dpbusd_epi32(sum.low, u, _mm512_loadu_si512(high + n))};
}
static inline int64_t screen_wide_sum(screen_wide a) {
    return 128 * (int64_t)_mm512_reduce_add_epi32(a.high) + _mm512_reduce_add_epi32(a.low);
}

#define HAS_COARSE 1
#define PLANE_BITS 7            /* |h| <= 127 */
#define COARSE_OFFSET 128
#define coarse_dot vec_dot
static inline vec coarse_codes(const int8_t *w) {
    return _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128));
}

/* ------------------------------------------------------------------------------- weighted_sum.h */
#define WEIGHTED_SUM_QUERIES 8
#define WEIGHTED_SUM_VECTORS(n) ((n) <= 2 ? 8 : (n) <= 6 ? 4 : 2)   /* 12 sums and more at once */

/* ---------------------------------------------------------------------------------- exact_sum.h */
#define EXACT_SUM_QUERIES 8
#define EXACT_SUM_UNITS WEIGHTED_SUM_VECTORS
#define QUAD_LANES 16
#define QUAD_PLANES 2
#define QUAD_OFFSET 128         /* dpbusd takes items unsigned */
typedef __m512i quads;
typedef __m512i quad_codes;
typedef __m512i quad_sums;
static inline quads quads_load(const int8_t *m) {
    return _mm512_xor_si512(_mm512_loadu_si512(m), _mm512_set1_epi8(-128));
}
static inline quad_codes quads_codes(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return _mm512_set1_epi32(four);
}
static inline quad_sums quads_zero(void) { return _mm512_setzero_si512(); }
static inline quad_sums quads_256(quad_sums s) { return _mm512_slli_epi32(s, 8); }
static inline quad_sums quads_dot(quad_sums s, quads m, quad_codes x) { return vec_dot(s, m, x); }
static inline void quads_store(int32_t *out, quad_sums s, int32_t offset) {
    _mm512_storeu_si512(out, _mm512_sub_epi32(s, _mm512_set1_epi32(offset)));
}
static inline f32x16 codes_store_16(int8_t *codes, ptrdiff_t n, ptrdiff_t i, f32x16 x) {
    const __m512i c = _mm512_cvtps_epi32(x.v);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(c, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128((__m128i *)(codes + n + i), _mm512_cvtepi32_epi8(c));
    return (f32x16){_mm512_cvtepi32_ps(c)};
}

#include "avx512_group.h"
