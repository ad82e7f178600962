/* The inner loops of attention: weighted sums of rows, for four heads that share them. */
#ifndef BITNET_COMBINE_H
#define BITNET_COMBINE_H
#include "simd.h"

#if defined(__AVX512VNNI__)
#define COLUMNS 2       /* vectors of lanes at once: there are registers to hide a sum's latency */
#else
#define COLUMNS 1
#endif

static inline f32x16 f32_add_product(f32x16 c, f32x16 a, f32x16 b) {
    return f32_add(c, f32_mul(a, b));
}

#define COMBINE_COLUMNS(NAME, TYPE, LOAD, ADD, C)                                                 \
    static inline void NAME(float *out, ptrdiff_t out_stride, const float *a, ptrdiff_t a_stride, \
                            const TYPE *m, ptrdiff_t stride, ptrdiff_t column, ptrdiff_t n) {     \
        f32x16 sums[C][4];                                                                        \
        UNROLL for (int c = 0; c < C; c++)                                                        \
            UNROLL for (int g = 0; g < 4; g++)                                                    \
                sums[c][g] = f32_load(out + g * out_stride + 16 * c);                             \
        for (ptrdiff_t i = 0; i < n; i++) {                                                       \
            f32x16 rows[C];                                                                       \
            UNROLL for (int c = 0; c < C; c++) rows[c] = LOAD(m + i * stride + c * column);       \
            UNROLL for (int g = 0; g < 4; g++) {                                                  \
                const f32x16 x = f32_set1(a[g * a_stride + i]);                                   \
                UNROLL for (int c = 0; c < C; c++) sums[c][g] = ADD(sums[c][g], x, rows[c]);      \
            }                                                                                     \
        }                                                                                         \
        UNROLL for (int c = 0; c < C; c++)                                                        \
            UNROLL for (int g = 0; g < 4; g++)                                                    \
                f32_store(out + g * out_stride + 16 * c, sums[c][g]);                             \
    }

/* out[g][lane] += sum over i, in order, of a[g][i] * m[i][lane]; g < 4, n_vectors of 16 lanes, each
 * a column of m behind the one before. Float32 is rounded twice a product, the other types once:
 * with f32_shorten's numbers theirs are exact. */
#define COMBINE(NAME, TYPE, LOAD, ADD)                                                            \
    COMBINE_COLUMNS(NAME##_wide, TYPE, LOAD, ADD, COLUMNS)                                        \
    COMBINE_COLUMNS(NAME##_last, TYPE, LOAD, ADD, 1)                                              \
    static inline void NAME(float *out, ptrdiff_t out_stride, const float *a, ptrdiff_t a_stride, \
                            const void *matrix, ptrdiff_t stride, ptrdiff_t column, ptrdiff_t n,  \
                            ptrdiff_t n_vectors) {                                                \
        const TYPE *m = (const TYPE *)matrix;                                                     \
        ptrdiff_t v = 0;                                                                          \
        for (; v + COLUMNS <= n_vectors; v += COLUMNS)                                            \
            NAME##_wide(out + 16 * v, out_stride, a, a_stride, m + v * column, stride, column, n);\
        for (; v < n_vectors; v++)                                                                \
            NAME##_last(out + 16 * v, out_stride, a, a_stride, m + v * column, stride, column, n);\
    }

COMBINE(combine_f32, float, f32_load, f32_add_product)
COMBINE(combine_f16, uint16_t, f32_load_f16, f32_add_exact)
COMBINE(combine_i8, int8_t, f32_load_i8, f32_add_exact)

#endif
