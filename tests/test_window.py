"""Attention sinks and a moving window (Xiao et al. 2023): the ring, the graph, generation."""

import pytest
from bitnet.cache import PAGE, ContextFull
from bitnet.memory import Pool
from test_cache import MIB, SET_BYTES, cache_of, check, feed


@pytest.mark.parametrize("capacity", [257, 384, 500])
def test_a_window_at_every_position(capacity):
    """It holds the sinks and at least the last capacity - 255 positions, in bounded memory."""
    pool = Pool(MIB)
    cache = cache_of(pool, capacity)
    cache.sinks = 4
    for position in range(10 * cache.n_pages * PAGE):
        feed(cache, 1, token=position)
        seen = cache.length - cache.start
        assert cache.start % PAGE == 0
        if position < capacity:
            assert cache.start == 0
        else:
            assert capacity - 255 <= seen <= capacity - 1
        for held in (0, 3, cache.start, (cache.start + position) // 2, position):
            if held <= position:
                check(cache, held, held)
        for gone in {cache.start - 1, position + 1} - {0, 1, 2, 3}:
            with pytest.raises(IndexError):
                cache.read(0, gone)
    assert pool.in_use == cache.n_pages * SET_BYTES == cache.nbytes == cache.full_nbytes


def test_a_window_needs_room_and_is_chosen_before_it_moves():
    cache = cache_of(Pool(MIB), 256)
    with pytest.raises(ValueError, match=r"capacity: 256 \(at least 257"):
        cache.sinks = 4
    cache = cache_of(Pool(MIB), 300)
    for bad in (-1, PAGE + 1):
        with pytest.raises(ValueError, match=f"sinks: {bad}"):
            cache.sinks = bad
    cache.sinks = 4
    feed(cache, 300)
    with pytest.raises(ContextFull):
        cache.reserve(cache.chunk(1000) + 1)  # they would not see the same window
    feed(cache, cache.chunk(1000), token=300)
    assert (cache.start, cache.length) == (128, 384)
    with pytest.raises(ValueError, match="first 128 positions are not held"):
        cache.sinks = 0
    fork = cache.fork()
    assert fork.sinks == 4
    cache.reset()
    assert cache.nbytes == 0
    check(fork, 3, 3)
    check(fork, 128, 128)
