/* Tiles of ternary dot products: rows of codes times int8 activations, out of simd.h's vec. */
#pragma once
#include "simd/simd.h"

#if defined(VEC_BYTES)
#ifndef VEC_HAS_TAIL
#define VEC_HAS_TAIL(n_blocks) 0
static inline vec vec_codes_tail(const uint8_t *w) { return vec_codes(w); }
static inline vec vec_input_tail(const int8_t *x, ptrdiff_t step, int field) {
    return vec_input(x, step, field);
}
#endif

/* PIN keeps a value in a register of its own. Without it gcc reads codes again for every field,
 * copies sums around a dpbusd, adds products in a tree and spills half of them: 434 instead of 485
 * G weights x tokens/s with AVX-512, one token at 39 instead of 53 GB/s with AVX-VNNI. */

/* A tile's steps: STEP(R, N, CODES, INPUT) adds the products of R rows to ACC, R x N sums. They are
 * int32 in sum, or int16 in acc and folded into sum every FOLD steps. If there were always both,
 * gcc would keep half of them in memory: 386 instead of 411 G weights x tokens/s with AVX-512. */
#define PREFETCH_ROWS(R, PREFETCH)                                                                \
    UNROLL for (int i = 0; i < R * VEC_BYTES; i += 64)                                            \
        PREFETCH(w + R * VEC_BYTES * s + i + PREFETCH_DISTANCE)
#define ZERO(SUMS, R, N)                                                                          \
    UNROLL for (int r = 0; r < R; r++)                                                            \
        UNROLL for (int i = 0; i < N; i++) SUMS[r][i] = vec_zero()
#if defined(VEC_FOLD)
#define ACC acc
#define ALL_STEPS(STEP, R, N, FOLD, PREFETCH)                                                     \
    ZERO(sum, R, N);                                                                              \
    for (ptrdiff_t s = 0, end; s < n_steps; ) {                                                   \
        vec acc[R][N];                                                                            \
        ZERO(acc, R, N);                                                                          \
        for (end = n_steps - s < FOLD ? n_steps : s + FOLD; s < end; s++) {                       \
            PREFETCH_ROWS(R, PREFETCH);                                                           \
            STEP(R, N, vec_codes, vec_input);                                                     \
        }                                                                                         \
        UNROLL for (int r = 0; r < R; r++)                                                        \
            UNROLL for (int i = 0; i < N; i++) sum[r][i] = vec_fold(sum[r][i], acc[r][i]);        \
    }
#else
#define ACC sum
#define ALL_STEPS(STEP, R, N, FOLD, PREFETCH)                                                     \
    ZERO(sum, R, N);                                                                              \
    ptrdiff_t s = 0;                                                                              \
    for (; s < n_steps; s++) {                                                                    \
        PREFETCH_ROWS(R, PREFETCH);                                                               \
        STEP(R, N, vec_codes, vec_input);                                                         \
    }                                                                                             \
    if (VEC_HAS_TAIL(n_blocks)) STEP(R, N, vec_codes_tail, vec_input_tail);
#endif

/* out[t * out_stride + r] = sum of code * x along row r and token t. R and T are constants, so that
 * the sums stay in registers. */
#define STEP_T(R, T, CODES, INPUT)                                                                \
    do {                                                                                          \
        vec p[R];                                                                                 \
        UNROLL for (int r = 0; r < R; r++) {                                                      \
            p[r] = CODES(w + r * row_bytes + VEC_BYTES * s);                                      \
            PIN(p[r]);                                                                            \
        }                                                                                         \
        UNROLL for (int f = 0; f < 4; f++) {                                                      \
            vec c[R];                                                                             \
            UNROLL for (int r = 0; r < R; r++) {                                                  \
                c[r] = vec_field(p[r], f);                                                        \
                PIN(c[r]);                                                                        \
            }                                                                                     \
            UNROLL for (int t = 0; t < T; t++) {                                                  \
                const vec v = INPUT(x + t * x_stride, s, f);                                      \
                UNROLL for (int r = 0; r < R; r++) ACC[r][t] = vec_dot(ACC[r][t], c[r], v);       \
            }                                                                                     \
        }                                                                                         \
    } while (0)

#define AT(i, R, T) sum[(i) < R * T ? (i) % R : 0][(i) < R * T ? (i) / R : 0]

#define TERNARY_TILE(NAME, R, T)                                                                  \
    static void NAME(int32_t *out, ptrdiff_t out_stride, const uint8_t *w, ptrdiff_t row_bytes,   \
                     const int8_t *x, ptrdiff_t x_stride, ptrdiff_t n_blocks) {                   \
        const ptrdiff_t n_steps = vec_steps(n_blocks);                                            \
        vec sum[R][T];                                                                            \
        ALL_STEPS(STEP_T, R, T, VEC_FOLD, prefetch_t0)                                            \
        int32_t sums[R * T + 3];                                                                  \
        UNROLL for (int i = 0; i < R * T; i += 4)                                                 \
            vec_sums(sums + i, AT(i, R, T), AT(i + 1, R, T), AT(i + 2, R, T), AT(i + 3, R, T));   \
        UNROLL for (int t = 0; t < T; t++)                                                        \
            memcpy(out + t * out_stride, sums + R * t, R * sizeof *sums);                         \
    }

/* One token: a field that is left in place counts a power of 4 times. Fields of other powers have
 * other sums, scaled back at the end, so that few fields, or none, are shifted. */
#define STEP_1(R, SUMS, CODES, INPUT)                                                             \
    do {                                                                                          \
        vec p[R];                                                                                 \
        UNROLL for (int r = 0; r < R; r++) p[r] = CODES(w + r * row_bytes + VEC_BYTES * s);       \
        UNROLL for (int f = 0; f < 4; f++) {                                                      \
            const vec v = INPUT(x, s, f);                                                         \
            UNROLL for (int r = 0; r < R; r++)                                                    \
                ACC[r][f % SUMS] = vec_dot(ACC[r][f % SUMS], vec_field_in_place(p[r], f), v);     \
        }                                                                                         \
    } while (0)

#define TERNARY_TILE_1(NAME, R, PREFETCH)                                                         \
    static void NAME(int32_t *out, const uint8_t *w, ptrdiff_t row_bytes, const int8_t *x,        \
                     ptrdiff_t n_blocks) {                                                        \
        const ptrdiff_t n_steps = vec_steps(n_blocks);                                            \
        vec sum[R][TILE_1_SUMS], total[R];                                                        \
        ALL_STEPS(STEP_1, R, TILE_1_SUMS, VEC_FOLD * TILE_1_SUMS / 4, PREFETCH)                   \
        int32_t sums[4];                                                                          \
        UNROLL for (int r = 0; r < R; r++) {                                                      \
            total[r] = vec_scale_back(sum[r][0], 0);                                              \
            UNROLL for (int i = 1; i < TILE_1_SUMS; i++)                                          \
                total[r] = vec_add(total[r], vec_scale_back(sum[r][i], i));                       \
        }                                                                                         \
        vec_sums(sums, total[0], total[R - 1], total[0], total[0]);                               \
        memcpy(out, sums, R * sizeof *sums);                                                      \
    }

/* Several tokens together: the fields of a code are taken apart once for all of them. */
#if TILE_TOKENS == 5
TERNARY_TILE(ternary_tile_5, TILE_ROWS, 5)
TERNARY_TILE(ternary_row_5, 1, 5)
#else
#define ternary_tile_5 ternary_tile_4           /* never asked for: TILE_TOKENS is 4 */
#define ternary_row_5 ternary_row_4
#endif
TERNARY_TILE(ternary_tile_4, TILE_ROWS, 4)           /* prefill and batches */
TERNARY_TILE(ternary_tile_3, TILE_ROWS, 3)
TERNARY_TILE(ternary_tile_2, TILE_ROWS, 2)
TERNARY_TILE_1(ternary_tile_1, TILE_1_ROWS, prefetch_t1)        /* decode: several rows in flight */
TERNARY_TILE_1(ternary_tile_1_streaming, TILE_1_ROWS, prefetch_nta)
TERNARY_TILE(ternary_row_4, 1, 4)               /* the last rows, where they do not fill a tile */
TERNARY_TILE(ternary_row_3, 1, 3)
TERNARY_TILE(ternary_row_2, 1, 2)
TERNARY_TILE_1(ternary_row_1, 1, prefetch_t1)
#define BY_TOKENS(NAME)                                                                           \
    (n_tokens == 5 ? NAME##_5 : n_tokens == 4 ? NAME##_4 : n_tokens == 3 ? NAME##_3 : NAME##_2)   \
    (out, out_stride, w, row_bytes, x, x_stride, n_blocks)
#else                                           /* plain C, the definition */
#define TILE_ROWS 1
#define TILE_TOKENS 4
#define TILE_1_ROWS 1
static inline void ternary_row_1(int32_t *out, const uint8_t *w, ptrdiff_t row_bytes,
                                 const int8_t *x, ptrdiff_t n_blocks) {
    (void)row_bytes;
    int32_t sum = 0;
    for (ptrdiff_t b = 0; b < n_blocks; b++, w += 32, x += 128)
        for (int j = 0; j < 32; j++)
            sum += (w[j] >> 6) * x[j] + (w[j] >> 4 & 3) * x[32 + j]
                 + (w[j] >> 2 & 3) * x[64 + j] + (w[j] & 3) * x[96 + j];
    *out = sum;
}
#define ternary_tile_1 ternary_row_1
#define ternary_tile_1_streaming ternary_row_1
#define BY_TOKENS(NAME)                                                                           \
    for (ptrdiff_t t = 0; t < n_tokens; t++)                                                      \
        ternary_row_1(out + t * out_stride, w, row_bytes, x + t * x_stride, n_blocks)
#endif

/* TILE_ROWS rows, or one, of 2 to TILE_TOKENS tokens: out[t * out_stride + r] */
static inline void ternary_tile(int32_t *out, ptrdiff_t out_stride, const uint8_t *w,
                                ptrdiff_t row_bytes, const int8_t *x, ptrdiff_t x_stride,
                                ptrdiff_t n_tokens, ptrdiff_t n_blocks) {
    BY_TOKENS(ternary_tile);
}
static inline void ternary_row(int32_t *out, ptrdiff_t out_stride, const uint8_t *w,
                               ptrdiff_t row_bytes, const int8_t *x, ptrdiff_t x_stride,
                               ptrdiff_t n_tokens, ptrdiff_t n_blocks) {
    BY_TOKENS(ternary_row);
}
