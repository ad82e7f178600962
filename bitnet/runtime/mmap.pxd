# What of mmap.pyx other modules of this folder are compiled with.

cpdef enum:
    HUGE_PAGE = 2 << 20             # bytes; x86-64's middle size, and arm64's with pages of 4 KiB
