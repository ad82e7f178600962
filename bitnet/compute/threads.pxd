# How many threads an operation gets, and what it tells of their cores: see threads.pyx.
from libc.stdint cimport int64_t
from libc.time cimport time_t

cdef extern from "<time.h>" nogil:
    struct timespec:
        time_t tv_sec
        long tv_nsec
    enum: CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* now)

cdef enum:
    MAX_TIMED = 64                      # threads of a team that are timed; the others are not
    CACHE_LINE = 8                      # int64 in 64 bytes: threads that write to one line wait

cdef struct ThreadTimes:                # when the threads of one operation were done
    int64_t began                       # ns
    # MAX_TIMED * CACHE_LINE; in each thread's line: when its last item was done, in ns, and how
    # many items it has done
    int64_t[64 * 8] at

# Threads for work that takes one core about so many nanoseconds, out of n_threads: one where it is
# not worth more. threads_for takes off those that are withheld because their cores are taken.
cdef int granted_threads(int n_threads, Py_ssize_t work) noexcept nogil
cdef int threads_for(int n_threads, Py_ssize_t work) noexcept nogil

# To be called when a team has ended the operation that times were taken of.
cdef void end_operation(const ThreadTimes* times, int team) noexcept nogil


cdef inline int64_t nanoseconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline void begin_operation(ThreadTimes* times, int team) noexcept nogil:
    cdef int i
    times.began = nanoseconds()
    for i in range(min(team, <int>MAX_TIMED)):
        times.at[i * CACHE_LINE + 1] = 0


cdef inline void end_item(ThreadTimes* times, int thread) noexcept nogil:
    """To be called by each thread after each of its items."""
    if thread < MAX_TIMED:
        times.at[thread * CACHE_LINE] = nanoseconds()
        times.at[thread * CACHE_LINE + 1] += 1
