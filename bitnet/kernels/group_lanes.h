/* Rows with scales of groups times 2 to GROUP_TOKENS tokens, a row a lane: a unit's sum is then
 * ready in its lane, for the price of one conversion, and four columns of a token are one number
 * that all rows are multiplied with. Codes come to lie so once for all tokens: byte columns of
 * GROUP_LANES rows, eight registers of four for 128 columns. A pass over them takes up to
 * GROUP_PASS tokens. Included by group.h.
 *
 * By count the loads of those numbers and the products are as many: with two sets of rows a load
 * serves two. Prompts on a Zen 5, G weights x tokens/s of one core with 16 bits and with 8: sets x
 * tokens 1 x 8 187 and 265, 2 x 4 200 and 274, 2 x 6 203 and 298, 3 x 4 195 and 282. */
#pragma once

enum { GROUP_SETS = 2, GROUP_STRIP = GROUP_SETS * GROUP_LANES };    /* rows of a tile */

/* Scales of the halves of a block of a set of rows; the same twice where unit is 128. */
static inline void group_lanes_of_scales(group_lanes_floats *d, const uint8_t *const *scales,
                                         ptrdiff_t at, ptrdiff_t half, int unit) {
    d[0] = d[1] = group_lanes_scales(scales, at);
    if (half) {
        d[1] = group_lanes_scales(scales, at + half);
        if (unit == 128)        /* equal, or one is of zeros alone */
            d[0] = d[1] = group_lanes_larger(d[0], d[1]);
    }
}

/* Codes and scales of so many blocks of a strip: 10 KiB, which stay in the first cache, beside
 * 12 KiB of the activations of six tokens. */
enum { GROUP_PART_BLOCKS = 8 };
typedef struct {
    group_lanes_ints codes[GROUP_PART_BLOCKS][8][GROUP_SETS];   /* of 16 columns, of a set */
    group_lanes_floats scales[GROUP_PART_BLOCKS][2][GROUP_SETS];
} GroupPart;
typedef group_lanes_floats group_lanes_p[4][GROUP_SETS];        /* of a token */

static __attribute__((noinline)) void group_lanes_part(
        GroupPart *part, const GroupRows *w, const uint8_t *const *codes,
        const uint8_t *const *scales, ptrdiff_t block, ptrdiff_t n_blocks, int unit) {
    for (ptrdiff_t i = 0; i < n_blocks; i++, block++) {
        const int n_halves = w->n_cols - 128 * block > 64 ? 2 : 1;
        const ptrdiff_t at = block * w->block_codes;
        UNROLL for (int s = 0; s < GROUP_SETS; s++) {
            group_lanes_ints c[8];
            group_lanes_floats d[2];
            /* the first 64 columns again where there are no others: they meet zeros */
            group_lanes_codes(c, codes + s * GROUP_LANES, at, n_halves == 2 ? w->half_codes : 0);
            group_lanes_of_scales(d, scales + s * GROUP_LANES, block * w->block_scales,
                                  n_halves == 2 ? w->half_scales : 0, unit);
            UNROLL for (int k = 0; k < 8; k++) part->codes[i][k][s] = c[k];
            UNROLL for (int h = 0; h < 2; h++) part->scales[i][h][s] = d[h];
        }
    }
}

/* p of T tokens += the products of a part, whose first block is a multiple of four. Meanwhile
 * `step` bytes at next are prefetched a block. */
static inline __attribute__((always_inline)) void group_lanes_multiply(
        group_lanes_p *p, const GroupPart *w, const GroupInputs *x, ptrdiff_t token,
        ptrdiff_t first_block, ptrdiff_t n_halves, const uint8_t *next, ptrdiff_t step, const int T,
        const int UNIT) {
    const int BITS = UNIT == 32 ? 8 : 16, N_SUMS = GROUP_SETS * T * BITS / 8;
    const int SPLIT = N_SUMS < 8 ? 2 : 1;   /* eight sums hide the four cycles of a dot product */
    const ptrdiff_t x_stride = x->codes_stride, a_stride = x->scales_stride;
    const ptrdiff_t s_stride = x->sums_stride, quad = first_block / 4;
    const int8_t *xc = x->codes + token * x_stride + quad * QUAD * (BITS / 8);
    const float *xa = x->scales + token * a_stride
                      + quad * (UNIT == 32 ? QUAD_SCALES_INT8 : QUAD_SCALES);
    const int32_t *xs = x->sums + token * s_stride
                        + quad * (UNIT == 32 ? QUAD_SUMS_INT8 : QUAD_SUMS);
    for (ptrdiff_t i = 0; 2 * i < n_halves; i++) {
        const int b = i & 3;
        for (ptrdiff_t j = 0; j < step; j += 64) prefetch_t1(next + j);
        next += step;
        const int8_t *xb[GROUP_PASS];       /* pinned, else gcc computes them in the inner loop */
        UNROLL for (int t = 0; t < T; t++) {
            xb[t] = xc + t * x_stride + b / 2 * 32 * BITS + b % 2 * 32;
            PIN_ADDRESS(xb[t]);
        }
        UNROLL for (int u = 0; u < 128 / UNIT; u++) {
            if (UNIT < 128 && 2 * i + u * UNIT / 64 >= n_halves) break;
            group_lanes_ints high[GROUP_PASS][GROUP_SETS][2], low[GROUP_PASS][GROUP_SETS][2];
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int s = 0; s < GROUP_SETS; s++)
                    UNROLL for (int j = 0; j < 2; j++)
                        high[t][s][j] = low[t][s][j] = (group_lanes_ints){0};
            ROLLED for (int k = u * UNIT / 16; k < (u + 1) * UNIT / 16; k++) {
                group_lanes_ints fields[GROUP_SETS];
                UNROLL for (int s = 0; s < GROUP_SETS; s++) {
                    fields[s] = w->codes[i][k][s];
                    PIN(fields[s]);                     /* else it is loaded four times */
                }
                UNROLL for (int f = 0; f < 4; f++) {
                    group_lanes_ints field[GROUP_SETS];
                    UNROLL for (int s = 0; s < GROUP_SETS; s++)
                        field[s] = group_lanes_field(fields[s], f);
                    UNROLL for (int t = 0; t < T; t++) {
                        const int8_t *four = xb[t] + 64 * f + 4 * k;
                        const group_lanes_ints xh = group_lanes_four(four);
                        const group_lanes_ints xl = BITS == 16 ? group_lanes_four(four + 256) : xh;
                        UNROLL for (int s = 0; s < GROUP_SETS; s++) {
                            if (BITS == 16) group_lanes_dot(&high[t][s][f % SPLIT], field[s], xh);
                            group_lanes_dot(&low[t][s][f % SPLIT], field[s], xl);
                        }
                    }
                }
            }
            const int sum = UNIT == 128 ? b : UNIT == 64 ? 4 + 2 * b + u : 4 * b + u;
            const int q = UNIT == 128 ? b : UNIT == 64 ? (2 * b + u) % 4 : u;
            UNROLL for (int t = 0; t < T; t++) {
                const float a = xa[t * a_stride + (UNIT == 32 ? 4 * b + u : b)];
                UNROLL for (int s = 0; s < GROUP_SETS; s++) {
                    group_lanes_ints exact = low[t][s][0] - xs[t * s_stride + sum];
                    if (SPLIT == 2) exact += low[t][s][1];
                    if (BITS == 16) exact += 256 * (SPLIT == 2 ? high[t][s][0] + high[t][s][1]
                                                               : high[t][s][0]);
                    p[t][q][s] += __builtin_convertvector(exact, group_lanes_floats)
                                  * (w->scales[i][u * UNIT / 64][s] * a);
                }
            }
        }
        if (b == 3) {
            xc += QUAD * (BITS / 8), xa += UNIT == 32 ? QUAD_SCALES_INT8 : QUAD_SCALES;
            xs += UNIT == 32 ? QUAD_SUMS_INT8 : QUAD_SUMS;
        }
    }
}

#define GROUP_LANES_FUNCTION(T, UNIT)                                                             \
    static void group_lanes_##T##_##UNIT(                                                         \
            group_lanes_p *p, const GroupPart *w, const GroupInputs *x, ptrdiff_t token,          \
            ptrdiff_t first_block, ptrdiff_t n_halves, const uint8_t *next, ptrdiff_t step) {     \
        group_lanes_multiply(p, w, x, token, first_block, n_halves, next, step, T, UNIT);         \
    }
#define GROUP_LANES_FUNCTIONS(UNIT)                                                               \
    GROUP_LANES_FUNCTION(1, UNIT)                                                                 \
    GROUP_LANES_FUNCTION(2, UNIT)                                                                 \
    GROUP_LANES_FUNCTION(3, UNIT)                                                                 \
    GROUP_LANES_FUNCTION(4, UNIT)                                                                 \
    GROUP_LANES_FUNCTION(5, UNIT)                                                                 \
    GROUP_LANES_FUNCTION(6, UNIT)
GROUP_LANES_FUNCTIONS(128)
GROUP_LANES_FUNCTIONS(64)
GROUP_LANES_FUNCTIONS(32)

#define GROUP_LANES_BY_TOKENS(UNIT)                                                               \
    {group_lanes_1_##UNIT, group_lanes_2_##UNIT, group_lanes_3_##UNIT, group_lanes_4_##UNIT,      \
     group_lanes_5_##UNIT, group_lanes_6_##UNIT}
typedef void (*group_lanes_function)(group_lanes_p *, const GroupPart *, const GroupInputs *,
                                     ptrdiff_t, ptrdiff_t, ptrdiff_t, const uint8_t *, ptrdiff_t);
static const group_lanes_function group_lanes_functions[3][GROUP_PASS] = {
    GROUP_LANES_BY_TOKENS(128), GROUP_LANES_BY_TOKENS(64), GROUP_LANES_BY_TOKENS(32)};

/* Rows row to row + n_rows - 1, at most GROUP_STRIP, times up to GROUP_TOKENS tokens. */
static inline void group_lanes_strip(float *out, ptrdiff_t out_stride, const GroupRows *w,
                                     ptrdiff_t row, ptrdiff_t n_rows, const GroupInputs *x,
                                     ptrdiff_t token, ptrdiff_t n_tokens, int unit, int add) {
    const ptrdiff_t n_passes = (n_tokens + GROUP_PASS - 1) / GROUP_PASS;
    const ptrdiff_t n_blocks = (w->n_cols + 127) / 128, step = GROUP_STRIP * w->block_codes;
    const uint8_t *next = w->codes + (row + GROUP_STRIP) * w->row_codes;    /* the next strip */
    const uint8_t *codes[GROUP_STRIP], *scales[GROUP_STRIP];
    GroupPart part;
    group_lanes_p p[GROUP_TOKENS];
    memset(p, 0, n_tokens * sizeof *p);
    for (int r = 0; r < GROUP_STRIP; r++) {         /* the last row again, for those behind it */
        const ptrdiff_t at = row + (r < n_rows ? r : n_rows - 1);
        codes[r] = w->codes + at * w->row_codes, scales[r] = w->scales + at * w->row_scales;
    }
    for (ptrdiff_t block = 0; block < n_blocks; block += GROUP_PART_BLOCKS) {
        const ptrdiff_t n_left = n_blocks - block;
        const ptrdiff_t n_here = n_left < GROUP_PART_BLOCKS ? n_left : GROUP_PART_BLOCKS;
        const ptrdiff_t n_halves = w->n_cols / 64 - 2 * block;
        group_lanes_part(&part, w, codes, scales, block, n_here, unit);
        for (ptrdiff_t i = 0, t = 0; i < n_passes; i++) {   /* of about as many tokens each */
            const ptrdiff_t n = (n_tokens - t + n_passes - i - 1) / (n_passes - i);
            group_lanes_functions[unit == 128 ? 0 : unit == 64 ? 1 : 2][n - 1](
                p + t, &part, x, token + t, block, n_halves < 2 * n_here ? n_halves : 2 * n_here,
                next + block * step, i == 0 ? step : 0);
            t += n;
        }
    }
    for (ptrdiff_t t = 0; t < n_tokens; t++) {
        float y[GROUP_STRIP], *to = out + t * out_stride;
        UNROLL for (int s = 0; s < GROUP_SETS; s++) {
            const group_lanes_floats sum = (p[t][0][s] + p[t][1][s]) + (p[t][2][s] + p[t][3][s]);
            memcpy(y + s * GROUP_LANES, &sum, sizeof sum);
        }
        for (int r = 0; r < n_rows; r++) to[r] = add ? to[r] + y[r] : y[r];
    }
}

static inline void group_lanes_rows(float *out, ptrdiff_t out_stride, const GroupRows *w,
                                    ptrdiff_t row, const GroupInputs *x, ptrdiff_t token,
                                    ptrdiff_t n_rows, ptrdiff_t n_tokens, int unit, int add) {
    for (ptrdiff_t r = 0; r < n_rows; r += GROUP_STRIP)
        group_lanes_strip(out + r, out_stride, w, row + r,
                          n_rows - r < GROUP_STRIP ? n_rows - r : GROUP_STRIP, x, token, n_tokens,
                          unit, add);
}
