from ..kernels.table cimport Kernels

cdef const Kernels* kernels             # those in use; never NULL after import
