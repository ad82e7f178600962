"""The KV ring: against dicts of tokens and pages, at every wrap, forked, trimmed and closed."""

import copy
import ctypes
import gc
import mmap
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.caches import (
    DIM,
    HEADS,
    LAYERS,
    MIB,
    PAGE_BYTES,
    SET_BYTES,
    cache_of,
    check,
    feed,
    write,
)

from bitnet.errors import ContextFull, PoolExhausted
from bitnet.runtime.kv_cache import PAGE, KVCache
from bitnet.runtime.pool import Pool


def refusal(kind, function, *args):
    """The exception that a call ends in; unlike pytest.raises it leaves no frame alive."""
    try:
        function(*args)
    except kind as error:
        return error.with_traceback(None)
    raise AssertionError(f"no {kind.__name__}")


class Model:
    """What a KVCache is, with nothing shared but the objects that stand for pages."""

    def __init__(self, capacity, sinks):
        self.capacity, self.sinks = capacity, sinks
        self.n_pages = -(-capacity // PAGE)
        self.start = self.length = self.reserved = 0
        self.tokens = {}  # {position: token}
        self.pages = {}  # {page number: object}

    def room(self):
        """How many positions may be reserved: those that see the same window."""
        if not self.sinks or self.length < self.capacity:
            return self.capacity - self.length
        return PAGE - self.length % PAGE

    def held(self):
        """Positions that may be read."""
        sinks = range(min(self.sinks, self.start))
        return [*sinks, *range(self.start, self.length)]

    def after_reserve(self, n, others):
        """A Model as it is after reserve(n); `others` are those that may share its pages."""
        new = self.fork()
        new.reserved = max(self.reserved, self.length + n)
        if new.reserved == self.reserved:
            return new
        end = -(-new.reserved // PAGE)
        for number in range(self.length // PAGE, end):
            # the page itself, or the one whose place in the ring it takes
            given_up = number - self.n_pages + 1
            old = new.pages.get(number) or (new.pages.pop(given_up, None) if given_up > 0 else None)
            shared = any(old in other.pages.values() for other in others)
            new.pages[number] = object() if old is None or shared else old
        if new.reserved > self.capacity:
            new.start = max(self.start, PAGE * (end - self.n_pages + 1))
        held = set(new.held())
        new.tokens = {p: token for p, token in self.tokens.items() if p in held}
        return new

    def trim(self, length):
        self.length = self.reserved = length
        self.tokens = {p: token for p, token in self.tokens.items() if p < length}
        self.pages = {page: o for page, o in self.pages.items() if page * PAGE < length}

    def fork(self):
        twin = copy.copy(self)
        twin.tokens, twin.pages = dict(self.tokens), dict(self.pages)
        return twin


picks = st.integers(0, 1 << 20)  # of a list, modulo its length
counts = st.one_of(st.integers(0, 200), st.sampled_from([1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE]))


class CacheMachine(RuleBasedStateMachine):
    """Caches of one pool, forked, trimmed and closed in any order, do what their Models do."""

    @initialize(
        n_sets=st.integers(2, 12),
        sinks=st.sampled_from([0, 0, 1, 4, 128]),
        capacity=st.sampled_from([1, 100, 128, 129, 256, 257, 300, 384, 600]),
    )
    def make(self, n_sets, sinks, capacity):
        self.pool = Pool(-(-n_sets * SET_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE)
        self.n_sets = self.pool.limit // SET_BYTES
        self.token = 0
        self.pairs = []
        self.capacity, self.sinks = capacity, sinks if capacity > 2 * PAGE else 0
        self.start()

    def sets_in_use(self):
        return len({id(page) for _, model in self.pairs for page in model.pages.values()})

    @rule()
    def start(self):
        cache = cache_of(self.pool, self.capacity, sinks=self.sinks)
        self.pairs.append((cache, Model(self.capacity, self.sinks)))

    @precondition(lambda self: self.pairs)
    @rule(pick=picks, n=counts, n_used=counts)
    def reserve_and_advance(self, pick, n, n_used):
        pick %= len(self.pairs)
        cache, model = self.pairs[pick]
        others = [other for _, other in self.pairs if other is not model]
        if self.sinks:
            assert cache.reservable(n) == min(n, model.room())
        if n > model.room():
            error = refusal(ContextFull, cache.reserve, n)
            assert (error.length, error.requested) == (model.length, n)
            assert error.capacity == self.capacity
            return
        new = model.after_reserve(n, others)
        taken = set(new.pages.values()) - set(model.pages.values())
        if self.sets_in_use() + len(taken) > self.n_sets:
            refusal(PoolExhausted, cache.reserve, n)
            return
        cache.reserve(n)
        n_used = min(n, n_used)
        for i in range(n_used):
            self.token += 1
            write(cache, new.length + i, self.token)
            new.tokens[new.length + i] = self.token
        cache.advance(n_used)
        new.length += n_used
        self.pairs[pick] = cache, new

    @precondition(lambda self: self.pairs)
    @rule(pick=picks, length=st.integers(-1, 700))
    def trim(self, pick, length):
        cache, model = self.pairs[pick % len(self.pairs)]
        if length > model.length + 50:  # mostly lengths that are held
            length = model.start + length % (model.length - model.start + 1)
        if model.start <= length <= model.length:
            cache.trim(length)
            model.trim(length)
        else:
            refusal(ValueError, cache.trim, length)

    @precondition(lambda self: 0 < len(self.pairs) < 6)
    @rule(pick=picks)
    def fork(self, pick):
        cache, model = self.pairs[pick % len(self.pairs)]
        before = self.pool.in_use
        twin = cache.fork()
        assert self.pool.in_use <= before
        model.trim(model.length)
        self.pairs.append((twin, model.fork()))

    @precondition(lambda self: self.pairs)
    @rule(pick=picks)
    def reset(self, pick):
        pick %= len(self.pairs)
        self.pairs[pick][0].reset()
        self.pairs[pick] = self.pairs[pick][0], Model(self.capacity, self.sinks)

    @precondition(lambda self: self.pairs)
    @rule(pick=picks, explicitly=st.booleans())
    def close(self, pick, explicitly):
        cache, _ = self.pairs.pop(pick % len(self.pairs))
        if explicitly:
            cache.close()
            assert cache.nbytes == 0
            refusal(ValueError, cache.reserve, 1)

    @invariant()
    def pages_are_counted_once(self):
        for cache, model in self.pairs:
            assert (cache.start, cache.length) == (model.start, model.length)
            assert cache.nbytes == len(model.pages) * SET_BYTES
        assert self.pool.in_use == self.sets_in_use() * SET_BYTES

    @invariant()
    def contents_are_kept(self):
        for cache, model in self.pairs:
            held = model.held()
            assert sorted(model.tokens) == held
            for position in {*held[:1], *held[-1:], *held[::97], *held[PAGE - 1 :: PAGE]}:
                check(cache, position, model.tokens[position])

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        while self.pairs:
            cache, model = self.pairs.pop()
            for position, token in model.tokens.items():
                check(cache, position, token)
        cache = None  # its last reference
        assert self.pool.in_use == 0


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_a_fork_at_every_position_copies_only_the_partly_filled_page():
    pool = Pool(MIB)
    cache = cache_of(pool, 300)
    for length in range(2 * PAGE + 1):
        fork = cache.fork()
        n_full, n_partly = length // PAGE, length % PAGE > 0
        assert pool.in_use == (n_full + n_partly) * SET_BYTES
        feed(fork, 1, token=777)
        assert pool.in_use == (n_full + n_partly + 1) * SET_BYTES
        feed(cache, 1, token=length)
        check(fork, length, 777)
        check(cache, length, length)
        if length:
            check(fork, length - 1, length - 1)
        fork.close()
        assert pool.in_use == (n_full + 1) * SET_BYTES


def test_the_last_holder_of_a_page_writes_in_place():
    pool = Pool(MIB)
    cache = cache_of(pool)
    feed(cache, 10)
    fork = cache.fork()
    del cache
    feed(fork, 5, token=10)
    assert pool.peak == SET_BYTES
    for position in range(15):
        check(fork, position, position)


def test_trimming_into_a_shared_page():
    pool = Pool(MIB)
    cache = cache_of(pool)
    feed(cache, 290)
    fork = cache.fork()
    fork.trim(200)
    assert (pool.in_use, fork.nbytes) == (3 * SET_BYTES, 2 * SET_BYTES)
    feed(fork, 20, token=500)
    assert pool.in_use == 4 * SET_BYTES
    for position in range(290):
        check(cache, position, position)
    for position in range(220):
        check(fork, position, position if position < 200 else 300 + position)


def test_reserving_is_all_or_nothing():
    pool = Pool(5 * SET_BYTES // 2)  # the third set finds pages for one layer of two
    cache = cache_of(pool, 1000)
    feed(cache, 100)
    with pytest.raises(PoolExhausted) as caught:
        cache.reserve(250)
    assert caught.value.purpose == "kv" and caught.value.requested == PAGE_BYTES
    assert (cache.length, cache.nbytes, pool.in_use) == (100, SET_BYTES, SET_BYTES)
    with pytest.raises(ValueError, match="reserved"):
        cache.advance(1)
    fork = cache.fork()
    with pytest.raises(PoolExhausted):
        fork.reserve(100)  # one set to copy, one new
    assert fork.nbytes == SET_BYTES and pool.in_use == SET_BYTES
    feed(fork, 28, token=100)
    check(cache, 99, 99)
    check(fork, 127, 127)


def test_context_full_changes_nothing():
    pool = Pool(MIB)
    cache = cache_of(pool, 200)
    feed(cache, 150)
    with pytest.raises(ContextFull) as caught:
        cache.reserve(51)
    error = caught.value
    assert (error.length, error.requested, error.capacity) == (150, 51, 200)
    assert str(error) == "no room for 51 more positions after 150: the capacity is 200"
    twin = copy.copy(error)  # by way of __reduce__, as pickle does
    assert type(twin) is ContextFull and vars(twin) == vars(error)
    assert (cache.start, cache.length) == (0, 150)
    feed(cache, 50, token=150)
    for position in range(200):
        check(cache, position, position)


def test_reserved_pages_are_given_back_by_trim_and_fork():
    pool = Pool(MIB)
    cache = cache_of(pool, 600)
    feed(cache, 100)
    cache.reserve(400)
    assert cache.nbytes == 4 * SET_BYTES
    cache.trim(100)
    assert cache.nbytes == SET_BYTES
    cache.reserve(400)
    fork = cache.fork()
    assert cache.nbytes == fork.nbytes == pool.in_use == SET_BYTES
    for one in (cache, fork):
        with pytest.raises(ValueError, match="reserved"):
            one.advance(1)


def test_reserving_less_keeps_what_is_reserved():
    cache = cache_of(Pool(MIB), 600)
    cache.reserve(300)
    cache.reserve(10)
    cache.advance(300)
    assert cache.length == 300
    cache.reserve(0)
    with pytest.raises(ValueError, match="n: 1"):
        cache.advance(1)


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("f16", np.float16), ("f32", np.float32)])
def test_pages_are_laid_out_as_the_kernels_read_them(dtype, numpy_dtype):
    pool = Pool(MIB)
    cache = cache_of(pool, dtype=dtype)
    assert cache.dtype == dtype
    cache.reserve(PAGE)  # the pool's first arena starts with its pages
    rng = np.random.default_rng(0)
    written = rng.normal(size=(LAYERS, 2, PAGE, HEADS, DIM)).astype(np.float32)
    for layer in range(LAYERS):
        for position in range(PAGE):
            cache.write(layer, position, *written[layer, :, position])
    ((address, _),) = pool.arenas()
    page_bytes = cache.nbytes // LAYERS
    assert page_bytes == 2 * HEADS * PAGE * DIM * np.dtype(numpy_dtype).itemsize
    for layer in range(LAYERS):
        page = (ctypes.c_char * page_bytes).from_address(address + layer * page_bytes)
        keys, values = np.frombuffer(page, numpy_dtype).reshape(2, -1)
        expected_keys, expected_values = written[layer].astype(numpy_dtype)
        blocks = expected_keys.transpose(1, 2, 0).reshape(HEADS, DIM, -1, 16).swapaxes(1, 2)
        assert (keys.reshape(blocks.shape) == blocks).all()  # 16 positions side by side
        assert (values.reshape(HEADS, PAGE, DIM) == expected_values.transpose(1, 0, 2)).all()
        read = cache.read(layer, 77)
        assert (np.array(read) == written[layer, :, 77].astype(numpy_dtype)).all()


@pytest.mark.parametrize("name", ["n_layers", "n_kv_heads", "head_dim", "capacity"])
def test_sizes_are_positive(name):
    sizes = {"n_layers": 1, "n_kv_heads": 1, "head_dim": 1, "capacity": 1}
    for bad in (0, -5):
        with pytest.raises(ValueError, match=f"{name}: {bad}"):
            KVCache(Pool(MIB), **{**sizes, name: bad})
    assert KVCache(Pool(MIB), **sizes).n_pages == 1


def test_unknown_dtypes_are_refused():
    with pytest.raises(ValueError, match="'f64'"):
        cache_of(Pool(MIB), dtype="f64")
    with pytest.raises(TypeError):
        cache_of(None)


def test_reading_and_writing_outside():
    cache = cache_of(Pool(MIB))
    feed(cache, 5)
    cache.reserve(2)
    good = np.zeros((HEADS, DIM))
    for layer, position in ((-1, 0), (LAYERS, 0), (0, -1), (0, 7), (0, 1 << 40)):
        with pytest.raises(IndexError):
            cache.read(layer, position)
        with pytest.raises((IndexError, ValueError)):
            cache.write(layer, position, good, good)
    with pytest.raises(ValueError, match="position: 4"):
        cache.write(0, 4, good, good)  # may be shared with a fork
    for bad in (np.zeros((HEADS, DIM + 1)), np.zeros(DIM), 0.0):
        with pytest.raises(ValueError, match="keys"):
            cache.write(0, 5, bad, good)
        with pytest.raises(ValueError, match="values"):
            cache.write(0, 5, good, bad)
    for n in (-1, 3):
        with pytest.raises(ValueError, match=f"n: {n}"):
            cache.advance(n)
    with pytest.raises(ValueError, match="n: -1"):
        cache.reserve(-1)


def uses(cache):
    zeros = np.zeros((HEADS, DIM))
    return [
        lambda: cache.reserve(1),
        lambda: cache.advance(0),
        lambda: cache.trim(0),
        cache.reset,
        cache.fork,
        lambda: cache.read(0, 0),
        lambda: cache.write(0, 9, zeros, zeros),
    ]


def test_use_after_close():
    pool = Pool(MIB)
    cache = cache_of(pool)
    feed(cache, 5)
    cache.reserve(9)
    cache.close()
    cache.close()
    assert cache.nbytes == pool.in_use == 0
    for use in uses(cache):
        with pytest.raises(ValueError, match="cache is closed"):
            use()
    assert "closed" in repr(cache)


def test_use_after_the_pool_is_closed():
    pool = Pool(MIB)
    cache = cache_of(pool)
    feed(cache, 5)
    cache.reserve(9)
    fork = cache.fork()
    pool.close()
    for one in (cache, fork):
        for use in uses(one):
            with pytest.raises(ValueError, match="pool of the KV cache is closed"):
                use()
    cache.close()
    del fork
    gc.collect()
    assert pool.in_use == 0


def test_a_cache_keeps_its_pool():
    cache = cache_of(Pool(MIB))
    feed(cache, 3)
    gc.collect()
    check(cache, 2, 2)


def test_forks_in_threads():
    pool = Pool(MIB)
    prompt = cache_of(pool, 600)
    feed(prompt, 200)
    failures = []

    def work(seed):
        try:
            for turn in range(10):
                fork = prompts[seed].fork()
                token = 1000 * seed + 10 * turn
                feed(fork, 100, token)
                for position in range(0, 300, 23):
                    check(fork, position, position if position < 200 else token + position - 200)
                if turn % 2:
                    fork.close()
        except BaseException as error:
            failures.append(error)

    prompts = [prompt.fork() for _ in range(4)]  # a cache is not for two threads at once
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert pool.in_use == 2 * SET_BYTES
    for position in range(200):
        check(prompt, position, position)
