/* Ternary rows whose groups of columns have scales of their own, and the activations they are
 * multiplied with. The one place for how both lie: kernels, operands and tests go by it.
 *
 * Codes 0, 1, 2 stand for -1, 0, +1, four neighbouring columns in a byte, the first in the lowest
 * bits: 64 columns are 16 bytes. Steps in bytes say where the next columns and rows are, so that
 * blocks of 34 bytes (PQ2_0), of 18 (Q2_0) and codes apart from their scales (MLX) are one thing.
 *
 * Activations: a quad is 512 columns, two pairs of 256; x[column] = scale * code. Of a pair:
 *   int16   code = 256 high + low, 512 bytes: plane[p][f][b][j], p 0 high, 1 low; f 0..3, b 0..1,
 *           j 0..31: of column 128 b + 4 j + f
 *   int8    256 bytes: [f][b][j], the same without planes
 * Zeros fill up the last quad. Scales are float32: int16 has one for each 128 columns, 4 a quad;
 * int8 one for each 32, 16 a quad. Sums of codes, int32: int16 has 4 a quad of 128 columns, behind
 * them 8 of 64; int8 has 16 of 32. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { QUAD = 512 };            /* columns that kernels take at a time */
enum { QUAD_SUMS = 12, QUAD_SCALES = 4 };           /* int32 sums and float32 scales, int16 codes */
enum { QUAD_SUMS_INT8 = 16, QUAD_SCALES_INT8 = 16 };                        /* the same, int8 */

/* What a scan of a row finds, bits: the illegal code 3; a scale that is negative, infinite or NaN;
 * 128 columns whose halves need two scales. */
enum { GROUP_CODE_3 = 1, GROUP_BAD_SCALE = 2, GROUP_HALVES_DIFFER = 4 };

typedef struct {
    const uint8_t *codes;
    ptrdiff_t row_codes;        /* from a row to the next */
    ptrdiff_t block_codes;      /* from 128 columns to the next 128 */
    ptrdiff_t half_codes;       /* from the first 64 of them to the others */
    const uint8_t *scales;      /* float16, at any address */
    ptrdiff_t row_scales, block_scales;
    ptrdiff_t half_scales;      /* 0: both halves have one */
    ptrdiff_t n_cols;           /* a multiple of 64 */
} GroupRows;

typedef struct {
    const int8_t *codes;
    const float *scales;
    const int32_t *sums;
    ptrdiff_t codes_stride, scales_stride, sums_stride;     /* items from a token to the next */
    int bits;                   /* 16 or 8 */
} GroupInputs;

/* Where the codes of this block of 128 columns, 0 to 3, begin in those of a quad of activations. */
static inline const int8_t *group_input(const int8_t *x, int block, int bits) {
    return x + block / 2 * 32 * bits + block % 2 * 32;
}
