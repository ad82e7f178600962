"""simd/simd.h as Cython sees it: sixteen floats, conversions of one, prefetches."""
from libc.stdint cimport int8_t, uint16_t


cdef extern from "simd/simd.h" nogil:
    ctypedef struct f32x16:
        pass                            # opaque, whatever the register width
    f32x16 f32_zero() noexcept
    f32x16 f32_set1(float x) noexcept
    f32x16 f32_load(const float* p) noexcept
    f32x16 f32_load_f16(const uint16_t* p) noexcept
    f32x16 f32_load_bf16(const uint16_t* p) noexcept
    f32x16 f32_load_i8(const int8_t* p) noexcept
    void f32_store(float* p, f32x16 a) noexcept
    void f32_store_f16(uint16_t* p, f32x16 a) noexcept
    void f32_store_i8(int8_t* p, f32x16 a) noexcept
    f32x16 f32_add(f32x16 a, f32x16 b) noexcept
    f32x16 f32_mul(f32x16 a, f32x16 b) noexcept
    f32x16 f32_sub(f32x16 a, f32x16 b) noexcept
    f32x16 f32_div(f32x16 a, f32x16 b) noexcept
    f32x16 f32_max(f32x16 a, f32x16 b) noexcept
    f32x16 f32_zero_below(f32x16 a, f32x16 x, float limit) noexcept
    f32x16 f32_round_to_13_bits(f32x16 x) noexcept
    f32x16 f32_exp(f32x16 a) noexcept
    float f32_sum(f32x16 a) noexcept
    void prefetch_t1(const void* p) noexcept
    void prefetch_t0(const void* p) noexcept
    void prefetch_nta(const void* p) noexcept
    float f32_of_f16(uint16_t h) noexcept
    uint16_t f16_of_f32(float f) noexcept

    enum: PREFETCH_DISTANCE             # bytes
