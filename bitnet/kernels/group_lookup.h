/* Rows with scales of groups times many tokens, by tables of sums: lookup.h says how. A unit's sum
 * stays int16, a plane by itself: at most 128 * 128 = 16,384. */
#pragma once
#include "simd/simd.h"

#if !defined(HAS_GROUP_LOOKUP)                      /* tiles are as fast, or nobody has measured */
#define HAS_GROUP_LOOKUP 0
#define group_lookup_index(index, w, row_bytes, half, n_rows) ((void)0)
#define group_lookup_columns(columns, x, x_stride, n_tokens) ((void)0)
#define group_lookup_rows(halves, add, tables, index, n_rows) ((void)0)
#define group_lookup_fold_16(sums, high, low, add, tables, index, d, a, n_rows) ((void)0)
#define group_lookup_fold_8(sums, tables, index, d, a, n_rows) ((void)0)
#define group_lookup_token(i, bits) (i)
#endif
