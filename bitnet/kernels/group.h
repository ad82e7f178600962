/* Rows with scales of groups (group_rows.h) times tokens, out of simd.h's group_vec: one token, or
 * a tile of a row and up to four tokens; group_lanes.h has rows side by side.
 *
 * A unit is what has one scale on either side: 128 columns, 64 where the two halves of 128 have
 * different scales, 32 with int8 activations. Its sum of codes times codes is exact in int32, and
 * in float32: at most 128 * 32,639 = 4.2e6. Floats are added by unit alone, so that neither the
 * order of bytes nor the width of a register can change a bit:
 *     p[u mod 4] += float(sum_u) * (weight_scale_u * input_scale_u)      u ascending, from p = 0
 *     out = (p[0] + p[1]) + (p[2] + p[3]) */
#pragma once
#include "group_rows.h"
#include "simd/simd.h"

/* Four scales, put together in a register of integers, which has room where those of vectors have
 * not: decode of blocks of 64 has 1.3 times the speed on a Zen 3, of 128 1.04. */
static inline uint64_t group_halves_at(const uint8_t *s, ptrdiff_t step) {
    return (uint16_t)group_half_at(s) | (uint64_t)(uint16_t)group_half_at(s + step) << 16
        | (uint64_t)(uint16_t)group_half_at(s + 2 * step) << 32
        | (uint64_t)(uint16_t)group_half_at(s + 3 * step) << 48;
}
/* The larger one of each two scales, which are not negative but for -0: as integers. */
static inline uint64_t group_larger_at(const uint8_t *s, ptrdiff_t step, ptrdiff_t other) {
    uint64_t halves = 0;
    UNROLL for (int i = 3; i >= 0; i--) {
        const int16_t a = group_half_at(s + i * step), b = group_half_at(s + i * step + other);
        halves = halves << 16 | (uint16_t)(a > b ? a : b);
    }
    return halves;
}

#if !defined(GROUP_PARTS)       /* plain C: a part is a block of 128 columns */
#define GROUP_TILE_TOKENS 1     /* tokens of a tile at most */
#define GROUP_PARTS 4
typedef struct { uint8_t code[32]; } group_field;
typedef struct { int32_t lane[8]; } group_vec;      /* lane i: of bytes 4 i to 4 i + 3 */
typedef const int8_t *group_planes;
static inline group_planes group_load(const int8_t *x) { return x; }
static inline void group_fields(group_field *c, const uint8_t *w, ptrdiff_t block, ptrdiff_t half,
                                int halves) {
    (void)block, (void)halves;
    for (int j = 0; j < 32; j++) {
        const uint8_t b = j < 16 ? w[j] : w[half + j - 16];
        for (int f = 0; f < 4; f++) c[f].code[j] = b >> 2 * f & 3;
    }
}
static inline group_vec group_dot_8(const group_field *c, const int8_t *x) {
    group_vec s = {{0}};
    for (int f = 0; f < 4; f++)
        for (int j = 0; j < 32; j++) s.lane[j / 4] += c[f].code[j] * x[64 * f + j];
    return s;
}
static inline group_vec group_dot_16(const group_field *c, group_planes x) {
    const group_vec high = group_dot_8(c, x), low = group_dot_8(c, x + 256);
    group_vec s;
    for (int i = 0; i < 8; i++) s.lane[i] = 256 * high.lane[i] + low.lane[i];
    return s;
}
static inline int32_t group_lanes(group_vec s, int first, int n) {
    int32_t sum = 0;
    for (int i = first; i < first + n; i++) sum += s.lane[i];
    return sum;
}
static inline i32x4 group_sums_128(const group_vec *s) {
    i32x4 sums;
    for (int b = 0; b < 4; b++) sums[b] = group_lanes(s[b], 0, 8);
    return sums;
}
static inline void group_sums_64(i32x4 *sums, const group_vec *s) {
    for (int b = 0; b < 4; b++) {
        sums[b / 2][b % 2 * 2] = group_lanes(s[b], 0, 4);
        sums[b / 2][b % 2 * 2 + 1] = group_lanes(s[b], 4, 4);
    }
}
static inline void group_sums_32(i32x4 *sums, const group_vec *s) {
    for (int b = 0; b < 4; b++)
        for (int k = 0; k < 4; k++) sums[b][k] = group_lanes(s[b], 2 * k, 2);
}
#endif

/* Rows that are done together where units are of 128 columns: their sums are added up across lanes
 * together. Numbers of them lie row by row, four each. */
#if !defined(GROUP_ROWS)
#define GROUP_ROWS 1
typedef f32x4 group_floats;
typedef i32x4 group_ints;
static inline group_floats group_four_floats(const float *p) { return f32x4_load(p); }
static inline group_ints group_four_ints(const int32_t *p) { return i32x4_load(p); }
static inline group_floats group_floats_of_f16(const uint64_t *h) { return f32x4_of_f16(h[0]); }
static inline group_ints group_sums_of_rows(const uint8_t *codes, ptrdiff_t row_codes,
                                            ptrdiff_t block_codes, ptrdiff_t half_codes,
                                            const int8_t *x, const int HALVES) {
    group_vec sum[GROUP_PARTS];
    (void)row_codes;
    UNROLL for (int i = 0; i < GROUP_PARTS; i++) {
        const int block = i * 4 / GROUP_PARTS;
        group_field c[4];
        group_fields(c, codes + block * block_codes, block_codes, half_codes, HALVES);
        sum[i] = group_dot_16(c, group_load(group_input(x, block, 16)));
    }
    return group_sums_128(sum);
}
#endif

static inline uint64_t group_scales_128(const uint8_t *scales, ptrdiff_t block, ptrdiff_t half,
                                        const int HALVES) {
    return HALVES ? group_larger_at(scales, block, half)    /* equal, or one is of zeros alone */
                  : group_halves_at(scales, block);
}

/* One quad of GROUP_ROWS rows times a token; its 16-bit activations, and units of 128 columns. */
static inline __attribute__((always_inline)) group_floats group_quad_of_rows(
        group_floats p, const uint8_t *codes, ptrdiff_t row_codes, ptrdiff_t block_codes,
        ptrdiff_t half_codes, const uint8_t *scales, ptrdiff_t row_scales, ptrdiff_t block_scales,
        ptrdiff_t half_scales, const int8_t *x, const float *x_scales, const int32_t *x_sums,
        const int HALVES) {
    uint64_t halves[GROUP_ROWS];
    UNROLL for (int r = 0; r < GROUP_ROWS; r++)
        halves[r] = group_scales_128(scales + r * row_scales, block_scales, half_scales, HALVES);
    const group_ints sums =
        group_sums_of_rows(codes, row_codes, block_codes, half_codes, x, HALVES);
    const group_ints exact = sums - group_four_ints(x_sums);
    return p + __builtin_convertvector(exact, group_floats)
               * (group_floats_of_f16(halves) * group_four_floats(x_scales));
}

/* One quad of a row times T tokens. HALVES: whether the halves of 128 columns have scales of their
 * own. All but T's tokens, rows and addresses are constants, so that one loop remains. */
static inline __attribute__((always_inline)) void group_quad(
        f32x4 *p, const uint8_t *codes, ptrdiff_t block_codes, ptrdiff_t half_codes,
        const uint8_t *scales, ptrdiff_t block_scales, ptrdiff_t half_scales, const int8_t *x,
        ptrdiff_t x_stride, const float *x_scales, ptrdiff_t scales_stride, const int32_t *x_sums,
        ptrdiff_t sums_stride, const int T, const int UNIT, const int HALVES) {
    group_vec sum[GROUP_TILE_TOKENS][GROUP_PARTS];
    UNROLL for (int i = 0; i < GROUP_PARTS; i++) {
        const int block = i * 4 / GROUP_PARTS;
        group_field c[4];
        group_fields(c, codes + block * block_codes, block_codes, half_codes, HALVES);
        UNROLL for (int t = 0; t < T; t++)
            sum[t][i] = UNIT == 32
                ? group_dot_8(c, group_input(x + t * x_stride, block, 8))
                : group_dot_16(c, group_load(group_input(x + t * x_stride, block, 16)));
    }
    f32x4 d, d2;                /* of 128 columns; of their first 64 and of the others */
    d = f32x4_of_f16(group_scales_128(scales, block_scales, half_scales, HALVES && UNIT == 128));
    d2 = HALVES && UNIT != 128 ? f32x4_of_f16(group_halves_at(scales + half_scales, block_scales))
                               : d;
    UNROLL for (int t = 0; t < T; t++) {
        const float *a = x_scales + t * scales_stride;
        const int32_t *s = x_sums + t * sums_stride;
        if (UNIT == 128) {
            const i32x4 exact = group_sums_128(sum[t]) - i32x4_load(s);
            p[t] = p[t] + f32x4_of_i32(exact) * (d * f32x4_load(a));
        } else if (UNIT == 64) {
            i32x4 exact[2];
            group_sums_64(exact, sum[t]);
            UNROLL for (int h = 0; h < 2; h++) {
                const f32x4 dd = {d[2 * h], d2[2 * h], d[2 * h + 1], d2[2 * h + 1]};
                const f32x4 aa = {a[2 * h], a[2 * h], a[2 * h + 1], a[2 * h + 1]};
                p[t] = p[t] + f32x4_of_i32(exact[h] - i32x4_load(s + 4 + 4 * h)) * (dd * aa);
            }
        } else {
            i32x4 exact[4];
            group_sums_32(exact, sum[t]);
            UNROLL for (int b = 0; b < 4; b++) {
                const f32x4 dd = {d[b], d[b], d2[b], d2[b]};
                p[t] = p[t] + f32x4_of_i32(exact[b] - i32x4_load(s + 4 * b))
                              * (dd * f32x4_load(a + 4 * b));
            }
        }
    }
}

/* The last columns of a row, fewer than a quad, and zeros: nothing behind them is read. */
typedef struct {
    uint8_t codes[128];
    uint16_t scales[8];         /* of 64 columns each */
} GroupRest;
static inline void group_copy_rest(GroupRest *rest, const GroupRows *w, const uint8_t *codes,
                                   const uint8_t *scales, int n_halves) {
    memset(rest, 0, sizeof *rest);
    for (int h = 0; h < n_halves; h++) {
        memcpy(rest->codes + 16 * h, codes + h / 2 * w->block_codes + h % 2 * w->half_codes, 16);
        memcpy(rest->scales + h, scales + h / 2 * w->block_scales + h % 2 * w->half_scales, 2);
    }
}

/* Bytes ahead of the codes. On a Zen 5 a core decodes 1.05 times as fast as with 8,192; the first
 * cache of a Zen 4, 32 KiB, has room for them. */
#if !defined(GROUP_PREFETCH_DISTANCE)
#define GROUP_PREFETCH_DISTANCE PREFETCH_DISTANCE
#endif
/* A quad of so many rows, in the order in which they lie in memory. */
static inline void group_prefetch(const uint8_t *p, const int n_rows, int streaming) {
    UNROLL for (int i = 0; i < n_rows * 136; i += 64) {
        if (streaming) prefetch_nta(p + i + GROUP_PREFETCH_DISTANCE);
        else prefetch_t0(p + i + GROUP_PREFETCH_DISTANCE);
    }
}

/* GROUP_ROWS rows from `row` on times a token: out[r] = or +=. */
static inline __attribute__((always_inline)) void group_rows_of_128(
        float *out, const GroupRows *w, ptrdiff_t row, const GroupInputs *x, ptrdiff_t token,
        int add, int streaming, const int HALVES, const int BLOCK_BYTES, const int HALF_BYTES) {
    const ptrdiff_t n_quads = w->n_cols / QUAD, row_codes = w->row_codes;
    const ptrdiff_t row_scales = BLOCK_BYTES ? row_codes : w->row_scales;
    const ptrdiff_t block_codes = BLOCK_BYTES ? BLOCK_BYTES : w->block_codes;
    const ptrdiff_t block_scales = BLOCK_BYTES ? BLOCK_BYTES : w->block_scales;
    const ptrdiff_t half_codes = BLOCK_BYTES ? HALF_BYTES : w->half_codes;
    const ptrdiff_t half_scales = BLOCK_BYTES ? HALF_BYTES : w->half_scales;
    const uint8_t *codes = w->codes + row * row_codes, *scales = w->scales + row * row_scales;
    const int8_t *xc = x->codes + token * x->codes_stride;
    const float *xa = x->scales + token * x->scales_stride;
    const int32_t *xs = x->sums + token * x->sums_stride;
    const uint8_t *ahead = codes + (GROUP_ROWS - 1) * row_codes;   /* all rows of a quad */
    group_floats p = {0};
    for (ptrdiff_t q = 0; q < n_quads; q++) {
        group_prefetch(ahead, GROUP_ROWS, streaming);
        ahead += GROUP_ROWS * 4 * block_codes;
        p = group_quad_of_rows(p, codes, row_codes, block_codes, half_codes,
                               BLOCK_BYTES ? codes - 2 : scales, row_scales,
                               block_scales, half_scales, xc, xa, xs, HALVES);
        codes += 4 * block_codes, scales += 4 * block_scales;
        xc += 2 * QUAD, xa += QUAD_SCALES, xs += QUAD_SUMS;
    }
    const int n_halves = (int)(w->n_cols % QUAD / 64);
    if (n_halves) {
        GroupRest rest[GROUP_ROWS];
        for (int r = 0; r < GROUP_ROWS; r++)
            group_copy_rest(&rest[r], w, codes + r * row_codes, scales + r * row_scales, n_halves);
        p = group_quad_of_rows(p, rest->codes, sizeof *rest, 32, 16, (uint8_t *)rest->scales,
                               sizeof *rest, 4, 2, xc, xa, xs, 1);
    }
    UNROLL for (int r = 0; r < GROUP_ROWS; r++) {
        const float y = (p[4 * r] + p[4 * r + 1]) + (p[4 * r + 2] + p[4 * r + 3]);
        out[r] = add ? out[r] + y : y;
    }
}

/* Row `row` times T tokens: out[t * out_stride] = or +=. */
static inline __attribute__((always_inline)) void group_row(
        float *out, ptrdiff_t out_stride, const GroupRows *w, ptrdiff_t row, const GroupInputs *x,
        ptrdiff_t token, int add, int streaming, const int T, const int UNIT, const int HALVES) {
    const int BITS = UNIT == 32 ? 8 : 16;
    const ptrdiff_t x_stride = x->codes_stride, a_stride = x->scales_stride;
    const ptrdiff_t s_stride = x->sums_stride, n_quads = w->n_cols / QUAD;
    const int n_sums = UNIT == 32 ? QUAD_SUMS_INT8 : QUAD_SUMS;
    const int n_scales = UNIT == 32 ? QUAD_SCALES_INT8 : QUAD_SCALES;
    const uint8_t *codes = w->codes + row * w->row_codes, *scales = w->scales + row * w->row_scales;
    const int8_t *xc = x->codes + token * x_stride;
    const float *xa = x->scales + token * a_stride;
    const int32_t *xs = x->sums + token * s_stride;
    const ptrdiff_t block_codes = w->block_codes, block_scales = w->block_scales;
    f32x4 p[GROUP_TILE_TOKENS] = {{0}};
    for (ptrdiff_t q = 0; q < n_quads; q++) {
        group_prefetch(codes, 1, streaming);
        group_quad(p, codes, block_codes, w->half_codes, scales, block_scales, w->half_scales, xc,
                   x_stride, xa, a_stride, xs, s_stride, T, UNIT, HALVES);
        codes += 4 * block_codes, scales += 4 * block_scales;
        xc += QUAD * (BITS / 8), xa += n_scales, xs += n_sums;
    }
    const int n_halves = (int)(w->n_cols % QUAD / 64);
    if (n_halves) {
        GroupRest rest;
        group_copy_rest(&rest, w, codes, scales, n_halves);
        group_quad(p, rest.codes, 32, 16, (uint8_t *)rest.scales, 4, 2, xc, x_stride, xa, a_stride,
                   xs, s_stride, T, UNIT, 1);
    }
    UNROLL for (int t = 0; t < T; t++) {
        const float y = (p[t][0] + p[t][1]) + (p[t][2] + p[t][3]);
        out[t * out_stride] = add ? out[t * out_stride] + y : y;
    }
}

#define GROUP_FUNCTION(T, UNIT, HALVES)                                                           \
    static void group_rows_##T##_##UNIT##_##HALVES(                                               \
            float *out, ptrdiff_t out_stride, const GroupRows *w, ptrdiff_t row,                  \
            const GroupInputs *x, ptrdiff_t token, ptrdiff_t n_rows, int add, int streaming) {    \
        ptrdiff_t r = 0;                                                                          \
        const int in_place = w->scales == w->codes - 2                                            \
            && (HALVES ? w->half_codes == 18 && w->block_codes == 36 : w->block_codes == 34);     \
        if (in_place)                                                                             \
            for (; T == 1 && UNIT == 128 && r + GROUP_ROWS <= n_rows; r += GROUP_ROWS)            \
                group_rows_of_128(out + r, w, row + r, x, token, add, streaming, HALVES,          \
                                  HALVES ? 36 : 34, HALVES ? 18 : 16);                            \
        for (; T == 1 && UNIT == 128 && r + GROUP_ROWS <= n_rows; r += GROUP_ROWS)                \
            group_rows_of_128(out + r, w, row + r, x, token, add, streaming, HALVES, 0, 0);       \
        for (; r < n_rows; r++)                                                                   \
            group_row(out + r, out_stride, w, row + r, x, token, add, streaming, T, UNIT,         \
                      HALVES);                                                                    \
    }
#if GROUP_TILE_TOKENS == 4
#define GROUP_FUNCTIONS(UNIT, HALVES)                                                             \
    GROUP_FUNCTION(1, UNIT, HALVES)                                                               \
    GROUP_FUNCTION(2, UNIT, HALVES)                                                               \
    GROUP_FUNCTION(3, UNIT, HALVES)                                                               \
    GROUP_FUNCTION(4, UNIT, HALVES)
#define GROUP_BY_TOKENS(UNIT, HALVES)                                                             \
    {group_rows_1_##UNIT##_##HALVES, group_rows_2_##UNIT##_##HALVES,                              \
     group_rows_3_##UNIT##_##HALVES, group_rows_4_##UNIT##_##HALVES}
#else
#define GROUP_FUNCTIONS(UNIT, HALVES) GROUP_FUNCTION(1, UNIT, HALVES)
#define GROUP_BY_TOKENS(UNIT, HALVES) {group_rows_1_##UNIT##_##HALVES}
#endif
GROUP_FUNCTIONS(128, 0)
GROUP_FUNCTIONS(128, 1)
GROUP_FUNCTIONS(64, 1)
GROUP_FUNCTIONS(32, 0)
GROUP_FUNCTIONS(32, 1)

typedef void (*group_rows_function)(float *, ptrdiff_t, const GroupRows *, ptrdiff_t,
                                    const GroupInputs *, ptrdiff_t, ptrdiff_t, int, int);
static const group_rows_function group_functions[5][GROUP_TILE_TOKENS] = {
    GROUP_BY_TOKENS(128, 0), GROUP_BY_TOKENS(128, 1), GROUP_BY_TOKENS(64, 1),
    GROUP_BY_TOKENS(32, 0), GROUP_BY_TOKENS(32, 1)};

#if defined(GROUP_LANES)
#include "group_lanes.h"
#else
#define GROUP_TOKENS GROUP_TILE_TOKENS
#endif

/* Rows first_row to first_row + n_rows - 1 times 1 to GROUP_TOKENS tokens from `token` on:
 * out[t * out_stride + r]. unit: 128, 64 or 32. */
static inline void group_rows(float *out, ptrdiff_t out_stride, const GroupRows *w,
                              ptrdiff_t first_row, const GroupInputs *x, ptrdiff_t token,
                              ptrdiff_t n_rows, ptrdiff_t n_tokens, int unit, int add,
                              int streaming) {
    const int halves = w->half_scales != 0 || w->half_codes != 16;
    const int i = unit == 128 ? halves : unit == 64 ? 2 : 3 + halves;
#if defined(GROUP_LANES)
    if (n_tokens > 1) {
        group_lanes_rows(out, out_stride, w, first_row, x, token, n_rows, n_tokens, unit, add);
        return;
    }
#endif
    group_functions[i][n_tokens - 1](out, out_stride, w, first_row, x, token, n_rows, add,
                                     streaming);
}

/* ------------------------------------------------------------------------------------- checks */
typedef uint64_t u64x2 __attribute__((vector_size(16)));
static inline u64x2 group_codes_at(const uint8_t *p) { u64x2 v; memcpy(&v, p, 16); return v; }
static inline int group_is_zero(u64x2 codes) {              /* whether all codes are 1 */
    return (codes[0] & codes[1]) == 0x5555555555555555 && codes[0] == codes[1];
}
/* Negative, infinite and NaN ones; -0 is a zero: some writers negate. */
static inline int group_is_bad(uint16_t scale) {
    return (uint16_t)(scale - 0x7C00) < 0x8400 && scale != 0x8000;
}

static inline __attribute__((always_inline)) int scan_blocks(const GroupRows *w, ptrdiff_t row,
                                                             const int HALVES) {
    const uint8_t *codes = w->codes + row * w->row_codes, *scales = w->scales + row * w->row_scales;
    const ptrdiff_t half_codes = HALVES ? w->half_codes : 16, half_scales = w->half_scales;
    u64x2 illegal = {0, 0};
    int bad = 0, differ = 0;
    for (ptrdiff_t at = 0; at < w->n_cols; at += 128) {
        const u64x2 a = group_codes_at(codes);
        const uint16_t scale = (uint16_t)group_half_at(scales);
        illegal |= a & (a >> 1);
        bad |= group_is_bad(scale);
        if (!HALVES || at + 64 < w->n_cols) {
            const u64x2 b = group_codes_at(codes + half_codes);
            illegal |= b & (b >> 1);
            if (HALVES) {
                const uint16_t other = (uint16_t)group_half_at(scales + half_scales);
                const int first = scale & 0x7FFF, second = other & 0x7FFF;
                bad |= group_is_bad(other);
                /* a smaller one counts for nothing where all codes are 1 */
                if (first != second)
                    differ |= !group_is_zero(first < second ? a : b);
            }
        }
        codes += w->block_codes, scales += w->block_scales;
    }
    return (((illegal[0] | illegal[1]) & 0x5555555555555555) != 0) * GROUP_CODE_3
           | bad * GROUP_BAD_SCALE | differ * GROUP_HALVES_DIFFER;
}
static inline int scan_row(const GroupRows *w, ptrdiff_t row) {
    return w->half_scales || w->half_codes != 16 ? scan_blocks(w, row, 1) : scan_blocks(w, row, 0);
}

/* ------------------------------------------------------------------------------- activations */
/* The bits of the largest magnitude of n floats. */
static inline int32_t group_largest(const float *x, const int n) {
    int32_t largest = 0;
    for (int i = 0; i < n; i++) {
        const int32_t magnitude = (int32_t)(bits_of_f32(x[i]) & 0x7FFFFFFF);
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

/* 128 codes of a byte each, those of the columns 4 j + f together: out[64 f + j]. */
static inline void group_spread(int8_t *out, const int8_t *codes) {
    uint32_t of_byte[32];                                   /* the four codes that share a byte */
    memcpy(of_byte, codes, sizeof of_byte);
    for (int f = 0; f < 4; f++)
        for (int j = 0; j < 32; j++) out[64 * f + j] = (int8_t)(of_byte[j] >> 8 * f);
}

/* 512 floats as codes of `bits` bits, rounded half to even: a scale is the largest magnitude of its
 * columns over 32,639 (127 * 256 + 127) or 127. Columns that are all below 2^-100 count as 0; with
 * a NaN or an infinity among them the scale is NaN, so that it cannot pass unseen. All scales come
 * first: one division after the other, each waited for, takes longer than the rest. */
static inline __attribute__((always_inline)) void group_quantize_bits(
        int8_t *out, float *scales, int32_t *sums, const float *x, const int BITS) {
    const float magic = 12582912.0f;                        /* 1.5 * 2^23: adding it rounds */
    const float most = BITS == 16 ? 32639.0f : 127.0f;
    const int GROUP = BITS == 16 ? 128 : 32, N_GROUPS = QUAD / GROUP;
    float factor[QUAD / 32];
    int32_t finite[QUAD / 32];                              /* all bits set, or none */
    for (int g = 0; g < N_GROUPS; g++) {
        const int32_t largest = group_largest(x + GROUP * g, GROUP);
        const float magnitude = f32_of_bits((uint32_t)largest);
        const int tiny = largest < (127 - 100) << 23;
        finite[g] = -(largest < 0x7F800000);
        factor[g] = tiny ? 0 : most / magnitude;
        scales[g] = tiny ? 0 : finite[g] ? magnitude / most : f32_of_bits(0x7FC00000);
    }
    for (int block = 0; block < 4; block++) {
        int8_t low[128], high[128];
        for (int g = 128 / GROUP * block; g < 128 / GROUP * (block + 1); g++) {
            const float *columns = x + GROUP * g;
            const int at = GROUP * g % 128;
            int32_t code[128], first = 0, second = 0;       /* and the sums of either half */
            for (int i = 0; i < GROUP; i++)
                code[i] = (int32_t)(bits_of_f32(columns[i] * factor[g] + magic)
                                    - bits_of_f32(magic)) & finite[g];
            for (int i = 0; i < GROUP / 2; i++) first += code[i];
            for (int i = GROUP / 2; i < GROUP; i++) second += code[i];
            sums[g] = first + second;
            if (BITS == 16) {
                sums[4 + 2 * block] = first;
                sums[5 + 2 * block] = second;
                for (int i = 0; i < GROUP; i++) high[i] = (int8_t)((code[i] + 128) >> 8);
            }
            for (int i = 0; i < GROUP; i++) low[at + i] = (int8_t)code[i];      /* -128..127 */
        }
        int8_t *codes = out + block / 2 * 32 * BITS + block % 2 * 32;
        group_spread(codes, BITS == 16 ? high : low);
        if (BITS == 16) group_spread(codes + 256, low);
    }
}

static inline void group_quantize_quad(int8_t *out, float *scales, int32_t *sums, const float *x,
                                       int bits) {
    if (bits == 16) group_quantize_bits(out, scales, sums, x, 16);
    else group_quantize_bits(out, scales, sums, x, 8);
}
