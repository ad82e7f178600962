"""Memory that ends (or begins) at a page nobody may touch: one byte read too far is a crash; and
limits of time and memory for a piece of code."""

import contextlib
import ctypes
import mmap
import resource
import signal
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array, *, at_end=True):
    """A copy of ``array`` whose last byte (or first) lies against a PROT_NONE page."""
    n_pages = -(-max(array.nbytes, 1) // PAGE)
    region = mmap.mmap(-1, (n_pages + 2) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for page in (0, n_pages + 1):
        address = ctypes.c_void_p(base + page * PAGE)
        if _libc.mprotect(address, ctypes.c_size_t(PAGE), 0):  # PROT_NONE
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = (n_pages + 1) * PAGE - array.nbytes if at_end else PAGE
    copy = np.frombuffer(region, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


@contextlib.contextmanager
def limited(cpu_seconds, n_bytes):
    """A block that SIGPROF ends after so much CPU time, and in which malloc fails beyond n_bytes.

    What malloc has kept of freed memory is not counted: the limit is on new address space.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
