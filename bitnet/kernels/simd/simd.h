/* Instruction sets, a header each: the one that setup.py names in BITNET_SIMD is included here.
 *
 * It defines sixteen floats and the operations on them, as scalar.h does in plain C:
 *   f32x16      in as many registers as it takes, so that every instruction set adds the same
 *               sixteen partial sums in the same tree and gives the same bits
 * and of what follows that by which it gains; else the algorithm has plain C, or does without:
 *   VEC_BYTES   ternary.h: vec, a register of so many bytes of codes; vec_zero, _steps, _codes,
 *               _input, _field, _field_in_place, _scale_back, _dot, _add, _sums; PIN, TILE_ROWS and
 *               TILE_TOKENS of a tile, TILE_1_ROWS and TILE_1_SUMS of a tile of one token
 *   VEC_FOLD    the steps after which vec_fold adds int16 sums to int32 ones
 *   VEC_HAS_TAIL(n_blocks)      whether vec_codes_tail and vec_input_tail take the last block
 *   GROUP_PARTS group.h: registers of codes of 512 columns; group_field, _vec, _fields, _dot_8,
 *               _dot_16, _sums_128, _sums_64, _sums_32
 *   HAS_LOOKUP  lookup.h: LOOKUP_COLS; lookup_index, _max_sum, _columns, _tables, _rows, _fold
 *   SCREEN_STEP screen.h: codes that screen_add takes; screen_vec, screen_zero, _input, _sum;
 *               SCREEN_OFFSET, what it adds to a code
 *   SCREEN_WIDE the same for several inputs: screen_wide, screen_wide_zero, _add, _sum
 *   HAS_COARSE  screen.h: coarse_codes, coarse_dot; COARSE_OFFSET; PLANE_BITS of the low plane
 *   WEIGHTED_SUM_QUERIES        weighted_sum.h: queries that share a pass at most, 6 or 8;
 *               WEIGHTED_SUM_VECTORS(n), vectors of 16 lanes at once for n of them
 *   QUAD_LANES  exact_sum.h: lanes of four items side by side, 8 or 16; quads, quads_load and
 *               QUAD_OFFSET, what it adds to an item; quad_sums, quads_zero, _dot, _256, _store;
 *               QUAD_PLANES, codes_store_16, quad_codes, quads_codes; EXACT_SUM_QUERIES and
 *               EXACT_SUM_UNITS(n) as above, units of QUAD_LANES
 *
 * A block is 128 codes in 32 bytes (I2_S): bits 7:6 of byte j hold column j, 5:4 column 32 + j,
 * 3:2 column 64 + j, 1:0 column 96 + j: fields 0 to 3. A step is what one vec of codes covers. */
#pragma once
#include "common.h"
#include BITNET_SIMD

static inline f32x16 f32_zero(void) { return f32_set1(0.0f); }

/* e^x as Cephes has it (expf.c): x = n ln 2 + r, a polynomial in r, n into the exponent.
 * Within 2 units in the last place; 0 below -87.33 (2^-126). x is 88 at most. */
static inline f32x16 f32_exp_low(f32x16 x) {
    static const float poly[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    const f32x16 magic = f32_set1(12582912.0f);             /* 1.5 * 2^23: adding it rounds */
    const f32x16 shifted = f32_add(f32_mul(x, f32_set1(1.44269504088896341f)), magic);
    const f32x16 n = f32_sub(shifted, magic);
    f32x16 r = f32_sub(x, f32_mul(n, f32_set1(0.693359375f)));
    r = f32_sub(r, f32_mul(n, f32_set1(-2.12194440e-4f)));
    f32x16 y = f32_set1(poly[0]);
    for (int i = 1; i < 6; i++) y = f32_add(f32_mul(y, r), f32_set1(poly[i]));
    y = f32_add(f32_add(f32_mul(y, f32_mul(r, r)), r), f32_set1(1.0f));
    return f32_zero_below(f32_mul(y, f32_pow2(shifted)), x, -87.33f);
}
/* The same of any x, clamped above 88. */
static inline f32x16 f32_exp(f32x16 x) { return f32_exp_low(f32_min(f32_set1(88.0f), x)); }

/* 2^x for x <= 0, within 3e-6 of it: 2^n times a polynomial in x - n, 1 at 0; 0 below 2^-126. */
static inline f32x16 f32_exp2_low(f32x16 x) {
    static const float poly[4] = {9.5828529e-3f, 5.5906426e-2f, 2.4024099e-1f, 6.9312418e-1f};
    const f32x16 magic = f32_set1(12582912.0f);             /* 1.5 * 2^23: adding it rounds */
    const f32x16 shifted = f32_add(x, magic);
    const f32x16 r = f32_sub(x, f32_sub(shifted, magic));
    f32x16 y = f32_set1(poly[0]);
    for (int i = 1; i < 4; i++) y = f32_add(f32_mul(y, r), f32_set1(poly[i]));
    y = f32_add(f32_mul(y, r), f32_set1(1.0f));
    return f32_zero_below(f32_mul(y, f32_pow2(shifted)), x, -126.0f);
}

/* x with 13 significant bits (Dekker 1971), 0 below 2^-60. Its product with a float16 or an int8 is
 * then exact, so that f32_add_exact, c + a b, has one rounding, whether it is fused or not. */
static inline f32x16 f32_round_to_13_bits(f32x16 x) {
    const f32x16 c = f32_mul(x, f32_set1(2049.0f));
    return f32_zero_below(f32_sub(c, f32_sub(c, x)), f32_mul(x, x), 0x1p-120f);
}
