/* AVX-512: rows with scales of groups, a few rows at a time (group.h) and a row a lane
 * (group_lanes.h). Included by avx512.h. */
#pragma once
#include "../group_rows.h"

/* -------------------------------------------------------------------------------------- group.h */
#define GROUP_TILE_TOKENS 1
#define GROUP_PARTS 2           /* two blocks of 128 columns, side by side: lane i has 4 bytes */
typedef __m512i group_field;
typedef __m512i group_vec;
static inline __m256i group_block(const uint8_t *w, ptrdiff_t half, int halves) {
    return halves
        ? _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)w)),
                                  _mm_loadu_si128((const __m128i *)(w + half)), 1)
        : _mm256_loadu_si256((const __m256i *)w);
}
static inline void group_fields(group_field *c, const uint8_t *w, ptrdiff_t block, ptrdiff_t half,
                                int halves) {
    const __m512i mask = _mm512_set1_epi8(3);
    const __m512i p = _mm512_inserti64x4(_mm512_castsi256_si512(group_block(w, half, halves)),
                                         group_block(w + block, half, halves), 1);
    c[0] = _mm512_and_si512(p, mask);
    c[1] = _mm512_and_si512(_mm512_srli_epi16(p, 2), mask);
    c[2] = _mm512_and_si512(_mm512_srli_epi16(p, 4), mask);
    c[3] = _mm512_and_si512(_mm512_srli_epi16(p, 6), mask);
}
static inline group_vec group_dot_8(const group_field *c, const int8_t *x) {
    __m512i sum = _mm512_setzero_si512();
    UNROLL for (int f = 0; f < 4; f++)
        sum = _mm512_dpbusd_epi32(sum, c[f], _mm512_loadu_si512(x + 64 * f));
    return sum;
}
typedef const int8_t *group_planes;
static inline group_planes group_load(const int8_t *x) { return x; }
static inline group_vec group_dot_16(const group_field *c, group_planes x) {
    return _mm512_add_epi32(_mm512_slli_epi32(group_dot_8(c, x), 8), group_dot_8(c, x + 256));
}
/* sums of four lanes: those of the first 64 columns of four blocks, then those of the others */
static inline __m256i group_halves(const group_vec *s) {
    const __m512i u = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]),
                                       _mm512_unpackhi_epi32(s[0], s[1]));
    const __m512i v = _mm512_add_epi32(u, _mm512_shuffle_epi32(u, (_MM_PERM_ENUM)0x4E));
    return _mm256_unpacklo_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}
static inline i32x4 group_sums_128(const group_vec *s) { return group_128(group_halves(s)); }
static inline void group_sums_64(i32x4 *sums, const group_vec *s) {
    group_64(sums, group_halves(s));
}
static inline void group_sums_32(i32x4 *sums, const group_vec *s) {
    UNROLL for (int i = 0; i < 2; i++) {
        const __m256i h = _mm256_hadd_epi32(_mm512_castsi512_si256(s[i]),
                                            _mm512_extracti64x4_epi64(s[i], 1));
        const __m128i a = _mm256_castsi256_si128(h), b = _mm256_extracti128_si256(h, 1);
        sums[2 * i] = (i32x4)_mm_unpacklo_epi64(a, b);
        sums[2 * i + 1] = (i32x4)_mm_unpackhi_epi64(a, b);
    }
}
#define GROUP_PREFETCH_DISTANCE 16384
#define GROUP_ROWS 4            /* decode of 4B on a Zen 5: 1.5 times the speed of one by one */
typedef float group_floats __attribute__((vector_size(64)));
typedef int32_t group_ints __attribute__((vector_size(64)));
static inline group_floats group_four_floats(const float *p) {
    return (group_floats)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
}
static inline group_ints group_four_ints(const int32_t *p) {
    return (group_ints)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p));
}
static inline group_floats group_floats_of_f16(const uint64_t *h) {
    return (group_floats)_mm512_cvtph_ps(
        _mm256_set_epi64x((int64_t)h[3], (int64_t)h[2], (int64_t)h[1], (int64_t)h[0]));
}
/* The sums of a plane in a lane are int16: at most 4 * 4 * 2 * 128 = 4,096. So those of two rows go
 * into one register, and one product adds neighbours and weighs the planes by 256 and 1. */
static inline group_ints group_sums_of_rows(const uint8_t *codes, ptrdiff_t row_codes,
                                            ptrdiff_t block_codes, ptrdiff_t half_codes,
                                            const int8_t *x, const int HALVES) {
    const __m512i ones = _mm512_set1_epi16(1), weight = _mm512_set1_epi16(256);
    __m512i pair[2][GROUP_PARTS], part[GROUP_PARTS];
    UNROLL for (int i = 0; i < GROUP_PARTS; i++) {
        group_field c[GROUP_ROWS][4];
        __m512i high[GROUP_ROWS], low[GROUP_ROWS];
        const int8_t *planes = group_input(x, 2 * i, 16);
        UNROLL for (int r = 0; r < GROUP_ROWS; r++) {
            group_fields(c[r], codes + r * row_codes + 2 * i * block_codes, block_codes,
                         half_codes, HALVES);
            high[r] = low[r] = _mm512_setzero_si512();
        }
        UNROLL for (int f = 0; f < 4; f++) {            /* each x is loaded once for all rows */
            const __m512i x_high = _mm512_loadu_si512(planes + 64 * f);
            const __m512i x_low = _mm512_loadu_si512(planes + 256 + 64 * f);
            UNROLL for (int r = 0; r < GROUP_ROWS; r++) {
                high[r] = _mm512_dpbusd_epi32(high[r], c[r][f], x_high);
                low[r] = _mm512_dpbusd_epi32(low[r], c[r][f], x_low);
            }
        }
        UNROLL for (int r = 0; r < 2; r++)
            pair[r][i] = _mm512_dpwssd_epi32(
                _mm512_madd_epi16(_mm512_packs_epi32(low[2 * r], low[2 * r + 1]), ones),
                _mm512_packs_epi32(high[2 * r], high[2 * r + 1]), weight);
    }
    UNROLL for (int i = 0; i < GROUP_PARTS; i++) {      /* lanes of 128 bits: a sum of each row */
        const __m512 a = _mm512_castsi512_ps(pair[0][i]), b = _mm512_castsi512_ps(pair[1][i]);
        part[i] = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
                                   _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xDD)));
    }
    const __m512i sums = _mm512_add_epi32(_mm512_shuffle_i64x2(part[0], part[1], 0x88),
                                          _mm512_shuffle_i64x2(part[0], part[1], 0xDD));
    return (group_ints)_mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums);
}

/* -------------------------------------------------------------------------------- group_lanes.h */
#define GROUP_LANES 16
#define GROUP_PASS 6            /* tokens: two planes, two sets, 24 sums in 32 registers */
#define GROUP_TOKENS 48         /* 24 KiB of sums on the stack */
typedef float group_lanes_floats __attribute__((vector_size(64)));
typedef int32_t group_lanes_ints __attribute__((vector_size(64)));
/* the 64 bytes of two rows; of each the second half lies `half` bytes behind the first */
static inline __m512i group_two_rows(const uint8_t *a, const uint8_t *b, ptrdiff_t half) {
    if (half == 16)
        return vec_two(a, b);
    __m512i p = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)a));
    p = _mm512_inserti32x4(p, _mm_loadu_si128((const __m128i *)(a + half)), 1);
    p = _mm512_inserti32x4(p, _mm_loadu_si128((const __m128i *)b), 2);
    return _mm512_inserti32x4(p, _mm_loadu_si128((const __m128i *)(b + half)), 3);
}
/* c[k]: bytes 4 k to 4 k + 3 of 16 rows */
static inline void group_lanes_codes(group_lanes_ints *c, const uint8_t *const *rows, ptrdiff_t at,
                                     ptrdiff_t half) {
    __m512i q[2][4];            /* bytes 4 k of four rows, 16 + 4 k of them, and of the next four */
    UNROLL for (int i = 0; i < 2; i++) {
        const uint8_t *const *w = rows + 8 * i;
        const __m512i r0 = group_two_rows(w[0] + at, w[4] + at, half);
        const __m512i r1 = group_two_rows(w[1] + at, w[5] + at, half);
        const __m512i r2 = group_two_rows(w[2] + at, w[6] + at, half);
        const __m512i r3 = group_two_rows(w[3] + at, w[7] + at, half);
        const __m512i a = _mm512_unpacklo_epi32(r0, r1), b = _mm512_unpackhi_epi32(r0, r1);
        const __m512i d = _mm512_unpacklo_epi32(r2, r3), e = _mm512_unpackhi_epi32(r2, r3);
        q[i][0] = _mm512_unpacklo_epi64(a, d);
        q[i][1] = _mm512_unpackhi_epi64(a, d);
        q[i][2] = _mm512_unpacklo_epi64(b, e);
        q[i][3] = _mm512_unpackhi_epi64(b, e);
    }
    UNROLL for (int k = 0; k < 4; k++) {
        c[k] = (group_lanes_ints)_mm512_shuffle_i64x2(q[0][k], q[1][k], 0x88);
        c[4 + k] = (group_lanes_ints)_mm512_shuffle_i64x2(q[0][k], q[1][k], 0xDD);
    }
}
static inline group_lanes_floats group_lanes_scales(const uint8_t *const *rows, ptrdiff_t at) {
    uint64_t h[4];
    UNROLL for (int i = 0; i < 4; i++) h[i] = group_halves_of(rows + 4 * i, at);
    return (group_lanes_floats)group_floats_of_f16(h);
}
static inline group_lanes_floats group_lanes_larger(group_lanes_floats a, group_lanes_floats b) {
    return (group_lanes_floats)_mm512_max_ps((__m512)a, (__m512)b);
}
static inline group_lanes_ints group_lanes_field(group_lanes_ints c, int f) {
    return (group_lanes_ints)_mm512_and_si512(_mm512_srli_epi16((__m512i)c, 2 * f),
                                              _mm512_set1_epi8(3));
}
static inline group_lanes_ints group_lanes_four(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return (group_lanes_ints)_mm512_set1_epi32(four);
}
static inline void group_lanes_dot(group_lanes_ints *sum, group_lanes_ints c, group_lanes_ints x) {
    *sum = (group_lanes_ints)_mm512_dpbusd_epi32((__m512i)*sum, (__m512i)c, (__m512i)x);
    PIN(*sum);
}
