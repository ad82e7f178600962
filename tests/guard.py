"""Memory that ends (or begins) at a page nobody may touch: one byte read too far is a crash."""

import ctypes
import mmap

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
