# Draws by Gumbel noise, as far as the screen of a head needs them: see gumbel.pyx.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define BITNET_NOISE_ERROR 1e-5
    """
    # How far a bound of noise may be off: more than the table's float32 rounding, and a thousand
    # times the rounding of a logit's sum with its noise.
    const double NOISE_ERROR "BITNET_NOISE_ERROR"

cdef struct Draw:                       # one draw of an id
    uint64_t key                        # where the random numbers of the ids begin
    double temperature
    double lowest                       # ln min_p: the lowest (logit - top) / temperature drawn
    const float* logits                 # (n_ids,)
    double top                          # the greatest logit that may be drawn
    const int32_t* ids                  # (n,): those that may be drawn; NULL: the first n
    Py_ssize_t n, n_ids

# A draw that has no candidates yet.
cdef Draw new_draw(uint64_t seed, uint64_t position, double temperature, double min_p) noexcept

# Set the candidates: the n ids that may be drawn, and the logits of all n_ids.
cdef void set_candidates(Draw* d, const float* logits, Py_ssize_t n_ids, const int32_t* ids,
                         Py_ssize_t n) noexcept nogil

# The id that is drawn, or -1 if it could be another one because of ids that are no candidates.
# rest: the most that all of those weigh, where the top logit weighs 1. error: relative error that
# sums of weights may have.
cdef Py_ssize_t draw_id(const Draw* d, double top_p, double rest, double error) noexcept nogil

# The sum of weights of the candidates with a greater logit, or an equal one and a lower id.
cdef double weight_sum(const Draw* d, double logit, Py_ssize_t before) noexcept nogil

cdef float* noise_table                 # noise at the lowest v of each bin


cdef inline uint64_t mix_bits(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t random_bits(uint64_t start, uint64_t i) noexcept nogil:
    """The i-th number of the SplitMix64 with this state."""
    return mix_bits(start + (i + 1) * <uint64_t>0x9E3779B97F4A7C15)


cdef inline double fraction(uint64_t bits) noexcept nogil:
    """Random bits as v in (0, 1), the middle of one of 2^52 equal parts."""
    return (<double><int64_t>(bits >> 12) + 0.5) * 2.0**-52


cdef inline const float* noise_bounds(double v) noexcept nogil:
    """An upper bound of the noise and, behind it, a lower one, both within NOISE_ERROR."""
    cdef uint64_t bits
    memcpy(&bits, &v, 8)
    return &noise_table[(bits >> 47) - (970 << 5)]      # 970: 2^-53's exponent; 5 bits: 32 bins
