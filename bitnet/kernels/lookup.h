/* Ternary products by tables, where vectors are short of multipliers (AVX2). A byte of I2_S holds
 * four codes of a row: the 81 sums of four activations, with 16 tokens side by side in int16, are
 * laid out once for a byte column, and every row adds the entry that its byte names: 64 products
 * for one load and one addition. Sums stay int16 for as long as the sum of the activations'
 * magnitudes would fit: two blocks at worst, some eight with usual activations (lookup_max_sum). */
#pragma once
#include "simd/simd.h"

#if !defined(HAS_LOOKUP)                            /* tiles are as fast, or nobody has measured */
#define HAS_LOOKUP 0
#define LOOKUP_COLS 8
#define lookup_index(index, w, row_bytes, n_rows) ((void)0)
#define lookup_columns(columns, x, x_stride, n_tokens) ((void)0)
#define lookup_max_sum(x, x_stride, n_tokens) 0
#define lookup_tables(tables, columns) ((void)0)
#define lookup_rows(halves, tables, index, n_rows) ((void)0)
#define lookup_fold(sums, halves, n_rows) ((void)0)
#endif
