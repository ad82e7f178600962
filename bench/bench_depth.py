"""How decode slows down with the context: tokens a second at depth 3968 beside depth 128.

The bound of the share that is kept: the bytes of weights a token reads, over those and the keys and
values at that depth. Caches are filled with random numbers: what they hold changes no time.
"""

import time

import numpy as np
import pytest

import bitnet
from bitnet.api.measure import bytes_per_token
from bitnet.models.lm_head_screen import LogitsQuery
from bitnet.runtime import cpu
from bitnet.runtime.kv_cache import PAGE

DEPTHS = (128, 3968)  # tokens before those decoded, for which a context of 4096 leaves room
N_DECODED = 4
THREADS = sorted({1, min(2, len(cpu.affinity())), cpu.threads()[0]})


def filled(transformer, dtype, depth):
    """The state of a sequence of ``depth`` tokens; keys and values of about unit size."""
    state, r = transformer.new_state(dtype=dtype), np.random.default_rng(0)
    cache = state.parts["kv"].cache
    n = 2 * cache.n_kv_heads * PAGE * cache.head_dim
    page = r.standard_normal(n).astype({"f32": np.float32}.get(dtype, np.float16))
    if dtype == "int8":
        codes, scales = r.integers(-127, 128, n).astype(np.int8), np.full(n // cache.head_dim, 0.01)
        page = np.concatenate([codes.view(np.uint8), scales.astype(np.float32).view(np.uint8)])
    for i in range(depth // PAGE):
        state.reserve(PAGE)
        for layer in range(cache.n_layers):
            cache.import_page(layer, i, page.view(np.uint8))
        state.advance(PAGE)
    return state


@pytest.fixture(params=THREADS, ids=lambda n: f"{n}t")
def n_threads(request):
    return request.param


@pytest.fixture(params=["f16", "int8"])
def model(synthetic_path, n_threads, request):
    with bitnet.load(synthetic_path, threads=n_threads, kv_dtype=request.param) as model:
        yield model


def test_decode_at_depth(model, timed, figures):
    transformer = model.scheduler.transformer
    shallow, deep = (filled(transformer, model.scheduler.kv_dtype, depth) for depth in DEPTHS)
    token = np.zeros(1, np.int32)

    def decode(cache):
        length = cache.length
        for _ in range(N_DECODED):
            transformer.forward(token, [(cache, 1)], queries=[LogitsQuery(1)])
        cache.trim(length)

    def reference():
        begin = time.perf_counter()
        decode(shallow)
        return time.perf_counter() - begin

    decode(shallow)  # the first pass also looks for damaged weights
    at_depth, at_once = timed(lambda: decode(deep), reference, rounds=7)
    used = bytes_per_token(model.weights)
    kv = [cache.nbytes for cache in (shallow, deep)]
    figures(
        tokens_s_128=N_DECODED / at_once,
        tokens_s_3968=N_DECODED / at_depth,
        kept=at_once / at_depth,
        bound=(used + kv[0]) / (used + kv[1]),
        kv_gb_s=(kv[1] - kv[0]) * N_DECODED / (at_depth - at_once) / 1e9,
    )
    shallow.close()
    deep.close()
