"""KV caches filled with numbers that tell their token, layer and place."""

import numpy as np

from bitnet.runtime.kv_cache import PAGE, KVCache

LAYERS, HEADS, DIM = 2, 2, 3
PAGE_BYTES = 2 * HEADS * PAGE * DIM * 2  # f16
SET_BYTES = LAYERS * PAGE_BYTES  # what PAGE positions take
MIB = 1 << 20


def cache_of(pool, capacity=300, **options):
    return KVCache(
        pool, n_layers=LAYERS, n_kv_heads=HEADS, head_dim=DIM, capacity=capacity, **options
    )


def keys_of(token, layer):
    """Integers that f16 holds exactly; no two tokens (mod 2039), layers or places have the same."""
    return (7 * token + 131 * np.arange(HEADS * DIM).reshape(HEADS, DIM) + 977 * layer) % 2039


def write(cache, position, token):
    for layer in range(LAYERS):
        keys = keys_of(token, layer)
        cache.write(layer, position, keys, -keys)


def feed(cache, n, token=0):
    """Reserve, write tokens token, token + 1, ..., advance."""
    cache.reserve(n)
    for i in range(n):
        write(cache, cache.length + i, token + i)
    cache.advance(n)


def check(cache, position, token):
    for layer in range(LAYERS):
        keys, values = cache.read(layer, position)
        assert keys.dtype == values.dtype == np.float32
        assert (keys == keys_of(token, layer)).all() and (values == -keys).all()
