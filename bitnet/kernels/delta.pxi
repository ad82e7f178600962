# Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): the convolution in front of it, its gates,
# and its recurrence, token by token.

cdef inline f32x16 sigmoid(f32x16 g) noexcept nogil:
    """1 / (1 + e^-g)"""
    cdef f32x16 one = f32_set1(1.0)
    return f32_div(one, f32_add(one, f32_exp(f32_sub(f32_zero(), g))))


cdef void sigmoid_gate(float* out, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    """out = sigmoid(gate) * up."""
    gated(out, gate, up, n, sigmoid)


cdef void conv_silu(float* out, const float* w, const float** x, Py_ssize_t n_taps,
                    Py_ssize_t n) noexcept nogil:
    cdef f32x16 sum
    cdef Py_ssize_t i, u
    for i in range(0, n - LANES + 1, 16):
        sum = f32_mul(f32_load(w + i), f32_load(x[0] + i))
        for u in range(1, n_taps):
            sum = f32_add(sum, f32_mul(f32_load(w + u * n + i), f32_load(x[u] + i)))
        f32_store(out + i, silu(sum))
    if n % LANES:
        i = n - n % LANES
        sum = f32_mul(load_some(w + i, n % LANES), load_some(x[0] + i, n % LANES))
        for u in range(1, n_taps):
            sum = f32_add(sum, f32_mul(load_some(w + u * n + i, n % LANES),
                                       load_some(x[u] + i, n % LANES)))
        store_some(out + i, silu(sum), n % LANES)


cdef inline f32x16 softplus(f32x16 x) noexcept nogil:
    """ln(1 + e^x) = max(x, 0) + ln(1 + y), y = e^-|x|; ln(1 + y) = 2 artanh(z), z = y / (2 + y)."""
    cdef f32x16 y = f32_exp(f32_sub(f32_zero(), f32_max(x, f32_sub(f32_zero(), x))))
    cdef f32x16 z = f32_div(y, f32_add(f32_set1(2.0), y)), zz = f32_mul(z, z)
    cdef f32x16 p = f32_set1(<float>(2.0 / 17))         # z^2 <= 1 / 9: the rest is below 2e-9
    cdef Py_ssize_t i
    for i in range(8):
        p = f32_add(f32_mul(p, zz), f32_set1(<float>2.0 / <float>(15 - 2 * i)))
    return f32_add(f32_max(f32_zero(), x), f32_mul(z, p))


cdef inline void gates_of(float* decays, float* rates, const float* alpha, const float* beta,
                          const float* a, const float* dt) noexcept nogil:
    """Those of 16 heads."""
    cdef f32x16 step = softplus(f32_add(f32_load(alpha), f32_load(dt)))
    f32_store(decays, f32_exp(f32_mul(f32_load(a), step)))
    f32_store(rates, sigmoid(f32_load(beta)))


cdef void delta_gates(float* decays, float* rates, const float* alpha, const float* beta,
                      const float* a, const float* dt, Py_ssize_t n) noexcept nogil:
    cdef float rest[6][LANES]
    cdef Py_ssize_t i
    for i in range(0, n - LANES + 1, 16):
        gates_of(decays + i, rates + i, alpha + i, beta + i, a + i, dt + i)
    if n % LANES:
        i = n - n % LANES
        memset(rest, 0, sizeof(rest))
        memcpy(rest[0], alpha + i, n % LANES * sizeof(float))
        memcpy(rest[1], beta + i, n % LANES * sizeof(float))
        memcpy(rest[2], a + i, n % LANES * sizeof(float))
        memcpy(rest[3], dt + i, n % LANES * sizeof(float))
        gates_of(rest[4], rest[5], rest[0], rest[1], rest[2], rest[3])
        memcpy(decays + i, rest[4], n % LANES * sizeof(float))
        memcpy(rates + i, rest[5], n % LANES * sizeof(float))


cdef void delta_rule(float* state, float* out, Py_ssize_t out_stride, const float* q,
                     const float* k, const float* v, Py_ssize_t stride, const float* decays,
                     const float* rates, Py_ssize_t gates_stride, Py_ssize_t n_tokens,
                     Py_ssize_t key_dim) noexcept nogil:
    """Of each token: S = S e^g; m = S^T k; S = S + k ((v - m) beta)^T; out = S^T q.

    Sums over rows are four, of every fourth row, so that additions do not wait for each other.
    """
    cdef f32x16 decay, change, s, sum0, sum1, sum2, sum3
    cdef Py_ssize_t t, i
    for t in range(n_tokens):
        decay = f32_set1(decays[0])
        sum0 = sum1 = sum2 = sum3 = f32_zero()
        for i in range(0, key_dim - 3, 4):
            sum0 = f32_add(sum0, f32_mul(f32_load(state + 16 * i), f32_set1(k[i])))
            sum1 = f32_add(sum1, f32_mul(f32_load(state + 16 * i + 16), f32_set1(k[i + 1])))
            sum2 = f32_add(sum2, f32_mul(f32_load(state + 16 * i + 32), f32_set1(k[i + 2])))
            sum3 = f32_add(sum3, f32_mul(f32_load(state + 16 * i + 48), f32_set1(k[i + 3])))
        sum0 = f32_mul(f32_add(f32_add(sum0, sum1), f32_add(sum2, sum3)), decay)
        change = f32_mul(f32_sub(f32_load(v), sum0), f32_set1(rates[0]))
        sum0 = sum1 = sum2 = sum3 = f32_zero()
        for i in range(0, key_dim - 3, 4):
            s = f32_add(f32_mul(f32_load(state + 16 * i), decay), f32_mul(f32_set1(k[i]), change))
            f32_store(state + 16 * i, s)
            sum0 = f32_add(sum0, f32_mul(s, f32_set1(q[i])))
            s = f32_add(f32_mul(f32_load(state + 16 * i + 16), decay),
                        f32_mul(f32_set1(k[i + 1]), change))
            f32_store(state + 16 * i + 16, s)
            sum1 = f32_add(sum1, f32_mul(s, f32_set1(q[i + 1])))
            s = f32_add(f32_mul(f32_load(state + 16 * i + 32), decay),
                        f32_mul(f32_set1(k[i + 2]), change))
            f32_store(state + 16 * i + 32, s)
            sum2 = f32_add(sum2, f32_mul(s, f32_set1(q[i + 2])))
            s = f32_add(f32_mul(f32_load(state + 16 * i + 48), decay),
                        f32_mul(f32_set1(k[i + 3]), change))
            f32_store(state + 16 * i + 48, s)
            sum3 = f32_add(sum3, f32_mul(s, f32_set1(q[i + 3])))
        f32_store(out, f32_add(f32_add(sum0, sum1), f32_add(sum2, sum3)))
        out += out_stride
        q += stride
        k += stride
        v += stride
        decays += gates_stride
        rates += gates_stride
