/* What AVX2 and AVX-512 share. */
#pragma once
#include "common.h"
#include <immintrin.h>

/* Rows of Q4_0 and Q4_1 at 1.4 times the speed of f32_of_f16_by_bits. */
static inline float f32_of_f16(uint16_t h) { return _cvtsh_ss(h); }

/* of four side by side, the first lowest */
static inline f32x4 f32x4_of_f16(uint64_t halves) {
    return (f32x4)_mm_cvtph_ps(_mm_cvtsi64_si128((int64_t)halves));
}

/* -------------------------------------------------------------------------------------- group.h */
/* Sums of 128, or of 64, columns of four blocks. halves: of the first 64 of each, then of the
 * others. */
static inline i32x4 group_128(__m256i halves) {
    return (i32x4)_mm_add_epi32(_mm256_castsi256_si128(halves),
                                _mm256_extracti128_si256(halves, 1));
}
static inline void group_64(i32x4 *sums, __m256i halves) {
    const __m128i a = _mm256_castsi256_si128(halves), b = _mm256_extracti128_si256(halves, 1);
    sums[0] = (i32x4)_mm_unpacklo_epi32(a, b);
    sums[1] = (i32x4)_mm_unpackhi_epi32(a, b);
}

/* Eight partial sums added in the order of f32_sum. */
static inline float f32_sum_8(__m256 s) {
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}

/* ------------------------------------------------------------------------------------- screen.h */
#if defined(DPBUSD_256)     /* the dot product of 32 bytes, whatever its name is: planes are read */
/* dpbusd takes one operand unsigned: a code with its top bit flipped is 128 more. Registers are of
 * 32 bytes on AVX-512 too: with 64, loads come in bursts, and 328 MB take 12.6 ms, not 9.8. */
#define SCREEN_STEP 32
#define SCREEN_OFFSET 128
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
    return (screen_vec){DPBUSD_256(sum.high, u, x.high), DPBUSD_256(sum.low, u, x.low)};
}
/* a plane's sum is at most 8192 * 255 * 127 = 2.7e8 */
static inline int64_t screen_sum(const screen_vec *a) {
    const __m256i s = _mm256_hadd_epi32(_mm256_add_epi32(a[0].high, a[1].high),
                                        _mm256_add_epi32(a[0].low, a[1].low));
    int32_t sums[4];
    _mm_storeu_si128((__m128i *)sums, _mm_add_epi32(_mm256_castsi256_si128(s),
                                                    _mm256_extracti128_si256(s, 1)));
    return 128 * (int64_t)(sums[0] + sums[1]) + sums[2] + sums[3];
}
#endif
