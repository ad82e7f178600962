/* Rows of int8 codes times one input of int16 codes, exact: what the screen of a head is made of.
 * An input is its int16 codes c (n), the high planes h (n, int8) and the low planes l (n, int8)
 * behind them: c = 128 h + l, |h| < 128, -64 <= l < 64. Instruction sets with a dot product of
 * bytes read the planes, the others the codes. |row| < 128, |c| <= 127 * 128 and n <= 8192, so that
 * every int32 lane below stays in its range: at most 512 * 2 * 127 * 16256 = 2.11e9. */
#pragma once
#include "simd.h"

#if defined(__AVX512VNNI__)
/* dpbusd wants one operand unsigned: a code with its top bit turned is 128 more. */
enum { SCREEN_STEP = 64, SCREEN_ROWS = 4, SCREEN_OFFSET = 128 };
typedef struct { __m512i high, low; } screen_vec;
static inline screen_vec screen_zero(void) {
    return (screen_vec){_mm512_setzero_si512(), _mm512_setzero_si512()};
}
static inline screen_vec screen_input(const int16_t *x, ptrdiff_t n, ptrdiff_t j) {
    const int8_t *high = (const int8_t *)(x + n) + j;
    return (screen_vec){_mm512_loadu_si512(high), _mm512_loadu_si512(high + n)};
}
static inline screen_vec screen_add(screen_vec sum, const int8_t *w, screen_vec x) {
    const __m512i u = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128));
    return (screen_vec){_mm512_dpbusd_epi32(sum.high, u, x.high),
                        _mm512_dpbusd_epi32(sum.low, u, x.low)};
}
static inline int64_t screen_sum(screen_vec a) {
    return 128 * (int64_t)_mm512_reduce_add_epi32(a.high) + _mm512_reduce_add_epi32(a.low);
}

#elif defined(__AVXVNNI__)
enum { SCREEN_STEP = 32, SCREEN_ROWS = 4, SCREEN_OFFSET = 128 };
typedef struct { __m256i high, low; } screen_vec;
static inline screen_vec screen_zero(void) {
    return (screen_vec){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline screen_vec screen_input(const int16_t *x, ptrdiff_t n, ptrdiff_t j) {
    const int8_t *high = (const int8_t *)(x + n) + j;
    return (screen_vec){_mm256_loadu_si256((const __m256i *)high),
                        _mm256_loadu_si256((const __m256i *)(high + n))};
}
static inline screen_vec screen_add(screen_vec sum, const int8_t *w, screen_vec x) {
    const __m256i u = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)w),
                                       _mm256_set1_epi8(-128));
    return (screen_vec){_mm256_dpbusd_avx_epi32(sum.high, u, x.high),
                        _mm256_dpbusd_avx_epi32(sum.low, u, x.low)};
}
static inline int64_t screen_sum(screen_vec a) {
    int32_t high[8], low[8];
    int64_t total = 0;
    _mm256_storeu_si256((__m256i *)high, a.high);
    _mm256_storeu_si256((__m256i *)low, a.low);
    for (int i = 0; i < 8; i++) total += 128 * (int64_t)high[i] + low[i];
    return total;
}

#elif defined(__AVX2__)
/* maddubs would saturate: 2 * 255 * 127 is beyond int16. Words: at most 2.11e9 a lane. */
enum { SCREEN_STEP = 16, SCREEN_ROWS = 4, SCREEN_OFFSET = 0 };
typedef __m256i screen_vec;
static inline screen_vec screen_zero(void) { return _mm256_setzero_si256(); }
static inline screen_vec screen_input(const int16_t *x, ptrdiff_t n, ptrdiff_t j) {
    (void)n;
    return _mm256_loadu_si256((const __m256i *)(x + j));
}
static inline screen_vec screen_add(screen_vec sum, const int8_t *w, screen_vec x) {
    const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(codes, x));
}
static inline int64_t screen_sum(screen_vec a) {
    int32_t lanes[8];
    int64_t total = 0;
    _mm256_storeu_si256((__m256i *)lanes, a);
    for (int i = 0; i < 8; i++) total += lanes[i];
    return total;
}

#elif defined(__ARM_NEON) && defined(BITNET_NEON) && defined(__ARM_FEATURE_DOTPROD)
enum { SCREEN_STEP = 16, SCREEN_ROWS = 4, SCREEN_OFFSET = 0 };
typedef struct { int32x4_t high, low; } screen_sums;
typedef struct { int8x16_t high, low; } screen_planes;
#define screen_vec screen_sums
static inline screen_sums screen_zero(void) {
    return (screen_sums){vdupq_n_s32(0), vdupq_n_s32(0)};
}
static inline screen_planes screen_input(const int16_t *x, ptrdiff_t n, ptrdiff_t j) {
    const int8_t *high = (const int8_t *)(x + n) + j;
    return (screen_planes){vld1q_s8(high), vld1q_s8(high + n)};
}
static inline screen_sums screen_add(screen_sums sum, const int8_t *w, screen_planes x) {
    const int8x16_t codes = vld1q_s8(w);
    return (screen_sums){vdotq_s32(sum.high, codes, x.high), vdotq_s32(sum.low, codes, x.low)};
}
static inline int64_t screen_sum(screen_sums a) {
    return 128 * vaddlvq_s32(a.high) + vaddlvq_s32(a.low);
}
#define SCREEN_INPUT screen_planes

#else                                   /* plain C, which compilers make NEON's smlal of */
enum { SCREEN_STEP = 8, SCREEN_ROWS = 1, SCREEN_OFFSET = 0 };
typedef struct { int32_t v[8]; } screen_vec;
static inline screen_vec screen_zero(void) { return (screen_vec){{0}}; }
static inline const int16_t *screen_input(const int16_t *x, ptrdiff_t n, ptrdiff_t j) {
    (void)n;
    return x + j;
}
static inline screen_vec screen_add(screen_vec sum, const int8_t *w, const int16_t *x) {
    UNROLL for (int i = 0; i < 8; i++) sum.v[i] += w[i] * x[i];
    return sum;
}
static inline int64_t screen_sum(screen_vec a) {
    int64_t total = 0;
    for (int i = 0; i < 8; i++) total += a.v[i];
    return total;
}
#define SCREEN_INPUT const int16_t *
#endif
#ifndef SCREEN_INPUT
#define SCREEN_INPUT screen_vec
#endif

#define SCREEN_TILE(NAME, R)                                                                      \
    static inline void NAME(int64_t *out, const int8_t *w, const int16_t *x, ptrdiff_t n,         \
                            int64_t offset) {                                                     \
        const ptrdiff_t whole = n - n % SCREEN_STEP;                                              \
        screen_vec sum[R];                                                                        \
        UNROLL for (int r = 0; r < R; r++) sum[r] = screen_zero();                                \
        for (ptrdiff_t j = 0; j < whole; j += SCREEN_STEP) {                                      \
            const SCREEN_INPUT input = screen_input(x, n, j);                                     \
            UNROLL for (int r = 0; r < R; r++) {                                                  \
                if (j % 64 == 0) prefetch(w + r * n + j + AHEAD);                                 \
                sum[r] = screen_add(sum[r], w + r * n + j, input);                                \
            }                                                                                     \
        }                                                                                         \
        UNROLL for (int r = 0; r < R; r++) {                                                      \
            out[r] = screen_sum(sum[r]) - offset;                                                 \
            for (ptrdiff_t j = whole; j < n; j++) out[r] += w[r * n + j] * x[j];                  \
        }                                                                                         \
    }
SCREEN_TILE(screen_tile, SCREEN_ROWS)
SCREEN_TILE(screen_row, 1)

/* out[r] = sum of row r times the codes; rows are n bytes apart */
static void screen_dot(int64_t *out, const int8_t *rows, const int16_t *x, ptrdiff_t n_rows,
                       ptrdiff_t n) {
    int64_t offset = 0;
    for (ptrdiff_t j = 0; SCREEN_OFFSET && j < n - n % SCREEN_STEP; j++) offset += x[j];
    offset *= SCREEN_OFFSET;
    ptrdiff_t r = 0;
    for (; r + SCREEN_ROWS <= n_rows; r += SCREEN_ROWS)
        screen_tile(out + r, rows + r * n, x, n, offset);
    for (; r < n_rows; r++) screen_row(out + r, rows + r * n, x, n, offset);
}
