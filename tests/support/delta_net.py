"""Gated DeltaNet in NumPy float32, in the order in which the kernels add: equal to them bit for
bit; and the chunked form in float64, by which prompts are usually computed."""

import numpy as np

from bitnet.compute import ops

ONE, TWO = np.float32(1), np.float32(2)


def sigmoid(x):
    return ONE / (ONE + ops.exp(np.ascontiguousarray(-x).ravel()).reshape(x.shape))


def silu(x):
    return x / (ONE + ops.exp(np.ascontiguousarray(-x).ravel()).reshape(x.shape))


def conv(x, w, before):
    """x (n, channels), w (n_taps, channels), before (n_taps - 1, channels), oldest first."""
    rows, n_taps = np.concatenate([before, x]), len(w)
    total = w[0] * rows[: len(x)]
    for u in range(1, n_taps):
        total = total + w[u] * rows[u : u + len(x)]
    return silu(total), rows[len(rows) - (n_taps - 1) :]


def gates(alpha, beta, a, dt):
    x = alpha + dt
    y = ops.exp((-np.abs(x)).ravel()).reshape(x.shape)
    z = y / (TWO + y)
    p = np.full_like(z, np.float32(2.0 / 17))
    for i in range(8):
        p = p * (z * z) + TWO / np.float32(15 - 2 * i)
    softplus = np.maximum(np.float32(0), x) + z * p
    return ops.exp((a * softplus).ravel()).reshape(x.shape), sigmoid(beta)


def in_fours(products):
    """Sums over the first axis: four of every fourth one, then those."""
    sums = [np.zeros(products.shape[1:], np.float32) for _ in range(4)]
    for i, row in enumerate(products):
        sums[i % 4] = sums[i % 4] + row
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


def step(state, q, k, v, decay, rate):
    """One token of one head: state (key_dim, n), q, k (key_dim,), v (n,)."""
    read = in_fours(state * k[:, None]) * decay
    state = state * decay + k[:, None] * ((v - read) * rate)
    return in_fours(state * q[:, None]), state


def chunked(state, q, k, v, g, beta, size=64):
    """A whole prompt of one head in float64, a chunk at a time (Yang et al. 2024).

    q, k (n, key_dim), v (n, d), g the logarithms of decays, beta (n,)."""
    out = np.empty(v.shape)
    for t in range(0, len(v), size):
        part = slice(t, t + size)
        queries, keys, values, rates = q[part], k[part], v[part], beta[part, None]
        total = np.cumsum(g[part])
        n = len(total)
        decays = np.exp(np.minimum(total[:, None] - total, 0)) * np.tri(n)
        mixed = rates * keys @ keys.T * decays * np.tri(n, k=-1) + np.eye(n)
        right = np.concatenate([rates * values, rates * keys * np.exp(total)[:, None]], 1)
        solved = np.linalg.solve(mixed, right)
        changes = solved[:, : v.shape[1]] - solved[:, v.shape[1] :] @ state
        out[part] = (queries * np.exp(total)[:, None]) @ state + (
            (queries @ keys.T) * decays
        ) @ changes
        kept = keys * np.exp(total[-1] - total)[:, None]
        state = state * np.exp(total[-1]) + kept.T @ changes
    return out, state
