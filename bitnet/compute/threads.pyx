"""How many threads an operation gets: those that were asked for, less where their cores are taken
or the system starts no more.

An idle thread spins until the next operation (openmp.py). While another process has its core, it
spins away the time slices that its work would need: all other threads wait until it has done its
share, or, having done that for it, until it has seen so. So the time is measured in which there was
a thread too many: how long the first thread that is done waits for the last, beyond what items of
work and OpenMP's barrier take anyway; or the whole of an operation in which a thread came too late
for any of many items. If that is more than 1 / t of the time of t threads, one less would have been
as fast or faster. One is withheld then, for longer and longer while nothing changes. Results are
the same for any number.

Where the system refuses to start a thread (a limit of processes or addresses, a stack that is too
large), libgomp ends the process. So before a team grows, as many threads of the same kind are
started and ended: if one is refused, the team stays smaller, and a warning says so.

Every operation writes its loop twice, plainly and as a prange: a parallel region takes most of a
microsecond even where its team is one thread, as long as an operation of a small model.
"""
import logging
import os

from libc.stdint cimport int64_t, uint64_t

from cython.parallel cimport prange

from ..runtime.float_mode cimport swap_ieee_mode, swap_mode

from ..runtime import cpu

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_create(pthread_t*, const pthread_attr_t*, void* (*run)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)
    int pthread_attr_init(pthread_attr_t*)
    int pthread_attr_destroy(pthread_attr_t*)
    int pthread_attr_setstacksize(pthread_attr_t*, size_t)
    int pthread_mutex_init(pthread_mutex_t*, const void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)

cdef extern from *:
    """
    #include <stdint.h>
    static __thread int team_size = 1, refused_size = 1 << 30;
    static __thread int64_t retry_at = 0;
    #ifdef _OPENMP
    #include <omp.h>
    #define BITNET_OPENMP 1
    #else
    #define BITNET_OPENMP 0
    #define omp_get_max_threads() 1
    #endif
    """
    int team_size                       # of this thread of Python: the threads libgomp keeps for it
    int refused_size                    # the smallest team that the system refused, until retry_at
    int64_t retry_at                    # ns
    bint BITNET_OPENMP
    int omp_get_max_threads() noexcept nogil

openmp = BITNET_OPENMP                  # False: built without it, everything runs on one thread

cdef enum:
    MIN_WORK = 20000                    # ns of one core; to wake a thread takes 16 to 50 us
    BARRIER = 20000                     # ns; longer than it takes sixteen threads to meet
    WINDOW = 20000000                   # ns of operations judged together; one alone is noise
    MIN_WITHHELD_NS = 50000000          # for how long a thread is withheld at first
    MAX_WITHHELD_NS = 1600000000        # at most; to try in vain costs half of WINDOW, 1 % of this
    MAX_STARTED = 1024                  # threads started at once to see whether the system does it
    RETRY = 1000000000                  # ns after which a refused team is tried again

log = logging.getLogger("bitnet")
cdef size_t stack_bytes = cpu.omp_stack_bytes() or 0    # of libgomp's threads; 0: the system's
cdef bint has_warned = False            # of a refused thread, in a step

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


cdef void* pass_gate(void* gate) noexcept nogil:
    pthread_mutex_lock(<pthread_mutex_t*>gate)
    pthread_mutex_unlock(<pthread_mutex_t*>gate)
    return NULL


cdef int start_threads(int n, int* error) noexcept nogil:
    """How many of n threads, of MAX_STARTED at most, the system starts at once; they end again.

    error: why it refused the next one, else 0.
    """
    cdef pthread_t[1024] threads        # MAX_STARTED
    cdef pthread_attr_t attributes
    cdef pthread_mutex_t gate
    cdef int i, n_started = 0
    error[0] = 0
    pthread_mutex_init(&gate, NULL)
    pthread_attr_init(&attributes)
    if stack_bytes:
        pthread_attr_setstacksize(&attributes, stack_bytes)     # too small: libgomp ignores it too
    pthread_mutex_lock(&gate)
    while n_started < min(n, <int>MAX_STARTED):
        error[0] = pthread_create(&threads[n_started], &attributes, pass_gate, &gate)
        if error[0]:
            break
        n_started += 1
    pthread_mutex_unlock(&gate)
    for i in range(n_started):
        pthread_join(threads[i], NULL)
    pthread_attr_destroy(&attributes)
    pthread_mutex_destroy(&gate)
    return n_started


cdef void use_ieee_mode(int n) noexcept nogil:
    """Let a team of n threads compute as IEEE 754 has it: somebody else may have made them."""
    cdef uint64_t before = swap_ieee_mode()
    cdef int _i
    for _i in prange(n, schedule="static", num_threads=n):
        swap_ieee_mode()
    swap_mode(before)


cdef int start_team(int n) noexcept nogil:
    """How many threads libgomp can have for a parallel region of n that is about to begin."""
    global team_size, refused_size, retry_at, has_warned
    cdef int error, asked = n
    if n <= 1:
        return n
    if n >= refused_size and nanoseconds() < retry_at:
        n = refused_size - 1
    if n > team_size:
        n = team_size + start_threads(n - team_size, &error)
        refused_size = 1 << 30
        if error:
            refused_size, retry_at = n + 1, nanoseconds() + <int64_t>RETRY
            if not has_warned:
                has_warned = True
                with gil:
                    warn_refused(asked, n, error)
        use_ieee_mode(n)
    if n > 1:
        team_size = n                   # threads of a larger team end when a smaller one begins
    return n


def warn_refused(asked, n, error):
    """Say that n threads are used in place of those asked for, and why. error: of the system."""
    log.warning("threads: %d instead of %d, as the system starts no more (%s): see `ulimit -u`, "
                "`ulimit -v`, the cgroup's pids.max and OMP_STACKSIZE",
                n, asked, os.strerror(error))


def startable_threads(int n):
    """How many of n threads, the calling one counted, a team could have now; a warning if less."""
    cdef int error, n_started
    if not BITNET_OPENMP or n <= 1:
        return n
    with nogil:
        n_started = 1 + start_threads(n - 1, &error)
    if n_started < n:
        warn_refused(n, n_started, error)
    return n_started


cdef int allowed_threads(int n_threads, Py_ssize_t work) noexcept nogil:
    cdef int n_allowed = omp_get_max_threads()
    if forked or work < MIN_WORK:
        return 1
    return min(n_threads, n_allowed) if n_allowed < n_offered else n_threads


def allowed(int n_threads):
    """How many of so many threads this thread of Python may use at the moment for a large work."""
    return allowed_threads(n_threads, MIN_WORK)


cdef int granted_threads(int n_threads, Py_ssize_t work) noexcept nogil:
    return start_team(allowed_threads(n_threads, work))


cdef int threads_for(int n_threads, Py_ssize_t work) noexcept nogil:
    return start_team(throttle.size_at(allowed_threads(n_threads, work),
                                       nanoseconds() if throttle.withheld else 0))


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
