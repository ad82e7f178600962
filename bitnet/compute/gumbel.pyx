"""A token out of softmax(logits / T): the one whose logit / T + g is greatest, g being Gumbel noise
of each id's own (Gumbel 1954; Maddison, Tarlow and Minka 2014). Nothing depends on a sum over the
vocabulary, so a screened head gives the token of the full one.

An id's noise is g = -ln(-ln(1 - v)), v in (0, 1) being number id of a SplitMix64 (Steele, Lea and
Flood 2014). It starts at number position of another, which starts where the seed says. Logarithms
of our own are the same on every CPU and take 40 ns: bounds from a table tell which ids need them.
"""
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from .operands cimport Array, open_array
from ..runtime.dispatch cimport kernels

cdef enum:
    OCTAVES = 53                        # octaves of v, from 2^-53 to 1
    OCTAVE_BINS = 32                    # bins of the noise table in each octave
    SUM_CHUNK = 128                     # weights whose e^x is taken at a time: 512 bytes

cdef double MAX_NOISE = 36.8            # noise of the smallest v, 2^-53, rounded up
cdef double MIN_NOISE = -4              # less than the noise of the largest v, 1 - 2^-53
cdef float table[53 * 32 + 1]           # noise at the lowest v of each bin, then MIN_NOISE
noise_table = table


def sample(logits, uint64_t seed, Py_ssize_t position, double temperature, double top_p=1.0,
           double min_p=0.0, ids=None):
    """The id that a seed draws from softmax(logits / temperature), of all or of distinct ids.

    logits: float32 (n,). ids: int32 (m,), or None. top_p: of the most likely that together reach
    it, equal ones by id. min_p: and of those at least this fraction as likely as the most likely.
    ValueError where nothing can be drawn.
    """
    cdef Array values = open_array(logits, c"f", 4, 1), some = None
    cdef Py_ssize_t i, n_ids = values.view.shape[0], n = n_ids
    cdef const int32_t* chosen = NULL
    if ids is not None:
        some = open_array(ids, c"i", 4, 1)
        chosen, n = <const int32_t*>some.data, some.view.shape[0]
    if not (n and temperature > 0 and top_p > 0 and 0 <= min_p <= 1):
        raise ValueError(f"{n} ids, temperature {temperature}, top_p {top_p}, min_p {min_p}")
    for i in range(n if chosen else 0):
        if not 0 <= chosen[i] < n_ids:
            raise ValueError(f"token id {chosen[i]} is not in 0..{n_ids - 1}")
    cdef Draw d = new_draw(seed, position, temperature, min_p)
    set_candidates(&d, <const float*>values.data, n_ids, chosen, n)
    if not -INFINITY < d.top < INFINITY:
        raise ValueError(f"the greatest logit is {d.top}")
    with nogil:     # lets other threads in: nothing else does in a small model's step
        i = draw_id(&d, top_p, 0, 0)
    return i


cdef Draw new_draw(uint64_t seed, uint64_t position, double temperature, double min_p) noexcept:
    cdef Draw d
    memset(&d, 0, sizeof(Draw))
    d.key, d.temperature = random_bits(mix_bits(seed), position), temperature
    d.lowest = logarithm(min_p) if min_p >= 2.0**-1022 else -INFINITY
    return d


cdef void set_candidates(Draw* d, const float* logits, Py_ssize_t n_ids, const int32_t* ids,
                         Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    d.logits, d.n_ids, d.ids, d.n, d.top = logits, n_ids, ids, n, -INFINITY
    for i in range(n):
        d.top = max(d.top, <double>logits[ids[i] if ids else i])


cdef Py_ssize_t draw_id(const Draw* d, double top_p, double rest, double error) noexcept nogil:
    """Draw from all candidates. If the winner is not among the most likely that reach top_p, draw
    again from those more likely than it, and so on: all that reach top_p are among them, and the
    noise of an id stays what it was. So the last winner is that of a draw from these alone."""
    cdef Py_ssize_t winner = race(d, -INFINITY, d.n_ids)
    cdef double total, more_likely
    if top_p >= 1:
        return winner
    total = weight_sum(d, -INFINITY, d.n_ids)
    while True:
        more_likely = weight_sum(d, d.logits[winner], winner)
        if more_likely == 0 or more_likely < top_p * total * (1 - error):
            return winner
        if more_likely < top_p * (total + rest) * (1 + error):
            return -1
        winner = race(d, d.logits[winner], winner)


cdef Py_ssize_t race(const Draw* d, double logit, Py_ssize_t before) noexcept nogil:
    """The id with the greatest logit / T + noise of all that come before (logit, id ``before``) in
    the order of likelihood; -1: there is none."""
    cdef double distance, v, key, best = -INFINITY
    cdef double hopeless = d.top - (MAX_NOISE - MIN_NOISE) * d.temperature
    cdef Py_ssize_t i, r, winner = -1
    for i in range(d.n):
        r = d.ids[i] if d.ids else i
        if d.logits[r] < hopeless or not is_before(d.logits[r], r, logit, before):
            continue
        distance = (d.logits[r] - d.top) / d.temperature
        if distance + MAX_NOISE <= best or distance < d.lowest:
            continue
        v = fraction(random_bits(d.key, r))
        if distance + noise_bounds(v)[0] + NOISE_ERROR < best:
            continue
        key = distance + gumbel(v)
        if key > best:
            best, winner = key, r
    return winner


cdef double weight_sum(const Draw* d, double logit, Py_ssize_t before) noexcept nogil:
    """The sum of e^((logit - top) / T) over the same ids as in race, and over those that can win no
    race as well.

    Weights are float32, added to eight sums in float64, always in the same order.
    """
    cdef float weights[SUM_CHUNK]
    cdef double sums[8]
    cdef double weightless = d.top - 88 * d.temperature
    cdef Py_ssize_t i, j, r, n = 0
    for j in range(8):
        sums[j] = 0
    for i in range(d.n):
        r = d.ids[i] if d.ids else i
        if d.logits[r] >= weightless and is_before(d.logits[r], r, logit, before):
            weights[n] = <float>((d.logits[r] - d.top) / d.temperature)
            n += 1
        if n == SUM_CHUNK or i == d.n - 1:
            kernels.exp(weights, weights, n)
            for j in range(n):
                sums[j & 7] += weights[j]
            n = 0
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


cdef inline bint is_before(double a, Py_ssize_t id, double b, Py_ssize_t other) noexcept nogil:
    """Whether (logit a, id) comes before (logit b, id other) in the order of likelihood."""
    return a > b or (a == b and id < other)


cdef double gumbel(double v) noexcept nogil:
    return -logarithm(two_artanh(v / (2 - v)) if v < 0.25 else -logarithm(1 - v))


cdef double logarithm(double x) noexcept nogil:
    """ln x for a normal x > 0, within 4 units in the last place."""
    cdef uint64_t bits
    cdef double m, exponent
    memcpy(&bits, &x, 8)
    exponent = <double>(<int64_t>(bits >> 52) - 1023)
    bits = (bits & <uint64_t>0x000FFFFFFFFFFFFF) | <uint64_t>0x3FF0000000000000
    memcpy(&m, &bits, 8)
    if m > 1.4142135623730951:
        m, exponent = m * 0.5, exponent + 1
    return exponent * 0.6931471805599453 + two_artanh((m - 1) / (m + 1))


cdef double two_artanh(double x) noexcept nogil:
    """2 artanh x = ln((1 + x) / (1 - x)) as its power series, |x| < 0.172."""
    cdef double square = x * x, sum = 1.0 / 21
    cdef int i
    for i in range(19, 0, -2):
        sum = sum * square + 1.0 / i
    return 2 * x * sum


cdef void fill_table() noexcept:
    cdef uint64_t bits
    cdef double v
    cdef int i
    for i in range(OCTAVES * OCTAVE_BINS):
        bits = <uint64_t>((970 << 5) + i) << 47
        memcpy(&v, &bits, 8)
        table[i] = <float>gumbel(v)
    table[OCTAVES * OCTAVE_BINS] = <float>MIN_NOISE


fill_table()
