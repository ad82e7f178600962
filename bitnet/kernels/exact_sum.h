/* The inner loops of attention to int8 items: weighted sums that are exact, for one to
 * EXACT_SUM_QUERIES queries that share a pass over the items. */
#pragma once
#include "simd/simd.h"

/* Codes, the factors of the items, are int16 of at most MAX_CODE(n) in magnitude, for sums of n
 * products. Those of a query are n in number, a multiple of 16, in 2 n bytes, and lie as the
 * instruction set reads them: the planes of c = 256 high + low with bytes of -128..127 (QUAD_PLANES
 * is 2), or as they are.
 *
 * No sum overflows int32: n * MAX_CODE(n) * 127 < 2^31 for n up to 1024 (512 * 32639 * 127 is
 * 2.122e9, 1024 * 16383 * 127 is 2.131e9). Of the codes alone sums stay below 2^24, exact in float.
 * What a plane's sums and QUAD_OFFSET add meanwhile may wrap: the result is the same mod 2^32. */
#define MAX_CODE(n) ((n) <= 512 ? 32639.0f : 16383.0f)

static inline int32_t code_at(const int8_t *codes, ptrdiff_t n, ptrdiff_t i) {
    int16_t code;
    if (QUAD_PLANES == 2) return 256 * codes[i] + codes[n + i];
    memcpy(&code, codes + 2 * i, sizeof code);
    return code;
}

/* Codes from the i-th on, i a multiple of 4. */
static inline const int8_t *codes_from(const int8_t *codes, ptrdiff_t i) {
    return codes + i * (2 / QUAD_PLANES);
}

/* Codes i..i + 15 of x times a factor, as codes_store_16 has them; NaN is the largest code. */
static inline f32x16 codes_round(int8_t *codes, ptrdiff_t n_codes, ptrdiff_t i, f32x16 x,
                                 f32x16 factor, f32x16 largest) {
    return codes_store_16(codes, n_codes, i, f32_min(f32_mul(x, factor), largest));
}

/* Codes = round half even of n floats times a factor, and zeros up to whole vectors; their sum. */
static inline int32_t codes_store(int8_t *codes, const float *x, float factor, ptrdiff_t n) {
    const ptrdiff_t n_codes = (n + 15) & ~(ptrdiff_t)15;
    f32x16 sums = f32_zero();
    for (ptrdiff_t i = 0; i < n; i += 16) {
        float last[16] = {0};
        const float *from = x + i;
        if (i + 16 > n) from = memcpy(last, from, (size_t)(n - i) * sizeof(float));
        sums = f32_add(sums, codes_round(codes, n_codes, i, f32_load(from), f32_set1(factor),
                                         f32_set1(MAX_CODE(n))));
    }
    return (int32_t)f32_sum(sums);
}

/* Of G queries and C units of QUAD_LANES lanes: out[g][lane] = sum over i < 4 n_quads of code i of
 * query g times m[i / 4][lane][i % 4]; n_quads rows, stride apart, of units that are column apart.
 * As many bytes are prefetched as there are items, all along: those of one plane alone would come
 * in bursts. */
#define EXACT_SUM_LOOP(NAME, G, C)                                                                \
    static inline void NAME(int32_t *out, ptrdiff_t out_stride, const int8_t *codes, ptrdiff_t n, \
                            const int32_t *code_sums, const int8_t *m, ptrdiff_t stride,          \
                            ptrdiff_t column, ptrdiff_t n_quads, const char *ahead) {             \
        enum { STEP = 4 * QUAD_LANES * (C) / QUAD_PLANES };                                       \
        quad_sums sums[C][G];                                                                     \
        UNROLL for (int c = 0; c < (C); c++)                                                      \
            UNROLL for (int g = 0; g < (G); g++) sums[c][g] = quads_zero();                       \
        for (int plane = 0; plane < QUAD_PLANES; plane++) {                                       \
            const int8_t *p = codes + plane * n;                                                  \
            const char *next = ahead + plane * n_quads * STEP;                                    \
            if (plane)                                                                            \
                UNROLL for (int c = 0; c < (C); c++)                                              \
                    UNROLL for (int g = 0; g < (G); g++) sums[c][g] = quads_256(sums[c][g]);      \
            for (ptrdiff_t i = 0; i < n_quads; i++) {                                             \
                quads rows[C];                                                                    \
                UNROLL for (int b = 0; b < STEP; b += 64)                                         \
                    if (STEP >= 64 || i * STEP % 64 == 0) prefetch_t0(next + i * STEP + b);       \
                UNROLL for (int c = 0; c < (C); c++)                                              \
                    rows[c] = quads_load(m + i * stride + c * column);                            \
                UNROLL for (int g = 0; g < (G); g++) {                                            \
                    const quad_codes x = quads_codes(p + g * 2 * n + i * (8 / QUAD_PLANES));      \
                    UNROLL for (int c = 0; c < (C); c++)                                          \
                        sums[c][g] = quads_dot(sums[c][g], rows[c], x);                           \
                }                                                                                 \
            }                                                                                     \
        }                                                                                         \
        UNROLL for (int c = 0; c < (C); c++)                                                      \
            UNROLL for (int g = 0; g < (G); g++)                                                  \
                quads_store(out + g * out_stride + QUAD_LANES * c, sums[c][g],                    \
                            QUAD_OFFSET * code_sums[g]);                                          \
    }

/* n_vectors of 16 lanes, each column bytes behind the one before. */
#define EXACT_SUM(G)                                                                              \
    EXACT_SUM_LOOP(exact_sum_wide_##G, G, EXACT_SUM_UNITS(G))                                     \
    EXACT_SUM_LOOP(exact_sum_last_##G, G, 1)                                                      \
    static inline void exact_sum_##G(int32_t *out, ptrdiff_t out_stride, const int8_t *codes,     \
                                     ptrdiff_t n, const int32_t *code_sums, const int8_t *m,      \
                                     ptrdiff_t stride, ptrdiff_t column, ptrdiff_t n_quads,       \
                                     ptrdiff_t n_vectors, const char *ahead) {                    \
        const ptrdiff_t n_units = n_vectors * (16 / QUAD_LANES);                                  \
        ptrdiff_t u = 0;                                                                          \
        for (; u + EXACT_SUM_UNITS(G) <= n_units; u += EXACT_SUM_UNITS(G))                        \
            exact_sum_wide_##G(out + QUAD_LANES * u, out_stride, codes, n, code_sums,             \
                               m + unit_offset(u, column), stride, column, n_quads,               \
                               ahead + 4 * QUAD_LANES * n_quads * u);                             \
        for (; u < n_units; u++)                                                                  \
            exact_sum_last_##G(out + QUAD_LANES * u, out_stride, codes, n, code_sums,             \
                               m + unit_offset(u, column), stride, column, n_quads,               \
                               ahead + 4 * QUAD_LANES * n_quads * u);                             \
    }

static inline ptrdiff_t unit_offset(ptrdiff_t unit, ptrdiff_t column) {
    const ptrdiff_t lane = unit * QUAD_LANES;
    return lane / 16 * column + lane % 16 * 4;
}

EXACT_SUM(1)
EXACT_SUM(2)
EXACT_SUM(3)
EXACT_SUM(4)
EXACT_SUM(5)
EXACT_SUM(6)
#if EXACT_SUM_QUERIES > 6
EXACT_SUM(7)
EXACT_SUM(8)
#endif

/* out[g][lane] = sum over i < 4 n_quads of code i of query g times m[i / 4][lane][i % 4], g <
 * n_queries <= EXACT_SUM_QUERIES. codes: (n_queries, n codes). code_sums: of the codes of each
 * query that are summed. ahead: what to prefetch meanwhile. */
static inline void exact_sum(int32_t *out, ptrdiff_t out_stride, const int8_t *codes, ptrdiff_t n,
                             const int32_t *code_sums, const int8_t *m, ptrdiff_t stride,
                             ptrdiff_t column, ptrdiff_t n_queries, ptrdiff_t n_quads,
                             ptrdiff_t n_vectors, const char *ahead) {
    static void (*const of[])(int32_t *, ptrdiff_t, const int8_t *, ptrdiff_t, const int32_t *,
                              const int8_t *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                              const char *) = {
        exact_sum_1, exact_sum_2, exact_sum_3, exact_sum_4, exact_sum_5, exact_sum_6,
#if EXACT_SUM_QUERIES > 6
        exact_sum_7, exact_sum_8,
#endif
    };
    of[n_queries - 1](out, out_stride, codes, n, code_sums, m, stride, column, n_quads, n_vectors,
                      ahead);
}
