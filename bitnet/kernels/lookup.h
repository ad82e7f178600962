/* Ternary products by tables, where vectors are short of multipliers (AVX2). A byte of I2_S holds
 * four codes of a row: the 81 sums of four activations, with 16 tokens side by side in int16, are
 * laid out once for a byte column, and every row adds the one that its byte names: 64 products for
 * one load and one addition. Sums stay int16 while those of the activations' magnitudes would: two
 * blocks at worst, some eight where activations are as usual (lookup_most). */
#pragma once
#include "simd.h"

enum { LOOKUP_COLS = 8, LOOKUP_ENTRIES = 81 };      /* eight tables of 2,592 bytes: first cache */

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
enum { LOOKUP = 1 };

/* index[(group * n_rows + r) * 8 + i]: bytes 8 group + i of a block of row r, as numbers of base 3.
 * The next block of a row is asked for: rows lie further apart than the hardware looks. A function
 * of its own, else gcc takes its pointers out of memory for every row: 1.03 times. */
static __attribute__((noinline)) void lookup_index(uint8_t *index, const uint8_t *w,
                                                   ptrdiff_t row_bytes, ptrdiff_t n_rows) {
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 0, 0, 0, 0));
    const __m256i high = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 9, 18, 0, 27, 36, 45, 0, 54, 63, 72, 0, 0, 0, 0, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    for (ptrdiff_t r = 0; r < n_rows; r++, w += row_bytes) {
        const __m256i p = _mm256_loadu_si256((const __m256i *)w), numbers = _mm256_add_epi8(
            _mm256_shuffle_epi8(low, _mm256_and_si256(p, nibble)),
            _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(p, 4), nibble)));
        const __m128d a = _mm_castsi128_pd(_mm256_castsi256_si128(numbers));
        const __m128d b = _mm_castsi128_pd(_mm256_extracti128_si256(numbers, 1));
        __builtin_prefetch(w + 64, 0, 2);
        _mm_storel_pd((double *)(index + r * 8), a);
        _mm_storeh_pd((double *)(index + (n_rows + r) * 8), a);
        _mm_storel_pd((double *)(index + (2 * n_rows + r) * 8), b);
        _mm_storeh_pd((double *)(index + (3 * n_rows + r) * 8), b);
    }
}

/* The largest sum of magnitudes of 128 columns of any of the tokens, which no sum of theirs times
 * ternary weights can exceed: at most 128 * 127 = 16,256. */
static inline int32_t lookup_most(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t n_tokens) {
    __m256i most = _mm256_setzero_si256();
    for (ptrdiff_t t = 0; t < n_tokens; t++, x += x_stride) {
        __m256i sum = _mm256_setzero_si256();
        for (int c = 0; c < 128; c += 32)
            sum = _mm256_add_epi32(sum, _mm256_sad_epu8(_mm256_setzero_si256(), _mm256_abs_epi8(
                _mm256_loadu_si256((const __m256i *)(x + c)))));
        sum = _mm256_add_epi32(sum, _mm256_permute4x64_epi64(sum, 0x4E));
        most = _mm256_max_epi32(most, _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4E)));
    }
    return _mm256_cvtsi256_si32(most);
}

/* columns[c * 16 + t] = x[t * x_stride + c] of 128 columns; zeros for tokens that are not there */
static inline void lookup_columns(int8_t *columns, const int8_t *x, ptrdiff_t x_stride,
                                  ptrdiff_t n_tokens) {
    for (int c = 0; c < 128; c += 16) {
        __m128i a[16], b[16];
        for (int t = 0; t < 16; t++)
            a[t] = t < n_tokens ? _mm_loadu_si128((const __m128i *)(x + t * x_stride + c))
                                : _mm_setzero_si128();
        for (int step = 0; step < 2; step++) {      /* each half doubles what lies together */
            UNROLL for (int i = 0; i < 8; i++) {
                b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
                b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
            }
            UNROLL for (int i = 0; i < 8; i++) {
                a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]);
                a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
            }
        }
        for (int i = 0; i < 16; i++) _mm_storeu_si128((__m128i *)(columns + (c + i) * 16), a[i]);
    }
}

/* tables[(i * 81 + number) * 16 + t]: the sum of weights times columns of byte i, token t */
static inline void lookup_tables(int16_t *tables, const int8_t *columns) {
    for (int i = 0; i < LOOKUP_COLS; i++, columns += 16) {
        __m256i x[4], *entry = (__m256i *)(tables + i * LOOKUP_ENTRIES * 16);
        UNROLL for (int f = 0; f < 4; f++)
            x[f] = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(columns + 512 * f)));
        __m256i a = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_add_epi16(
            _mm256_add_epi16(x[0], x[1]), _mm256_add_epi16(x[2], x[3])));
        for (int j = 0; j < 9; j++) {
            __m256i b = a;
            UNROLL for (int k = 0; k < 3; k++, b = _mm256_add_epi16(b, x[2])) {
                const __m256i c = _mm256_add_epi16(b, x[3]);
                _mm256_storeu_si256(entry++, b);
                _mm256_storeu_si256(entry++, c);
                _mm256_storeu_si256(entry++, _mm256_add_epi16(c, x[3]));
            }
            a = _mm256_add_epi16(a, x[1]);
            if (j % 3 == 2)                         /* the next x[0], and back by three x[1] */
                a = _mm256_add_epi16(a, _mm256_sub_epi16(x[0], _mm256_mullo_epi16(
                    x[1], _mm256_set1_epi16(3))));
        }
    }
}

/* halves[r * 16 + t] += the entries that row r names. Two rows side by side: 1.03 times the speed
 * of one, four 0.8. Eight numbers are one load: eight cost a fifth more. */
#define LOOKUP_ROWS_AT_ONCE(R)                                                                    \
    do {                                                                                          \
        __m256i sum[R];                                                                           \
        uint64_t numbers[R];                                                                      \
        memcpy(numbers, index + r * 8, sizeof numbers);                                           \
        UNROLL for (int k = 0; k < R; k++)                                                        \
            sum[k] = _mm256_loadu_si256((const __m256i *)(halves + (r + k) * 16));                \
        UNROLL for (int i = 0; i < LOOKUP_COLS; i++)                                              \
            UNROLL for (int k = 0; k < R; k++) {                                                  \
                sum[k] = _mm256_add_epi16(sum[k], _mm256_loadu_si256((const __m256i *)(           \
                    tables + (i * LOOKUP_ENTRIES + (ptrdiff_t)(numbers[k] & 255)) * 16)));        \
                numbers[k] >>= 8;                                                                 \
            }                                                                                     \
        UNROLL for (int k = 0; k < R; k++)                                                        \
            _mm256_storeu_si256((__m256i *)(halves + (r + k) * 16), sum[k]);                      \
    } while (0)
static inline void lookup_rows(int16_t *halves, const int16_t *tables, const uint8_t *index,
                               ptrdiff_t n_rows) {
    ptrdiff_t r = 0;
    for (; r + 2 <= n_rows; r += 2) LOOKUP_ROWS_AT_ONCE(2);
    if (r < n_rows) LOOKUP_ROWS_AT_ONCE(1);
}

/* sums[t * n_rows + r] += halves[r * 16 + t], and halves = 0 */
static inline void lookup_fold(int32_t *sums, int16_t *halves, ptrdiff_t n_rows) {
    ptrdiff_t r = 0;
    for (; r + 16 <= n_rows; r += 16)
        for (int half = 0; half < 16; half += 8) {
            __m256i a[8], b[8];
            UNROLL for (int i = 0; i < 8; i++) {
                __m128i *p = (__m128i *)(halves + (r + i) * 16 + half), *q = p + 16;
                a[i] = _mm256_set_m128i(_mm_loadu_si128(q), _mm_loadu_si128(p));
                _mm_storeu_si128(p, _mm_setzero_si128());
                _mm_storeu_si128(q, _mm_setzero_si128());
            }
            UNROLL for (int step = 0; step < 3; step++) {       /* doubles what lies together */
                UNROLL for (int i = 0; i < 4; i++) {
                    b[2 * i] = _mm256_unpacklo_epi16(a[i], a[i + 4]);
                    b[2 * i + 1] = _mm256_unpackhi_epi16(a[i], a[i + 4]);
                }
                UNROLL for (int i = 0; i < 8; i++) a[i] = b[i];
            }
            UNROLL for (int t = 0; t < 8; t++) {
                __m256i *p = (__m256i *)(sums + (half + t) * n_rows + r);
                _mm256_storeu_si256(p, _mm256_add_epi32(_mm256_loadu_si256(p),
                    _mm256_cvtepi16_epi32(_mm256_castsi256_si128(a[t]))));
                _mm256_storeu_si256(p + 1, _mm256_add_epi32(_mm256_loadu_si256(p + 1),
                    _mm256_cvtepi16_epi32(_mm256_extracti128_si256(a[t], 1))));
            }
        }
    for (; r < n_rows; r++)
        for (int t = 0; t < 16; t++) {
            sums[t * n_rows + r] += halves[r * 16 + t];
            halves[r * 16 + t] = 0;
        }
}
#else
enum { LOOKUP = 0 };                                /* tiles are as fast, or nobody has measured */
#define lookup_index(index, w, row_bytes, n_rows) ((void)0)
#define lookup_columns(columns, x, x_stride, n_tokens) ((void)0)
#define lookup_most(x, x_stride, n_tokens) 0
#define lookup_tables(tables, columns) ((void)0)
#define lookup_rows(halves, tables, index, n_rows) ((void)0)
#define lookup_fold(sums, halves, n_rows) ((void)0)
#endif
