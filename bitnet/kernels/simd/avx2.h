/* AVX2 with FMA and F16C, and AVX-VNNI where the compiler may use it. */
#pragma once
#if defined(__AVXVNNI__)
#define DPBUSD_256 _mm256_dpbusd_avx_epi32
#endif
#include "x86.h"

typedef struct { __m256 lo, hi; } f32x16;
static inline f32x16 f32_set1(float x) { return (f32x16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline f32x16 f32_load(const float *p) {
    return (f32x16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline f32x16 f32_load_f16(const uint16_t *p) {
    return (f32x16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                    _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline __m256 bf16x8(const uint16_t *p) {
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}
static inline f32x16 f32_load_bf16(const uint16_t *p) { return (f32x16){bf16x8(p), bf16x8(p + 8)}; }
static inline __m256 i8x8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline f32x16 f32_load_i8(const int8_t *p) { return (f32x16){i8x8(p), i8x8(p + 8)}; }
static inline f32x16 f32_load_i32(const int32_t *p) {
    return (f32x16){_mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)p)),
                    _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(p + 8)))};
}
static inline void f32_store(float *p, f32x16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline void f32_store_f16(uint16_t *p, f32x16 a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
#define F32_BOTH(name, op) \
    static inline f32x16 name(f32x16 a, f32x16 b) { \
        return (f32x16){op(a.lo, b.lo), op(a.hi, b.hi)}; \
    }
F32_BOTH(f32_add, _mm256_add_ps)
F32_BOTH(f32_sub, _mm256_sub_ps)
F32_BOTH(f32_mul, _mm256_mul_ps)
static inline f32x16 f32_add_exact(f32x16 c, f32x16 a, f32x16 b) {
    return (f32x16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
F32_BOTH(f32_div, _mm256_div_ps)
F32_BOTH(f32_max, _mm256_max_ps)
F32_BOTH(f32_min, _mm256_min_ps)
static inline float f32_sum(f32x16 a) {
    return f32_sum_8(_mm256_add_ps(a.lo, a.hi));
}
static inline float f32_max_lanes(f32x16 a) {
    const __m256 m = _mm256_max_ps(a.lo, a.hi);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline void f32_store_i8(int8_t *p, f32x16 a) {
    __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    w = _mm256_permute4x64_epi64(w, 0xD8);                          /* packs works within halves */
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(w),
                                                   _mm256_extracti128_si256(w, 1)));
}
static inline __m256 pow2x8(__m256 magic) {
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(magic), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(0x3F800000)));
}
static inline f32x16 f32_pow2(f32x16 magic) { return (f32x16){pow2x8(magic.lo), pow2x8(magic.hi)}; }
static inline f32x16 f32_zero_below(f32x16 a, f32x16 x, float limit) {
    const __m256 l = _mm256_set1_ps(limit);
    return (f32x16){_mm256_andnot_ps(_mm256_cmp_ps(x.lo, l, _CMP_LT_OQ), a.lo),
                    _mm256_andnot_ps(_mm256_cmp_ps(x.hi, l, _CMP_LT_OQ), a.hi)};
}

/* ------------------------------------------------------------------------------------ ternary.h */
typedef __m256i vec;
#define VEC_BYTES 32
#define TILE_ROWS 2             /* 2 x 4 sums stay in 16 registers, beside codes and an input */
#define TILE_TOKENS 4
#define TILE_1_ROWS 2
#define PIN(v) __asm__("" : "+x"(v))
static inline vec vec_zero(void) { return _mm256_setzero_si256(); }
static inline ptrdiff_t vec_steps(ptrdiff_t n_blocks) { return n_blocks; }
static inline vec vec_codes(const uint8_t *w) { return _mm256_loadu_si256((const __m256i *)w); }
static inline vec vec_input(const int8_t *x, ptrdiff_t step, int field) {
    return _mm256_loadu_si256((const __m256i *)(x + 128 * step + 32 * field));
}
static inline vec vec_field(vec p, int field) {
    return _mm256_and_si256(_mm256_srli_epi16(p, 6 - 2 * field), _mm256_set1_epi8(3));
}
static inline vec vec_add(vec a, vec b) { return _mm256_add_epi32(a, b); }
/* out[i] = the sum of the lanes of the i-th of four vectors */
static inline void vec_sums(int32_t *out, vec a, vec b, vec c, vec d) {
    a = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(a),
                                                   _mm256_extracti128_si256(a, 1)));
}
#if defined(__AVXVNNI__)
#define TILE_1_SUMS 4
static inline vec vec_dot(vec acc, vec code, vec x) {
    acc = _mm256_dpbusd_avx_epi32(acc, code, x);
    PIN(acc);
    return acc;
}
/* A field left where it is counts 4^(3 - field) times, at most 2 * 64 * 127: no shifts. */
static inline vec vec_field_in_place(vec p, int field) {
    return _mm256_and_si256(p, _mm256_set1_epi8((char)(3 << (6 - 2 * field))));
}
static inline vec vec_scale_back(vec sum, int field) {
    return _mm256_srai_epi32(sum, 6 - 2 * field);
}
#else
/* A lane of maddubs holds at most 2 * 2 * 127 = 508; four of them a step, so 16 steps stay at
   32,512, inside int16: then they are folded into int32. */
#define TILE_1_SUMS 2
#define VEC_FOLD 16
static inline vec vec_dot(vec acc, vec code, vec x) {
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(code, x));
    PIN(acc);
    return acc;
}
static inline vec vec_fold(vec sum, vec acc) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)));
}
/* One shift for two fields: 0 and 2 end up at bits 3:2 and count four times, at most 2 * 8 * 127 =
   2,032 each. They have one sum, 1 and 3 the other: again 32,512, after 8 steps. */
static inline vec vec_field_in_place(vec p, int field) {
    return _mm256_and_si256(field < 2 ? _mm256_srli_epi16(p, 4) : p,
                            _mm256_set1_epi8(field & 1 ? 3 : 12));
}
static inline vec vec_scale_back(vec sum, int i) {
    return i ? sum : _mm256_srai_epi32(sum, 2);
}
#endif

/* ------------------------------------------------------------------------------------- screen.h */
#define HAS_COARSE 1
#define COARSE_OFFSET 128
static inline vec coarse_codes(const int8_t *w) {
    return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)w), _mm256_set1_epi8(-128));
}
#if defined(__AVXVNNI__)
#define PLANE_BITS 7            /* |h| <= 127 */
#define coarse_dot vec_dot
#else
#define PLANE_BITS 8            /* |h| <= 64: 2 * 255 * 64 is an int16 */
static inline vec coarse_dot(vec sum, vec w, vec x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x),
                                                   _mm256_set1_epi16(1)));
}

/* maddubs would saturate: 2 * 255 * 127 is beyond int16. Words: at most 2.11e9 a lane. */
#define SCREEN_STEP 16
#define SCREEN_OFFSET 0
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
static inline int64_t screen_sum(const screen_vec *a) {
    int32_t lanes[8];
    int64_t total = 0;
    _mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi32(a[0], a[1]));
    for (int i = 0; i < 8; i++) total += lanes[i];
    return total;
}
#endif

/* ------------------------------------------------------------------------------------- lookup.h */
#define HAS_LOOKUP 1
#define LOOKUP_COLS 8           /* tables at once, 2,592 bytes each: they stay in the first cache */

/* index[(group * n_rows + r) * 8 + i] = byte 8 group + i of a block of row r as an index of its
 * table: the codes as digits in base 3.
 * The next block of a row is prefetched: rows lie further apart than the hardware looks. It is a
 * function of its own, else gcc reloads its pointers for every row, which takes 1.03 times as
 * long. */
static inline __m256i lookup_numbers(__m256i p) {
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 0, 0, 0, 0));
    const __m256i high = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 9, 18, 0, 27, 36, 45, 0, 54, 63, 72, 0, 0, 0, 0, 0));
    const __m256i nibble = _mm256_set1_epi8(15);
    return _mm256_add_epi8(
        _mm256_shuffle_epi8(low, _mm256_and_si256(p, nibble)),
        _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16(p, 4), nibble)));
}
static inline void lookup_store(uint8_t *index, __m256i numbers, ptrdiff_t r, ptrdiff_t n_rows) {
    const __m128d a = _mm_castsi128_pd(_mm256_castsi256_si128(numbers));
    const __m128d b = _mm_castsi128_pd(_mm256_extracti128_si256(numbers, 1));
    _mm_storel_pd((double *)(index + r * 8), a);
    _mm_storeh_pd((double *)(index + (n_rows + r) * 8), a);
    _mm_storel_pd((double *)(index + (2 * n_rows + r) * 8), b);
    _mm_storeh_pd((double *)(index + (3 * n_rows + r) * 8), b);
}
static __attribute__((noinline)) void lookup_index(uint8_t *index, const uint8_t *w,
                                                   ptrdiff_t row_bytes, ptrdiff_t n_rows) {
    for (ptrdiff_t r = 0; r < n_rows; r++, w += row_bytes) {
        const __m256i p = _mm256_loadu_si256((const __m256i *)w);
        prefetch_t1(w + 64);
        lookup_store(index, lookup_numbers(p), r, n_rows);
    }
}

/* The largest sum of magnitudes of 128 columns of any of the tokens, which no sum of theirs times
 * ternary weights can exceed: at most 128 * 127 = 16,256. */
static inline int32_t lookup_max_sum(const int8_t *x, ptrdiff_t x_stride, ptrdiff_t n_tokens) {
    __m256i largest = _mm256_setzero_si256();
    for (ptrdiff_t t = 0; t < n_tokens; t++, x += x_stride) {
        __m256i sum = _mm256_setzero_si256();
        for (int c = 0; c < 128; c += 32)
            sum = _mm256_add_epi32(sum, _mm256_sad_epu8(_mm256_setzero_si256(), _mm256_abs_epi8(
                _mm256_loadu_si256((const __m256i *)(x + c)))));
        sum = _mm256_add_epi32(sum, _mm256_permute4x64_epi64(sum, 0x4E));
        sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4E));
        largest = _mm256_max_epi32(largest, sum);
    }
    return _mm256_cvtsi256_si32(largest);
}

/* columns[c * 16 + t] = x[t * x_stride + c] of 16 columns; zeros for tokens that are not there */
static inline void lookup_columns_16(int8_t *columns, const int8_t *x, ptrdiff_t x_stride,
                                     ptrdiff_t n_tokens) {
    __m128i a[16], b[16];
    for (int t = 0; t < 16; t++)
        a[t] = t < n_tokens ? _mm_loadu_si128((const __m128i *)(x + t * x_stride))
                            : _mm_setzero_si128();
    for (int step = 0; step < 2; step++) {          /* each half doubles what lies together */
        UNROLL for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        UNROLL for (int i = 0; i < 8; i++) {
            a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]);
            a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
        }
    }
    for (int i = 0; i < 16; i++) _mm_storeu_si128((__m128i *)(columns + i * 16), a[i]);
}
static inline void lookup_columns(int8_t *columns, const int8_t *x, ptrdiff_t x_stride,
                                  ptrdiff_t n_tokens) {
    for (int c = 0; c < 128; c += 16)
        lookup_columns_16(columns + c * 16, x + c, x_stride, n_tokens);
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

/* halves[r * 16 + t] += the entries that the indices of row r name. Two rows side by side have 1.03
 * times the speed of one, four 0.8. The eight indices of a row are one load: eight loads take a
 * fifth longer. */
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

/* ------------------------------------------------------------------------------- weighted_sum.h */
#define WEIGHTED_SUM_QUERIES 6  /* 12 sums stay in 16 registers, beside a row and a factor */
#define WEIGHTED_SUM_VECTORS(n) ((n) == 1 ? 4 : (n) == 2 ? 2 : 1)

/* ---------------------------------------------------------------------------------- exact_sum.h */
#define EXACT_SUM_QUERIES 6
#define EXACT_SUM_UNITS(n) 1
typedef __m256i quad_codes;
typedef struct { __m256i lo, hi; } quads;
typedef struct { __m256i lo, hi; } quad_sums;
static inline quad_sums quads_zero(void) {
    return (quad_sums){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
/* 16 int16: the codes nearest to x */
static inline __m256i quads_round(f32x16 x) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(x.lo),
                                                       _mm256_cvtps_epi32(x.hi)), 0xD8);
}
static inline f32x16 quads_rounded(__m256i c) {
    return (f32x16){_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(c))),
                    _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(c, 1)))};
}
#if defined(__AVXVNNI__)
#define QUAD_LANES 16
#define QUAD_PLANES 2
#define QUAD_OFFSET 128         /* dpbusd takes items unsigned */
static inline quads quads_load(const int8_t *m) {
    const __m256i top = _mm256_set1_epi8(-128);
    return (quads){_mm256_xor_si256(_mm256_loadu_si256((const __m256i *)m), top),
                   _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(m + 32)), top)};
}
static inline quad_codes quads_codes(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return _mm256_set1_epi32(four);
}
static inline quad_sums quads_256(quad_sums s) {
    return (quad_sums){_mm256_slli_epi32(s.lo, 8), _mm256_slli_epi32(s.hi, 8)};
}
static inline quad_sums quads_dot(quad_sums s, quads m, quad_codes x) {
    return (quad_sums){vec_dot(s.lo, m.lo, x), vec_dot(s.hi, m.hi, x)};
}
static inline void quads_store(int32_t *out, quad_sums s, int32_t offset) {
    const __m256i o = _mm256_set1_epi32(offset);
    _mm256_storeu_si256((__m256i *)out, _mm256_sub_epi32(s.lo, o));
    _mm256_storeu_si256((__m256i *)(out + 8), _mm256_sub_epi32(s.hi, o));
}
static inline f32x16 codes_store_16(int8_t *codes, ptrdiff_t n, ptrdiff_t i, f32x16 x) {
    const __m256i c = quads_round(x);
    __m256i high = _mm256_srai_epi16(_mm256_add_epi16(c, _mm256_set1_epi16(128)), 8);
    __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(c, 8), 8);
    low = _mm256_permute4x64_epi64(_mm256_packs_epi16(high, low), 0xD8);
    _mm_storeu_si128((__m128i *)(codes + i), _mm256_castsi256_si128(low));
    _mm_storeu_si128((__m128i *)(codes + n + i), _mm256_extracti128_si256(low, 1));
    return quads_rounded(c);
}
#else
/* Items are widened to 16 bits once for all queries; a lane's four are summed in two int32. */
#define QUAD_LANES 8
#define QUAD_PLANES 1
#define QUAD_OFFSET 0
static inline quads quads_load(const int8_t *m) {
    return (quads){_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)m)),
                   _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(m + 16)))};
}
static inline quad_codes quads_codes(const int8_t *codes) {
    int64_t four;
    memcpy(&four, codes, sizeof four);
    return _mm256_set1_epi64x(four);
}
static inline quad_sums quads_256(quad_sums s) { return s; }
static inline quad_sums quads_dot(quad_sums s, quads m, quad_codes x) {
    s.lo = _mm256_add_epi32(s.lo, _mm256_madd_epi16(m.lo, x));
    s.hi = _mm256_add_epi32(s.hi, _mm256_madd_epi16(m.hi, x));
    PIN(s.lo);
    PIN(s.hi);
    return s;
}
static inline void quads_store(int32_t *out, quad_sums s, int32_t offset) {
    (void)offset;
    _mm256_storeu_si256((__m256i *)out, _mm256_permute4x64_epi64(
        _mm256_hadd_epi32(s.lo, s.hi), 0xD8));
}
static inline f32x16 codes_store_16(int8_t *codes, ptrdiff_t n, ptrdiff_t i, f32x16 x) {
    const __m256i c = quads_round(x);
    (void)n;
    _mm256_storeu_si256((__m256i *)(codes + 2 * i), c);
    return quads_rounded(c);
}
#endif

#include "avx2_group.h"
