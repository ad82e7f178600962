/* What the headers of all instruction sets build on: loops, single floats, prefetches. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define UNROLL PRAGMA(clang loop unroll(full))
#define ROLLED PRAGMA(clang loop unroll(disable))
#elif defined(__GNUC__)
#define UNROLL PRAGMA(GCC unroll 16)
#define ROLLED PRAGMA(GCC unroll 1)
#else
#define UNROLL
#define ROLLED
#endif

enum { LOOKUP_ENTRIES = 81 };   /* entries of a table of lookup.h: 3^4 sums of four products */

static inline float f32_of_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t bits_of_f32(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

static inline float f32_of_f16_by_bits(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return f32_of_bits(sign | 0x7F800000 | mantissa << 13);
    if (exponent) return f32_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    const float tiny = (float)mantissa * 0x1p-24f;                  /* subnormal: exact */
    return sign ? -tiny : tiny;
}

static inline uint16_t f16_of_f32(float f) {                        /* round half to even */
    const uint32_t bits = bits_of_f32(f), sign = bits >> 16 & 0x8000, a = bits & 0x7FFFFFFF;
    if (a > 0x7F800000) return (uint16_t)(sign | 0x7E00);
    if (a >= 0x477FF000) return (uint16_t)(sign | 0x7C00);          /* 65520 and more */
    if (a < 0x38800000)                                     /* below 2^-14: let the adder round */
        return (uint16_t)(sign | (bits_of_f32(f32_of_bits(a) + 0.5f) - 0x3F000000));
    return (uint16_t)(sign | ((a + 0xFFF + (a >> 13 & 1) - 0x38000000) >> 13));
}

/* Four numbers in any instruction set: gcc and clang add and multiply them lane by lane. */
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
static inline f32x4 f32x4_load(const float *p) { f32x4 a; memcpy(&a, p, sizeof a); return a; }
static inline i32x4 i32x4_load(const int32_t *p) { i32x4 a; memcpy(&a, p, sizeof a); return a; }
static inline f32x4 f32x4_of_i32(i32x4 a) { return __builtin_convertvector(a, f32x4); }

/* -------------------------------------------------------------------------------------- group.h */
static inline int16_t group_half_at(const uint8_t *p) {
    int16_t h;
    memcpy(&h, p, 2);
    return h;
}
/* The scales of four rows, put together in a register of integers. */
static inline uint64_t group_halves_of(const uint8_t *const *rows, ptrdiff_t at) {
    return (uint16_t)group_half_at(rows[0] + at)
        | (uint64_t)(uint16_t)group_half_at(rows[1] + at) << 16
        | (uint64_t)(uint16_t)group_half_at(rows[2] + at) << 32
        | (uint64_t)(uint16_t)group_half_at(rows[3] + at) << 48;
}

/* Bytes between what is read and what is prefetched. A file's pages are too small for the hardware
 * to prefetch far, and a core has more requests underway to its second-level cache than to the
 * first. A plain read of a mapped file on one core of a Xeon, GB/s: no prefetch 9, 2 KiB ahead 11,
 * 8 KiB 12, 64 KiB 12; matrix times vector 8, 10, 11, 11. */
enum { PREFETCH_DISTANCE = 8192 };
/* Into the second-level cache; the address may be any one, mapped or not. */
static inline void prefetch_t1(const void *p) { __builtin_prefetch(p, 0, 2); }
/* Into the first-level cache, where nothing else needs it. */
static inline void prefetch_t0(const void *p) { __builtin_prefetch(p, 0, 3); }
/* Past the second-level cache, for streaming. Reading codes in decode on a Zen 5 it has 1.06 times
 * the speed of prefetch_t0, which has 1.07 times that of prefetch_t1; with 4 and 16 KiB ahead it is
 * 0.8 and 0.9 of the speed with 8. */
static inline void prefetch_nta(const void *p) { __builtin_prefetch(p, 0, 0); }
