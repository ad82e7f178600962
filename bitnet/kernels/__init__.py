"""Serial leaf kernels, one extension module for each instruction set.

How dispatch works: kernels.pxi, with the files that it includes, is the one source of every kernel;
avx2.pyx, generic.pyx, ... are one line each that includes it, compiled with flags of their own
(setup.py). A module exports a capsule with a table of function pointers (table.pxd). The package's
runtime/dispatch asks runtime/cpu what this CPU can run, imports that one module (an unsupported one
is never loaded), runs the known-answer test of runtime/self_test, and keeps the table. BITNET_ISA
names another choice.

simd/ holds what differs between instruction sets, a header each, and says in simd/simd.h what such
a header defines; ternary.h, lookup.h, screen.h and weighted_sum.h are algorithms over that.
kv_page.h is what a page of the KV cache is, for the other rooms too.
"""
