"""Attention sinks and a moving window (Xiao et al. 2023): the ring, the graph, generation."""

import numpy as np
import pytest
from support.benches import TEXT, bench
from support.caches import MIB, SET_BYTES, cache_of, check, feed
from support.paths import TINY_MODEL

import bitnet
from bitnet.errors import ContextFull
from bitnet.generation.stopping import SINKS
from bitnet.runtime.kv_cache import PAGE
from bitnet.runtime.pool import Pool


@pytest.mark.parametrize("capacity", [257, 384, 500])
def test_a_window_at_every_position(capacity):
    """It holds the sinks and at least the last capacity - 255 positions, in bounded memory."""
    pool = Pool(MIB)
    cache = cache_of(pool, capacity, sinks=4)
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
    pool = Pool(MIB)
    with pytest.raises(ValueError, match=r"capacity: 256 \(at least 257"):
        cache_of(pool, 256, sinks=4)
    with pytest.raises(ValueError, match=r"capacity: 256 \(at least 257"):
        cache_of(pool, 256).fork(4)
    for bad in (-1, PAGE + 1):
        with pytest.raises(ValueError, match=f"sinks: {bad}"):
            cache_of(pool, 300, sinks=bad)
        with pytest.raises(ValueError, match=f"sinks: {bad}"):
            cache_of(pool, 300).fork(bad)
    cache = cache_of(pool, 300).fork(4)
    assert [fork.sinks for fork in (cache, cache.fork(), cache.fork(0))] == [4, 4, 0]
    feed(cache, 300)
    with pytest.raises(ContextFull):
        cache.reserve(cache.reservable(1000) + 1)  # they would not see the same window
    feed(cache, cache.reservable(1000), token=300)
    assert (cache.start, cache.length) == (128, 384)
    with pytest.raises(ValueError, match="first 128 positions are not held"):
        cache.fork(0)
    fork = cache.fork()
    assert fork.sinks == 4
    cache.reset()
    assert cache.nbytes == 0
    check(fork, 3, 3)
    check(fork, 128, 128)


# ------------------------------------------------------------------------------------- generation


@pytest.fixture(scope="module", params=["f16", "int8"])
def model(request):
    options = {"context": 300, "kv_dtype": request.param, "threads": 2, "slots": 2}
    with bitnet.load(TINY_MODEL, **options) as loaded:
        yield loaded


def endless(model):
    """Options with which no text ends."""
    never = dict.fromkeys({*model.config.eos_token_ids, *model.tokenizer.eos_ids}, -100)
    sampling = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 3}
    return {"context_end": "window", "logit_bias": never, **sampling}


def test_generation_goes_on_in_bounded_memory(model):
    stream = model.stream("In the beginning", max_tokens=3000, **endless(model))
    held = set()
    for _ in stream:
        in_use = model.pool_stats().by_purpose["kv"][0]
        held.add(in_use)
    completion = stream.completion
    assert (completion.finish_reason, completion.completion_tokens) == ("length", 3000)
    one_page = min(held - {0})  # 0: with the last piece the cache goes
    assert held - {0} == {one_page, 2 * one_page, 3 * one_page}


def test_text_does_not_depend_on_threads_batch_or_prefixes(model):
    options = {"max_tokens": 700, **endless(model)}
    prompts = ["In the beginning", "And it came to pass in those days, that there went out"]
    want = [model.generate(prompt, **options).text for prompt in prompts]
    assert [c.text for c in model.generate(prompts, **options)] == want
    options_of_it = {"context": 300, "kv_dtype": model.scheduler.kv_dtype, "threads": 1}
    with bitnet.load(TINY_MODEL, **options_of_it) as other:
        assert [other.generate(prompt, **options).text for prompt in prompts[::-1]] == want[::-1]


def test_how_a_text_is_cut_changes_no_bit(model):
    ids, found = model.tokenizer.encode(TEXT.read_text("utf-8"))[:1000], set()
    for sizes in ([1000], [1] * 1000, [7, 250, 43, 300, 1, 127, 272]):
        with model.session(context_end="window") as session:
            begin = 0
            for n in sizes:
                logits = session.feed(ids[begin : begin + n])
                begin += n
            found.add(logits.tobytes())
            assert session.token_ids == ids and session.length == 1000
            del logits
    assert len(found) == 1


def test_as_a_fresh_pass_over_what_it_sees(model):
    """Sinks and latest tokens read by themselves: what is left is what the latest ones had seen
    of those given up. On 68,211 tokens the script finds 4.9004 and 4.9012 bits a token, 96.5 % and
    0.0009 nats at 200 positions, 0.014 at most."""
    ids = model.tokenizer.encode(TEXT.read_text("utf-8"))
    found = bench("window_quality").compare(model, ids, n_positions=20)
    assert found["top1"] >= 0.9 and found["kl_mean"] < 0.01 and found["kl_max"] < 0.1
    assert found["windowed"] == pytest.approx(found["fresh"], rel=0.03)


def test_before_the_window_moves_nothing_is_different(model):
    options = {"max_tokens": 200, **endless(model)}
    texts = {
        model.generate("In the beginning", **{**options, "context_end": end}).text
        for end in ("window", "stop", "error")
    }
    assert len(texts) == 1


def test_what_a_moved_window_cannot_do(model, tmp_path):
    with model.session(context_end="window") as session:
        session.feed(range(300))
        session.trim(290)
        session.save(tmp_path / "s.gguf")
        session.feed(range(100))
        for refused in (lambda: session.trim(350), lambda: session.save(tmp_path / "t.gguf")):
            with pytest.raises(ValueError, match=r"first 256|before 256"):
                refused()
        assert not (tmp_path / "t.gguf").exists()
        with session.fork() as fork:
            a, b = session.decode(5).copy(), fork.decode(5)
            assert np.array_equal(a, b)
            del b
        session.restore(tmp_path / "s.gguf")
        assert session.length == 290 and session.capacity == 300
        session.feed(range(100))
        with pytest.raises(ValueError, match="outside the vocabulary"):
            session.feed([10**6])
        assert session.length == len(session.token_ids) == 390
    with model.session() as plain, pytest.raises(ContextFull):
        plain.feed(range(301))


def test_where_no_window_can_move():
    with bitnet.load(context=256, threads=1) as small:
        for ask in (
            lambda: small.generate("In", context_end="window"),
            lambda: small.session(context_end="window"),
        ):
            with pytest.raises(ValueError, match=r"capacity: 256 \(at least 257"):
                ask()
        with pytest.raises(ValueError, match=r"context_end: 'stop' \(error or window"):
            small.session(context_end="stop")
    assert SINKS == 4
