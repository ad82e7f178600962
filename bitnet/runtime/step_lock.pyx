"""The lock of what computes on one model: one thread at a time, in IEEE 754's mode.

It is compiled because signal handlers run between the instructions of Python's code, and may raise
there, as the one of Ctrl-C does: in Python's own context managers the lock can be taken, or not
given back, without anybody who knows.
"""
import threading
import traceback
from collections import deque

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint64_t

from .float_mode cimport swap_ieee_mode, swap_mode


cdef class StepLock:
    """A context: no other thread is inside meanwhile. RuntimeError, with the text of ``refusal``,
    for a thread that is inside already: a signal handler, a finalizer, a callback.

    An error that leaves it clears the frames it has passed, which hold arrays, but for that of the
    caller.
    """
    cdef object lock, deferred, refusal
    cdef unsigned long owner            # the thread inside, 0: none
    cdef uint64_t mode                  # of that thread before, see float_mode

    def __init__(self, str refusal):
        self.refusal, self.deferred = refusal, deque()
        self.lock = threading.RLock()   # deferred actions enter once more

    @property
    def is_inside(self):
        """Whether this thread is inside."""
        return self.owner == PyThread_get_thread_ident()

    def check(self):
        """RuntimeError where this thread is inside."""
        if self.is_inside:
            raise RuntimeError(self.refusal)

    def __enter__(self):
        self.check()
        self.lock.acquire()             # handlers run in here while it waits
        self.owner, self.mode = PyThread_get_thread_ident(), swap_ieee_mode()

    def __exit__(self, kind, error, trace):
        try:
            if trace is not None:
                traceback.clear_frames(trace)
        finally:
            swap_mode(self.mode)
            self.owner = 0
            try:
                self.run_deferred()
            finally:
                self.lock.release()
        self.catch_up()                 # what came between the two

    def defer(self, action):
        """Run an action, which must not raise, at once, or where a thread is inside, by that one as
        it leaves. The action is not inside."""
        self.deferred.append(action)
        self.catch_up()

    def after_fork(self):
        """In the child of a fork: False where another thread was inside, which is not there."""
        if self.lock.acquire(False):
            self.lock.release()
            return True
        self.lock, self.owner = threading.RLock(), 0
        self.deferred.clear()
        return False

    cdef run_deferred(self):
        while self.deferred:
            self.deferred.popleft()()

    cdef catch_up(self):
        while self.deferred and not self.is_inside and self.lock.acquire(False):
            try:
                self.run_deferred()
            finally:
                self.lock.release()
