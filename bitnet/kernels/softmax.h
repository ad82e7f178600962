/* The softmax of attention: scores of a page to weights relative to a running maximum (online
 * softmax: Milakov and Gimelshein 2018). low..high - 1 are the positions that are seen; lanes
 * beside them, begin..low - 1 and high..end - 1, begin and end multiples of 16, weigh nothing. */
#pragma once
#include "exact_sum.h"
#include <math.h>

static inline void hide_lanes(float *x, ptrdiff_t begin, ptrdiff_t low, ptrdiff_t high,
                              ptrdiff_t end) {
    for (ptrdiff_t j = begin; j < low; j++) x[j] = -INFINITY;
    for (ptrdiff_t j = high; j < end; j++) x[j] = -INFINITY;
}

/* Scores of float items: x *= scale; the maximum of x and of what it was before. */
static inline float scores_max(float *x, float scale, float before, ptrdiff_t low,
                               ptrdiff_t high) {
    const ptrdiff_t begin = low & ~(ptrdiff_t)15, end = (high + 15) & ~(ptrdiff_t)15;
    f32x16 top = f32_set1(before);
    hide_lanes(x, begin, low, high, end);
    for (ptrdiff_t j = begin; j < end; j += 16) {
        const f32x16 v = f32_mul(f32_load(x + j), f32_set1(scale));
        f32_store(x + j, v);
        top = f32_max(top, v);
    }
    return f32_max_lanes(top);
}

/* x = e^(x - max), with 13 bits where is_rounded; the sum before it is rounded. Two vectors at
 * once: 1.07 times the speed. */
static inline float scores_exp(float *x, float max, int is_rounded, ptrdiff_t low,
                               ptrdiff_t high) {
    const ptrdiff_t begin = low & ~(ptrdiff_t)15, end = (high + 15) & ~(ptrdiff_t)15;
    const f32x16 top = f32_set1(max);
    f32x16 sums = f32_zero();
    ptrdiff_t j = begin;
    for (; j + 32 <= end; j += 32) {
        const f32x16 v = f32_exp_low(f32_sub(f32_load(x + j), top));
        const f32x16 w = f32_exp_low(f32_sub(f32_load(x + j + 16), top));
        sums = f32_add(f32_add(sums, v), w);
        f32_store(x + j, is_rounded ? f32_round_to_13_bits(v) : v);
        f32_store(x + j + 16, is_rounded ? f32_round_to_13_bits(w) : w);
    }
    if (j < end) {
        const f32x16 v = f32_exp_low(f32_sub(f32_load(x + j), top));
        sums = f32_add(sums, v);
        f32_store(x + j, is_rounded ? f32_round_to_13_bits(v) : v);
    }
    return f32_sum(sums);
}

/* Scores of int8 items: x = sums * scales, those of the keys; the maximum as scores_max has it. */
static inline float sums_max(float *x, const int32_t *sums, const float *scales, float before,
                             ptrdiff_t begin, ptrdiff_t low, ptrdiff_t high, ptrdiff_t end) {
    f32x16 top = f32_set1(before);
    for (ptrdiff_t j = begin; j < end; j += 16)
        f32_store(x + j, f32_mul(f32_load_i32(sums + j), f32_load(scales + j)));
    hide_lanes(x, begin, low, high, end);
    for (ptrdiff_t j = begin; j < end; j += 16) top = f32_max(top, f32_load(x + j));
    return f32_max_lanes(top);
}

/* x = 2^((x - max) scale) times the scales of the values; the sum of the powers, and the largest x
 * but 1e-30 at least. */
typedef struct { float sum, largest; } page_weights;
static inline page_weights weights_exp(float *x, float max, float scale, const float *scales,
                                       ptrdiff_t begin, ptrdiff_t end) {
    const f32x16 top = f32_set1(max), factor = f32_set1(scale);
    f32x16 sums = f32_zero(), largest = f32_set1(1e-30f);
    for (ptrdiff_t j = begin; j < end; j += 16) {
        const f32x16 power = f32_mul(f32_sub(f32_load(x + j), top), factor);
        f32x16 v = f32_exp2_low(power);
        sums = f32_add(sums, v);
        /* scales of lanes that are not seen may be anything, NaN as well */
        v = f32_zero_below(f32_mul(v, f32_load(scales + j)), power, -126.0f);
        f32_store(x + j, v);
        largest = f32_max(largest, v);
    }
    return (page_weights){f32_sum(sums), f32_max_lanes(largest)};
}

/* Weights x as codes begin..end - 1 (exact_sum.h) of PAGE positions, relative to the largest one of
 * the page; the sum of these codes. */
static inline int32_t weights_store(int8_t *codes, const float *x, float largest, ptrdiff_t begin,
                                    ptrdiff_t end, ptrdiff_t n_codes) {
    const f32x16 factor = f32_set1(MAX_CODE(n_codes) / largest);
    f32x16 sums = f32_zero();
    for (ptrdiff_t j = begin; j < end; j += 16)
        sums = f32_add(sums, codes_round(codes, n_codes, j, f32_load(x + j), factor,
                                         f32_set1(MAX_CODE(n_codes))));
    return (int32_t)f32_sum(sums);
}

/* factors = e^(before - after) or, with scales, 2^((before - after) scale): what is summed up so
 * far counts so much relative to a new maximum. after >= before. */
static inline void factors_of(float *factors, const float *before, const float *after,
                              const float *scales, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += 16) {
        const size_t n_bytes = (size_t)(n - i < 16 ? n - i : 16) * sizeof(float);
        float b[16] = {0}, a[16] = {0}, s[16] = {0};
        memcpy(b, before + i, n_bytes);
        memcpy(a, after + i, n_bytes);
        f32x16 x = f32_sub(f32_load(b), f32_load(a));
        if (scales) {
            memcpy(s, scales + i, n_bytes);
            x = f32_exp2_low(f32_mul(x, f32_load(s)));
        } else {
            x = f32_exp_low(x);
        }
        f32_store(a, x);
        memcpy(factors + i, a, n_bytes);
    }
}

/* out = out * factor + sums * scale */
static inline void sums_add(float *out, const int32_t *sums, float factor, float scale,
                            ptrdiff_t n) {
    const f32x16 f = f32_set1(factor), s = f32_set1(scale);
    ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16)
        f32_store(out + i, f32_add(f32_mul(f32_load(out + i), f),
                                   f32_mul(f32_load_i32(sums + i), s)));
    for (; i < n; i++) out[i] = out[i] * factor + (float)sums[i] * scale;
}
