"""What "right" means: every operation in plain NumPy, float64 where it is float. Slow and short."""

import numpy as np


def pack_i2_s(q):
    """int8 (n_rows, n_cols) of -1, 0, 1 -> uint8 (n_rows, padded columns / 4), the pad code 1."""
    n_rows, n_cols = q.shape
    codes = np.ones((n_rows, -(-n_cols // 128) * 128), np.uint8)
    codes[:, :n_cols] = q + 1
    fields = codes.reshape(n_rows, -1, 4, 32)  # column 32 f + j of a block
    return (
        (fields << np.array([6, 4, 2, 0], np.uint8)[:, None])
        .sum(2, dtype=np.uint8)
        .reshape(n_rows, -1)
    )


def quantize(x):
    """(codes, 1 / scale) per row, in float32 as the definition has it."""
    largest = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5))
    scale = np.float32(127) / largest
    return np.clip(np.rint(x * scale), -128, 127).astype(np.int8), (np.float32(1) / scale)[:, 0]


def rms_norm(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def rope(x, positions, theta, interleaved=False):
    """x (n, heads, head_dim), rotated by angles rounded to float32."""
    half = x.shape[-1] // 2
    power = np.float64(theta) ** (np.arange(half, dtype=np.float32) / np.float32(half))
    frequency = np.float32(1) / power.astype(np.float32)
    angle = (np.asarray(positions, np.float32)[:, None] * frequency).astype(np.float64)
    c, s = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = np.stack([a * c - b * s, b * c + a * s], -1 if interleaved else -2)
    return turned.reshape(x.shape)


def attention(q, k, v):
    """q (heads, head_dim) of the last position; k, v (positions, kv_heads, head_dim); like q."""
    group = q.shape[0] // k.shape[1]
    out = np.empty(q.shape)
    for h in range(q.shape[0]):
        scores = k[:, h // group].astype(np.float64) @ q[h] / np.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        out[h] = weights @ v[:, h // group] / weights.sum()
    return out


def linear(x, q, scale):
    """Quantised x times ternary rows: exact integers, then the two scales."""
    codes, inv_scale = quantize(x)
    return codes.astype(np.int64) @ q.T.astype(np.int64) * (inv_scale[:, None] * np.float64(scale))


def forward(config, tensors, token_ids):
    """Logits (n, vocab), float64, of one sequence. tensors: {name: array}, linears (q, scale)."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    n, eps = len(token_ids), config.rms_norm_eps

    def bit_linear(x, name):
        return linear(x.astype(np.float32), *tensors[name])

    def act(g):
        return np.maximum(g, 0) ** 2 if config.hidden_act == "relu2" else silu(g)

    hidden = tensors["embed_tokens"][token_ids].astype(np.float64)
    for i in range(config.num_hidden_layers):
        p = f"layers.{i}."
        x = rms_norm(hidden, tensors[p + "input_layernorm"], eps)
        q, k, v = (bit_linear(x, f"{p}self_attn.{s}_proj").reshape(n, -1, dim) for s in "qkv")
        q, k = (rope(t, range(n), config.rope_theta, config.rope_interleaved) for t in (q, k))
        assert (q.shape[1], k.shape[1]) == (heads, kv_heads)
        o = np.stack([attention(q[t], k[: t + 1], v[: t + 1]) for t in range(n)]).reshape(n, -1)
        if config.sub_norms:
            o = rms_norm(o, tensors[p + "self_attn.attn_sub_norm"], eps)
        hidden = hidden + bit_linear(o, p + "self_attn.o_proj")
        x = rms_norm(hidden, tensors[p + "post_attention_layernorm"], eps)
        z = act(bit_linear(x, p + "mlp.gate_proj")) * bit_linear(x, p + "mlp.up_proj")
        if config.sub_norms:
            z = rms_norm(z, tensors[p + "mlp.ffn_sub_norm"], eps)
        hidden = hidden + bit_linear(z, p + "mlp.down_proj")
    head = tensors["embed_tokens" if config.tie_word_embeddings else "lm_head"]
    return rms_norm(hidden, tensors["norm"], eps) @ head.T.astype(np.float64)
