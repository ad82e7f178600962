"""How floats are rounded, and whether denormals are zero: of each thread, as IEEE 754 has it while
the engine computes, so that the text does not depend on what the caller's program has chosen."""
import functools

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__x86_64__) || defined(_M_X64)
    #include <xmmintrin.h>
    #define BITNET_IEEE_MODE 0x1F80     /* to nearest, denormals count, no exception traps */
    static uint64_t bitnet_float_mode(void) { return _mm_getcsr(); }
    static void bitnet_set_float_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
    #elif defined(__aarch64__)
    #define BITNET_IEEE_MODE 0
    static uint64_t bitnet_float_mode(void) {
        uint64_t mode;
        __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
        return mode;
    }
    static void bitnet_set_float_mode(uint64_t mode) {
        __asm__ volatile("msr fpcr, %0" : : "r"(mode));
    }
    #else
    #include <fenv.h>
    #define BITNET_IEEE_MODE FE_TONEAREST
    static uint64_t bitnet_float_mode(void) { return (uint64_t)fegetround(); }
    static void bitnet_set_float_mode(uint64_t mode) { fesetround((int)mode); }
    #endif
    """
    const uint64_t BITNET_IEEE_MODE
    uint64_t bitnet_float_mode() noexcept nogil
    void bitnet_set_float_mode(uint64_t mode) noexcept nogil

IEEE = BITNET_IEEE_MODE                 # bits of MXCSR or FPCR


def swap(uint64_t mode):
    """Set this thread's mode, bits of MXCSR (x86-64) or FPCR (ARM64); what it was before."""
    return swap_mode(mode)


cdef class ieee_mode:
    """A context in which this thread computes as IEEE 754 has it; then its mode is as before."""
    cdef uint64_t before

    def __enter__(self):
        self.before = swap_ieee_mode()

    def __exit__(self, *error):
        swap_mode(self.before)


def in_ieee_mode(function):
    """The function, called in that context."""
    @functools.wraps(function)
    def called(*arguments, **keywords):
        with ieee_mode():
            return function(*arguments, **keywords)
    return called


cdef uint64_t swap_mode(uint64_t mode) noexcept nogil:
    cdef uint64_t before = bitnet_float_mode()
    bitnet_set_float_mode(mode)
    return before


cdef uint64_t swap_ieee_mode() noexcept nogil:
    return swap_mode(BITNET_IEEE_MODE)
