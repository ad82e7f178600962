"""What an instruction set offers, a function pointer a kernel: the contract of every module here.

Arguments go out, weights, input, scalars, sizes. Nothing allocates, fails, or reads past the sizes.
Float kernels add in one order (16 partial sums, a fixed tree, no fused multiply-add) and therefore
give the same bits on every instruction set; integer kernels are exact. streaming: weights come from
memory, and so many others are read before them again that no cache need keep them.
"""
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t

from .group_rows cimport GroupInputs, GroupRows

cdef enum:
    BLOCK = 128                         # columns of a ternary block, which I2_S interleaves
    BLOCK_BYTES = 32                    # bytes of a block's codes, four a byte
    MAX_TILE_TOKENS = 5                 # tokens: the largest tile_tokens of any instruction set
    LOOKUP_TABLE_BYTES = 20736          # 8 tables of 81 entries of 16 int16: fits into L1
    MAX_HEAD_DIM = 1024                 # floats of a head
    MAX_TAPS = 8                        # of a convolution over positions
    MAX_QUERIES = 24                    # of attention to a page at once: whole tiles of 6 and of 8
    MAX_QUERY_FLOATS = 4096             # floats of them: 16 KiB on the stack, as their sums

cdef enum:                              # types of the rows of an embedding or a head
    ROWS_F32
    ROWS_F16
    ROWS_BF16
    ROWS_Q8_0
    ROWS_Q4_0
    ROWS_Q4_1
    ROWS_Q5_0
    ROWS_Q5_1
    ROWS_Q4_K
    ROWS_Q5_K
    ROWS_Q6_K
    ROWS_IQ4_NL

cdef struct View:                       # what rows see of their sequence: sinks and a window
    char** pages                        # (n_pages) of one layer: kv_page.h has what lies where
    Py_ssize_t n_pages
    int type                            # KV_F32, KV_F16 or KV_INT8: kv_page.h
    Py_ssize_t n_kv_heads, head_dim
    Py_ssize_t kv_head                  # the head whose keys and values are read
    Py_ssize_t n_rows                   # at the positions position, position + 1, ...
    Py_ssize_t position                 # of the first row
    Py_ssize_t start                    # the first position that is held
    Py_ssize_t window                   # positions that a row sees at most, its own included
    Py_ssize_t n_sinks                  # positions 0..n_sinks - 1, before start, that are seen too
    const float* cosines                # (head_dim / 2): the rotation of q that sinks are seen by
    const float* sines                  # (head_dim / 2)
    int interleaved                     # whether RoPE rotates pairs (2j, 2j + 1)

cdef struct CoarseInputs:               # up to eight inputs of a screen that share a pass over rows
    Py_ssize_t n                        # inputs
    double step[8]                      # of each input, as InputBound in compute/screen_bounds.pxd
    double error[8]                     # the same
    double rest[8]                      # the same
    double threshold[8]                 # rows whose upper bounds reach it are reported
    double underflow                    # the same, one for all inputs
    double norm                         # the largest norm of an input
    int32_t sum[8]                      # sums of the codes of each input
    bint has_noise                      # False: all noise is 0

cdef struct Kernels:
    # out[t * out_stride + r] = sum over columns of code (0, 1, 2) * x, rows r, 1 to tile_tokens
    # tokens t
    void (*ternary_matmul)(int32_t* out, Py_ssize_t out_stride, const uint8_t* w, const int8_t* x,
                           Py_ssize_t x_stride, Py_ssize_t n_rows, Py_ssize_t n_tokens,
                           Py_ssize_t n_blocks, bint streaming) noexcept nogil
    # index of the first byte that holds the illegal code 3, or -1
    Py_ssize_t (*find_code_3)(const uint8_t* w, Py_ssize_t n_bytes) noexcept nogil
    # int8 codes of one token, zeros up to n_padded; 1 / scale and the sum of the codes
    void (*quantize)(int8_t* out, float* inv_scale, int32_t* code_sum, const float* x,
                     Py_ssize_t n, Py_ssize_t n_padded) noexcept nogil
    void (*rms_norm)(float* out, const float* weight, const float* x, float eps,
                     Py_ssize_t n) noexcept nogil
    # rotates one head in place; cosines and sines (head_dim / 2) of its position
    void (*rope)(float* x, const float* cosines, const float* sines, int interleaved,
                 Py_ssize_t head_dim) noexcept nogil
    # one position's keys and values (n_kv_heads, head_dim) into a slot 0..PAGE - 1 of its page
    void (*store_kv)(char* page, const float* k, const float* v, Py_ssize_t slot, int type,
                     Py_ssize_t n_kv_heads, Py_ssize_t head_dim) noexcept nogil
    # out[r * out_stride + (g, :)] = softmax(q k / sqrt(head_dim)) v over what row r sees, heads g <
    # n_group of head_dim numbers, up to MAX_HEAD_DIM; q: as out. next: what the caller works on
    # after that, prefetched meanwhile, or NULL. A row's sinks are seen where its window is not
    # cut off by the model's own
    void (*attention)(float* out, Py_ssize_t out_stride, const float* q, Py_ssize_t q_stride,
                      const View* view, const View* next, Py_ssize_t n_group) noexcept nogil
    void (*relu2_gate)(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil
    void (*silu_gate)(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil
    void (*gelu_gate)(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil
    # out[r] = row r of an embedding or head times x; type: one of ROWS_F32, ...
    void (*matvec_rows)(float* out, const uint8_t* rows, const float* x, int type,
                        Py_ssize_t row_bytes, Py_ssize_t n_rows, Py_ssize_t n_cols) noexcept nogil
    # the same for four inputs, each with an output of its own
    void (*matvec_rows_4)(float** out, const uint8_t* rows, const float** x, int type,
                          Py_ssize_t row_bytes, Py_ssize_t n_rows, Py_ssize_t n_cols) noexcept nogil
    void (*dequantize_row)(float* out, const uint8_t* row, int type,
                           Py_ssize_t n_cols) noexcept nogil
    void (*exp)(float* out, const float* x, Py_ssize_t n) noexcept nogil
    # exclusive or of all 8-byte words: the plain read that kernels are measured against
    uint64_t (*read)(const uint8_t* p, Py_ssize_t n_bytes, bint streaming) noexcept nogil
    # cosines and sines (n,) of position times each frequency, the product rounded to float32 or not
    void (*cos_sin)(float* cosines, float* sines, const float* frequencies, Py_ssize_t position,
                    int is_rounded, Py_ssize_t n) noexcept nogil
    # attention of one split of what a row sees, and the merge of all of them, which gives the same
    # bits as attention. split: 0 .. kv_n_splits - 1, then the sinks; partials: (n_splits, n_group *
    # (head_dim + 2)), what attention_split writes for a split, side by side
    void (*attention_split)(float* partials, const float* q, const View* view, const View* next,
                            Py_ssize_t split, Py_ssize_t n_group) noexcept nogil
    void (*attention_merge)(float* out, const float* partials, Py_ssize_t n_splits,
                            Py_ssize_t n_group, Py_ssize_t head_dim) noexcept nogil
    # out[t * out_stride + r] = codes of row r times those of input t, exact; n <= 8192, rows n
    # bytes apart, up to four inputs x_stride apart: codes of at most 127 * 128 (n), behind them the
    # planes, c = 2^plane_bits high + low: high (n), low (n), int8; x_sums: of the codes of each
    void (*screen_dot)(int64_t* out, Py_ssize_t out_stride, const int8_t* rows, const int16_t* x,
                       Py_ssize_t x_stride, const int64_t* x_sums, Py_ssize_t n_inputs,
                       Py_ssize_t n_rows, Py_ssize_t n, bint streaming) noexcept nogil
    # bit t of masks[r]: whether a coarse upper bound of the logit of row r and input t reaches the
    # threshold. bounds: (n_rows, 3); x: high planes of inputs, x_stride bytes apart, within
    # +-(2^14 >> plane_bits); noise (n_rows, 8): what is added to bounds. NULL where all bits take
    # no longer
    void (*screen_coarse)(uint8_t* masks, const int8_t* rows, const float* bounds,
                          const int8_t* x, Py_ssize_t x_stride, const CoarseInputs* inputs,
                          const double* noise, Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil
    # sums[t * n_rows + r] = sum of (code - 1) * x, for 16 n tokens: n_tokens rounded up. work:
    # LOOKUP_TABLE_BYTES + 32 * n_rows * (1 + n) bytes. NULL where tables do not pay.
    void (*ternary_lookup)(int32_t* sums, char* work, const uint8_t* w, const int8_t* x,
                           Py_ssize_t x_stride, Py_ssize_t n_rows, Py_ssize_t n_tokens,
                           Py_ssize_t n_blocks) noexcept nogil
    # out[t * out_stride + r] = or += (sums[t * sums_stride + r] - code_sums[t])
    # * (scales[r * scale_step] * inv_scale[t]): codes 0, 1, 2 are -1, 0, 1. code_sums: NULL where
    # sums are of these already
    void (*apply_scales)(float* out, Py_ssize_t out_stride, const int32_t* sums,
                         Py_ssize_t sums_stride, const float* scales, Py_ssize_t scale_step,
                         const float* inv_scale, const int32_t* code_sums, Py_ssize_t n_rows,
                         Py_ssize_t n_tokens, bint add) noexcept nogil
    # rows with scales of groups (group_rows.h): out[t * out_stride + r] = or += row first_row + r
    # times input token + t. unit: columns with one scale on both sides: 32 where inputs have 8
    # bits, 64, or 128 where group_scan finds no row whose halves differ
    void (*group_matmul)(float* out, Py_ssize_t out_stride, const GroupRows* w,
                         Py_ssize_t first_row, const GroupInputs* x, Py_ssize_t token,
                         Py_ssize_t n_rows, Py_ssize_t n_tokens, int unit, bint add,
                         bint streaming) noexcept nogil
    # the same by tables of sums. work: group_work_bytes. NULL where tables do not pay
    void (*group_lookup)(float* out, Py_ssize_t out_stride, char* work, const GroupRows* w,
                         Py_ssize_t first_row, const GroupInputs* x, Py_ssize_t token,
                         Py_ssize_t n_rows, Py_ssize_t n_tokens, int unit, bint add) noexcept nogil
    # n floats of one token as group_rows.h has it, filled up to whole quads; bits: 16 or 8
    void (*group_quantize)(int8_t* out, float* scales, int32_t* sums, const float* x, Py_ssize_t n,
                           int bits) noexcept nogil
    # GROUP_CODE_3, ... of group_rows.h of one row, 0 where all is well
    int (*group_scan)(const GroupRows* w, Py_ssize_t row) noexcept nogil
    void (*group_dequantize_row)(float* out, const GroupRows* w, Py_ssize_t row) noexcept nogil
    void (*sigmoid_gate)(float* out, const float* gate, const float* up,
                         Py_ssize_t n) noexcept nogil
    # out = silu of the sum of w[u] x[u], u upwards, n_taps rows of n; w: (n_taps, n)
    void (*conv_silu)(float* out, const float* w, const float** x, Py_ssize_t n_taps,
                      Py_ssize_t n) noexcept nogil
    # decays = e^(a softplus(alpha + dt)), rates = sigmoid(beta), of n heads; a <= 0
    void (*delta_gates)(float* decays, float* rates, const float* alpha, const float* beta,
                        const float* a, const float* dt, Py_ssize_t n) noexcept nogil
    # the gated delta rule over 16 columns of a head's state (key_dim, 16) and n_tokens rows: out,
    # v: 16 numbers a row; q, k: key_dim numbers, a multiple of 4; decays, rates: one number
    void (*delta_rule)(float* state, float* out, Py_ssize_t out_stride, const float* q,
                       const float* k, const float* v, Py_ssize_t stride, const float* decays,
                       const float* rates, Py_ssize_t gates_stride, Py_ssize_t n_tokens,
                       Py_ssize_t key_dim) noexcept nogil
    # x = after * (H (before * x)) * scale, in place, block by block of n numbers; block: a power of
    # two that divides n; H[r, c] = (-1)^popcount(r & c); before, after: (n,) or NULL for ones
    void (*hadamard)(float* x, const float* before, const float* after, float scale,
                     Py_ssize_t block, Py_ssize_t n) noexcept nogil
    Py_ssize_t tile_tokens              # tokens that ternary_matmul takes at once: 4 or 5
    Py_ssize_t plane_bits               # bits of an input's low plane: 7 or 8


cdef inline Py_ssize_t max_queries(Py_ssize_t head_dim) noexcept nogil:
    """Queries, rows times heads, that attention takes over a page together: at least 4."""
    return min(<Py_ssize_t>MAX_QUERIES, MAX_QUERY_FLOATS // ((head_dim + 15) // 16 * 16))


cdef inline Py_ssize_t first_seen(const View* view, Py_ssize_t row) noexcept nogil:
    """The first position that a row of a view sees, the sinks apart."""
    return max(view.start, view.position + row - view.window + 1)


cdef inline Py_ssize_t last_seen(const View* view) noexcept nogil:
    """The last position that the last row sees, its own."""
    return view.position + view.n_rows - 1


cdef inline Py_ssize_t group_work_bytes(Py_ssize_t n_rows, Py_ssize_t n_sets) noexcept nogil:
    """Bytes that group_lookup works in: tables, sums of two planes, indices, scales; and of each
    set of 16 tokens four sums."""
    return LOOKUP_TABLE_BYTES + n_rows * (2 * 32 + 32 + 2 * 4 + n_sets * 4 * 16 * 4)
