# Draws by Gumbel noise: see gumbel.pyx. What the screen of a head needs of them.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define BITNET_NOISE_ERROR 1e-5
    """
    # of the table's float32, and a thousand times that of a key
    const double NOISE_ERROR "BITNET_NOISE_ERROR"

cdef struct Draw:                       # of an id by the noise that belongs to a key
    uint64_t key
    double temperature
    double lowest                       # (logit - top) / temperature that may be drawn
    const float* logits
    double top                          # the greatest of them
    const int32_t* ids                  # of those that may be drawn; NULL: the first n
    Py_ssize_t n, n_ids                 # n_ids: of all logits

# Without candidates yet.
cdef Draw new_draw(uint64_t seed, uint64_t position, double temperature, double min_p) noexcept

# Set from which n of the n_ids logits is drawn.
cdef void set_candidates(Draw* d, const float* logits, Py_ssize_t n_ids, const int32_t* ids,
                         Py_ssize_t n) noexcept nogil

# The id drawn; -1 if that depends on logits which are not there. Those weigh at most rest, the best
# of all 1; a sum of others is off by at most this part of it.
cdef Py_ssize_t draw_id(const Draw* d, double top_p, double rest, double error) noexcept nogil

# The weights of the candidates with a greater logit, or an equal one and an id before this.
cdef double weight_sum(const Draw* d, double logit, Py_ssize_t before) noexcept nogil

cdef float* noise_table                 # bounds of the noise in each bin of v


cdef inline uint64_t mix_bits(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t random_bits(uint64_t start, uint64_t i) noexcept nogil:
    """Number i of the SplitMix64 that starts there."""
    return mix_bits(start + (i + 1) * <uint64_t>0x9E3779B97F4A7C15)


cdef inline double fraction(uint64_t bits) noexcept nogil:
    """v: in the middle of one of 2^52 equal parts of (0, 1)."""
    return (<double><int64_t>(bits >> 12) + 0.5) * 2.0**-52


cdef inline const float* noise_bounds(double v) noexcept nogil:
    """An upper bound of the noise and, behind it, a lower one, both within NOISE_ERROR."""
    cdef uint64_t bits
    memcpy(&bits, &v, 8)
    return &noise_table[(bits >> 47) - (970 << 5)]      # 970: 2^-53's exponent; 5 bits: 32 bins
