/* AVX2 and AVX-VNNI: rows with scales of groups, by tiles (group.h) and by tables
 * (group_lookup.h). Included by avx2.h. */
#pragma once
#include "../group_rows.h"

/* -------------------------------------------------------------------------------------- group.h */
#define GROUP_TILE_TOKENS 4
#define GROUP_PARTS 4           /* a block of 128 columns each: lane i has bytes 4 i to 4 i + 3 */
typedef __m256i group_field;
typedef __m256i group_vec;
static inline __m256i group_block(const uint8_t *w, ptrdiff_t half, int halves) {
    return halves
        ? _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)w)),
                                  _mm_loadu_si128((const __m128i *)(w + half)), 1)
        : _mm256_loadu_si256((const __m256i *)w);
}
static inline __m256i group_codes_of(__m256i p, int field) {
    return _mm256_and_si256(_mm256_srli_epi16(p, 2 * field), _mm256_set1_epi8(3));
}
static inline void group_fields(group_field *c, const uint8_t *w, ptrdiff_t block, ptrdiff_t half,
                                int halves) {
    (void)block;
    const __m256i p = group_block(w, half, halves);
    UNROLL for (int f = 0; f < 4; f++) c[f] = group_codes_of(p, f);
}
typedef const int8_t *group_planes;
static inline group_planes group_load(const int8_t *x) { return x; }
static inline __m256i group_plane(const int8_t *x, int field) {
    return _mm256_loadu_si256((const __m256i *)(x + 64 * field));
}
#if defined(__AVXVNNI__)
static inline group_vec group_dot_8(const group_field *c, const int8_t *x) {
    __m256i sum = _mm256_setzero_si256();
    UNROLL for (int f = 0; f < 4; f++) sum = _mm256_dpbusd_avx_epi32(sum, c[f], group_plane(x, f));
    return sum;
}
static inline group_vec group_dot_16(const group_field *c, group_planes x) {
    return _mm256_add_epi32(_mm256_slli_epi32(group_dot_8(c, x), 8), group_dot_8(c, x + 256));
}
#else
/* int16 sums of four products of two: at most 4 * 2 * 2 * 128 = 2,048 */
static inline __m256i group_dot(const group_field *c, const int8_t *x) {
    const __m256i a = _mm256_add_epi16(_mm256_maddubs_epi16(c[0], group_plane(x, 0)),
                                       _mm256_maddubs_epi16(c[1], group_plane(x, 1)));
    const __m256i b = _mm256_add_epi16(_mm256_maddubs_epi16(c[2], group_plane(x, 2)),
                                       _mm256_maddubs_epi16(c[3], group_plane(x, 3)));
    return _mm256_add_epi16(a, b);
}
static inline group_vec group_dot_8(const group_field *c, const int8_t *x) {
    return _mm256_madd_epi16(group_dot(c, x), _mm256_set1_epi16(1));
}
static inline group_vec group_dot_16(const group_field *c, group_planes x) {
    return _mm256_add_epi32(_mm256_madd_epi16(group_dot(c, x), _mm256_set1_epi16(256)),
                            _mm256_madd_epi16(group_dot(c, x + 256), _mm256_set1_epi16(1)));
}
#endif
/* sums of four lanes: those of the first 64 columns of four blocks, then those of the others */
static inline __m256i group_halves(const group_vec *s) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
}
static inline i32x4 group_sums_128(const group_vec *s) { return group_128(group_halves(s)); }
static inline void group_sums_64(i32x4 *sums, const group_vec *s) {
    group_64(sums, group_halves(s));
}
static inline void group_sums_32(i32x4 *sums, const group_vec *s) {
    UNROLL for (int i = 0; i < 4; i += 2) {
        const __m256i h = _mm256_hadd_epi32(s[i], s[i + 1]);
        const __m128i a = _mm256_castsi256_si128(h), b = _mm256_extracti128_si256(h, 1);
        sums[i] = (i32x4)_mm_unpacklo_epi64(a, b);
        sums[i + 1] = (i32x4)_mm_unpackhi_epi64(a, b);
    }
}

#define GROUP_ROWS 2            /* decode of 4B on a Zen 5: AVX-VNNI 1.17 times, AVX2 1.05 */
typedef float group_floats __attribute__((vector_size(32)));
typedef int32_t group_ints __attribute__((vector_size(32)));
static inline group_floats group_four_floats(const float *p) {
    return (group_floats)_mm256_broadcast_ps((const __m128 *)p);
}
static inline group_ints group_four_ints(const int32_t *p) {
    return (group_ints)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}
static inline group_floats group_floats_of_f16(const uint64_t *h) {
    return (group_floats)_mm256_cvtph_ps(_mm_set_epi64x((int64_t)h[1], (int64_t)h[0]));
}
/* In each lane of 128 bits a0, a2, b0, b2; and a1, a3, b1, b3. */
static inline __m256i group_even(__m256i a, __m256i b) {
    return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b),
                                                 0x88));
}
static inline __m256i group_odd(__m256i a, __m256i b) {
    return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b),
                                                 0xDD));
}
/* 256 * high + low of two blocks a and b of both rows: in each lane of 128 bits a, a, b, b. */
#if defined(__AVXVNNI__)
/* The sums of a plane in a lane are int16: at most 4 * 4 * 2 * 128 = 4,096. So those of two blocks
 * go into one register, and one product adds neighbours and weighs the planes by 256 and 1. */
static inline void group_two_blocks(__m256i *sums, const uint8_t *codes, ptrdiff_t row_codes,
                                    ptrdiff_t block_codes, ptrdiff_t half_codes, const int8_t *x,
                                    const int HALVES) {
    __m256i high[2][2], low[2][2];
    UNROLL for (int b = 0; b < 2; b++) {
        __m256i p[2];
        UNROLL for (int r = 0; r < 2; r++) {
            p[r] = group_block(codes + r * row_codes + b * block_codes, half_codes, HALVES);
            high[r][b] = low[r][b] = _mm256_setzero_si256();
        }
        UNROLL for (int f = 0; f < 4; f++) {            /* each x is loaded once for both rows */
            const __m256i x_high = group_plane(x + 32 * b, f);
            const __m256i x_low = group_plane(x + 32 * b + 256, f);
            UNROLL for (int r = 0; r < 2; r++) {
                const __m256i c = group_codes_of(p[r], f);
                high[r][b] = _mm256_dpbusd_avx_epi32(high[r][b], c, x_high);
                low[r][b] = _mm256_dpbusd_avx_epi32(low[r][b], c, x_low);
            }
        }
    }
    UNROLL for (int r = 0; r < 2; r++)
        sums[r] = _mm256_dpwssd_avx_epi32(
            _mm256_madd_epi16(_mm256_packs_epi32(low[r][0], low[r][1]), _mm256_set1_epi16(1)),
            _mm256_packs_epi32(high[r][0], high[r][1]), _mm256_set1_epi16(256));
}
#else
static inline void group_two_blocks(__m256i *sums, const uint8_t *codes, ptrdiff_t row_codes,
                                    ptrdiff_t block_codes, ptrdiff_t half_codes, const int8_t *x,
                                    const int HALVES) {
    UNROLL for (int r = 0; r < 2; r++) {
        group_vec block[2];
        UNROLL for (int b = 0; b < 2; b++) {
            group_field c[4];
            group_fields(c, codes + r * row_codes + b * block_codes, block_codes, half_codes,
                         HALVES);
            block[b] = group_dot_16(c, x + 32 * b);
        }
        sums[r] = _mm256_add_epi32(group_even(block[0], block[1]), group_odd(block[0], block[1]));
    }
}
#endif
static inline group_ints group_sums_of_rows(const uint8_t *codes, ptrdiff_t row_codes,
                                            ptrdiff_t block_codes, ptrdiff_t half_codes,
                                            const int8_t *x, const int HALVES) {
    __m256i sums[2][2], row[2];         /* row: of the first 64 columns and of the others */
    UNROLL for (int i = 0; i < 2; i++)
        group_two_blocks(sums[i], codes + 2 * i * block_codes, row_codes, block_codes, half_codes,
                         group_input(x, 2 * i, 16), HALVES);
    UNROLL for (int r = 0; r < 2; r++)
        row[r] = _mm256_add_epi32(group_even(sums[0][r], sums[1][r]),
                                  group_odd(sums[0][r], sums[1][r]));
    return (group_ints)_mm256_add_epi32(_mm256_permute2x128_si256(row[0], row[1], 0x20),
                                        _mm256_permute2x128_si256(row[0], row[1], 0x31));
}

/* ------------------------------------------------------------------------------- group_lookup.h */
#define HAS_GROUP_LOOKUP 1

/* As lookup_index, of codes whose second 64 columns begin half bytes behind the first. */
static __attribute__((noinline)) void group_lookup_index(uint8_t *index, const uint8_t *w,
                                                         ptrdiff_t row_bytes, ptrdiff_t half,
                                                         ptrdiff_t n_rows) {
    for (ptrdiff_t r = 0; r < n_rows; r++, w += row_bytes) {
        const __m256i p = _mm256_set_m128i(_mm_loadu_si128((const __m128i *)(w + half)),
                                           _mm_loadu_si128((const __m128i *)w));
        prefetch_t1(w + 64);
        lookup_store(index, lookup_numbers(p), r, n_rows);
    }
}

/* One plane of a block of 128 columns of up to 16 tokens: field 3, the highest bits, first. */
static inline void group_lookup_columns(int8_t *columns, const int8_t *x, ptrdiff_t x_stride,
                                        ptrdiff_t n_tokens) {
    for (int f = 0; f < 4; f++)
        for (int j = 0; j < 32; j += 16)
            lookup_columns_16(columns + (32 * (3 - f) + j) * 16, x + 64 * f + j, x_stride,
                              n_tokens);
}

/* The sum of eight entries, of one row, on top of sum. */
static inline __attribute__((always_inline)) __m256i group_entries(
        __m256i sum, const int16_t *tables, const uint8_t *index, ptrdiff_t r) {
    uint64_t numbers;
    memcpy(&numbers, index + r * 8, sizeof numbers);
    UNROLL for (int i = 0; i < LOOKUP_COLS; i++, numbers >>= 8)
        sum = _mm256_add_epi16(sum, _mm256_loadu_si256((const __m256i *)(
            tables + (i * LOOKUP_ENTRIES + (ptrdiff_t)(numbers & 255)) * 16)));
    return sum;
}

/* halves[r * 16 + t] = or += the entries that the indices of row r name */
static __attribute__((noinline)) void group_lookup_rows(int16_t *halves, int add,
                                                        const int16_t *tables,
                                                        const uint8_t *index, ptrdiff_t n_rows) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        __m256i *p = (__m256i *)(halves + r * 16);
        const __m256i sum = add ? _mm256_loadu_si256(p) : _mm256_setzero_si256();
        _mm256_storeu_si256(p, group_entries(sum, tables, index, r));
    }
}

static inline void group_lookup_add(float *p, __m256i first, __m256i last, float d, __m256 a,
                                    __m256 b) {
    const __m256 scale = _mm256_set1_ps(d);
    _mm256_storeu_ps(p, _mm256_add_ps(_mm256_loadu_ps(p), _mm256_mul_ps(
        _mm256_cvtepi32_ps(first), _mm256_mul_ps(scale, a))));
    _mm256_storeu_ps(p + 8, _mm256_add_ps(_mm256_loadu_ps(p + 8), _mm256_mul_ps(
        _mm256_cvtepi32_ps(last), _mm256_mul_ps(scale, b))));
}

/* The last entries of a unit with 16 bits: sums[r * 16 + i] += (256 high + low) * (d[r] * a[i]), of
 * token group_lookup_token(i, 16). low: what is there already, where add. */
static __attribute__((noinline)) void group_lookup_fold_16(
        float *sums, const int16_t *high, const int16_t *low, int add, const int16_t *tables,
        const uint8_t *index, const float *d, const float *a, ptrdiff_t n_rows) {
    const __m256 a0 = _mm256_loadu_ps(a), a1 = _mm256_loadu_ps(a + 8);
    const __m256i weights = _mm256_set1_epi32(256 << 16 | 1);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const __m256i begun = add ? _mm256_loadu_si256((const __m256i *)(low + r * 16))
                                  : _mm256_setzero_si256();
        const __m256i l = group_entries(begun, tables, index, r);
        const __m256i h = _mm256_loadu_si256((const __m256i *)(high + r * 16));
        group_lookup_add(sums + r * 16, _mm256_madd_epi16(_mm256_unpacklo_epi16(l, h), weights),
                         _mm256_madd_epi16(_mm256_unpackhi_epi16(l, h), weights), d[r], a0, a1);
    }
}

/* All eight entries of a unit with 8 bits. */
static __attribute__((noinline)) void group_lookup_fold_8(
        float *sums, const int16_t *tables, const uint8_t *index, const float *d, const float *a,
        ptrdiff_t n_rows) {
    const __m256 a0 = _mm256_loadu_ps(a), a1 = _mm256_loadu_ps(a + 8);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const __m256i sum = group_entries(_mm256_setzero_si256(), tables, index, r);
        group_lookup_add(sums + r * 16, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum)),
                         _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1)), d[r], a0, a1);
    }
}

/* The token whose sums lie at i of 16: unpacking takes them apart by fours. */
static inline int group_lookup_token(int i, int bits) {
    return bits == 16 ? (i & 3) | (i & 4) << 1 | (i & 8) >> 1 : i;
}
