# The mode in which a thread computes with floats, see float_mode.pyx.
from libc.stdint cimport uint64_t

cdef uint64_t swap_mode(uint64_t mode) noexcept nogil
cdef uint64_t swap_ieee_mode() noexcept nogil
