/* The few vector operations the kernels need, once for each instruction set; the compiler's flags
 * choose the section. Two kinds:
 *   f32x16   sixteen floats, in as many registers as that takes, so that every instruction set adds
 *            the same sixteen partial sums in the same tree and gives the same bits;
 *   vec      one register of ternary codes, and the products of codes and int8 activations.
 * A block is 128 codes in 32 bytes (I2_S): bits 7:6 of byte j hold column j, 5:4 column 32 + j,
 * 3:2 column 64 + j, 1:0 column 96 + j. A step is what one vec of codes covers. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define UNROLL PRAGMA(clang loop unroll(full))
#elif defined(__GNUC__)
#define UNROLL PRAGMA(GCC unroll 16)
#else
#define UNROLL
#endif

static inline float f32_of_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t bits_of_f32(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

#if defined(__F16C__)     /* rows of Q4_0 and Q4_1 at 1.4 times the speed of the branches below */
#include <immintrin.h>
static inline float f32_of_f16(uint16_t h) { return _cvtsh_ss(h); }
#else
static inline float f32_of_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return f32_of_bits(sign | 0x7F800000 | mantissa << 13);
    if (exponent) return f32_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = (float)mantissa * 0x1p-24f;                  /* subnormal: exact */
    return sign ? -tiny : tiny;
}
#endif

static inline uint16_t f16_of_f32(float f) {                        /* round half to even */
    const uint32_t bits = bits_of_f32(f), sign = bits >> 16 & 0x8000, a = bits & 0x7FFFFFFF;
    if (a > 0x7F800000) return (uint16_t)(sign | 0x7E00);
    if (a >= 0x477FF000) return (uint16_t)(sign | 0x7C00);          /* 65520 and more */
    if (a < 0x38800000)                                     /* below 2^-14: let the adder round */
        return (uint16_t)(sign | (bits_of_f32(f32_of_bits(a) + 0.5f) - 0x3F000000));
    return (uint16_t)(sign | ((a + 0xFFF + (a >> 13 & 1) - 0x38000000) >> 13));
}

/* ---------------------------------------------------------------------------- AVX-512 with VNNI */
#if defined(__AVX512VNNI__)
#include <immintrin.h>
typedef struct { __m512 v; } f32x16;
static inline f32x16 f32_set1(float x) { return (f32x16){_mm512_set1_ps(x)}; }
static inline f32x16 f32_load(const float *p) { return (f32x16){_mm512_loadu_ps(p)}; }
static inline f32x16 f32_load_f16(const uint16_t *p) {
    return (f32x16){_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p))};
}
static inline f32x16 f32_load_bf16(const uint16_t *p) {
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (f32x16){_mm512_castsi512_ps(_mm512_slli_epi32(u, 16))};
}
static inline f32x16 f32_load_i8(const int8_t *p) {
    return (f32x16){_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)))};
}
static inline void f32_store(float *p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
static inline void f32_store_f16(uint16_t *p, f32x16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline f32x16 f32_add(f32x16 a, f32x16 b) { return (f32x16){_mm512_add_ps(a.v, b.v)}; }
static inline f32x16 f32_sub(f32x16 a, f32x16 b) { return (f32x16){_mm512_sub_ps(a.v, b.v)}; }
static inline f32x16 f32_mul(f32x16 a, f32x16 b) { return (f32x16){_mm512_mul_ps(a.v, b.v)}; }
static inline f32x16 f32_add_exact(f32x16 c, f32x16 a, f32x16 b) {
    return (f32x16){_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline f32x16 f32_div(f32x16 a, f32x16 b) { return (f32x16){_mm512_div_ps(a.v, b.v)}; }
static inline f32x16 f32_max(f32x16 a, f32x16 b) { return (f32x16){_mm512_max_ps(a.v, b.v)}; }
static inline f32x16 f32_min(f32x16 a, f32x16 b) { return (f32x16){_mm512_min_ps(a.v, b.v)}; }
static inline float f32_sum(f32x16 a) {
    __m256 s = _mm256_add_ps(_mm512_castps512_ps256(a.v),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1)));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline void f32_store_i8(int8_t *p, f32x16 a) {      /* round half to even, |a| < 128 */
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
/* 2^n in each lane, for n the integer that sits in the low bits of 1.5 * 2^23 + n */
static inline f32x16 f32_pow2(f32x16 magic) {
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(magic.v), 23);
    return (f32x16){_mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(0x3F800000)))};
}
/* a, but 0 where x < limit */
static inline f32x16 f32_zero_below(f32x16 a, f32x16 x, float limit) {
    __mmask16 below = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_LT_OQ);
    return (f32x16){_mm512_mask_mov_ps(a.v, below, _mm512_setzero_ps())};
}

typedef __m512i vec;
enum { STEP_BYTES = 64 };
enum { ROWS = 4, TILE_TOKENS = 5, ROWS_1 = 2, SUMS_1 = 4 };
#define PIN(v) __asm__("" : "+v"(v))
static inline vec vec_zero(void) { return _mm512_setzero_si512(); }
static inline ptrdiff_t vec_steps(ptrdiff_t n_blocks) { return n_blocks / 2; }
static inline vec vec_two(const void *low, const void *high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)low)),
                              _mm256_loadu_si256((const __m256i *)high), 1);
}
static inline vec vec_one(const void *low) {
    return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)low));
}
/* A step is two blocks; the last of an odd number stands alone: nothing behind it is read. */
#define VEC_HAS_TAIL(n_blocks) ((n_blocks) & 1)
static inline vec vec_codes(const uint8_t *w) { return _mm512_loadu_si512(w); }
static inline vec vec_input(const int8_t *x, ptrdiff_t step, int field) {
    x += 256 * step + 32 * field;
    return vec_two(x, x + 128);
}
static inline vec vec_codes_tail(const uint8_t *w) { return vec_one(w); }
static inline vec vec_input_tail(const int8_t *x, ptrdiff_t step, int field) {
    return vec_one(x + 256 * step + 32 * field);
}
static inline vec vec_field(vec p, int field) {
    return _mm512_and_si512(_mm512_srli_epi16(p, 6 - 2 * field), _mm512_set1_epi8(3));
}
static inline vec vec_dot(vec acc, vec code, vec x) {
    acc = _mm512_dpbusd_epi32(acc, code, x);
    PIN(acc);
    return acc;
}
/* A field left where it is counts 4^(3 - field) times, at most 2 * 64 * 127: no shifts. */
static inline vec vec_field_in_place(vec p, int field) {
    return _mm512_and_si512(p, _mm512_set1_epi8((char)(3 << (6 - 2 * field))));
}
static inline vec vec_scale_back(vec sum, int field) {
    return _mm512_srai_epi32(sum, 6 - 2 * field);
}
static inline vec vec_add(vec a, vec b) { return _mm512_add_epi32(a, b); }
/* the sums of four, added side by side: 13 operations for 36 */
static inline void vec_sums(int32_t *out, vec a, vec b, vec c, vec d) {
    a = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    c = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    a = _mm512_add_epi32(_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c));
    const __m256i s = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(s),
                                                   _mm256_extracti128_si256(s, 1)));
}

/* ---------------------------------------------------------------- AVX2, with or without VNNI */
#elif defined(__AVX2__)
#include <immintrin.h>
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
    __m256 s = _mm256_add_ps(a.lo, a.hi);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
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

typedef __m256i vec;
enum { STEP_BYTES = 32 };
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
/* the sums of four, added side by side */
static inline void vec_sums(int32_t *out, vec a, vec b, vec c, vec d) {
    a = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi32(_mm256_castsi256_si128(a),
                                                   _mm256_extracti128_si256(a, 1)));
}
#if defined(__AVXVNNI__)
enum { ROWS = 2, TILE_TOKENS = 4, ROWS_1 = 2, SUMS_1 = 4 };
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
enum { ROWS = 2, TILE_TOKENS = 4, ROWS_1 = 2, SUMS_1 = 2 };
#define VEC_FOLD 16
static inline vec vec_dot(vec acc, vec code, vec x) {
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(code, x));
    PIN(acc);
    return acc;
}
static inline vec vec_fold(vec sum, vec acc) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)));
}
/* One shift for two fields: 0 and 2 stay at bits 3:2 and count four times, at most 2 * 8 * 127 =
   2,032 each. They have one sum, 1 and 3 the other: again 32,512, after 8 steps. */
static inline vec vec_field_in_place(vec p, int field) {
    return _mm256_and_si256(field < 2 ? _mm256_srli_epi16(p, 4) : p,
                            _mm256_set1_epi8(field & 1 ? 3 : 12));
}
static inline vec vec_scale_back(vec sum, int i) {
    return i ? sum : _mm256_srai_epi32(sum, 2);
}
#endif

/* --------------------------------------------------------------------------------------- NEON */
#elif defined(__ARM_NEON) && defined(BITNET_NEON)
#include <arm_neon.h>
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

typedef int32x4_t vec;                                  /* reinterpreted where bytes are meant */
enum { STEP_BYTES = 16 };
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
/* the sums of four, added side by side */
static inline void vec_sums(int32_t *out, vec a, vec b, vec c, vec d) {
    vst1q_s32(out, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)));
}
#if defined(__ARM_FEATURE_DOTPROD)
enum { ROWS = 4, TILE_TOKENS = 4, ROWS_1 = 2, SUMS_1 = 4 };
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
enum { ROWS = 2, TILE_TOKENS = 4, ROWS_1 = 1, SUMS_1 = 4 };
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

/* -------------------------------------------------------- any CPU: plain C, the definition */
#else
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
static inline void f32_store(float *p, f32x16 a) { EACH(i) p[i] = a.v[i]; }
static inline void f32_store_f16(uint16_t *p, f32x16 a) { EACH(i) p[i] = f16_of_f32(a.v[i]); }
#define F32_EACH(name, op) \
    static inline f32x16 name(f32x16 a, f32x16 b) { f32x16 r; EACH(i) r.v[i] = op; return r; }
F32_EACH(f32_add, a.v[i] + b.v[i])
F32_EACH(f32_sub, a.v[i] - b.v[i])
F32_EACH(f32_mul, a.v[i] * b.v[i])
static inline f32x16 f32_add_exact(f32x16 c, f32x16 a, f32x16 b) {
    EACH(i) c.v[i] += a.v[i] * b.v[i];
    return c;
}
F32_EACH(f32_div, a.v[i] / b.v[i])
F32_EACH(f32_max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])                /* b where unordered */
F32_EACH(f32_min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
static inline float f32_sum(f32x16 a) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) a.v[i] += a.v[i + n];
    return a.v[0];
}
static inline void f32_store_i8(int8_t *p, f32x16 a) {
    EACH(i) p[i] = (int8_t)(int32_t)(bits_of_f32(a.v[i] + 12582912.0f) - bits_of_f32(12582912.0f));
}
static inline f32x16 f32_pow2(f32x16 magic) {
    f32x16 r;
    EACH(i) r.v[i] = f32_of_bits((bits_of_f32(magic.v[i]) << 23) + 0x3F800000u);
    return r;
}
static inline f32x16 f32_zero_below(f32x16 a, f32x16 x, float limit) {
    f32x16 r;
    EACH(i) r.v[i] = x.v[i] < limit ? 0.0f : a.v[i];
    return r;
}

#define BITNET_SCALAR
#endif

/* ----------------------------------------------------- the same for every instruction set */
/* A file's pages are too small for the hardware to look far ahead, and a core has more requests to
 * its second-level cache than to the first. A plain read of a mapped file on one core of a Xeon,
 * GB/s: no prefetch 9, 2 KiB ahead 11, 8 KiB 12, 64 KiB 12; matrix times vector 8, 10, 11, 11. */
enum { PREFETCH_DISTANCE = 8192 };
static inline void prefetch_t1(const void *p) { __builtin_prefetch(p, 0, 2); }  /* any address */
/* Into the first cache, where nothing else needs it. */
static inline void prefetch_t0(const void *p) { __builtin_prefetch(p, 0, 3); }
/* What is read once, past the second cache: codes in decode on a Zen 5 at 1.06 times the speed of
 * prefetch_t0, which was 1.07 times that of prefetch; 4 and 16 KiB ahead 0.8 and 0.9. */
static inline void prefetch_nta(const void *p) { __builtin_prefetch(p, 0, 0); }
static inline f32x16 f32_zero(void) { return f32_set1(0.0f); }

/* e^x as Cephes has it (expf.c): x = n ln 2 + r, a polynomial in r, n into the exponent.
 * Within 2 units in the last place; 0 below -87.33 (2^-126), clamped above 88. */
static inline f32x16 f32_exp(f32x16 x) {
    static const float poly[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    const f32x16 magic = f32_set1(12582912.0f);             /* 1.5 * 2^23: adding it rounds */
    x = f32_min(f32_set1(88.0f), x);
    const f32x16 shifted = f32_add(f32_mul(x, f32_set1(1.44269504088896341f)), magic);
    const f32x16 n = f32_sub(shifted, magic);
    f32x16 r = f32_sub(x, f32_mul(n, f32_set1(0.693359375f)));
    r = f32_sub(r, f32_mul(n, f32_set1(-2.12194440e-4f)));
    f32x16 y = f32_set1(poly[0]);
    for (int i = 1; i < 6; i++) y = f32_add(f32_mul(y, r), f32_set1(poly[i]));
    y = f32_add(f32_add(f32_mul(y, f32_mul(r, r)), r), f32_set1(1.0f));
    return f32_zero_below(f32_mul(y, f32_pow2(shifted)), x, -87.33f);
}

/* x with 13 significant bits (Dekker 1971), 0 below 2^-60. Its product with a float16 or an int8 is
 * then exact, so that f32_add_exact, c + a b, has one rounding, whether it is fused or not. */
static inline f32x16 f32_round_to_13_bits(f32x16 x) {
    const f32x16 c = f32_mul(x, f32_set1(2049.0f));
    return f32_zero_below(f32_sub(c, f32_sub(c, x)), f32_mul(x, x), 0x1p-120f);
}
