from ..kernels.table cimport Kernels

cdef const Kernels* kernels             # of the instruction set in use; never NULL after import
