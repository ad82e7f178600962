"""The known-answer test of a table of kernels: every instruction set must give the same bits."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from ..kernels.group_rows cimport GroupInputs, GroupRows
from ..kernels.kv_page cimport KV_F16, KV_F32, KV_INT8, PAGE, SPLIT
from ..kernels.table cimport (
    ROWS_BF16, ROWS_F16, ROWS_F32, ROWS_IQ4_NL, ROWS_Q4_0, ROWS_Q4_1, ROWS_Q4_K, ROWS_Q5_0,
    ROWS_Q5_1, ROWS_Q5_K, ROWS_Q6_K, ROWS_Q8_0, CoarseInputs, Kernels, View,
)

from .float_mode import ieee_mode

KNOWN_ANSWER = 0xc85aa1a0               # what the plain C kernels give: they are the definition

cdef enum:
    COLS = 384                          # columns, three blocks: AVX-512 takes two, then one alone
    N_ROWS = 9                          # whole tiles and a rest on every instruction set
    N_TOKENS = 5
    N_BYTES = 864                       # bytes of packed weights: N_ROWS * COLS / 4
    WIDTH = 379                         # columns of a screen's rows: COLS - 5
    DIM = 40                            # columns of a head, no multiple of 16
    GROUP_COLS = 704                    # columns: a quad of 512 and three groups of 64
    GROUP_WORK = 1 << 16                # bytes for tables of N_ROWS rows and one set of tokens


def answer(capsule):
    """A hash of what every kernel of a module of bitnet/kernels makes of fixed inputs, 32 bits.

    capsule: the module's. 0 where kernels of one table contradict each other.
    """
    cdef const Kernels* k = <const Kernels*>PyCapsule_GetPointer(capsule, "bitnet.kernels")
    with ieee_mode():
        return answer_of(k)


cdef uint32_t mix(uint32_t sum, const void* data, Py_ssize_t n_bytes) noexcept nogil:
    """FNV-1a of the bytes."""
    cdef Py_ssize_t i
    for i in range(n_bytes):
        sum = (sum ^ (<const uint8_t*>data)[i]) * <uint32_t>16777619
    return sum


cdef uint32_t answer_of(const Kernels* k) noexcept nogil:
    cdef uint8_t weights[N_BYTES]
    cdef float x[N_TOKENS * COLS]
    cdef float y[N_TOKENS * COLS]
    cdef int8_t codes[N_TOKENS * COLS]
    cdef float inverse[N_TOKENS]
    cdef int32_t sums[N_TOKENS]
    cdef int32_t out[N_ROWS * N_TOKENS]
    cdef uint32_t seed = 1, hashed = 2166136261u
    cdef Py_ssize_t i, t
    for i in range(N_BYTES):
        seed = seed * 1664525u + 1013904223u            # Numerical Recipes' generator
        weights[i] = (seed >> 24) & 0xAA                # codes 0 and 2 ...
        weights[i] |= (seed >> 8) & ~(weights[i] >> 1) & 0x55       # ... and 1 where it is not 2
    for i in range(N_TOKENS * COLS):
        seed = seed * 1664525u + 1013904223u
        x[i] = (<float>(seed >> 8) - <float>8388608.0) / <float>1048576.0      # within +-8
    for t in range(N_TOKENS):
        k.quantize(&codes[t * COLS], &inverse[t], &sums[t], &x[t * COLS], COLS - 100, COLS)
    hashed = mix(hashed, codes, sizeof(codes))
    hashed = mix(mix(hashed, inverse, sizeof(inverse)), sums, sizeof(sums))
    for t in range(N_TOKENS):
        k.ternary_matmul(&out[t * N_ROWS], 0, weights, &codes[t * COLS], COLS, N_ROWS, 1,
                         COLS // 128, t % 2 == 0)
    hashed = mix(hashed, out, sizeof(out))
    if not tiles_agree(k, out, weights, codes):
        return 0
    if k.ternary_lookup and not lookup_agrees(k, out, weights, codes, sums):
        return 0
    k.rms_norm(y, &x[COLS], x, 1e-5, COLS - 3)
    k.silu_gate(&y[COLS], x, &x[COLS], COLS - 3)
    k.relu2_gate(&y[2 * COLS], x, &x[COLS], COLS - 3)
    k.exp(&y[3 * COLS], x, COLS - 3)
    k.gelu_gate(&y[4 * COLS], x, &x[COLS], COLS - 3)
    for t in range(5):
        hashed = mix(hashed, &y[t * COLS], (COLS - 3) * sizeof(float))
    hashed = delta_answer(k, hashed, x, y)
    if k.screen_coarse and not coarse_agrees(k, codes):
        return 0
    hashed = screen_answer(k, hashed, codes)
    hashed = group_answer(k, group_answer(k, hashed, x, 16), x, 8)
    if not hashed:
        return 0
    return rows_answer(k, attention_answer(k, hashed, x, y), x, y)


cdef uint32_t delta_answer(const Kernels* k, uint32_t hashed, const float* x,
                           float* y) noexcept nogil:
    """Gates, a convolution of 3 taps over DIM - 3 channels, and the recurrence of 16 columns over
    N_TOKENS tokens."""
    cdef float state[DIM * 16]
    cdef float gates[2 * (DIM - 3)]
    cdef const float* taps[3]
    cdef Py_ssize_t i
    for i in range(DIM - 3):
        y[i] = -x[i] * x[i]
    k.delta_gates(gates, gates + DIM - 3, x + 100, x + 200, y, x + 300, DIM - 3)
    hashed = mix(hashed, gates, sizeof(gates))
    for i in range(3):
        taps[i] = x + 7 * i
    k.conv_silu(y, x + 400, taps, 3, DIM - 3)
    k.sigmoid_gate(y + DIM, x, x + 5, DIM - 3)
    hashed = mix(mix(hashed, y, (DIM - 3) * sizeof(float)), y + DIM, (DIM - 3) * sizeof(float))
    for i in range(DIM * 16):
        state[i] = x[i] / 8
    for i in range(DIM * N_TOKENS):
        y[500 + i] = x[500 + i] / 32
    k.delta_rule(state, y, 16, y + 500, y + 500 + DIM // 2, x + 300, DIM, gates, gates + DIM - 3, 1,
                 N_TOKENS - 1, DIM)
    hashed = mix(hashed, state, sizeof(state))
    memcpy(state, x + 50, 256 * sizeof(float))
    k.hadamard(state, x + 600, NULL, 0.125, 64, 128)
    k.hadamard(state + 128, NULL, x + 700, 0.25, 8, 128)
    hashed = mix(hashed, state, 256 * sizeof(float))
    return mix(hashed, y, (N_TOKENS - 1) * 16 * sizeof(float))


cdef bint tiles_agree(const Kernels* k, const int32_t* products, const uint8_t* weights,
                      const int8_t* codes) noexcept nogil:
    cdef int32_t out[N_ROWS * N_TOKENS]
    cdef Py_ssize_t n, i
    for n in range(2, min(<Py_ssize_t>N_TOKENS, k.tile_tokens) + 1):
        k.ternary_matmul(out, N_ROWS, weights, codes, COLS, N_ROWS, n, COLS // 128, False)
        for i in range(n * N_ROWS):
            if out[i] != products[i]:
                return False
    return True


cdef bint lookup_agrees(const Kernels* k, const int32_t* products, const uint8_t* weights,
                        const int8_t* codes, const int32_t* code_sums) noexcept nogil:
    cdef int32_t sums[16 * N_ROWS]
    cdef char work[1 << 15]
    cdef Py_ssize_t t, r
    k.ternary_lookup(sums, work, weights, codes, COLS, N_ROWS, N_TOKENS, COLS // 128)
    for t in range(N_TOKENS):
        for r in range(N_ROWS):
            if sums[t * N_ROWS + r] != products[t * N_ROWS + r] - code_sums[t]:
                return False
    return True


cdef uint32_t screen_answer(const Kernels* k, uint32_t hashed, const int8_t* rows) noexcept nogil:
    """Five rows of codes times one to four inputs, of a width that leaves a rest on every
    instruction set."""
    cdef int16_t x[4 * 2 * WIDTH]
    cdef int8_t* planes
    cdef int64_t dots[4 * N_TOKENS]
    cdef int64_t sums[4]
    cdef Py_ssize_t i, t, n
    memset(sums, 0, sizeof(sums))
    for t in range(4):
        planes = <int8_t*>(x + (2 * t + 1) * WIDTH)
        for i in range(WIDTH):
            planes[i], planes[WIDTH + i] = rows[i + t], rows[i + 5 - t] // 2
            x[2 * t * WIDTH + i] = <int16_t>(128 * planes[i] + planes[WIDTH + i])
            sums[t] += x[2 * t * WIDTH + i]
    for n in range(1, 5):
        k.screen_dot(dots, N_TOKENS, rows, x, 2 * WIDTH, sums, n, N_TOKENS, WIDTH, True)
        hashed = mix(hashed, dots, n * N_TOKENS * sizeof(int64_t))
    return hashed


cdef bint coarse_agrees(const Kernels* k, const int8_t* rows) noexcept nogil:
    """Whether dot products of rows and three or eight inputs reach thresholds that they equal, and
    none that is greater by one."""
    cdef int8_t x[8 * WIDTH]
    cdef int32_t dots[8]
    cdef float* bounds = [1, 0, 0]
    cdef double zeros[8]
    cdef CoarseInputs inputs
    cdef uint8_t mask
    cdef Py_ssize_t n, r, t, i
    memset(zeros, 0, sizeof(zeros))
    for n in range(3, 9, 5):
        for r in range(N_TOKENS):
            memset(&inputs, 0, sizeof(inputs))
            inputs.n = n
            for t in range(n):
                dots[t] = 0
                for i in range(WIDTH):
                    x[t * WIDTH + i] = rows[3 * i + t] >> (k.plane_bits - 7)
                    inputs.sum[t] += x[t * WIDTH + i]
                    dots[t] += x[t * WIDTH + i] * rows[r * WIDTH + i]
                inputs.step[t] = 1
            for i in range(2):
                for t in range(n):
                    inputs.threshold[t] = dots[t] + i
                k.screen_coarse(&mask, rows + r * WIDTH, bounds, x, WIDTH, &inputs, zeros, 1,
                                WIDTH)
                if mask & ((1 << n) - 1) != (0 if i else (1 << n) - 1):
                    return False
    return True


cdef uint32_t group_answer(const Kernels* k, uint32_t hashed, const float* x,
                           int bits) noexcept nogil:
    """Rows whose groups have scales, in blocks of 18 and of 34 bytes, times one to four tokens and
    by tables; 0 where these differ. x: of at least N_TOKENS * COLS."""
    cdef uint8_t blocks[N_ROWS * 198]                   # 704 / 64 * 18 bytes a row
    cdef int8_t codes[N_TOKENS * 2048]
    cdef float scales[N_TOKENS * 32]
    cdef int32_t sums[N_TOKENS * 32]
    cdef float one[N_TOKENS * N_ROWS]
    cdef float out[N_TOKENS * N_ROWS]
    cdef float row[GROUP_COLS]
    cdef char work[GROUP_WORK]
    cdef GroupRows w
    cdef GroupInputs inputs
    cdef uint32_t seed = 7
    cdef int unit, kind, step
    cdef Py_ssize_t i, t, n
    for i in range(N_ROWS * 198):
        seed = seed * 1664525u + 1013904223u
        blocks[i] = (seed >> 24) & 0xAA
        blocks[i] |= (seed >> 8) & ~(blocks[i] >> 1) & 0x15     # without bit 6 an f16 is finite
    memset(codes, 0, sizeof(codes))
    memset(scales, 0, sizeof(scales))
    memset(sums, 0, sizeof(sums))
    for kind in range(2):
        if kind:
            w = GroupRows(&blocks[2], 170, 34, 16, &blocks[0], 170, 34, 0, 640)
        else:
            w = GroupRows(&blocks[2], 198, 36, 18, &blocks[0], 198, 36, 18, GROUP_COLS)
        step = 34 if kind else 18
        for i in range(N_ROWS * w.row_scales // step):
            blocks[i * step + 1] &= 0x3F                # a scale's sign, and its size
        inputs = GroupInputs(&codes[0], &scales[0], &sums[0], 2048, 32, 32, bits)
        for t in range(N_TOKENS):
            k.group_quantize(codes + t * 2048, scales + t * 32, sums + t * 32, x + 300 * t,
                             w.n_cols, bits)
        hashed = mix(mix(hashed, codes, sizeof(codes)), scales, sizeof(scales))
        hashed = mix(hashed, sums, sizeof(sums))
        unit = 32 if bits == 8 else 128 if kind else 64
        for t in range(N_TOKENS):
            k.group_matmul(one + t * N_ROWS, N_ROWS, &w, 0, &inputs, t, N_ROWS, 1, unit, False,
                           t % 2 == 0)
        hashed = mix(hashed, one, sizeof(one))
        for n in range(2, N_TOKENS + 1):
            k.group_matmul(out, N_ROWS, &w, 0, &inputs, 0, N_ROWS, n, unit, False, False)
            for i in range(n * N_ROWS):
                if out[i] != one[i]:
                    return 0
        if k.group_lookup:
            memset(out, 0, sizeof(out))
            k.group_lookup(out, N_ROWS, work, &w, 0, &inputs, 0, N_ROWS, N_TOKENS, unit, False)
            for i in range(N_TOKENS * N_ROWS):
                if out[i] != one[i]:
                    return 0
        for i in range(N_ROWS):
            hashed = mix(hashed, <uint8_t*>&kind, 1) + <uint32_t>k.group_scan(&w, i)
            k.group_dequantize_row(row, &w, i)
            hashed = mix(hashed, row, w.n_cols * sizeof(float))
    return hashed


cdef uint32_t attention_answer(const Kernels* k, uint32_t hashed, const float* x,
                               float* y) noexcept nogil:
    """Rotation, the KV page in every type, and attention of 5 heads over it, of one row and of
    three, 2 of its slots seen as sinks."""
    cdef float page[2 * DIM * PAGE]
    cdef float q[5 * DIM]
    cdef char* pages[5]                                 # the pages of two splits, all the same one
    cdef float partials[3 * 5 * (DIM + 2)]
    cdef int[3] types = [KV_F32, KV_F16, KV_INT8]
    cdef View view
    cdef Py_ssize_t i, t
    k.cos_sin(y, y + DIM, x + 100, 12345, False, DIM)
    k.cos_sin(y + 2 * DIM, y + 3 * DIM, x + 100, 12345, True, DIM)
    hashed = mix(hashed, y, 4 * DIM * sizeof(float))
    for t in range(5):
        pages[t] = <char*>page
    for t in range(3):
        memset(page, 0, sizeof(page))
        for i in range(30):
            k.store_kv(pages[0], x + 3 * i, x + 500 + 5 * i, i, types[t], 1, DIM)
        for i in range(5 * DIM):
            q[i] = x[700 + i] / 256                     # so that no weight is nearly 1
        k.rope(q, x + 100, x + 200, t == 1, DIM)
        view = View(&pages[0], 5, types[t], 1, DIM, 0, 1, SPLIT + 29, 3, SPLIT + 30,
                    2 if t else 0, x + 100, x + 200, t == 1)
        k.attention(y, 0, q, 0, &view, NULL, 5)
        hashed = mix(hashed, y, 5 * DIM * sizeof(float))
        view.n_rows, view.position = 3, SPLIT + 27
        k.attention(y, 5 * DIM, q, 0, &view, NULL, 5)
        hashed = mix(hashed, y, 3 * 5 * DIM * sizeof(float))
        view.n_rows, view.position = 1, SPLIT + 29
        for i in range(3 if t else 2):
            k.attention_split(partials + i * 5 * (DIM + 2), q, &view, &view, i, 5)
        k.attention_merge(y, partials, 3 if t else 2, 5, DIM)
        hashed = mix(hashed, y, 5 * DIM * sizeof(float))
    return hashed


cdef uint32_t rows_answer(const Kernels* k, uint32_t hashed, const float* x,
                          float* y) noexcept nogil:
    """Rows of a head in every type, multiplied and dequantized. No number is so small that a CPU
    may flush it to 0."""
    cdef int[9] types = [ROWS_Q4_0, ROWS_Q4_1, ROWS_Q5_0, ROWS_Q5_1, ROWS_Q8_0, ROWS_IQ4_NL,
                         ROWS_Q4_K, ROWS_Q5_K, ROWS_Q6_K]
    cdef int[9] n_cols = [320, 320, 320, 320, 320, 320, 256, 256, 256]
    cdef int[9] n_bytes = [180, 200, 220, 240, 340, 180, 144, 176, 210]
    cdef float* outputs[4]
    cdef const float* inputs[4]
    cdef uint16_t halves[N_ROWS * DIM]
    cdef uint8_t blocks[2 * 340]
    cdef uint32_t seed = 1
    cdef Py_ssize_t i
    for i in range(N_ROWS * DIM):
        halves[i] = <uint16_t>(0x3000 + 37 * i)         # f16 and bf16 numbers of moderate size
    k.matvec_rows(y, <const uint8_t*>x, x + DIM, ROWS_F32, DIM * 4, N_ROWS, DIM)
    k.matvec_rows(y + N_ROWS, <const uint8_t*>halves, x, ROWS_F16, DIM * 2, N_ROWS, DIM)
    k.matvec_rows(y + 2 * N_ROWS, <const uint8_t*>halves, x, ROWS_BF16, DIM * 2, N_ROWS,
                  DIM)
    hashed = mix(hashed, y, 3 * N_ROWS * sizeof(float))
    for i in range(4):
        inputs[i], outputs[i] = x + i, y + i
    k.matvec_rows_4(outputs, <const uint8_t*>halves, inputs, ROWS_F16, DIM * 2, 1, DIM)
    hashed = mix(hashed, y, 4 * sizeof(float))
    for i in range(2 * 340):
        seed = seed * 1664525u + 1013904223u
        blocks[i] = (seed >> 24) & 0xBF                 # without bit 14 an f16 is below 2
    for i in range(9):
        k.matvec_rows_4(outputs, blocks, inputs, types[i], n_bytes[i], 1, n_cols[i])
        hashed = mix(hashed, y, 4 * sizeof(float))
        k.matvec_rows(y, blocks, x, types[i], n_bytes[i], 2, n_cols[i])
        k.dequantize_row(y + 2, blocks, types[i], n_cols[i])
        hashed = mix(hashed, y, (2 + n_cols[i]) * sizeof(float))
    return hashed
