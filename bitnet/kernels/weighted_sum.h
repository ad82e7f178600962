/* The inner loops of attention to float items: weighted sums of rows, for one to
 * WEIGHTED_SUM_QUERIES queries that share them. */
#pragma once
#include "simd/simd.h"

static inline f32x16 f32_add_product(f32x16 c, f32x16 a, f32x16 b) {
    return f32_add(c, f32_mul(a, b));
}

/* G queries, C vectors of lanes. One row of m after the other is added to all sums, and each time
 * as many bytes are prefetched as are read: in bursts, prefetches would wait for each other. */
#define WEIGHTED_SUM_LOOP(NAME, TYPE, LOAD, ADD, G, C)                                            \
    static inline void NAME(float *out, ptrdiff_t out_stride, const float *a, ptrdiff_t a_stride, \
                            const TYPE *m, ptrdiff_t stride, ptrdiff_t column, ptrdiff_t n,       \
                            int adds, const char *ahead) {                                        \
        enum { STEP = 16 * (C) * sizeof(TYPE) };                                                  \
        f32x16 sums[C][G];                                                                        \
        UNROLL for (int c = 0; c < (C); c++)                                                      \
            UNROLL for (int g = 0; g < (G); g++)                                                  \
                sums[c][g] = adds ? f32_load(out + g * out_stride + 16 * c) : f32_zero();         \
        for (ptrdiff_t i = 0; i < n; i++) {                                                       \
            f32x16 rows[C];                                                                       \
            UNROLL for (int b = 0; b < STEP; b += 64)                                             \
                if (STEP >= 64 || i * STEP % 64 == 0) prefetch_t0(ahead + i * STEP + b);          \
            UNROLL for (int c = 0; c < (C); c++) rows[c] = LOAD(m + i * stride + c * column);     \
            UNROLL for (int g = 0; g < (G); g++) {                                                \
                const f32x16 x = f32_set1(a[g * a_stride + i]);                                   \
                UNROLL for (int c = 0; c < (C); c++) sums[c][g] = ADD(sums[c][g], x, rows[c]);    \
            }                                                                                     \
        }                                                                                         \
        UNROLL for (int c = 0; c < (C); c++)                                                      \
            UNROLL for (int g = 0; g < (G); g++)                                                  \
                f32_store(out + g * out_stride + 16 * c, sums[c][g]);                             \
    }

#define WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, G)                                               \
    WEIGHTED_SUM_LOOP(NAME##_wide_##G, TYPE, LOAD, ADD, G, WEIGHTED_SUM_VECTORS(G))               \
    WEIGHTED_SUM_LOOP(NAME##_last_##G, TYPE, LOAD, ADD, G, 1)                                     \
    static inline void NAME##_##G(float *out, ptrdiff_t out_stride, const float *a,               \
                                  ptrdiff_t a_stride, const TYPE *m, ptrdiff_t stride,            \
                                  ptrdiff_t column, ptrdiff_t n, ptrdiff_t n_vectors, int adds,   \
                                  const char *ahead) {                                            \
        ptrdiff_t v = 0;                                                                          \
        for (; v + WEIGHTED_SUM_VECTORS(G) <= n_vectors; v += WEIGHTED_SUM_VECTORS(G))            \
            NAME##_wide_##G(out + 16 * v, out_stride, a, a_stride, m + v * column, stride,        \
                            column, n, adds, ahead + 16 * v * n * sizeof(TYPE));                  \
        for (; v < n_vectors; v++)                                                                \
            NAME##_last_##G(out + 16 * v, out_stride, a, a_stride, m + v * column, stride,        \
                            column, n, adds, ahead + 16 * v * n * sizeof(TYPE));                  \
    }

#if WEIGHTED_SUM_QUERIES > 6
#define WEIGHTED_SUM_WIDEST(NAME, TYPE, LOAD, ADD)                                                \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 7)                                                   \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 8)
#define WEIGHTED_SUM_NAMES(NAME)                                                                  \
    NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6, NAME##_7, NAME##_8
#else
#define WEIGHTED_SUM_WIDEST(NAME, TYPE, LOAD, ADD)
#define WEIGHTED_SUM_NAMES(NAME) NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6
#endif

/* out[g][lane] = or += sum over i, in order, of a[g][i] * m[i][lane]; g < n_queries <=
 * WEIGHTED_SUM_QUERIES; n_vectors of 16 lanes, each a column of m behind the one before. ahead:
 * what to prefetch meanwhile. Float32 is rounded twice a product, float16 once: with the numbers of
 * f32_round_to_13_bits their products are exact. */
#define WEIGHTED_SUM(NAME, TYPE, LOAD, ADD)                                                       \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 1)                                                   \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 2)                                                   \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 3)                                                   \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 4)                                                   \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 5)                                                   \
    WEIGHTED_SUM_TILE(NAME, TYPE, LOAD, ADD, 6)                                                   \
    WEIGHTED_SUM_WIDEST(NAME, TYPE, LOAD, ADD)                                                    \
    static inline void NAME(float *out, ptrdiff_t out_stride, const float *a, ptrdiff_t a_stride, \
                            const void *m, ptrdiff_t stride, ptrdiff_t column,                    \
                            ptrdiff_t n_queries, ptrdiff_t n, ptrdiff_t n_vectors, int adds,      \
                            const char *ahead) {                                                  \
        static void (*const of[])(float *, ptrdiff_t, const float *, ptrdiff_t, const TYPE *,     \
                                  ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, int,                \
                                  const char *) = {                                               \
            WEIGHTED_SUM_NAMES(NAME)};                                                            \
        of[n_queries - 1](out, out_stride, a, a_stride, (const TYPE *)m, stride, column, n,       \
                          n_vectors, adds, ahead);                                                \
    }

WEIGHTED_SUM(weighted_sum_f32, float, f32_load, f32_add_product)
WEIGHTED_SUM(weighted_sum_f16, uint16_t, f32_load_f16, f32_add_exact)
