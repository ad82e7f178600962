# Bounds of the logits of a head's rows, by their int8 copy: see screen.h.

cdef extern from "screen.h" nogil:
    enum: HAS_COARSE                    # whether this instruction set gains by it
    enum: PLANE_BITS                    # bits of an input's low plane
    void coarse_dots(int32_t* sums, const int8_t* row, const int8_t* x, Py_ssize_t x_stride,
                     const int32_t* x_sums, Py_ssize_t n_inputs, Py_ssize_t n) noexcept
    uint8_t coarse_mask(const int32_t* sums, double scale, double error, double norm,
                        const double* step, const double* errors, const double* rests,
                        double underflow, const double* noise, const double* thresholds) noexcept
    void screen_dot(int64_t* out, Py_ssize_t out_stride, const int8_t* rows, const int16_t* x,
                    Py_ssize_t x_stride, const int64_t* x_sums, Py_ssize_t n_inputs,
                    Py_ssize_t n_rows, Py_ssize_t n, bint streaming) noexcept


cdef void screen_coarse(uint8_t* masks, const int8_t* rows, const float* bounds, const int8_t* x,
                        Py_ssize_t x_stride, const CoarseInputs* inputs, const double* noise,
                        Py_ssize_t n_rows, Py_ssize_t n) noexcept nogil:
    cdef double error, norm
    cdef int32_t sums[8]
    cdef Py_ssize_t r
    memset(sums, 0, sizeof(sums))
    for r in range(n_rows):
        coarse_dots(sums, rows + r * n, x, x_stride, inputs.sum, inputs.n, n)
        error, norm = bounds[3 * r + 1], bounds[3 * r + 2]
        masks[r] = coarse_mask(sums, bounds[3 * r], error, norm, inputs.step, inputs.error,
                               inputs.rest, inputs.underflow, noise + 8 * r, inputs.threshold)
        if not (error + norm) * inputs.norm < 1e38:     # it could overflow: no bounds
            masks[r] = 255
