# How many threads an operation gets: those that were asked for, less where their cores are taken.
#
# An idle thread waits for the next operation in a loop (waiting.py). While another process has its
# core, the loop's turns are those that its work needs, and all others wait for it, or do its work
# and wait until it has seen that. So it is measured for how long there was a thread too many: how
# long the first that is done waits for the last, beyond what items of work and OpenMP's barrier
# take anyway; or all of an operation in which one came too late for any of many items. Of t
# threads, one less would have been as fast or faster if that is more than 1 / t of the time: then
# one is left out, for longer and longer while nothing changes. Results are the same for any number.

from libc.time cimport time_t

cdef extern from "<time.h>" nogil:
    struct timespec:
        time_t tv_sec
        long tv_nsec
    enum: CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec* now)

cdef enum:
    MOST_WATCHED = 64                   # threads of a team
    CACHE_LINE = 8                      # in int64
    BARRIER = 20000                     # ns: more than it takes sixteen threads to meet
    WINDOW = 20000000                   # ns of operations that are judged together
    SHORTEST = 50000000                 # ns for which a thread is left out at first
    LONGEST = 1600000000                # a window in vain costs about half of it: 1 % of this


# Of a team's threads, each in a cache line: when its last item was done, in ns, and how many were.
cdef struct Arrivals:
    int64_t began
    int64_t[64 * 8] at


cdef inline int64_t nanoseconds() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline void begin(Arrivals* arrivals, int team) noexcept nogil:
    cdef int i
    arrivals.began = nanoseconds()
    for i in range(min(team, <int>MOST_WATCHED)):
        arrivals.at[i * CACHE_LINE + 1] = 0


cdef inline void arrive(Arrivals* arrivals, int thread) noexcept nogil:
    """To be called by each thread after each of its items."""
    if thread < MOST_WATCHED:
        arrivals.at[thread * CACHE_LINE] = nanoseconds()
        arrivals.at[thread * CACHE_LINE + 1] += 1


cdef class Team:
    """What the last operations tell of the cores; times are in ns. One for all threads of Python:
    where two of them call it at once, one window may be lost."""
    cdef readonly int left_out          # threads
    cdef int64_t spent, waited          # in this window: by operations, with a thread too many
    cdef int64_t pause, until           # for how long a thread is left out, and until when

    def __init__(self):
        self.pause = SHORTEST

    def size(self, int n_threads, int64_t now):
        """Of a team out of n_threads."""
        return self.size_at(n_threads, now)

    def record(self, int64_t spent, int64_t waited, int team, int64_t now):
        """An operation of a team took so long, for so long of it with a thread too many."""
        self.add(spent, waited, team, now)

    cdef int size_at(self, int n_threads, int64_t now) noexcept nogil:
        if self.left_out and now >= self.until:
            self.left_out -= 1
            self.until += self.pause
            self.spent = self.waited = 0
        return max(1, n_threads - self.left_out)

    cdef void add(self, int64_t spent, int64_t waited, int team, int64_t now) noexcept nogil:
        self.spent += spent
        self.waited += max(waited, <int64_t>0)
        if self.spent < WINDOW:
            return
        if self.waited * team > self.spent:
            self.left_out += 1
            self.until = now + self.pause
            self.pause = min(2 * self.pause, <int64_t>LONGEST)
        elif not self.left_out:
            self.pause = max(self.pause // 2, <int64_t>SHORTEST)
        self.spent = self.waited = 0

    cdef void end(self, const Arrivals* arrivals, int team) noexcept nogil:
        """The operation that began there is over."""
        cdef int64_t now = nanoseconds(), first = now, n = 1, least = now, total = 0, waited
        cdef int i
        for i in range(min(team, <int>MOST_WATCHED)):
            least = min(least, arrivals.at[i * CACHE_LINE + 1])
            total += arrivals.at[i * CACHE_LINE + 1]
            if arrivals.at[i * CACHE_LINE + 1] and arrivals.at[i * CACHE_LINE] < first:
                first, n = arrivals.at[i * CACHE_LINE], arrivals.at[i * CACHE_LINE + 1]
        waited = now - first - 2 * (first - arrivals.began) // n - BARRIER
        if least == 0 and total >= 2 * team:
            waited = now - arrivals.began
        self.add(now - arrivals.began, waited, team, now)


cdef Team crowd = Team()                # of the process: cores are taken from all of its models
