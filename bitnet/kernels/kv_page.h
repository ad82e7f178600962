/* A page of the KV cache: keys and values of PAGE positions of one layer. The one place for what a
 * page is: the kernels, the cache (runtime/kv_cache) and attention's division among threads
 * (compute) all go by it.
 *
 *   KV_F32, KV_F16
 *     keys    [n_kv_heads][PAGE / LANES][head_dim][LANES]      transposed: LANES positions a vector
 *     values  [n_kv_heads][PAGE][head_dim]
 *   KV_INT8: four neighbours that are summed over lie side by side
 *     keys    [n_kv_heads][PAGE / LANES][head_dim / 4, rounded up][LANES][4]
 *     values  [n_kv_heads][PAGE / 4][head_dim][4]
 *     scales  [2][n_kv_heads][PAGE], float32                   of keys, then of values
 *
 * An item is one number of a key or a value, in the page's type; items and offsets in bytes count
 * from the page's first byte. */
#pragma once
#include <stddef.h>

/* Positions that a vector of the kernels scores, which is of sixteen floats. */
enum { LANES = 16 };
/* Positions, a multiple of LANES: the unit in which sequences grow and share what they hold. */
enum { PAGE = 128 };
/* Positions: what attention sums apart, perhaps in another thread, before the partial sums are
 * merged in order. The last bits of what a long text gives depend on it. */
enum { SPLIT_PAGES = 4, SPLIT = SPLIT_PAGES * PAGE };

/* The type of a page's keys and values. */
enum { KV_F32 = 0, KV_F16 = 1, KV_INT8 = 24 };

static inline ptrdiff_t kv_item_bytes(int type) {
    return type == KV_F32 ? 4 : type == KV_F16 ? 2 : 1;
}

/* Items of a key in its page: those behind head_dim are never read but to be multiplied by 0. */
static inline ptrdiff_t kv_key_width(int type, ptrdiff_t head_dim) {
    return type == KV_INT8 ? (head_dim + 3) & ~(ptrdiff_t)3 : head_dim;
}

/* The item of a key's first number. The next ones follow LANES items apart; in int8 numbers 4 i to
 * 4 i + 3 side by side, 4 LANES items apart from the next four. */
static inline ptrdiff_t kv_key_item(int type, ptrdiff_t kv_head, ptrdiff_t slot,
                                    ptrdiff_t head_dim) {
    return (kv_head * PAGE + slot - slot % LANES) * kv_key_width(type, head_dim)
           + slot % LANES * (type == KV_INT8 ? 4 : 1);
}

/* The item of a value's first number; the next ones follow one by one, in int8 four items apart. */
static inline ptrdiff_t kv_value_item(int type, ptrdiff_t kv_head, ptrdiff_t slot,
                                      ptrdiff_t n_kv_heads, ptrdiff_t head_dim) {
    const ptrdiff_t item = n_kv_heads * PAGE * kv_key_width(type, head_dim);
    if (type == KV_INT8) return item + (kv_head * PAGE + slot - slot % 4) * head_dim + slot % 4;
    return item + (kv_head * PAGE + slot) * head_dim;
}

/* The offset in bytes of a key's scale; of its value's with n_kv_heads + kv_head. KV_INT8 alone. */
static inline ptrdiff_t kv_scale_offset(ptrdiff_t kv_head, ptrdiff_t slot, ptrdiff_t n_kv_heads,
                                        ptrdiff_t head_dim) {
    return n_kv_heads * PAGE * (kv_key_width(KV_INT8, head_dim) + head_dim)
           + (kv_head * PAGE + slot) * (ptrdiff_t)sizeof(float);
}

static inline ptrdiff_t kv_page_bytes(int type, ptrdiff_t n_kv_heads, ptrdiff_t head_dim) {
    if (type == KV_INT8) return kv_scale_offset(2 * n_kv_heads, 0, n_kv_heads, head_dim);
    return 2 * n_kv_heads * PAGE * head_dim * kv_item_bytes(type);
}

/* Which of a layer's n_pages slots holds a page (positions page * PAGE and on): its own number;
 * beyond them the slots are a ring, but for page 0's, which holds the sinks. */
static inline ptrdiff_t kv_slot_of(ptrdiff_t page, ptrdiff_t n_pages) {
    return page < n_pages ? page : 1 + (page - 1) % (n_pages - 1);
}

/* How many splits the positions first..last lie in: ranges from a multiple of SPLIT to the next. */
static inline ptrdiff_t kv_n_splits(ptrdiff_t first, ptrdiff_t last) {
    return last / SPLIT - first / SPLIT + 1;
}
