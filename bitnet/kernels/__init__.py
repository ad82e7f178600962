"""Serial leaf kernels, one extension module for each instruction set.

How dispatch works: kernels.pxi is the one source of every kernel; avx2.pyx, generic.pyx, ... are
one line each that includes it, compiled with their own flags (setup.py). A module exports a capsule
with a table of function pointers (table.pxd). dispatch.pyx asks cpu.pyx what this CPU can run,
imports that one module (an unsupported one is never loaded), runs a known-answer test, and keeps
the table. BITNET_ISA names another choice. simd.h holds what differs between instruction sets.
"""
