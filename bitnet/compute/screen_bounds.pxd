# Bounds of a logit from an int8 copy of its row: see screen_bounds.pyx.
from libc.math cimport INFINITY, fabs
from libc.stdint cimport int16_t, int64_t

cdef struct Bound:          # of one input: |logit - estimate| <= E error + N rest + least
    double step                         # t
    int64_t sum                         # of the codes
    double norm                         # X
    double error
    double rest
    double least

# Codes of an input, their planes behind them, and bounds; norm is inf or NaN if x is.
cdef void screen_input(int16_t* codes, Bound* b, Bound* coarse, const float* x,
                       Py_ssize_t n) noexcept nogil


cdef inline double radius(const float* row, const Bound* b) noexcept nogil:
    """How far a logit may be from its estimate; inf where it could overflow."""
    if not (<double>row[1] + row[2]) * b.norm < 1e38:           # NaN and inf too
        return INFINITY
    return row[1] * b.error + row[2] * b.rest + b.least


cdef inline float round_upper(double exact) noexcept nogil:
    """An upper bound as float32: no less than exact; rounding is by half of what is added."""
    return <float>(exact + 2.0**-23 * fabs(exact) + 2.0**-126)


cdef inline double lower_of(float upper, double around) noexcept nogil:
    """The lower bound that belongs to an upper one that round_upper gave."""
    if not around < INFINITY:
        return -INFINITY
    return upper - 2 * around - 2.0**-22 * fabs(upper) - 2.0**-125
