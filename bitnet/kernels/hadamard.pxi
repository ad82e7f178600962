# The fast Walsh-Hadamard transform in Sylvester's order.

cdef void hadamard(float* x, const float* before, const float* after, float scale, Py_ssize_t block,
                   Py_ssize_t n) noexcept nogil:
    """Each sum and difference is rounded where it stands: distances 1, 2, 4, ..., block / 2."""
    cdef Py_ssize_t i, j, m, h = 1
    cdef float a, b
    cdef float* p
    cdef f32x16 u, v
    for i in range(n if before is not NULL else 0):
        x[i] = x[i] * before[i]
    while h < min(<Py_ssize_t>LANES, block):
        for m in range(n // (2 * h)):
            p = x + 2 * h * m
            for j in range(h):
                a, b = p[j], p[j + h]
                p[j], p[j + h] = a + b, a - b
        h *= 2
    while h < block:
        for m in range(n // (2 * h)):
            p = x + 2 * h * m
            for j in range(0, h - LANES + 1, 16):
                u, v = f32_load(p + j), f32_load(p + j + h)
                f32_store(p + j, f32_add(u, v))
                f32_store(p + j + h, f32_sub(u, v))
        h *= 2
    for i in range(n):
        x[i] = x[i] * scale
    for i in range(n if after is not NULL else 0):
        x[i] = x[i] * after[i]
