"""SequenceState over a real KV cache and a part that cannot be trimmed: back, or a plain no."""

import numpy as np
import pytest
from support.caches import MIB, cache_of, feed
from support.recurrent_model import RunningHash

from bitnet.errors import ContextFull, PoolExhausted
from bitnet.models.sequence_state import KVCachePart, SequenceState
from bitnet.runtime.pool import Pool


def state_of(kinds, capacity=300, sinks=0, pool=None):
    cache = cache_of(pool or Pool(MIB), capacity, sinks=sinks)
    made = {"kv": lambda: KVCachePart(cache), "hash": RunningHash}
    return SequenceState({k: made[k]() for k in kinds}, capacity=capacity, dtype="f16")


def advance(state, n):
    """n tokens, whose numbers are their positions, as a forward pass would write them."""
    while n:
        step = state.reservable(n)
        start = state.length
        state.reserve(step)
        for part in state.parts.values():
            for token in range(start, start + step) if isinstance(part, RunningHash) else ():
                part.write(token)
        state.advance(step)
        n -= step


def hash_of(n):
    state = state_of(["hash"])
    advance(state, n)
    return state.parts["hash"].hashes[0]


@pytest.mark.parametrize("kinds", [["kv"], ["hash"], ["kv", "hash"], ["hash", "kv"]], ids="+".join)
def test_back_to_a_checkpoint(kinds):
    state = state_of(kinds)
    advance(state, 130)
    place = state.checkpoint()
    held = state.nbytes
    for n in (0, 1, 100):
        advance(state, n)
        state.reserve(50)
        assert state.rollback(place)
        assert (state.length, state.nbytes) == (130, held)
    if "hash" in kinds:
        assert state.parts["hash"].hashes[0] == hash_of(130)
        advance(state, 5)
        assert state.parts["hash"].hashes[0] == hash_of(135)


@pytest.mark.parametrize("kinds", [["hash"], ["kv", "hash"], ["hash", "kv"]], ids="+".join)
def test_one_part_that_cannot_be_trimmed_is_enough_for_a_no(kinds):
    state = state_of(kinds)
    advance(state, 140)
    assert not state.is_trimmable
    assert not state.trim(139) and not state.trim(1)
    assert state.length == 140
    if "kv" in kinds:
        assert state.parts["kv"].cache.length == 140
    assert state.trim(140) and state.length == 140
    for length in (-1, 141):
        with pytest.raises(ValueError, match=rf"length: {length} \(0 to 140, what is held\)"):
            state.trim(length)
    assert state.trim(0)
    assert state.length == 0
    advance(state, 7)
    assert state.parts["hash"].hashes[0] == hash_of(7)


def test_keys_and_values_go_back_to_any_token():
    state = state_of(["kv"])
    advance(state, 140)
    assert state.is_trimmable
    for length in (139, 128, 5, 0):
        assert state.trim(length) and state.length == length


@pytest.mark.parametrize("kinds", [["kv"], ["kv", "hash"]], ids="+".join)
def test_a_window_that_has_moved_is_a_no(kinds):
    state = state_of(kinds, capacity=300, sinks=4)
    advance(state, 300)
    place = state.checkpoint()
    advance(state, 1)
    assert (state.start, state.length) == (128, 301)
    assert not state.rollback(place) and not state.trim(100)
    assert state.trim(200) == (kinds == ["kv"])
    assert state.trim(0)
    assert (state.start, state.length) == (0, 0)


def test_a_fork_may_have_another_window():
    state = state_of(["kv", "hash"], sinks=4)
    advance(state, 100)
    same, none, other = state.fork(), state.fork(sinks=0), state.fork(sinks=7)
    assert [f.parts["kv"].cache.sinks for f in (same, none, other)] == [4, 0, 7]
    advance(same, 10)
    assert (state.length, same.length) == (100, 110)
    assert same.parts["hash"].hashes[0] == hash_of(110)
    assert none.parts["hash"].hashes[0] == hash_of(100)
    with pytest.raises(ContextFull):
        none.reserve(201)


def test_bytes():
    state = state_of(["kv", "hash"])
    assert state.nbytes_at(0) == 16 == state.nbytes
    advance(state, 129)
    assert state.nbytes == state.nbytes_at(129) == state.nbytes_at(200)
    assert state.full_nbytes == state.nbytes_at(300) == state.nbytes_at(10**6) > state.nbytes
    state.close()
    state.close()
    with pytest.raises(ValueError, match="closed"):
        state.reserve(1)


def test_nothing_is_lost_where_a_later_part_has_no_room():
    def take(shape, dtype):
        raise PoolExhausted(16, "hash", 0, 0, 0, {})

    cache = cache_of(Pool(MIB))
    parts = {"kv": KVCachePart(cache), "hash": RunningHash(take)}
    state = SequenceState(parts, capacity=300, dtype="f16")
    with pytest.raises(PoolExhausted):
        state.reserve(10)
    assert state.length == 0 and state.trim(0) and state.parts["kv"].nbytes == 0


@pytest.mark.parametrize("kinds", [["kv"], ["hash", "kv"]], ids="+".join)
@pytest.mark.parametrize("n", [1, 128, 129])
def test_export_and_import(kinds, n):
    state, other = state_of(kinds), state_of(kinds)
    feed(state.parts["kv"].cache, n)
    if "hash" in kinds:
        part = state.parts["hash"]
        part.reserve(n)
        part.write(3)
        part.advance(n)
    layout, tensors = state.layout(n), [data.copy() for data in state.export()]
    assert [t.n_bytes for t in layout] == [data.nbytes for data in tensors]
    assert len({t.name for t in layout}) == len(layout)
    other.reserve(n)
    other.import_(n, tensors)
    assert other.length == 0  # nothing counts before it is advanced over
    other.advance(n)
    assert other.length == n
    for a, b in zip(other.export(), tensors, strict=True):
        assert np.array_equal(a, b)
