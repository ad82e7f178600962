"""kv_page.h as Cython sees it: what a page of the KV cache holds, and where."""


cdef extern from "kv_page.h" nogil:
    enum: LANES
    enum: PAGE
    enum: SPLIT_PAGES
    enum: SPLIT
    enum: KV_F32
    enum: KV_F16
    enum: KV_INT8
    Py_ssize_t kv_item_bytes(int type) noexcept
    Py_ssize_t kv_key_width(int type, Py_ssize_t head_dim) noexcept
    Py_ssize_t kv_key_item(int type, Py_ssize_t kv_head, Py_ssize_t slot,
                           Py_ssize_t head_dim) noexcept
    Py_ssize_t kv_value_item(int type, Py_ssize_t kv_head, Py_ssize_t slot, Py_ssize_t n_kv_heads,
                             Py_ssize_t head_dim) noexcept
    Py_ssize_t kv_scale_offset(Py_ssize_t kv_head, Py_ssize_t slot, Py_ssize_t n_kv_heads,
                               Py_ssize_t head_dim) noexcept
    Py_ssize_t kv_page_bytes(int type, Py_ssize_t n_kv_heads, Py_ssize_t head_dim) noexcept
    Py_ssize_t kv_slot_of(Py_ssize_t page, Py_ssize_t n_pages) noexcept
    Py_ssize_t kv_n_splits(Py_ssize_t first, Py_ssize_t last) noexcept
