# A token out of softmax(logits / T): the one whose logit / T + g is greatest, g being Gumbel noise
# of each id's own (Gumbel 1954; Maddison, Tarlow and Minka 2014). Nothing depends on a sum over the
# vocabulary, so a screened head gives the token of the full one.
#
# An id's noise is g = -ln(-ln(1 - v)), v in (0, 1) being number id of a SplitMix64 (Steele, Lea and
# Flood 2014). It starts at number position of another, which starts where the seed says. Logarithms
# of our own are the same on every CPU and take 40 ns: bounds from a table tell who needs them.

cdef enum:
    OCTAVES = 53                        # of v, which is at least 2^-53
    BINS = 32                           # of an octave
    SUMMED = 128                        # weights at a time

cdef uint64_t GAMMA = 0x9E3779B97F4A7C15
cdef double MOST_NOISE = 36.8           # of v = 2^-53
cdef double LEAST_NOISE = -4            # less than that of v = 1 - 2^-53
cdef double BOUND_ERROR = 1e-5          # of the table's float32, and a thousand times that of a key
cdef float gumbel_bounds[53 * 32 + 1]   # of the least v of each bin, and LEAST_NOISE

cdef struct Draw:                       # of an id by the noise that belongs to a key
    uint64_t key
    double temperature
    double least                        # (logit - top) / temperature that may be drawn
    const float* logits
    double top                          # the greatest of them
    const int32_t* ids                  # of those that may be drawn; NULL: the first n
    Py_ssize_t n, n_ids                 # n_ids: of all logits


def sample(const float[::1] logits not None, uint64_t seed, Py_ssize_t position, double temperature,
           double top_p=1.0, double min_p=0.0, const int32_t[::1] ids=None):
    """The id that a seed draws from softmax(logits / temperature), of all or of distinct ids.

    top_p: of the most likely that together reach it, equal ones by id. min_p: and of those at least
    this fraction as likely as the most likely. ValueError where nothing can be drawn.
    """
    cdef Py_ssize_t i, n = logits.shape[0] if ids is None else ids.shape[0]
    if not (n and temperature > 0 and top_p > 0 and 0 <= min_p <= 1):
        raise ValueError(f"{n} ids, temperature {temperature}, top_p {top_p}, min_p {min_p}")
    for i in range(n if ids is not None else 0):
        if not 0 <= ids[i] < logits.shape[0]:
            raise ValueError(f"token id {ids[i]} is not in 0..{logits.shape[0] - 1}")
    cdef const int32_t* some = NULL
    if ids is not None:
        some = &ids[0]
    cdef Draw d = draw_of(seed, position, temperature, min_p)
    among(&d, &logits[0], logits.shape[0], some, n)
    if not -INFINITY < d.top < INFINITY:
        raise ValueError(f"the greatest logit is {d.top}")
    with nogil:     # other threads' turn: in a small model's step nothing else lets them in
        i = drawn(&d, top_p, 0, 0)
    return i


cdef Draw draw_of(uint64_t seed, uint64_t position, double temperature, double min_p) noexcept:
    cdef Draw d
    memset(&d, 0, sizeof(Draw))
    d.key, d.temperature = random_bits(mixed(seed), position), temperature
    d.least = logarithm(min_p) if min_p >= 2.0**-1022 else -INFINITY
    return d


cdef void among(Draw* d, const float* logits, Py_ssize_t n_ids, const int32_t* ids,
                Py_ssize_t n) noexcept nogil:
    """Set from which logits is drawn."""
    cdef Py_ssize_t i
    d.logits, d.n_ids, d.ids, d.n, d.top = logits, n_ids, ids, n, -INFINITY
    for i in range(n):
        d.top = max(d.top, <double>logits[ids[i] if ids else i])


cdef Py_ssize_t drawn(const Draw* d, double top_p, double rest, double error) noexcept nogil:
    """The id drawn; -1 if that depends on logits which are not there.

    Those weigh at most rest, the best of all 1; a sum of others is off by at most this part of it.
    Whoever wins against all, but is not among the most likely that reach top_p, is less likely than
    each of these: the next round is among those more likely than the last one's winner.
    """
    cdef Py_ssize_t winner = race(d, -INFINITY, d.n_ids)
    cdef double total, more_likely
    if top_p >= 1:
        return winner
    total = mass(d, -INFINITY, d.n_ids)
    while True:
        more_likely = mass(d, d.logits[winner], winner)
        if more_likely == 0 or more_likely < top_p * total * (1 - error):
            return winner
        if more_likely < top_p * (total + rest) * (1 + error):
            return -1
        winner = race(d, d.logits[winner], winner)


cdef Py_ssize_t race(const Draw* d, double logit, Py_ssize_t before) noexcept nogil:
    """The winner of those with a greater logit, or an equal one and an id before this; -1: none."""
    cdef double distance, v, key, best = -INFINITY
    cdef double hopeless = d.top - (MOST_NOISE - LEAST_NOISE) * d.temperature
    cdef Py_ssize_t i, r, winner = -1
    for i in range(d.n):
        r = d.ids[i] if d.ids else i
        if d.logits[r] < hopeless or not is_before(d.logits[r], r, logit, before):
            continue
        distance = (d.logits[r] - d.top) / d.temperature
        if distance + MOST_NOISE <= best or distance < d.least:
            continue
        v = fraction(random_bits(d.key, r))
        if distance + noise_bounds(v)[0] + BOUND_ERROR < best:
            continue
        key = distance + gumbel(v)
        if key > best:
            best, winner = key, r
    return winner


cdef double mass(const Draw* d, double logit, Py_ssize_t before) noexcept nogil:
    """The weights of those that race looks at and of those too unlikely for it, the best's being 1.

    float32, summed up in float64 as eight sums; always in the same order.
    """
    cdef float weights[SUMMED]
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
        if n == SUMMED or i == d.n - 1:
            kernels.exp(weights, weights, n)
            for j in range(n):
                sums[j & 7] += weights[j]
            n = 0
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


cdef inline bint is_before(double a, Py_ssize_t id, double b, Py_ssize_t other) noexcept nogil:
    """Whether a logit of an id comes before another's in the order of likelihood."""
    return a > b or (a == b and id < other)


cdef inline uint64_t mixed(uint64_t x) noexcept nogil:
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t random_bits(uint64_t start, uint64_t i) noexcept nogil:
    """Number i of the SplitMix64 that starts there."""
    return mixed(start + (i + 1) * GAMMA)


cdef inline double fraction(uint64_t bits) noexcept nogil:
    """v: in the middle of one of 2^52 equal parts of (0, 1)."""
    return (<double><int64_t>(bits >> 12) + 0.5) * 2.0**-52


cdef inline const float* noise_bounds(double v) noexcept nogil:
    """An upper bound of the noise and, behind it, a lower one, both within BOUND_ERROR."""
    cdef uint64_t bits
    memcpy(&bits, &v, 8)
    return &gumbel_bounds[(bits >> 47) - (970 << 5)]     # 970: 2^-53's exponent; 5 bits: BINS


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


cdef void fill_gumbel_bounds() noexcept:
    cdef uint64_t bits
    cdef double v
    cdef int i
    for i in range(OCTAVES * BINS):
        bits = <uint64_t>((970 << 5) + i) << 47
        memcpy(&v, &bits, 8)
        gumbel_bounds[i] = <float>gumbel(v)
    gumbel_bounds[OCTAVES * BINS] = <float>LEAST_NOISE


fill_gumbel_bounds()
