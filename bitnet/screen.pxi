# The screen of a head: an int8 copy of its rows tells which few can be among the best, and those
# are computed from the rows themselves. The result is that of the full head, bit for bit.
#
# A row w (float32, exact from F16, BF16 or F32) is s q + d, q its int8 codes: bounds hold the scale
# s, E >= |d| and N >= |s q| (Euclidean norms). The input x is t c + g, c its codes, X >= |x| and
# G >= |g|. By Cauchy-Schwarz
#     |w x - s t (q c)| = |s q g + d x| <= N G + E X,
# and q c is an exact integer. What the kernels compute for w x, 16 sums of m products and a tree,
# each product and addition rounded once (u = 2^-24), is off by at most
#     gamma |w| |x| <= gamma (N + E) X,   gamma = m' u / (1 - m' u),   m' = n / 16 + 24,
# (Higham 2002, lemma 3.1) and where numbers become subnormal or a CPU takes them for 0, by 2^-126
# a product and addition. Together:
#     |logit - estimate| <= E (1 + gamma) X + N (G + gamma X) + n 2^-124.
# Norms are rounded up, and E's and N's factors multiplied by 1 + 1e-6: gamma is at least 1.4e-6, so
# that is more than 1e-12 N X, and what float64 rounds in an estimate and its bounds 1e-15 of it.
# A row that is not finite has E = inf; where it, or (N + E) X >= 1e38, could make the kernels
# overflow, it has no bounds and is always computed: what is not finite in the full head is there.
#
# Let L be the k-th greatest lower bound. The k-th greatest logit is at least L, so each of the k
# best, and each equal to the k-th, has an upper bound of at least L: all of them are computed.
#
# A token drawn from all of them is the best one of logit / T + noise (gumbel.pxi): bounds of T
# times the noise are added to those of the logits, and the rest is the same.
#
# With top_p a draw depends on the sum of all weights e^(logit / T) too. Rows whose upper bounds
# reach a threshold are computed and weigh M; by their upper bounds the others weigh at most R. If
# logits from the threshold on, all of which are there, weigh top_p (M + R) or more, then none of
# the others is of the most likely that reach top_p. If moreover the same id is drawn whether the
# sum is M or M + R, it is that of all rows: with the sum the most likely that reach top_p only
# become more, and who wins among many and belongs to few wins among the few. Otherwise all rows
# are computed.

cdef enum:
    TAIL_BINS = 512                     # of weights: eighths of a power of e below the greatest
    SCREEN_INPUTS = 4                   # that share a pass over a chunk; as a step loops say 4
    SCREEN_ROWS = 4                     # then their bounds: after 64 the memory would have idled

cdef float SCREENED = -3.4028234663852886e38    # the least float32: what is not among the best
screened = float(SCREENED)

cdef struct Aim:            # which logits of a row are wanted: head.Wanted
    Py_ssize_t n
    double margin
    double noise                        # the temperature by which the noise counts, 0: not at all
    double top_p                        # 1: no sum is needed
    Draw draw                           # key, temperature and least

cdef struct Tail:           # of a row: the logits that are not computed
    double threshold                    # greater than each of them
    double greatest                     # of all upper bounds
    double weight                       # that they have at most, in units of e^(greatest / T)

cdef struct Bound:          # of one input: |logit - estimate| <= E error + N rest + least
    double step                         # t
    int64_t sum                         # of the codes
    double norm                         # X
    double error
    double rest
    double least


def screen(Matrix out not None, Rows rows not None, Screen copy not None, Matrix x not None,
           Batch batch not None, list wanted not None):
    """Logits out[i] of those that can be among the best, as head gives them; else ``screened``.

    wanted: a head.Wanted for each row of x. Where more than a quarter of the rows may be that, or
    the input is not finite, or a draw cannot be settled, all of them are there.
    Returns how many logits of each row are there.
    """
    cdef Py_ssize_t c, t, n, n_tokens = batch.n_tokens
    cdef Py_ssize_t n_chunks = (rows.n_rows + CHUNK - 1) // CHUNK
    cdef int team = threads_for(batch.n_threads, rows.n_rows * rows.n_cols * n_tokens // 16)
    cdef Bound bounds[SCREEN_TOKENS]
    cdef Aim aims[SCREEN_TOKENS]
    if (n_tokens > min(out.n_rows, x.n_rows, SCREEN_TOKENS) or out.n_cols != rows.n_rows
            or x.n_cols != rows.n_cols or copy.n_rows != rows.n_rows or copy.n_cols != rows.n_cols
            or len(wanted) != n_tokens):
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, rows {rows.n_rows} x {rows.n_cols}, "
                         f"x {x.n_rows} x {x.n_cols}, {n_tokens} wanted, {len(wanted)} said how")
    for t in range(n_tokens):
        aims[t] = aim_of(wanted[t])
        bounds[t] = screen_input(&copy.inputs[t, 0], x.data + t * x.n_cols, x.n_cols)
    if team == 1:
        for c in range(n_chunks):
            screen_chunk(out, copy, bounds, aims, n_tokens, c)
    else:
        for c in prange(n_chunks, nogil=True, schedule="guided", num_threads=team):
            screen_chunk(out, copy, bounds, aims, n_tokens, c)
    counts = []
    for t in range(n_tokens):
        n = screen_row(out, rows, copy, x, &bounds[t], &aims[t], t, wanted[t].ids, batch.n_threads)
        if n < 0:
            n = rows.n_rows
            for c in prange(n_chunks, nogil=True, schedule="guided",
                            num_threads=threads_for(batch.n_threads, n * rows.n_cols // 8)):
                head_chunk(out, rows, x, t, 1, c)
        counts.append(n)
    return counts


cdef Aim aim_of(wanted) except *:
    cdef Aim aim
    memset(&aim, 0, sizeof(Aim))
    aim.n, aim.margin, aim.top_p = wanted.n, wanted.margin, 1
    if wanted.draw is not None:
        seed, position, temperature, aim.top_p, min_p = wanted.draw
        aim.draw = draw_of(seed, position, temperature, min_p)
        if min_p:       # who is as likely as that competes; distances are off by 1e-14 of them
            aim.margin = aim.draw.temperature * (1e-9 - (1 + 1e-9) * aim.draw.least)
        elif aim.top_p >= 1:
            aim.noise = temperature
        if not (temperature > 0 and (aim.n == 1 or aim.noise)):
            raise ValueError(f"wanted: {wanted}")
    if not (1 <= aim.n <= SCREEN_BEST and aim.margin >= 0):
        raise ValueError(f"wanted: {aim.n} best, limit {SCREEN_BEST}, margin {aim.margin}")
    return aim


cdef Py_ssize_t screen_row(Matrix out, Rows rows, Screen copy, Matrix x, const Bound* b, Aim* aim,
                           Py_ssize_t token, const int32_t[::1] ids, int n_threads) except? -2:
    """Logits in the place of bounds: how many are there, -1 if those are not enough."""
    cdef float* logits = out.data + token * out.n_cols
    cdef double best = lower_bound(out, copy, b, aim, token)
    cdef Tail tail
    cdef Py_ssize_t n
    tail.threshold = best - aim.margin
    if aim.top_p < 1:
        tail = tail_of(logits, out.n_cols, aim, best)
    n = keep(out, copy, token, tail.threshold, ids)
    if n >= 0:
        rescore(out, rows, copy, x, token, n, n_threads)
        if aim.top_p < 1 and not is_settled(logits, copy, aim, &tail, n):
            return -1
    return n


cdef Tail tail_of(const float* upper, Py_ssize_t n, const Aim* aim, double best) noexcept nogil:
    """The least likely rows: a quarter of what top_p leaves out, if the others had lower weights
    than their upper bounds by what half of the distance from best to the greatest is worth.

    best: the greatest lower bound; a row whose logit may be greater is not among them.
    """
    cdef int32_t counts[TAIL_BINS]
    cdef double weights[TAIL_BINS]
    cdef double scale = 8 / aim.draw.temperature, total = 0, share
    cdef Py_ssize_t r, i
    cdef Tail tail
    tail.greatest, tail.weight = -INFINITY, 0
    for r in range(n):
        if upper[r] < INFINITY:
            tail.greatest = max(tail.greatest, <double>upper[r])
    memset(counts, 0, sizeof(counts))
    for r in range(n):
        if upper[r] < INFINITY:         # others are computed in any case
            counts[bin_of((tail.greatest - upper[r]) * scale)] += 1
    for i in range(TAIL_BINS):
        weights[i] = counts[i] * exp_of_double(-i / 8.0)
        total += weights[i]
    share = 0.25 * (1 - aim.top_p) * exp_of_double((best - tail.greatest) * scale / 16)
    i = TAIL_BINS - 1
    while i > bin_of((tail.greatest - best) * scale) and (
            tail.weight + weights[i] <= share * total):
        tail.weight += weights[i]
        i -= 1
    tail.threshold = -INFINITY          # the last bin has all that are further away
    if i < TAIL_BINS - 1:
        tail.threshold = tail.greatest - (i + 1) / scale
        tail.threshold -= 1e-12 * (fabs(tail.threshold) + fabs(tail.greatest))  # a bin's edge
    return tail


cdef inline Py_ssize_t bin_of(double distance) noexcept nogil:
    return <Py_ssize_t>distance if distance < TAIL_BINS else TAIL_BINS - 1


cdef bint is_settled(const float* logits, Screen copy, Aim* aim, const Tail* tail,
                     Py_ssize_t n) noexcept nogil:
    """Whether what is drawn from the survivors is what would be drawn from all rows.

    Sums in another order differ by less than 1e-9, float32 weights from what bins say by 1e-5.
    """
    cdef Draw d = aim.draw
    cdef double rest
    among(&d, logits, copy.n_rows, &copy.survivors[0], n)
    if not -INFINITY < d.top < INFINITY:
        return True
    rest = (1 + 1e-4) * tail.weight * exp_of_double((tail.greatest - d.top) / d.temperature)
    if mass(&d, tail.threshold, d.n_ids) < (
            (1 + 1e-9) * aim.top_p * (mass(&d, -INFINITY, d.n_ids) + rest)):
        return False
    return drawn(&d, aim.top_p, rest, 1e-9) >= 0


cdef Bound screen_input(int16_t* codes, const float* x, Py_ssize_t n) noexcept nogil:
    """Codes of an input, their planes behind them, and its bounds; norm is inf or NaN if x is."""
    cdef int8_t* high = <int8_t*>(codes + n)
    cdef double step, residual, squares = 0, residuals = 0, gamma = (n // 16 + 24) * 2.0**-24
    cdef float largest = 0
    cdef Py_ssize_t j
    cdef Bound b
    for j in range(n):
        squares += <double>x[j] * x[j]
        largest = max(largest, <float>fabs(x[j]))
    step = largest / 16256.0            # 127 * 128
    if not squares < 1e60 or largest < 2.0**-100:
        step = 0
    b.sum = 0
    for j in range(n):
        residual = x[j] / step if step else 0.0
        codes[j] = <int16_t>(residual + (0.5 if residual >= 0 else -0.5))
        b.sum += codes[j]
        residual = x[j] - step * codes[j]
        residuals += residual * residual
        high[j] = <int8_t>((codes[j] + 64) >> 7)
        high[n + j] = <int8_t>(codes[j] - 128 * high[j])
    gamma = gamma / (1 - gamma)
    b.step, b.norm = step, sqrt(squares) * (1 + 1e-6)
    residual = sqrt(residuals) * (1 + 1e-6)
    b.error = b.norm * (1 + gamma) * (1 + 1e-6)
    b.rest = (residual + gamma * b.norm) * (1 + 1e-6)
    b.least = n * 2.0**-124
    return b


cdef inline double radius(const float* row, const Bound* b) noexcept nogil:
    """How far a logit may be from its estimate; inf where it could overflow."""
    if not (<double>row[1] + row[2]) * b.norm < 1e38:           # NaN and inf too
        return INFINITY
    return row[1] * b.error + row[2] * b.rest + b.least


cdef inline double lower_of(float upper, double around) noexcept nogil:
    """The lower bound that belongs to an upper one as screen_chunk rounds it."""
    if not around < INFINITY:
        return -INFINITY
    return upper - 2 * around - 2.0**-22 * fabs(upper) - 2.0**-125


cdef inline double spread_of(const Aim* aim, Py_ssize_t r, double* upper) noexcept nogil:
    """Add the noise's upper bound; how far it may be below."""
    cdef const float* noise
    if not aim.noise:
        return 0
    noise = noise_bounds(fraction(random_bits(aim.draw.key, r)))
    upper[0] += aim.noise * (noise[0] + BOUND_ERROR)
    return aim.noise * (noise[0] - noise[1] + 2 * BOUND_ERROR)


cdef void screen_chunk(Matrix out, Screen copy, const Bound* bounds, const Aim* aims,
                       Py_ssize_t n_tokens, Py_ssize_t chunk) noexcept nogil:
    """Upper bounds of a chunk's logits into out, and the greatest of their lower bounds."""
    cdef Py_ssize_t t, first, n, begin, n_rows, end = min((chunk + 1) * CHUNK, copy.n_rows)
    cdef int64_t dots[SCREEN_INPUTS * SCREEN_ROWS]
    cdef int64_t sums[SCREEN_INPUTS]
    cdef double best
    cdef bint once = is_read_once(copy.n_rows * copy.n_cols, ONCE_SCREEN)
    for first in range(0, n_tokens, 4):
        n = min(<Py_ssize_t>SCREEN_INPUTS, n_tokens - first)
        for t in range(n):
            sums[t] = bounds[first + t].sum
            copy.best[first + t, chunk] = -INFINITY
        for begin in range(chunk * CHUNK, end, 4):
            n_rows = min(<Py_ssize_t>SCREEN_ROWS, end - begin)
            kernels.screen_dot(dots, SCREEN_ROWS, &copy.codes[begin, 0], &copy.inputs[first, 0],
                               copy.inputs.shape[1], sums, n, n_rows, copy.n_cols, once)
            for t in range(n):
                best = screen_bounds(out.data + (first + t) * out.n_cols, copy, &bounds[first + t],
                                     &aims[first + t], dots + t * SCREEN_ROWS, begin, n_rows)
                copy.best[first + t, chunk] = max(copy.best[first + t, chunk], best)


cdef inline double screen_bounds(float* upper, Screen copy, const Bound* b, const Aim* aim,
                                 const int64_t* dots, Py_ssize_t begin,
                                 Py_ssize_t n_rows) noexcept nogil:
    """Upper bounds of some rows' logits; the greatest of their lower bounds."""
    cdef const float* row
    cdef double around, exact, spread, best = -INFINITY
    cdef Py_ssize_t r
    for r in range(begin, begin + n_rows):
        row = &copy.bounds[r, 0]
        around = radius(row, b)
        exact = row[0] * b.step * <double>dots[r - begin] + around
        spread = spread_of(aim, r, &exact)
        upper[r] = <float>(exact + 2.0**-23 * fabs(exact) + 2.0**-126)      # rounds by half that
        best = max(best, lower_of(upper[r], around) - spread)
    return best


cdef double lower_bound(Matrix out, Screen copy, const Bound* b, const Aim* aim,
                        Py_ssize_t token) noexcept nogil:
    """The n-th greatest lower bound of a row's logits, -inf where there are fewer."""
    cdef double heap[SCREEN_BEST]       # the least of the n greatest comes first
    cdef double value, unused = 0
    cdef Py_ssize_t c, r, i
    for i in range(aim.n):
        heap[i] = -INFINITY
    for c in range(copy.best.shape[1]):
        if copy.best[token, c] <= heap[0]:
            continue
        for r in range(c * CHUNK, min((c + 1) * CHUNK, copy.n_rows)):
            value = lower_of(out.data[token * out.n_cols + r],
                             radius(&copy.bounds[r, 0], b)) - spread_of(aim, r, &unused)
            if value > heap[0]:
                sift(heap, aim.n, value)
    return heap[0]


cdef inline void sift(double* heap, Py_ssize_t n, double value) noexcept nogil:
    """Put a value in the place of the least of a heap."""
    cdef Py_ssize_t i = 0, child = 1
    while child < n:
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if value <= heap[child]:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = value


cdef Py_ssize_t keep(Matrix out, Screen copy, Py_ssize_t token, double threshold,
                     const int32_t[::1] ids) except? -2:
    """The rows to compute, into copy.survivors: their number, -1 where there are too many.

    Those whose upper bounds reach the threshold, and those of ids; the others become SCREENED.
    """
    cdef Py_ssize_t r, i, n = 0, most = copy.survivors.shape[0]
    cdef float* upper = out.data + token * out.n_cols
    for i in range(ids.shape[0]):
        if not 0 <= ids[i] < copy.n_rows:
            raise ValueError(f"token id {ids[i]} is not in 0..{copy.n_rows - 1}")
        upper[ids[i]] = INFINITY
    for r in range(copy.n_rows):
        if not upper[r] >= threshold:
            upper[r] = SCREENED
        elif n == most:
            return -1
        else:
            copy.survivors[n] = <int32_t>r
            n += 1
    return n


cdef int rescore(Matrix out, Rows rows, Screen copy, Matrix x, Py_ssize_t token, Py_ssize_t n,
                 int n_threads) except -1:
    """Logits of the survivors from the rows themselves."""
    cdef Py_ssize_t i, r
    cdef int team = threads_for(n_threads, n * rows.n_cols // 8)
    if team == 1:
        for i in range(n):
            rescore_row(out, rows, x, token, copy.survivors[i])
        return 0
    for i in prange(n, nogil=True, schedule="static", num_threads=team):
        rescore_row(out, rows, x, token, copy.survivors[i])
    return 0


cdef void rescore_row(Matrix out, Rows rows, Matrix x, Py_ssize_t token,
                      Py_ssize_t r) noexcept nogil:
    kernels.rows_dot(out.data + token * out.n_cols + r, &rows.data[r, 0],
                     x.data + token * x.n_cols, rows.type, rows.data.shape[1], 1, rows.n_cols)


def derive_screen(int8_t[:, ::1] codes not None, float[:, ::1] bounds not None, Rows rows not None,
                  Py_ssize_t first=0, int n_threads=1):
    """Codes and bounds of the rows from ``first`` on, as many as codes has: what a Screen takes."""
    cdef Py_ssize_t r, n = codes.shape[0]
    cdef int team = threads_for(n_threads, n * rows.n_cols)
    if (first < 0 or n > rows.n_rows - first or codes.shape[1] != rows.n_cols
            or rows.n_cols > SCREEN_COLS or (bounds.shape[0], bounds.shape[1]) != (n, 3)):
        raise ValueError(f"codes are {n} x {codes.shape[1]}, bounds {bounds.shape[0]} x "
                         f"{bounds.shape[1]}, rows {rows.n_rows} x {rows.n_cols} from {first}")
    for r in prange(n, nogil=True, schedule="static", num_threads=team):
        derive_row(&codes[r, 0], &bounds[r, 0], rows, first + r)


cdef void derive_row(int8_t* codes, float* bounds, Rows rows, Py_ssize_t row) noexcept nogil:
    """Loops of one thing each, which compilers make vectors of."""
    cdef float w[SCREEN_COLS]
    cdef float q[SCREEN_COLS]
    cdef const int32_t* bits = <const int32_t*>w
    cdef int32_t magnitude, most = 0
    cdef float scale, factor, largest
    cdef double difference
    cdef double residuals[4]
    cdef float middle = 12582912.0      # 1.5 * 2^23: added and taken away, it rounds to integers
    cdef int64_t squares = 0
    cdef Py_ssize_t i, j, n = rows.n_cols
    kernels.decode_row(w, &rows.data[row, 0], rows.type, n)
    for j in range(n):                  # as integers: NaN is largest
        magnitude = bits[j] & 0x7FFFFFFF
        most = magnitude if magnitude > most else most
    memcpy(&largest, &most, 4)
    memset(codes, 0, n)
    memset(bounds, 0, 3 * sizeof(float))
    if most >= 0x7F800000:              # not finite: all of it is rounding error
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
