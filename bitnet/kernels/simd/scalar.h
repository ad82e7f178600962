/* Any CPU, in plain C: what an operation on sixteen floats means on every instruction set. */
#pragma once
#include "common.h"

static inline float f32_of_f16(uint16_t h) { return f32_of_f16_by_bits(h); }
/* of four side by side, the first lowest */
static inline f32x4 f32x4_of_f16(uint64_t h) {
    return (f32x4){f32_of_f16((uint16_t)h), f32_of_f16((uint16_t)(h >> 16)),
                   f32_of_f16((uint16_t)(h >> 32)), f32_of_f16((uint16_t)(h >> 48))};
}

typedef struct { float v[16]; } f32x16;
#define EACH(i) for (int i = 0; i < 16; i++)
static inline f32x16 f32_set1(float x) { f32x16 r; EACH(i) r.v[i] = x; return r; }
/* memcpy: rows of a mapped file need not be aligned */
static inline f32x16 f32_load(const float *p) { f32x16 r; memcpy(&r, p, sizeof r); return r; }
static inline f32x16 f32_load_f16(const uint16_t *p) {
    uint16_t h[16];
    f32x16 r;
    memcpy(h, p, sizeof h);
    EACH(i) r.v[i] = f32_of_f16(h[i]);
    return r;
}
static inline f32x16 f32_load_bf16(const uint16_t *p) {
    uint16_t h[16];
    f32x16 r;
    memcpy(h, p, sizeof h);
    EACH(i) r.v[i] = f32_of_bits((uint32_t)h[i] << 16);
    return r;
}
static inline f32x16 f32_load_i8(const int8_t *p) {
    f32x16 r;
    EACH(i) r.v[i] = p[i];
    return r;
}
static inline f32x16 f32_load_i32(const int32_t *p) {
    f32x16 r;
    EACH(i) r.v[i] = (float)p[i];
    return r;
}
static inline void f32_store(float *p, f32x16 a) { EACH(i) p[i] = a.v[i]; }
static inline void f32_store_f16(uint16_t *p, f32x16 a) { EACH(i) p[i] = f16_of_f32(a.v[i]); }
#define F32_EACH(name, op) \
    static inline f32x16 name(f32x16 a, f32x16 b) { f32x16 r; EACH(i) r.v[i] = op; return r; }
F32_EACH(f32_add, a.v[i] + b.v[i])
F32_EACH(f32_sub, a.v[i] - b.v[i])
F32_EACH(f32_mul, a.v[i] * b.v[i])
/* c + a b with one rounding, if a b is exact in float32: fused or not, the bits are the same */
static inline f32x16 f32_add_exact(f32x16 c, f32x16 a, f32x16 b) {
    EACH(i) c.v[i] += a.v[i] * b.v[i];
    return c;
}
F32_EACH(f32_div, a.v[i] / b.v[i])
F32_EACH(f32_max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])                /* b where unordered */
F32_EACH(f32_min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
/* the order of additions, which is the same on every instruction set */
static inline float f32_sum(f32x16 a) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) a.v[i] += a.v[i + n];
    return a.v[0];
}
static inline float f32_max_lanes(f32x16 a) {
    float max = a.v[0];
    EACH(i) max = a.v[i] > max ? a.v[i] : max;
    return max;
}
/* round half to even, |a| < 2^22 */
static inline int32_t i32_of_f32(float a) {
    return (int32_t)(bits_of_f32(a + 12582912.0f) - bits_of_f32(12582912.0f));
}
static inline void f32_store_i8(int8_t *p, f32x16 a) { EACH(i) p[i] = (int8_t)i32_of_f32(a.v[i]); }
/* 2^n in each lane, for n the integer that sits in the low bits of 1.5 * 2^23 + n */
static inline f32x16 f32_pow2(f32x16 magic) {
    f32x16 r;
    EACH(i) r.v[i] = f32_of_bits((bits_of_f32(magic.v[i]) << 23) + 0x3F800000u);
    return r;
}
/* a, but 0 where x < limit */
static inline f32x16 f32_zero_below(f32x16 a, f32x16 x, float limit) {
    f32x16 r;
    EACH(i) r.v[i] = x.v[i] < limit ? 0.0f : a.v[i];
    return r;
}

/* ------------------------------------------------------------------------------- weighted_sum.h */
#define WEIGHTED_SUM_QUERIES 6
#define WEIGHTED_SUM_VECTORS(n) ((n) == 1 ? 4 : (n) == 2 ? 2 : 1)

/* ---------------------------------------------------------------------------------- exact_sum.h */
#define EXACT_SUM_QUERIES 6
#define EXACT_SUM_UNITS(n) 1
#define QUAD_LANES 16
#define QUAD_PLANES 1
#define QUAD_OFFSET 0
typedef struct { int8_t v[64]; } quads;
typedef struct { int16_t v[4]; } quad_codes;
typedef struct { int32_t v[16]; } quad_sums;
static inline quads quads_load(const int8_t *m) { quads r; memcpy(&r, m, sizeof r); return r; }
static inline quad_codes quads_codes(const int8_t *codes) {
    quad_codes r;
    memcpy(&r, codes, sizeof r);
    return r;
}
static inline quad_sums quads_zero(void) { return (quad_sums){{0}}; }
static inline quad_sums quads_256(quad_sums s) { return s; }
static inline quad_sums quads_dot(quad_sums s, quads m, quad_codes x) {
    EACH(i) s.v[i] += m.v[4 * i] * x.v[0] + m.v[4 * i + 1] * x.v[1] + m.v[4 * i + 2] * x.v[2]
                      + m.v[4 * i + 3] * x.v[3];
    return s;
}
/* out = the sums, without what QUAD_OFFSET added to them */
static inline void quads_store(int32_t *out, quad_sums s, int32_t offset) {
    (void)offset;
    memcpy(out, &s, sizeof s);
}
/* Codes i..i + 15 of n = round half to even of x, |x| < 32,640; what they are. */
static inline f32x16 codes_store_16(int8_t *codes, ptrdiff_t n, ptrdiff_t i, f32x16 x) {
    int16_t c[16];
    (void)n;
    EACH(j) x.v[j] = c[j] = (int16_t)i32_of_f32(x.v[j]);
    memcpy(codes + 2 * i, c, sizeof c);
    return x;
}
