"""Bounds of a logit from an int8 copy of its row.

A row w (float32, exact from F16, BF16 or F32) is s q + d, q its int8 codes: bounds hold the scale
s, E >= |d| and N >= |s q| (Euclidean norms). The input x is t c + g, c its codes, X >= |x| and
G >= |g|. By Cauchy-Schwarz
    |w x - s t (q c)| = |s q g + d x| <= N G + E X,
and q c is an exact integer. What the kernels compute for w x, 16 sums of m products and a tree,
each product and addition rounded once (u = 2^-24), is off by at most
    gamma |w| |x| <= gamma (N + E) X,   gamma = m' u / (1 - m' u),   m' = n / 16 + 24,
(Higham 2002, lemma 3.1) and where numbers become subnormal or a CPU takes them for 0, by 2^-126
a product and addition. Together:
    |logit - estimate| <= E (1 + gamma) X + N (G + gamma X) + n 2^-124.
Norms are rounded up, and E's and N's factors multiplied by 1 + 1e-6: gamma is at least 1.4e-6, so
that is more than 1e-12 N X, and what float64 rounds in an estimate and its bounds 1e-15 of it.
A row that is not finite has E = inf; where it, or (N + E) X >= 1e38, could make the kernels
overflow, it has no bounds and is always computed: what is not finite in the full head is there.

Coarse codes of an input are its high plane: c = 2^b m + l, m instead of c, G + t |l| of G.
Such an upper bound is no less than one of all bits, as t s (q l) <= N t |l|; in float64 too, for
where l is not 0, t |l| is more than 1e-7 X, and a millionth of it more than what is rounded.
"""
from cython.parallel cimport prange
from libc.math cimport INFINITY, fabs, nextafterf, sqrt
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t
from libc.string cimport memcpy, memset

from .operands cimport SCREEN_MAX_COLS, Array, QuantizedRows, open_array
from .threads cimport threads_for
from ..runtime.dispatch cimport kernels


cdef void screen_input(int16_t* codes, InputBound* b, InputBound* coarse, const float* x,
                       Py_ssize_t n) noexcept nogil:
    cdef int8_t* high = <int8_t*>(codes + n)
    cdef double step, residual, squares = 0, residuals = 0, gamma = (n // 16 + 24) * 2.0**-24
    cdef float largest = 0
    cdef int bits = <int>kernels.plane_bits
    cdef int64_t lows = 0
    cdef Py_ssize_t j
    for j in range(n):
        squares += <double>x[j] * x[j]
        largest = max(largest, <float>fabs(x[j]))
    step = largest / 16256.0            # 127 * 128
    if not squares < 1e60 or largest < 2.0**-100:
        step = 0
    b.sum = coarse.sum = 0
    for j in range(n):
        residual = x[j] / step if step else 0.0
        codes[j] = <int16_t>(residual + (0.5 if residual >= 0 else -0.5))
        b.sum += codes[j]
        residual = x[j] - step * codes[j]
        residuals += residual * residual
        high[j] = <int8_t>((codes[j] + (1 << bits >> 1)) >> bits)
        high[n + j] = <int8_t>(codes[j] - high[j] * (1 << bits))
        coarse.sum += high[j]
        lows += high[n + j] * high[n + j]
    gamma = gamma / (1 - gamma)
    b.step, b.norm = step, sqrt(squares) * (1 + 1e-6)
    residual = sqrt(residuals) * (1 + 1e-6)
    b.error = b.norm * (1 + gamma) * (1 + 1e-6)
    b.rest = (residual + gamma * b.norm) * (1 + 1e-6)
    b.underflow = n * 2.0**-124
    coarse.step, coarse.norm, coarse.error = step * (1 << bits), b.norm, b.error
    coarse.rest = b.rest + step * sqrt(<double>lows) * (1 + 1e-6)
    coarse.underflow = b.underflow


def derive_screen(codes, bounds, QuantizedRows rows not None, Py_ssize_t first=0, int n_threads=1):
    """Fill in codes and bounds of the rows from ``first`` on, as many as codes has: what a Screen
    takes.

    codes: int8 (n, n_cols of rows). bounds: float32 (n, 3): scale, norm of the error, of the rest.
    """
    cdef Array of_codes = open_array(codes, c"i", 1, 2, True)
    cdef Array of_bounds = open_array(bounds, c"f", 4, 2, True)
    cdef int8_t* first_code = <int8_t*>of_codes.data
    cdef float* first_bound = <float*>of_bounds.data
    cdef Py_ssize_t r, n = of_codes.view.shape[0], n_cols = of_codes.view.shape[1]
    cdef int team = threads_for(n_threads, n * rows.n_cols)
    if (first < 0 or n > rows.n_rows - first or n_cols != rows.n_cols or n_cols > SCREEN_MAX_COLS
            or (of_bounds.view.shape[0], of_bounds.view.shape[1]) != (n, 3)):
        raise ValueError(f"codes are {n} x {n_cols}, bounds {of_bounds.view.shape[0]} x "
                         f"{of_bounds.view.shape[1]}, rows {rows.n_rows} x {rows.n_cols} "
                         f"from {first}")
    for r in prange(n, nogil=True, schedule="static", num_threads=team):
        derive_row(first_code + r * n_cols, first_bound + 3 * r, rows, first + r)


cdef void derive_row(int8_t* codes, float* bounds, QuantizedRows rows,
                     Py_ssize_t row) noexcept nogil:
    """Codes, int8 (n_cols,), and bounds, float32 (3,), of one row: s, E and N.

    A loop for each step: compilers vectorize those.
    """
    cdef float w[SCREEN_MAX_COLS]
    cdef float q[SCREEN_MAX_COLS]
    cdef const int32_t* bits = <const int32_t*>w
    cdef int32_t magnitude, largest_bits = 0
    cdef float scale, factor, largest
    cdef double difference
    cdef double residuals[4]
    cdef float middle = 12582912.0      # 1.5 * 2^23: added and taken away, it rounds to integers
    cdef int64_t squares = 0
    cdef Py_ssize_t i, j, n = rows.n_cols
    kernels.dequantize_row(w, rows.data + row * rows.row_bytes, rows.type, n)
    for j in range(n):                  # bits compare as integers, a NaN's are the largest
        magnitude = bits[j] & 0x7FFFFFFF
        largest_bits = magnitude if magnitude > largest_bits else largest_bits
    memcpy(&largest, &largest_bits, 4)
    memset(codes, 0, n)
    memset(bounds, 0, 3 * sizeof(float))
    if largest_bits >= 0x7F800000:      # not finite: all of it is rounding error
        bounds[1] = INFINITY
        return
    scale = largest / <float>127.0 if largest >= <float>2.0**-100 else <float>0.0
    factor = <float>1.0 / scale if scale else <float>0.0
    for j in range(n):
        q[j] = (w[j] * factor + middle) - middle
    for j in range(n):
        codes[j] = <int8_t><int32_t>q[j]
        squares += codes[j] * codes[j]
    memset(residuals, 0, sizeof(residuals))
    for j in range(0, n - 3, 4):
        for i in range(4):
            difference = w[j + i] - <double>scale * q[j + i]
            residuals[i] += difference * difference
    for j in range(n - n % 4, n):
        difference = w[j] - <double>scale * q[j]
        residuals[0] += difference * difference
    bounds[0] = scale
    bounds[1] = rounded_up(sqrt(residuals[0] + residuals[1] + residuals[2] + residuals[3]))
    bounds[2] = rounded_up(scale * sqrt(<double>squares))


cdef inline float rounded_up(double x) noexcept nogil:
    return nextafterf(<float>(x * (1 + 1e-6)), INFINITY) if x else <float>0.0
