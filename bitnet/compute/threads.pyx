"""How many threads an operation gets: those that were asked for, less where their cores are taken.

An idle thread spins until the next operation (openmp.py). While another process has its core, it
spins away the time slices that its work would need: all other threads wait until it has done its
share, or, having done that for it, until it has seen so. So the time is measured in which there was
a thread too many: how long the first thread that is done waits for the last, beyond what items of
work and OpenMP's barrier take anyway; or the whole of an operation in which a thread came too late
for any of many items. If that is more than 1 / t of the time of t threads, one less would have been
as fast or faster. One is withheld then, for longer and longer while nothing changes. Results are
the same for any number.

Every operation writes its loop twice, plainly and as a prange: a parallel region takes most of a
microsecond even where its team is one thread, as long as an operation of a small model.
"""
import os

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    #define BITNET_OPENMP 1
    #else
    #define BITNET_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    """
    bint BITNET_OPENMP
    int omp_get_max_threads() noexcept nogil

openmp = BITNET_OPENMP                  # False: built without it, everything runs on one thread

cdef enum:
    MIN_WORK = 20000                    # ns of one core; to wake a thread takes 16 to 50 us
    BARRIER = 20000                     # ns; longer than it takes sixteen threads to meet
    WINDOW = 20000000                   # ns of operations judged together; one alone is noise
    MIN_WITHHELD_NS = 50000000          # for how long a thread is withheld at first
    MAX_WITHHELD_NS = 1600000000        # at most; to try in vain costs half of WINDOW, 1 % of this

cdef int forked = 0                     # 1 in the child of a fork
# OpenMP's threads at import; if it says fewer later, somebody limits us, as threadpoolctl does
cdef int n_offered = omp_get_max_threads()


def _after_fork():
    """libgomp's threads are gone in a forked child: its next region would wait for them forever."""
    global forked
    forked = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


cdef class ContentionThrottle:
    """How many threads are withheld, by what the last operations tell of the cores; times in ns.

    One serves all threads of Python: where two of them call it at once, one window may be lost.
    """
    cdef readonly int withheld          # threads
    cdef int64_t spent                  # time that the operations of this window took
    cdef int64_t waited                 # time of it in which there was a thread too many
    cdef int64_t pause                  # for how long the next thread is withheld
    cdef int64_t until                  # when one is given back

    def __init__(self):
        self.pause = MIN_WITHHELD_NS

    def size(self, int n_threads, int64_t now):
        """The size of a team out of n_threads."""
        return self.size_at(n_threads, now)

    def record(self, int64_t spent, int64_t waited, int team, int64_t now):
        """Count an operation of a team: its time, and how much of that with a thread too many."""
        self.add(spent, waited, team, now)

    cdef int size_at(self, int n_threads, int64_t now) noexcept nogil:
        if self.withheld and now >= self.until:
            self.withheld -= 1
            self.until += self.pause
            self.spent = self.waited = 0
        return max(1, n_threads - self.withheld)

    cdef void add(self, int64_t spent, int64_t waited, int team, int64_t now) noexcept nogil:
        self.spent += spent
        self.waited += max(waited, <int64_t>0)
        if self.spent < WINDOW:
            return
        if self.waited * team > self.spent:
            self.withheld += 1
            self.until = now + self.pause
            self.pause = min(2 * self.pause, <int64_t>MAX_WITHHELD_NS)
        elif not self.withheld:
            self.pause = max(self.pause // 2, <int64_t>MIN_WITHHELD_NS)
        self.spent = self.waited = 0


cdef ContentionThrottle throttle = ContentionThrottle()    # cores are taken from all models at once


cdef int granted_threads(int n_threads, Py_ssize_t work) noexcept nogil:
    cdef int n_allowed = omp_get_max_threads()
    if forked or work < MIN_WORK:
        return 1
    return min(n_threads, n_allowed) if n_allowed < n_offered else n_threads


cdef int threads_for(int n_threads, Py_ssize_t work) noexcept nogil:
    return throttle.size_at(granted_threads(n_threads, work),
                            nanoseconds() if throttle.withheld else 0)


cdef void end_operation(const ThreadTimes* times, int team) noexcept nogil:
    cdef int64_t now = nanoseconds(), first = now, n = 1, fewest = now, total = 0, waited
    cdef int i
    for i in range(min(team, <int>MAX_TIMED)):
        fewest = min(fewest, times.at[i * CACHE_LINE + 1])
        total += times.at[i * CACHE_LINE + 1]
        if times.at[i * CACHE_LINE + 1] and times.at[i * CACHE_LINE] < first:
            first, n = times.at[i * CACHE_LINE], times.at[i * CACHE_LINE + 1]
    waited = now - first - 2 * (first - times.began) // n - BARRIER
    if fewest == 0 and total >= 2 * team:
        waited = now - times.began
    throttle.add(now - times.began, waited, team, now)
