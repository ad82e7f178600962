/* Rows of int8 codes times one input of int16 codes, exact: what the screen of a head is made of.
 * An input is its int16 codes c (n), the high planes h (n, int8) and the low planes l (n, int8)
 * behind them: c = 2^PLANE_BITS h + l, both within a byte. Instruction sets with a dot product of
 * bytes read the planes, the others the codes. |row| < 128, |c| <= 127 * 128 and n <= 8192, so that
 * every int32 lane below stays in its range: at most 512 * 2 * 127 * 16256 = 2.11e9. */
#pragma once
#include "simd/simd.h"

#if !defined(SCREEN_STEP)               /* plain C, which compilers turn into NEON's smlal */
#define SCREEN_STEP 8
#define SCREEN_OFFSET 0
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
static inline int64_t screen_sum(const screen_vec *a) {
    int64_t total = 0;
    for (int i = 0; i < 8; i++) total += a[0].v[i] + a[1].v[i];
    return total;
}
#endif

/* One row after the other: 38.8 GB/s of a core that reads 40. Four rows side by side took 1.4 times
 * as long. */
static inline int64_t screen_row(const int8_t *w, const int16_t *x, ptrdiff_t n, int streaming) {
    screen_vec sum[2] = {screen_zero(), screen_zero()};
    ptrdiff_t j = 0;
    for (; j + 2 * SCREEN_STEP <= n; j += 2 * SCREEN_STEP)
        UNROLL for (int i = 0; i < 2; i++) {
            const ptrdiff_t at = j + i * SCREEN_STEP;
            if (at % 64 == 0) {
                if (streaming) prefetch_nta(w + at + PREFETCH_DISTANCE);
                else prefetch_t1(w + at + PREFETCH_DISTANCE);
            }
            sum[i] = screen_add(sum[i], w + at, screen_input(x, n, at));
        }
    for (; j + SCREEN_STEP <= n; j += SCREEN_STEP)
        sum[0] = screen_add(sum[0], w + j, screen_input(x, n, j));
    int64_t total = screen_sum(sum);
    for (; j < n; j++) total += (w[j] + SCREEN_OFFSET) * x[j];
    return total;
}

/* Several inputs that share a row: but for the first of them all is in a cache, and instructions
 * are the limit. */
#if !defined(SCREEN_WIDE)
#define SCREEN_WIDE SCREEN_STEP
typedef screen_vec screen_wide;
static inline screen_wide screen_wide_zero(void) { return screen_zero(); }
static inline screen_wide screen_wide_add(screen_wide sum, const int8_t *w, const int16_t *x,
                                          ptrdiff_t n, ptrdiff_t j) {
    return screen_add(sum, w, screen_input(x, n, j));
}
static inline int64_t screen_wide_sum(screen_wide a) {
    const screen_vec both[2] = {a, screen_zero()};
    return screen_sum(both);
}
#endif
#define SCREEN_INPUTS(NAME, T)                                                                    \
    static void NAME(int64_t *out, ptrdiff_t out_stride, const int8_t *w, const int16_t *x,       \
                     ptrdiff_t x_stride, ptrdiff_t n) {                                           \
        screen_wide sum[T];                                                                       \
        ptrdiff_t j = 0;                                                                          \
        UNROLL for (int t = 0; t < T; t++) sum[t] = screen_wide_zero();                           \
        for (; j + SCREEN_WIDE <= n; j += SCREEN_WIDE) {                                          \
            if (j % 64 == 0) prefetch_t0(w + j + PREFETCH_DISTANCE);                              \
            UNROLL for (int t = 0; t < T; t++)                                                    \
                sum[t] = screen_wide_add(sum[t], w + j, x + t * x_stride, n, j);                  \
        }                                                                                         \
        UNROLL for (int t = 0; t < T; t++) {                                                      \
            int64_t total = screen_wide_sum(sum[t]);                                              \
            for (ptrdiff_t i = j; i < n; i++)                                                     \
                total += (w[i] + SCREEN_OFFSET) * x[t * x_stride + i];                            \
            out[t * out_stride] = total;                                                          \
        }                                                                                         \
    }
SCREEN_INPUTS(screen_row_2, 2)
SCREEN_INPUTS(screen_row_3, 3)
SCREEN_INPUTS(screen_row_4, 4)

/* out[t * out_stride + r] = sum of row r times the codes of input t, which add up to x_sums[t];
 * rows are n bytes apart, inputs x_stride codes; up to four of them; streaming: see table.pxd */
static void screen_dot(int64_t *out, ptrdiff_t out_stride, const int8_t *rows, const int16_t *x,
                       ptrdiff_t x_stride, const int64_t *x_sums, ptrdiff_t n_inputs,
                       ptrdiff_t n_rows, ptrdiff_t n, int streaming) {
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += n, out++) {
        if (n_inputs == 1)
            out[0] = streaming ? screen_row(rows, x, n, 1) : screen_row(rows, x, n, 0);
        else (n_inputs == 2 ? screen_row_2 : n_inputs == 3 ? screen_row_3 : screen_row_4)(
            out, out_stride, rows, x, x_stride, n);
        for (ptrdiff_t t = 0; t < n_inputs; t++) out[t * out_stride] -= SCREEN_OFFSET * x_sums[t];
    }
}

/* High planes of up to eight inputs times one row: enough for bounds of most rows. What comes next
 * is prefetched twice: loads come in bursts, and some prefetches are lost (eight inputs: 350 cycles
 * a row from memory, 450 where prefetched once, 230 from the second cache). */
#if defined(HAS_COARSE)
#define COARSE_STEP(T, SUM)                                                                       \
    do {                                                                                          \
        const vec w = coarse_codes(row + j);                                                      \
        if (j % 64 == 0) {                                                                        \
            prefetch_t0(row + j + PREFETCH_DISTANCE);                                             \
            prefetch_t0(row + j + PREFETCH_DISTANCE / 8);                                         \
        }                                                                                         \
        UNROLL for (int t = 0; t < T; t++)                                                        \
            sum[t][SUM] = coarse_dot(sum[t][SUM], w, vec_codes((const uint8_t *)x[t] + j));       \
        j += VEC_BYTES;                                                                           \
    } while (0)
#define COARSE_ROW(NAME, T, SUMS)                                                                 \
    static void NAME(int32_t *sums, const int8_t *row, const int8_t **x, ptrdiff_t n) {           \
        vec sum[T][SUMS];                                                                         \
        ptrdiff_t j = 0;                                                                          \
        UNROLL for (int t = 0; t < T; t++)                                                        \
            UNROLL for (int i = 0; i < SUMS; i++) sum[t][i] = vec_zero();                         \
        while (j + SUMS * VEC_BYTES <= n)                                                         \
            UNROLL for (int i = 0; i < SUMS; i++) COARSE_STEP(T, i);                              \
        while (j + VEC_BYTES <= n) COARSE_STEP(T, 0);                                             \
        UNROLL for (int t = 0; t < T; t++)                                                        \
            UNROLL for (int i = 1; i < SUMS; i++) sum[t][0] = vec_add(sum[t][0], sum[t][i]);      \
        UNROLL for (int t = 0; t < T; t += 4)                                                     \
            vec_sums(sums + t, sum[t][0], sum[t + 1][0], sum[t + 2][0], sum[t + 3][0]);           \
        for (; j < n; j++)                                                                        \
            for (int t = 0; t < T; t++) sums[t] += (row[j] + COARSE_OFFSET) * x[t][j];            \
    }
COARSE_ROW(coarse_row_8, 8, 1)
COARSE_ROW(coarse_row_4, 4, 2)

/* sums[t] = sum of the row times the codes of input t, which lie x_stride apart and add up to
 * x_sums[t] */
static inline void coarse_dots(int32_t *sums, const int8_t *row, const int8_t *x,
                               ptrdiff_t x_stride, const int32_t *x_sums, ptrdiff_t n_inputs,
                               ptrdiff_t n) {
    const int8_t *codes[8];
    for (int t = 0; t < 8; t++) codes[t] = x + (t < n_inputs ? t : 0) * x_stride;
    (n_inputs > 4 ? coarse_row_8 : coarse_row_4)(sums, row, codes, n);
    for (int t = 0; t < n_inputs; t++) sums[t] -= COARSE_OFFSET * x_sums[t];
}

/* Bit t: whether the upper bound u = scale step[t] sums[t] + error errors[t] + norm rests[t] +
 * underflow + noise[t] is not below thresholds[t]; 2^-21 |u| + 2^-124 is added to it, more than
 * what is rounded. */
typedef double double8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef int64_t int64x8 __attribute__((vector_size(64)));
typedef int32_t int32x8 __attribute__((vector_size(32), aligned(4), may_alias));
#define LOAD_DOUBLES(p) (*(const double8 *)(p))
static inline uint8_t coarse_mask(const int32_t *sums, double scale, double error, double norm,
                                  const double *step, const double *errors, const double *rests,
                                  double underflow, const double *noise,
                                  const double *thresholds) {
    const double8 dots = __builtin_convertvector(*(const int32x8 *)sums, double8);
    const double8 u = scale * LOAD_DOUBLES(step) * dots + error * LOAD_DOUBLES(errors)
                      + norm * LOAD_DOUBLES(rests) + underflow + LOAD_DOUBLES(noise);
    const double8 limits = LOAD_DOUBLES(thresholds);
    const int64x8 below = (u * (1 + 0x1p-21) + 0x1p-124 < limits)
                          & (u * (1 - 0x1p-21) + 0x1p-124 < limits);
    const int64x8 bits = ~below & (int64x8){1, 2, 4, 8, 16, 32, 64, 128};
    int64_t mask = 0;
    for (int t = 0; t < 8; t++) mask |= bits[t];
    return (uint8_t)mask;
}
#undef LOAD_DOUBLES
#else
#define HAS_COARSE 0                    /* a plane is no faster than all bits */
#define PLANE_BITS 7
#define coarse_dots(sums, row, x, x_stride, x_sums, n_inputs, n) ((void)0)
#define coarse_mask(sums, scale, error, norm, step, errors, rests, underflow, noise, thresholds) 0
#endif
