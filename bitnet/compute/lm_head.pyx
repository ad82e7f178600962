"""The head of a language model: logits of all rows, or, by a screen, of those that can matter.

The screen is an int8 copy of the rows. It tells which few can be among the best, and those are
computed from the rows themselves: the result is that of the full head, bit for bit.

Let L be the k-th greatest lower bound. The k-th greatest logit is at least L, so each of the k
best, and each equal to the k-th, has an upper bound of at least L: all of them are computed.

Where several inputs share a pass, instructions limit it. So only the first rows are done with all
bits of the inputs. What they give for L is no more than what all rows do: the others are done
with coarse bounds, and again with all bits only where an upper one reaches that. The same rows
survive, for upper bounds of all bits are no greater.

A token drawn from all of them is the best one of logit / T + noise (gumbel.pyx): bounds of T
times the noise are added to those of the logits, and the rest is the same.

With top_p a draw depends on the sum of all weights e^(logit / T) too. Rows whose upper bounds
reach a threshold are computed and weigh M; by their upper bounds the others weigh at most R. If
logits from the threshold on, all of which are there, weigh top_p (M + R) or more, then none of
the others is among the most likely that reach top_p. If moreover the same id is drawn whether
the sum is M or M + R, it is the one drawn from all rows: a greater sum only makes the set of the
most likely larger, and an id that wins in a larger set and belongs to a smaller one wins there
too. Otherwise all rows are computed.
"""
from cython.parallel cimport prange
from libc.math cimport INFINITY, exp, fabs, sqrt
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from libc.string cimport memset

from .gumbel cimport (
    NOISE_ERROR, Draw, draw_id, fraction, new_draw, noise_bounds, random_bits, set_candidates,
    weight_sum,
)
from .operands cimport (
    CHUNK, SCREEN_MAX_BEST, SCREEN_MAX_TOKENS, Array, Batch, Matrix, QuantizedRows, Screen,
    is_streamed, open_array,
)
from .screen_bounds cimport InputBound, lower_of, radius, round_upper, screen_input
from .threads cimport threads_for
from ..kernels.table cimport CoarseInputs
from ..runtime.dispatch cimport kernels

cdef enum:
    # bins of the histogram of weights: each is lower by e^(1/8), the last one holds all below e^-64
    TAIL_BINS = 512
    # inputs that share a pass over a chunk with all bits (loops step by a literal 4)
    SCREEN_INPUTS = 4
    # inputs that share a pass with coarse bounds (loops step by a literal 8)
    COARSE_INPUTS = 8
    # rows between which bounds are computed; with 64 the memory would idle meanwhile
    SCREEN_ROWS = 4
    # chunks of 64 rows that are done with all bits first: they give the coarse bounds' threshold
    SAMPLE_CHUNKS = 32
    # best logits of a query with coarse bounds; with 40, too many rows reach the threshold
    MAX_COARSE_BEST = 4
    # bytes of a screen that is read past the caches; those of servers hold less
    MIN_STREAMED_SCREEN = 1 << 24

# The most that coarse bounds may leave out of an input, |t l|, in units of X / sqrt(n). Logits vary
# by N such units, and 0.4 to 0.8 are usual; beyond 2, most rows would be done a second time.
cdef float MAX_COARSE_REST = 2.0

# The logit of a row that was screened out: the smallest float32.
cdef float SCREENED = -3.4028234663852886e38
screened = float(SCREENED)

cdef struct Query:          # a lm_head_screen.LogitsQuery: which logits of a row are asked for
    Py_ssize_t n                        # the n best
    double margin                       # and those that are less than the n-th by this at most
    double noise                        # factor of the Gumbel noise: the temperature, or 0
    double top_p                        # 1: no sum of weights is needed
    Draw draw                           # key, temperature and lowest

cdef struct TailBound:      # what is known of a row's logits that are not computed
    double threshold                    # greater than each of them
    double greatest                     # the greatest upper bound of all logits
    double weight                       # bound of their sum of weights, greatest weighing 1

cdef struct ScreenPass:     # one pass over the screen's rows, for all inputs
    Py_ssize_t n_tokens
    Py_ssize_t n_sampled                # chunks that are done with all bits
    bint streaming                      # how rows are read: table.pxd
    InputBound bounds[SCREEN_MAX_TOKENS]
    Query queries[SCREEN_MAX_TOKENS]
    CoarseInputs coarse[4]              # SCREEN_MAX_TOKENS / COARSE_INPUTS; n is 0: all bits


# ----------------------------------------------------------------------------------- the full head
def head(Matrix out not None, QuantizedRows rows not None, Matrix x not None, Batch batch not None):
    """Logits: out[i] = rows x[i].

    out: (n_tokens or more, n_rows of rows). x: (n_tokens or more, n_cols of rows).
    """
    cdef Py_ssize_t c, n = batch.n_tokens
    cdef Py_ssize_t n_chunks = (rows.n_rows + CHUNK - 1) // CHUNK
    cdef int team = threads_for(batch.n_threads, rows.n_rows * rows.n_cols * n // 8)
    if n > min(out.n_rows, x.n_rows) or out.n_cols != rows.n_rows or x.n_cols != rows.n_cols:
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, rows {rows.n_rows} x {rows.n_cols}, "
                         f"x {x.n_rows} x {x.n_cols}, tokens {n}")
    if team == 1:
        for c in range(n_chunks):
            head_chunk(out, rows, x, 0, n, c)
        return
    for c in prange(n_chunks, nogil=True, schedule="guided", num_threads=team):
        head_chunk(out, rows, x, 0, n, c)


cdef void head_chunk(Matrix out, QuantizedRows rows, Matrix x, Py_ssize_t first_token,
                     Py_ssize_t n_tokens, Py_ssize_t chunk) noexcept nogil:
    """Four tokens at a time; where there are fewer, the last of them again."""
    cdef Py_ssize_t first = chunk * CHUNK
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, rows.n_rows - first)
    cdef Py_ssize_t t, begin, n
    cdef const uint8_t* data = rows.data + first * rows.row_bytes
    cdef float* outs[4]
    cdef const float* xs[4]
    for begin in range(first_token, first_token + n_tokens, 4):
        n = min(<Py_ssize_t>4, first_token + n_tokens - begin)
        for t in range(4):
            outs[t] = out.data + (begin + min(t, n - 1)) * out.n_cols + first
            xs[t] = x.data + (begin + min(t, n - 1)) * x.n_cols
        if n == 1:
            kernels.matvec_rows(outs[0], data, xs[0], rows.type, rows.row_bytes, n_rows,
                                rows.n_cols)
        else:
            kernels.matvec_rows_4(outs, data, xs, rows.type, rows.row_bytes, n_rows, rows.n_cols)


# -------------------------------------------------------------------------------------- the screen
def screen(Matrix out not None, QuantizedRows rows not None, Screen copy not None,
           Matrix x not None, Batch batch not None, list queries not None):
    """Logits out[i] of the rows that can be among the best, as head gives them; the others are
    ``screened``.

    out, x: as of head, n_tokens at most 32. queries: a lm_head_screen.LogitsQuery for each row of
    x. All logits are computed where more than a quarter of the rows could be among the best, where
    the input is not finite, and where a draw cannot be settled. Returns how many logits of each row
    of x are computed.
    """
    cdef Py_ssize_t c, t, n, n_tokens = batch.n_tokens
    cdef Py_ssize_t n_chunks = (rows.n_rows + CHUNK - 1) // CHUNK
    cdef int team = threads_for(batch.n_threads, rows.n_rows * rows.n_cols * n_tokens // 16)
    cdef InputBound coarse[SCREEN_MAX_TOKENS]
    cdef ScreenPass p
    if (n_tokens > min(out.n_rows, x.n_rows, SCREEN_MAX_TOKENS) or out.n_cols != rows.n_rows
            or x.n_cols != rows.n_cols or copy.n_rows != rows.n_rows or copy.n_cols != rows.n_cols
            or len(queries) != n_tokens):
        raise ValueError(f"out is {out.n_rows} x {out.n_cols}, rows {rows.n_rows} x {rows.n_cols}, "
                         f"x {x.n_rows} x {x.n_cols}, tokens {n_tokens}, queries {len(queries)}")
    memset(p.coarse, 0, sizeof(p.coarse))
    p.n_tokens, p.n_sampled = n_tokens, n_chunks
    p.streaming = is_streamed(copy.n_rows * copy.n_cols, MIN_STREAMED_SCREEN)
    for t in range(n_tokens):
        p.queries[t] = query_of(queries[t])
        screen_input(copy.inputs + t * 2 * copy.n_cols, &p.bounds[t], &coarse[t],
                     x.data + t * x.n_cols, x.n_cols)
    for t in range(0, n_tokens if n_tokens > 2 and n_chunks > SAMPLE_CHUNKS else 0, 8):
        if share_coarse(&p, coarse, t, x.n_cols):
            p.n_sampled = SAMPLE_CHUNKS
    screen_chunks(out, copy, &p, 0, p.n_sampled, team)
    if p.n_sampled < n_chunks:
        for t in range(n_tokens):
            p.coarse[t // 8].threshold[t % 8] = (
                lower_bound(out, copy, &p, t, p.n_sampled) - p.queries[t].margin)
        screen_chunks(out, copy, &p, p.n_sampled, n_chunks, team)
    counts = []
    for t in range(n_tokens):
        n = screen_row(out, rows, copy, x, &p, t, queries[t].ids, batch.n_threads)
        if n < 0:
            n = rows.n_rows
            for c in prange(n_chunks, nogil=True, schedule="guided",
                            num_threads=threads_for(batch.n_threads, n * rows.n_cols // 8)):
                head_chunk(out, rows, x, t, 1, c)
        counts.append(n)
    return counts


cdef Query query_of(logits_query) except *:
    """The C struct of a LogitsQuery, its draw and margin worked out."""
    cdef Query query
    memset(&query, 0, sizeof(Query))
    query.n, query.margin, query.top_p = logits_query.n, logits_query.margin, 1
    if logits_query.draw is not None:
        seed, position, temperature, query.top_p, min_p = logits_query.draw
        query.draw = new_draw(seed, position, temperature, min_p)
        if min_p:       # all ids as likely as that compete; distances are off by 1e-14 of them
            query.margin = query.draw.temperature * (1e-9 - (1 + 1e-9) * query.draw.lowest)
        elif query.top_p >= 1:
            query.noise = temperature
        if not (temperature > 0 and (query.n == 1 or query.noise)):
            raise ValueError(f"query: {logits_query}")
    if not (1 <= query.n <= SCREEN_MAX_BEST and query.margin >= 0):
        raise ValueError(f"query: {query.n} best, limit {SCREEN_MAX_BEST}, margin {query.margin}")
    return query


cdef bint share_coarse(ScreenPass* p, const InputBound* coarse, Py_ssize_t first,
                       Py_ssize_t n) noexcept:
    """Whether these inputs begin with coarse bounds: not where most rows would be done again."""
    cdef CoarseInputs* shared = &p.coarse[first // 8]
    cdef Py_ssize_t t, end = min(first + COARSE_INPUTS, p.n_tokens)
    for t in range(first, end):
        if (not kernels.screen_coarse or p.queries[t].n > MAX_COARSE_BEST
                or p.queries[t].top_p < 1
                or not coarse[t].rest * sqrt(<double>n) < MAX_COARSE_REST * coarse[t].norm):
            return False
    for t in range(first, end):
        shared.step[t % 8], shared.sum[t % 8] = coarse[t].step, <int32_t>coarse[t].sum
        shared.error[t % 8], shared.rest[t % 8] = coarse[t].error, coarse[t].rest
        shared.norm, shared.underflow = max(shared.norm, coarse[t].norm), coarse[t].underflow
        shared.has_noise |= p.queries[t].noise != 0
    shared.n = end - first
    return True


# --------------------------------------------------------------------------------- bounds of a pass
cdef int screen_chunks(Matrix out, Screen copy, const ScreenPass* p, Py_ssize_t first,
                       Py_ssize_t end, int team) except -1:
    cdef Py_ssize_t c
    if team == 1:
        for c in range(first, end):
            screen_chunk(out, copy, p, c)
        return 0
    for c in prange(first, end, nogil=True, schedule="guided", num_threads=team):
        screen_chunk(out, copy, p, c)
    return 0


cdef void screen_chunk(Matrix out, Screen copy, const ScreenPass* p,
                       Py_ssize_t chunk) noexcept nogil:
    """Upper bounds of a chunk's logits into out, and the greatest of their lower bounds."""
    cdef Py_ssize_t t, first, begin, end = min((chunk + 1) * CHUNK, copy.n_rows)
    for t in range(p.n_tokens):
        copy.best[t * copy.n_chunks + chunk] = -INFINITY
    for first in range(0, p.n_tokens, 4):
        if chunk < p.n_sampled or not p.coarse[first // 8].n:
            for begin in range(chunk * CHUNK, end, 4):
                screen_rows(out, copy, p, chunk, first,
                            min(<Py_ssize_t>SCREEN_INPUTS, p.n_tokens - first), begin,
                            min(<Py_ssize_t>SCREEN_ROWS, end - begin))
        elif first % 8 == 0:
            screen_chunk_coarse(out, copy, p, chunk, first)


cdef void screen_rows(Matrix out, Screen copy, const ScreenPass* p, Py_ssize_t chunk,
                      Py_ssize_t first, Py_ssize_t n, Py_ssize_t begin,
                      Py_ssize_t n_rows) noexcept nogil:
    """Up to four rows and n inputs, up to four, with all bits."""
    cdef Py_ssize_t t
    cdef int64_t dots[SCREEN_INPUTS * SCREEN_ROWS]
    cdef int64_t sums[SCREEN_INPUTS]
    cdef double* best
    for t in range(n):
        sums[t] = p.bounds[first + t].sum
    kernels.screen_dot(dots, SCREEN_ROWS, copy.codes + begin * copy.n_cols,
                       copy.inputs + first * 2 * copy.n_cols, 2 * copy.n_cols, sums, n, n_rows,
                       copy.n_cols, p.streaming)
    for t in range(n):
        best = copy.best + (first + t) * copy.n_chunks + chunk
        best[0] = max(best[0], upper_bounds(
            out.data + (first + t) * out.n_cols, copy, &p.bounds[first + t], &p.queries[first + t],
            dots + t * SCREEN_ROWS, begin, n_rows))


cdef void screen_chunk_coarse(Matrix out, Screen copy, const ScreenPass* p, Py_ssize_t chunk,
                              Py_ssize_t first) noexcept nogil:
    """The same with coarse bounds of some inputs, then with all bits of the rows whose coarse bound
    reaches the threshold.

    Those come after the loop, for a branch that is mispredicted costs more than a row.
    """
    cdef const CoarseInputs* coarse = &p.coarse[first // 8]
    cdef uint8_t reached[CHUNK]
    cdef double noise[SCREEN_ROWS * COARSE_INPUTS]
    cdef Py_ssize_t i, t, r, begin = chunk * CHUNK
    cdef Py_ssize_t n_rows = min(<Py_ssize_t>CHUNK, copy.n_rows - begin)
    cdef const int8_t* planes = <const int8_t*>(copy.inputs + first * 2 * copy.n_cols + copy.n_cols)
    memset(noise, 0, sizeof(noise))
    for i in range(0, n_rows, 4):
        for t in range(coarse.n if coarse.has_noise else 0):
            for r in range(4):
                noise[8 * r + t] = 0
                add_noise(&p.queries[first + t], begin + i + r, &noise[8 * r + t])
        kernels.screen_coarse(
            reached + i, copy.codes + (begin + i) * copy.n_cols, copy.bounds + 3 * (begin + i),
            planes, 4 * copy.n_cols, coarse, noise, min(<Py_ssize_t>SCREEN_ROWS, n_rows - i),
            copy.n_cols)
    for t in range(first, first + coarse.n):
        for i in range(n_rows):
            if reached[i] >> (t - first) & 1:
                screen_rows(out, copy, p, chunk, t, 1, begin + i, 1)
            else:
                out.data[t * out.n_cols + begin + i] = -INFINITY


cdef inline double upper_bounds(float* upper, Screen copy, const InputBound* b,
                                const Query* query, const int64_t* dots, Py_ssize_t begin,
                                Py_ssize_t n_rows) noexcept nogil:
    """Upper bounds of some rows' logits; the greatest of their lower bounds."""
    cdef const float* row
    cdef double around, exact, spread, best = -INFINITY
    cdef Py_ssize_t r
    for r in range(begin, begin + n_rows):
        row = copy.bounds + 3 * r
        around = radius(row, b)
        exact = row[0] * b.step * <double>dots[r - begin] + around
        spread = add_noise(query, r, &exact)
        upper[r] = round_upper(exact)
        best = max(best, lower_of(upper[r], around) - spread)
    return best


cdef inline double add_noise(const Query* query, Py_ssize_t r, double* upper) noexcept nogil:
    """Add the upper bound of row r's noise; returns the distance to its lower bound."""
    cdef const float* noise
    if not query.noise:
        return 0
    noise = noise_bounds(fraction(random_bits(query.draw.key, r)))
    upper[0] += query.noise * (noise[0] + NOISE_ERROR)
    return query.noise * (noise[0] - noise[1] + 2 * NOISE_ERROR)


cdef double lower_bound(Matrix out, Screen copy, const ScreenPass* p, Py_ssize_t token,
                        Py_ssize_t n_chunks) noexcept nogil:
    """The n-th greatest lower bound of the first chunks' logits, -inf where there are fewer."""
    cdef const Query* query = &p.queries[token]
    cdef const float* upper = out.data + token * out.n_cols
    cdef double heap[SCREEN_MAX_BEST]   # the n greatest, the lowest of them first
    cdef double value, unused = 0
    cdef Py_ssize_t c, r, i
    for i in range(query.n):
        heap[i] = -INFINITY
    for c in range(n_chunks):
        if copy.best[token * copy.n_chunks + c] <= heap[0]:
            continue
        for r in range(c * CHUNK, min((c + 1) * CHUNK, copy.n_rows)):
            value = lower_of(upper[r], radius(copy.bounds + 3 * r, &p.bounds[token]))
            value -= add_noise(query, r, &unused)
            if value > heap[0]:
                replace_first(heap, query.n, value)
    return heap[0]


cdef inline void replace_first(double* heap, Py_ssize_t n, double value) noexcept nogil:
    """Replace the lowest value of a heap of n, its first one."""
    cdef Py_ssize_t i = 0, child = 1
    while child < n:
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if value <= heap[child]:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = value


# ------------------------------------------------------------------------ logits of the survivors
cdef Py_ssize_t screen_row(Matrix out, QuantizedRows rows, Screen copy, Matrix x, ScreenPass* p,
                           Py_ssize_t token, ids, int n_threads) except? -2:
    """Put logits in the place of bounds; returns how many, -1 where all rows must be computed."""
    cdef float* logits = out.data + token * out.n_cols
    cdef double best = lower_bound(out, copy, p, token, copy.n_chunks)
    cdef Query* query = &p.queries[token]
    cdef TailBound tail
    cdef Py_ssize_t n
    tail.threshold = best - query.margin
    if query.top_p < 1:
        tail = tail_bound(logits, out.n_cols, query, best)
    n = select_survivors(logits, copy, tail.threshold, ids)
    if n >= 0:
        rescore(logits, rows, copy, x.data + token * x.n_cols, n, n_threads)
        if query.top_p < 1 and not is_settled(logits, copy, query, &tail, n):
            return -1
    return n


cdef TailBound tail_bound(const float* upper, Py_ssize_t n, const Query* query,
                          double best) noexcept nogil:
    """Which of the least likely rows need not be computed for top_p: their threshold and weight.

    Rows are left out from the lowest upper bound up while their weights, by those bounds, sum to no
    more than a quarter of the share that top_p leaves out. The whole is estimated: upper bounds
    exceed logits, by half the distance from best to the greatest one. is_settled proves the rest.

    best: the greatest lower bound; no row whose logit may be greater is left out.
    """
    cdef int32_t counts[TAIL_BINS]
    cdef double weights[TAIL_BINS]
    cdef double scale = 8 / query.draw.temperature, total = 0, share
    cdef Py_ssize_t r, i
    cdef TailBound tail
    tail.greatest, tail.weight = -INFINITY, 0
    for r in range(n):
        if upper[r] < INFINITY:
            tail.greatest = max(tail.greatest, <double>upper[r])
    memset(counts, 0, sizeof(counts))
    for r in range(n):
        if upper[r] < INFINITY:         # others are computed in any case
            counts[bin_of((tail.greatest - upper[r]) * scale)] += 1
    for i in range(TAIL_BINS):
        weights[i] = counts[i] * exp(-i / 8.0)
        total += weights[i]
    share = 0.25 * (1 - query.top_p) * exp((best - tail.greatest) * scale / 16)
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


cdef bint is_settled(const float* logits, Screen copy, Query* query, const TailBound* tail,
                     Py_ssize_t n) noexcept nogil:
    """Whether what is drawn from the survivors is what would be drawn from all rows.

    Sums in another order differ by less than 1e-9, float32 weights from what bins say by 1e-5.
    """
    cdef Draw d = query.draw
    cdef double rest
    set_candidates(&d, logits, copy.n_rows, copy.survivors, n)
    if not -INFINITY < d.top < INFINITY:
        return True
    rest = (1 + 1e-4) * tail.weight * exp((tail.greatest - d.top) / d.temperature)
    if weight_sum(&d, tail.threshold, d.n_ids) < (
            (1 + 1e-9) * query.top_p * (weight_sum(&d, -INFINITY, d.n_ids) + rest)):
        return False
    return draw_id(&d, query.top_p, rest, 1e-9) >= 0


cdef Py_ssize_t select_survivors(float* upper, Screen copy, double threshold, ids) except? -2:
    """The rows to compute, into copy.survivors: their number, -1 where there are too many.

    Those whose upper bounds reach the threshold, and those of ids, int32 (n,); the others become
    SCREENED.
    """
    cdef Array array = open_array(ids, c"i", 4, 1)
    cdef const int32_t* some = <const int32_t*>array.data
    cdef Py_ssize_t r, i, n = 0
    for i in range(array.view.shape[0]):
        if not 0 <= some[i] < copy.n_rows:
            raise ValueError(f"token id {some[i]} is not in 0..{copy.n_rows - 1}")
        upper[some[i]] = INFINITY
    for r in range(copy.n_rows):
        if not upper[r] >= threshold:
            upper[r] = SCREENED
        elif n == copy.max_survivors:
            return -1
        else:
            copy.survivors[n] = <int32_t>r
            n += 1
    return n


cdef int rescore(float* logits, QuantizedRows rows, Screen copy, const float* x, Py_ssize_t n,
                 int n_threads) except -1:
    """Logits of the survivors from the rows themselves."""
    cdef Py_ssize_t i
    cdef int team = threads_for(n_threads, n * rows.n_cols // 8)
    if team == 1:
        for i in range(n):
            rescore_row(logits, rows, x, copy.survivors[i])
        return 0
    for i in prange(n, nogil=True, schedule="static", num_threads=team):
        rescore_row(logits, rows, x, copy.survivors[i])
    return 0


cdef void rescore_row(float* logits, QuantizedRows rows, const float* x,
                      Py_ssize_t r) noexcept nogil:
    kernels.matvec_rows(logits + r, rows.data + r * rows.row_bytes, x, rows.type, rows.row_bytes, 1,
                        rows.n_cols)
