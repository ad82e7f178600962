"""The machine: CPU, kernels in use, mapped memory, the pool, the KV cache."""
