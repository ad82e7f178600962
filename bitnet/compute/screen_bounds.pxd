# Bounds of a logit from an int8 copy of its row: see screen_bounds.pyx.
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int16_t, int64_t

# What bounds logits of one input: |logit - estimate| <= E error + N rest + underflow. Letters are
# those of screen_bounds.pyx.
cdef struct InputBound:
    double step                         # t, what a code of 1 stands for
    int64_t sum                         # sum of the codes
    double norm                         # X, the Euclidean norm; inf or NaN if the input is
    double error                        # (1 + gamma) X, factor of the error of a row's codes
    double rest                         # G + gamma X, factor of the norm of a row's codes
    double underflow                    # n 2^-124, whatever a CPU makes of subnormal numbers

# Write the codes of an input, int16 (n), and behind them their planes, int8 (2, n): table.pxd. And
# what bounds its logits, with all bits and with the high plane alone.
cdef void screen_input(int16_t* codes, InputBound* b, InputBound* coarse, const float* x,
                       Py_ssize_t n) noexcept nogil


cdef inline double radius(const float* row, const InputBound* b) noexcept nogil:
    """How far a logit may be from its estimate; inf where it could overflow.

    row: its scale, E and N.
    """
    if not (<double>row[1] + row[2]) * b.norm < 1e38:           # NaN and inf too
        return INFINITY
    return row[1] * b.error + row[2] * b.rest + b.underflow


cdef inline float round_upper(double exact) noexcept nogil:
    """An upper bound as float32: no less than exact; rounding is by half of what is added."""
    return <float>(exact + 2.0**-23 * fabs(exact) + 2.0**-126)


cdef inline double lower_of(float upper, double around) noexcept nogil:
    """The lower bound that belongs to an upper one that round_upper gave."""
    if not around < INFINITY:
        return -INFINITY
    return upper - 2 * around - 2.0**-22 * fabs(upper) - 2.0**-125
