/* NEON of any 64-bit ARM, and its dot products of bytes where the compiler may use them. */
#pragma once
#include "common.h"
#include <arm_neon.h>

static inline float f32_of_f16(uint16_t h) { return f32_of_f16_by_bits(h); }
/* of four side by side, the first lowest */
static inline f32x4 f32x4_of_f16(uint64_t halves) {
    return (f32x4)vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(halves)));
}

typedef struct { float32x4_t v[4]; } f32x16;
#define EACH(i) UNROLL for (int i = 0; i < 4; i++)
static inline f32x16 f32_set1(float x) { f32x16 r; EACH(i) r.v[i] = vdupq_n_f32(x); return r; }
static inline f32x16 f32_load(const float *p) {
    f32x16 r;
    EACH(i) r.v[i] = vld1q_f32(p + 4 * i);
    return r;
}
static inline f32x16 f32_load_f16(const uint16_t *p) {
    f32x16 r;
    EACH(i) r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
}
static inline f32x16 f32_load_bf16(const uint16_t *p) {
    f32x16 r;
    EACH(i) r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
    return r;
}
static inline f32x16 f32_load_i8(const int8_t *p) {
    f32x16 r;
    EACH(i) {
        const int16x8_t s = vmovl_s8(vld1_s8(p + 8 * (i >> 1)));
        r.v[i] = vcvtq_f32_s32(vmovl_s16(i & 1 ? vget_high_s16(s) : vget_low_s16(s)));
    }
    return r;
}
static inline f32x16 f32_load_i32(const int32_t *p) {
    f32x16 r;
    EACH(i) r.v[i] = vcvtq_f32_s32(vld1q_s32(p + 4 * i));
    return r;
}
static inline void f32_store(float *p, f32x16 a) { EACH(i) vst1q_f32(p + 4 * i, a.v[i]); }
static inline void f32_store_f16(uint16_t *p, f32x16 a) {
    EACH(i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
#define F32_EACH(name, op) \
    static inline f32x16 name(f32x16 a, f32x16 b) { f32x16 r; EACH(i) r.v[i] = op; return r; }
F32_EACH(f32_add, vaddq_f32(a.v[i], b.v[i]))
F32_EACH(f32_sub, vsubq_f32(a.v[i], b.v[i]))
F32_EACH(f32_mul, vmulq_f32(a.v[i], b.v[i]))
static inline f32x16 f32_add_exact(f32x16 c, f32x16 a, f32x16 b) {
    EACH(i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}
F32_EACH(f32_div, vdivq_f32(a.v[i], b.v[i]))
/* b where unordered, as x86 */
F32_EACH(f32_max, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
F32_EACH(f32_min, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
static inline float f32_sum(f32x16 a) {
    float32x4_t s = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    return vpadds_f32(vadd_f32(vget_low_f32(s), vget_high_f32(s)));
}
static inline float f32_max_lanes(f32x16 a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}
static inline void f32_store_i8(int8_t *p, f32x16 a) {
    int16x4_t s[4];
    EACH(i) s[i] = vqmovn_s32(vcvtnq_s32_f32(a.v[i]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(vcombine_s16(s[0], s[1])),
                            vqmovn_s16(vcombine_s16(s[2], s[3]))));
}
static inline f32x16 f32_pow2(f32x16 magic) {
    f32x16 r;
    EACH(i) r.v[i] = vreinterpretq_f32_s32(vaddq_s32(
        vshlq_n_s32(vreinterpretq_s32_f32(magic.v[i]), 23), vdupq_n_s32(0x3F800000)));
    return r;
}
static inline f32x16 f32_zero_below(f32x16 a, f32x16 x, float limit) {
    f32x16 r;
    EACH(i) r.v[i] = vbslq_f32(vcltq_f32(x.v[i], vdupq_n_f32(limit)), vdupq_n_f32(0), a.v[i]);
    return r;
}

/* ------------------------------------------------------------------------------------ ternary.h */
typedef int32x4_t vec;                                  /* reinterpreted where bytes are meant */
#define VEC_BYTES 16
#define TILE_TOKENS 4
#define TILE_1_SUMS 4
#define PIN(v)
static inline vec vec_zero(void) { return vdupq_n_s32(0); }
static inline ptrdiff_t vec_steps(ptrdiff_t n_blocks) { return 2 * n_blocks; }
static inline vec vec_codes(const uint8_t *w) { return vreinterpretq_s32_u8(vld1q_u8(w)); }
static inline vec vec_input(const int8_t *x, ptrdiff_t step, int field) {
    return vreinterpretq_s32_s8(vld1q_s8(x + 128 * (step >> 1) + 16 * (step & 1) + 32 * field));
}
/* (p >> shift) & mask of each byte: shifts by a constant vector become ushr and sshr */
static inline vec vec_shift_and(vec p, int shift, int mask) {
    uint8x16_t u = vshlq_u8(vreinterpretq_u8_s32(p), vdupq_n_s8((int8_t)-shift));
    return vreinterpretq_s32_u8(vandq_u8(u, vdupq_n_u8((uint8_t)mask)));
}
static inline vec vec_field(vec p, int field) {
    return field ? vec_shift_and(p, 6 - 2 * field, 3)
                 : vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(p), 6));
}
static inline vec vec_add(vec a, vec b) { return vaddq_s32(a, b); }
/* out[i] = the sum of the lanes of the i-th of four vectors */
static inline void vec_sums(int32_t *out, vec a, vec b, vec c, vec d) {
    vst1q_s32(out, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)));
}
#if defined(__ARM_FEATURE_DOTPROD)
#define TILE_ROWS 4
#define TILE_1_ROWS 2
static inline vec vec_dot(vec acc, vec code, vec x) {
    return vdotq_s32(acc, vreinterpretq_s8_s32(code), vreinterpretq_s8_s32(x));
}
/* Field 0 would be negative in place; the others count 4^(3 - field) times, at most 32 * 127. */
static inline vec vec_field_in_place(vec p, int field) {
    return field ? vec_shift_and(p, 0, 3 << (6 - 2 * field)) : vec_field(p, 0);
}
static inline vec vec_scale_back(vec sum, int field) {
    return field ? vshlq_s32(sum, vdupq_n_s32(2 * field - 6)) : sum;
}
#else
/* Two products of at most 254 a lane and field: eight a step, so 16 steps stay at 32,512. */
#define TILE_ROWS 2
#define TILE_1_ROWS 1
#define VEC_FOLD 16
static inline vec vec_dot(vec acc, vec code, vec x) {
    int16x8_t s = vreinterpretq_s16_s32(acc);
    int8x16_t c = vreinterpretq_s8_s32(code), v = vreinterpretq_s8_s32(x);
    s = vmlal_s8(s, vget_low_s8(c), vget_low_s8(v));
    return vreinterpretq_s32_s16(vmlal_high_s8(s, c, v));
}
/* Field 2 stays at bits 3:2 and counts four times: 2 * 8 * 127 a step, again 32,512 after 16. */
static inline vec vec_field_in_place(vec p, int field) {
    return field == 2 ? vec_shift_and(p, 0, 12) : vec_field(p, field);
}
static inline vec vec_scale_back(vec sum, int field) {
    return field == 2 ? vshrq_n_s32(sum, 2) : sum;
}
static inline vec vec_fold(vec sum, vec acc) {
    return vpadalq_s16(sum, vreinterpretq_s16_s32(acc));
}
#endif

/* -------------------------------------------------------------------------------------- group.h */
#define GROUP_TILE_TOKENS 4
#define GROUP_PARTS 4           /* a part is a block of 128 columns, its halves in two registers */
typedef struct { int8x16_t half[2]; } group_field;
typedef struct { int32x4_t half[2]; } group_vec;
typedef const int8_t *group_planes;
static inline group_planes group_load(const int8_t *x) { return x; }
static inline void group_fields(group_field *c, const uint8_t *w, ptrdiff_t block, ptrdiff_t half,
                                int halves) {
    (void)block;
    UNROLL for (int h = 0; h < 2; h++) {
        const uint8x16_t p = vld1q_u8(w + h * (halves ? half : 16)), mask = vdupq_n_u8(3);
        c[0].half[h] = vreinterpretq_s8_u8(vandq_u8(p, mask));
        c[1].half[h] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(p, 2), mask));
        c[2].half[h] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(p, 4), mask));
        c[3].half[h] = vreinterpretq_s8_u8(vshrq_n_u8(p, 6));
    }
}
static inline group_vec group_dot_8(const group_field *c, const int8_t *x) {
    group_vec s;
    UNROLL for (int h = 0; h < 2; h++) {
#if defined(__ARM_FEATURE_DOTPROD)
        s.half[h] = vdupq_n_s32(0);
        UNROLL for (int f = 0; f < 4; f++)
            s.half[h] = vdotq_s32(s.half[h], c[f].half[h], vld1q_s8(x + 64 * f + 16 * h));
#else
        /* eight products of at most 2 * 128 a lane: 2,048; neighbours are then added */
        int16x8_t low = vdupq_n_s16(0);
        UNROLL for (int f = 0; f < 4; f++) {
            const int8x16_t v = vld1q_s8(x + 64 * f + 16 * h);
            const int16x8_t a = vmull_s8(vget_low_s8(c[f].half[h]), vget_low_s8(v));
            const int16x8_t b = vmull_high_s8(c[f].half[h], v);
            low = vaddq_s16(low, vpaddq_s16(a, b));
        }
        s.half[h] = vpaddlq_s16(low);
#endif
    }
    return s;
}
static inline group_vec group_dot_16(const group_field *c, group_planes x) {
    const group_vec high = group_dot_8(c, x), low = group_dot_8(c, x + 256);
    group_vec s;
    UNROLL for (int h = 0; h < 2; h++)
        s.half[h] = vaddq_s32(vshlq_n_s32(high.half[h], 8), low.half[h]);
    return s;
}
static inline int32x4_t group_half(const group_vec *s, int h) {
    return vpaddq_s32(vpaddq_s32(s[0].half[h], s[1].half[h]),
                      vpaddq_s32(s[2].half[h], s[3].half[h]));
}
static inline i32x4 group_sums_128(const group_vec *s) {
    return (i32x4)vaddq_s32(group_half(s, 0), group_half(s, 1));
}
static inline void group_sums_64(i32x4 *sums, const group_vec *s) {
    const int32x4_t a = group_half(s, 0), b = group_half(s, 1);
    sums[0] = (i32x4)vzip1q_s32(a, b);
    sums[1] = (i32x4)vzip2q_s32(a, b);
}
static inline void group_sums_32(i32x4 *sums, const group_vec *s) {
    UNROLL for (int i = 0; i < 4; i++) sums[i] = (i32x4)vpaddq_s32(s[i].half[0], s[i].half[1]);
}

/* -------------------------- screen.h; without dot products compilers make smlal of its plain C */
#if defined(__ARM_FEATURE_DOTPROD)
#define SCREEN_STEP 16
#define SCREEN_OFFSET 0
typedef struct { int32x4_t high, low; } screen_vec;
typedef struct { int8x16_t high, low; } screen_planes;
static inline screen_vec screen_zero(void) {
    return (screen_vec){vdupq_n_s32(0), vdupq_n_s32(0)};
}
static inline screen_planes screen_input(const int16_t *x, ptrdiff_t n, ptrdiff_t j) {
    const int8_t *high = (const int8_t *)(x + n) + j;
    return (screen_planes){vld1q_s8(high), vld1q_s8(high + n)};
}
static inline screen_vec screen_add(screen_vec sum, const int8_t *w, screen_planes x) {
    const int8x16_t codes = vld1q_s8(w);
    return (screen_vec){vdotq_s32(sum.high, codes, x.high), vdotq_s32(sum.low, codes, x.low)};
}
static inline int64_t screen_sum(const screen_vec *a) {
    return 128 * vaddlvq_s32(vaddq_s32(a[0].high, a[1].high))
           + vaddlvq_s32(vaddq_s32(a[0].low, a[1].low));
}

#define HAS_COARSE 1
#define PLANE_BITS 7            /* |h| <= 127 */
#define COARSE_OFFSET 0
#define coarse_dot vec_dot
static inline vec coarse_codes(const int8_t *w) { return vec_codes((const uint8_t *)w); }
#endif

/* ------------------------------------------------------------------------------- weighted_sum.h */
#define WEIGHTED_SUM_QUERIES 6  /* 24 sums stay in 32 registers, beside a row and a factor */
#define WEIGHTED_SUM_VECTORS(n) ((n) == 1 ? 4 : (n) == 2 ? 2 : 1)

/* ---------------------------------------------------------------------------------- exact_sum.h */
#define EXACT_SUM_QUERIES 6
#define EXACT_SUM_UNITS(n) 1
#define QUAD_LANES 16
#define QUAD_OFFSET 0
typedef struct { int32x4_t v[4]; } quad_sums;
static inline quad_sums quads_zero(void) {
    quad_sums s;
    EACH(i) s.v[i] = vdupq_n_s32(0);
    return s;
}
static inline void quads_store(int32_t *out, quad_sums s, int32_t offset) {
    (void)offset;
    EACH(i) vst1q_s32(out + 4 * i, s.v[i]);
}
#if defined(__ARM_FEATURE_DOTPROD)
#define QUAD_PLANES 2
typedef struct { int8x16_t v[4]; } quads;
typedef int8x16_t quad_codes;
static inline quads quads_load(const int8_t *m) {
    quads r;
    EACH(i) r.v[i] = vld1q_s8(m + 16 * i);
    return r;
}
static inline quad_codes quads_codes(const int8_t *codes) {
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
static inline quad_sums quads_256(quad_sums s) {
    EACH(i) s.v[i] = vshlq_n_s32(s.v[i], 8);
    return s;
}
static inline quad_sums quads_dot(quad_sums s, quads m, quad_codes x) {
    EACH(i) s.v[i] = vdotq_s32(s.v[i], m.v[i], x);
    return s;
}
#else
/* The first items of 16 lanes, their second ones, ...: widened to 16 bits once for all queries. */
#define QUAD_PLANES 1
typedef struct { int16x8_t v[4][2]; } quads;
typedef int16x4_t quad_codes;
static inline quads quads_load(const int8_t *m) {
    const int8x16x4_t items = vld4q_s8(m);
    quads r;
    EACH(i) {
        r.v[i][0] = vmovl_s8(vget_low_s8(items.val[i]));
        r.v[i][1] = vmovl_high_s8(items.val[i]);
    }
    return r;
}
static inline quad_codes quads_codes(const int8_t *codes) {
    return vreinterpret_s16_s8(vld1_s8(codes));
}
static inline quad_sums quads_256(quad_sums s) { return s; }
#define QUADS_ITEM(k)                                                                             \
    s.v[0] = vmlal_lane_s16(s.v[0], vget_low_s16(m.v[k][0]), x, k);                               \
    s.v[1] = vmlal_high_lane_s16(s.v[1], m.v[k][0], x, k);                                        \
    s.v[2] = vmlal_lane_s16(s.v[2], vget_low_s16(m.v[k][1]), x, k);                               \
    s.v[3] = vmlal_high_lane_s16(s.v[3], m.v[k][1], x, k)
static inline quad_sums quads_dot(quad_sums s, quads m, quad_codes x) {
    QUADS_ITEM(0);
    QUADS_ITEM(1);
    QUADS_ITEM(2);
    QUADS_ITEM(3);
    return s;
}
#endif
static inline f32x16 codes_store_16(int8_t *codes, ptrdiff_t n, ptrdiff_t i, f32x16 x) {
    int16x8_t c[2];
    for (int h = 0; h < 2; h++)
        c[h] = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.v[2 * h])),
                            vqmovn_s32(vcvtnq_s32_f32(x.v[2 * h + 1])));
#if QUAD_PLANES == 2
    const int16x8_t half = vdupq_n_s16(128);
    vst1q_s8(codes + i, vcombine_s8(vshrn_n_s16(vaddq_s16(c[0], half), 8),
                                    vshrn_n_s16(vaddq_s16(c[1], half), 8)));
    vst1q_s8(codes + n + i, vcombine_s8(vmovn_s16(c[0]), vmovn_s16(c[1])));
#else
    (void)n;
    vst1q_s8(codes + 2 * i, vreinterpretq_s8_s16(c[0]));
    vst1q_s8(codes + 2 * i + 16, vreinterpretq_s8_s16(c[1]));
#endif
    EACH(j) x.v[j] = vcvtq_f32_s32(j & 1 ? vmovl_high_s16(c[j >> 1])
                                         : vmovl_s16(vget_low_s16(c[j >> 1])));
    return x;
}
