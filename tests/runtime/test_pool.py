"""The pool: against a plain list of live allocations, its limits, arrays, closing, threads."""

import contextlib
import copy
import gc
import mmap
import random
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bitnet.checks import format_bytes
from bitnet.errors import PoolExhausted
from bitnet.runtime.pool import MAX_LIMIT, Allocation, Pool

OS_PAGE = mmap.PAGESIZE
MIB = 1 << 20


def rounded(n_bytes):
    return -(-n_bytes // 64) * 64


def bytes_of(allocation):
    return np.frombuffer(allocation, np.uint8)


sizes = st.one_of(
    st.integers(1, 300),
    st.integers(1, 70).map(lambda n: 64 * n),
    st.integers(1, 200_000),
    st.sampled_from([OS_PAGE, 32_768, 327_680, 2 * MIB, 4 * MIB - 64, 4 * MIB + 1, 20 * MIB]),
)
purposes = st.sampled_from(["kv", "scratch", "head"])
picks = st.integers(0, 1 << 20)  # of a list, modulo its length


class PoolMachine(RuleBasedStateMachine):
    """The pool does what a list of live (allocation, purpose, fill) says it must."""

    @initialize(limit=st.sampled_from([OS_PAGE, 10 * OS_PAGE + 17, MIB, 5 * MIB, 40 * MIB]))
    def make(self, limit):
        self.pool = Pool(limit)
        self.live = []
        self.freed = []
        self.views = []
        self.quotas = {}
        self.n_made = 0
        self.peak = 0
        self.peaks = {}
        self.fill = 0

    def in_use(self, purpose=None):
        return sum(rounded(one.nbytes) for one, name, _ in self.live if purpose in (None, name))

    def pinned(self):
        """Bytes of the OS's pages that hold something alive."""
        pages = set()
        for one, _, _ in self.live:
            last = one.address + rounded(one.nbytes) - 1
            pages.update(range(one.address // OS_PAGE, last // OS_PAGE + 1))
        return OS_PAGE * len(pages)

    def hold(self, n_bytes, purpose, prefault):
        allocation = self.pool.allocate(n_bytes, purpose, prefault)
        assert (allocation.nbytes, allocation.purpose) == (n_bytes, purpose)
        self.n_made += 1
        self.fill = (self.fill + 1) % 251
        bytes_of(allocation)[:] = self.fill
        self.live.append((allocation, purpose, self.fill))
        self.peak = max(self.peak, self.in_use())
        self.peaks[purpose] = max(self.peaks.get(purpose, 0), self.in_use(purpose))

    @rule(n_bytes=sizes, purpose=purposes, prefault=st.booleans())
    def allocate(self, n_bytes, purpose, prefault):
        quota = self.quotas.get(purpose)
        is_over = quota is not None and self.in_use(purpose) + rounded(n_bytes) > quota
        try:
            self.hold(n_bytes, purpose, prefault)
            assert not is_over
        except PoolExhausted as error:
            assert error.available == self.pool.limit - self.in_use()
            assert error.by_purpose.get("kv", 0) == self.in_use("kv")
            assert error.quota == (quota if is_over else None)
            if not is_over:
                assert error.largest < rounded(n_bytes)
                assert error.largest >= (self.pool.limit - self.pinned()) // OS_PAGE * OS_PAGE
                if error.largest and quota is None:  # and so much there is
                    self.hold(error.largest, purpose, prefault)
                    self.live.pop()

    @rule(spare=st.integers(-2 * OS_PAGE, MIB))
    def set_limit(self, spare):
        limit, pinned = self.pinned() + spare, self.pinned()
        if limit >= max(OS_PAGE, pinned):
            self.pool.limit = limit
            assert self.pool.limit == limit
        else:
            before = self.pool.limit
            with pytest.raises(ValueError, match=f"limit: {limit} bytes"):
                self.pool.limit = limit
            assert self.pool.limit == before

    @rule(purpose=purposes, spare=st.one_of(st.none(), st.integers(-100, 100_000)))
    def set_quota(self, purpose, spare):
        quota = None if spare is None else self.in_use(purpose) + spare
        if quota is None or spare >= 0:
            self.pool.set_quota(purpose, quota)
            self.quotas = {**self.quotas, purpose: quota}
        else:
            with pytest.raises(ValueError, match=f"quota: {quota} bytes for '{purpose}'"):
                self.pool.set_quota(purpose, quota)

    @rule()
    def trim(self):
        before = self.pool.reserved
        assert self.pool.trim() == before - self.pool.reserved
        assert self.pool.reserved == self.pinned()

    @precondition(lambda self: self.live)
    @rule(pick=picks, forget=st.booleans())
    def free(self, pick, forget):
        allocation, purpose, fill = self.live.pop(pick % len(self.live))
        assert (bytes_of(allocation) == fill).all()
        if any(view.obj is allocation for view in self.views):
            with pytest.raises(BufferError, match="alive"):
                allocation.free()
            self.live.append((allocation, purpose, fill))
        elif not forget:
            allocation.free()
            self.freed.append(allocation)

    @precondition(lambda self: self.freed)
    @rule(pick=picks)
    def use_freed(self, pick):
        for use in (memoryview, Allocation.free, lambda freed: freed.address):
            with pytest.raises(ValueError, match="freed"):
                use(self.freed[pick % len(self.freed)])

    @precondition(lambda self: self.live)
    @rule(pick=picks)
    def view(self, pick):
        self.views.append(memoryview(self.live[pick % len(self.live)][0])[1:])
        with pytest.raises(BufferError, match="alive"):
            self.pool.close()

    @precondition(lambda self: self.views)
    @rule(pick=picks)
    def release_view(self, pick):
        self.views.pop(pick % len(self.views)).release()

    @invariant()
    def figures_agree(self):
        stats = self.pool.stats()
        assert stats.in_use == self.pool.in_use == self.in_use()
        assert self.pinned() <= stats.reserved <= stats.limit == self.pool.limit
        assert stats.peak == self.pool.peak == self.peak
        assert (stats.n_allocations, stats.n_made) == (len(self.live), self.n_made)
        assert stats.largest_free <= stats.reserved - stats.in_use
        assert 0 <= stats.fragmentation <= 1 and 0 <= stats.utilisation <= 1
        assert {name for _, name, _ in self.live} <= set(stats.by_purpose)
        assert stats.by_purpose == {
            name: (
                self.in_use(name),
                self.peaks.get(name, 0),
                sum(purpose == name for _, purpose, _ in self.live),
            )
            for name in stats.by_purpose
        }
        assert stats.quotas == {
            name: quota for name, quota in self.quotas.items() if quota is not None
        }

    @invariant()
    def little_is_kept(self):
        kept = max(2 * MIB, self.in_use() // 12)
        assert self.pool.reserved <= max(self.in_use() + kept, self.pinned())

    @invariant()
    def nothing_overlaps(self):
        arenas = self.pool.arenas()
        assert sum(n for _, n in arenas) >= self.pool.reserved
        allocated = sorted((one.address, one.nbytes) for one, _, _ in self.live)
        for regions in (arenas, allocated):
            ends = [address + n for address, n in regions]
            assert all(e <= address for e, (address, _) in zip(ends, regions[1:], strict=False))
            assert all(address % 64 == 0 for address, _ in regions)
        for address, n in allocated:
            assert any(b <= address and address + n <= b + size for b, size in arenas)

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        self.views.clear()
        while self.live:
            self.free(0, forget=len(self.live) % 2)
        self.figures_agree()
        assert len(self.pool.arenas()) <= 1
        everything = self.pool.limit // OS_PAGE * OS_PAGE
        assert self.pool.allocate(everything, "all").nbytes == everything
        self.pool.trim()
        assert (self.pool.reserved, self.pool.arenas()) == (0, [])


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def test_freed_with_its_last_reference():
    pool = Pool(MIB)
    a = pool.allocate(1000, "kv")
    assert pool.in_use == 1024
    b = a
    del a
    assert pool.in_use == 1024
    del b
    assert pool.in_use == 0 and pool.peak == 1024


def test_the_pool_lives_as_long_as_its_allocations():
    allocation = Pool(MIB).allocate(100, "kv")
    bytes_of(allocation)[:] = 7
    assert bytes(allocation) == b"\7" * 100


def test_array_keeps_its_memory():
    pool = Pool(MIB)
    a = pool.array((3, 5), np.float32, "scratch")
    assert a.shape == (3, 5) and a.dtype == np.float32
    assert a.flags.c_contiguous and a.flags.writeable and a.ctypes.data % 64 == 0
    assert pool.stats().by_purpose == {"scratch": (64, 64, 1)}
    row = a[2]
    row[:] = 3
    del a
    with pytest.raises(BufferError, match="'scratch'"):
        pool.close()
    assert row.tolist() == [3] * 5
    del row
    assert pool.in_use == 0
    assert pool.array(7, "i2", "scratch").shape == (7,)
    assert pool.array((), "f8", "scratch").shape == ()
    pool.close()


@pytest.mark.parametrize("shape", [0, (3, 0), (-1,), (2, -2)])
def test_array_without_bytes(shape):
    with pytest.raises(ValueError, match="shape"):
        Pool(MIB).array(shape, "f4", "scratch")


def test_array_larger_than_any_address():
    with pytest.raises(PoolExhausted) as caught:
        Pool(MIB).array((1 << 40, 1 << 40), "f4", "head")
    assert caught.value.requested == 1 << 82


@pytest.mark.parametrize("n_bytes", [0, -1])
def test_nothing_cannot_be_allocated(n_bytes):
    with pytest.raises(ValueError, match=f"n_bytes: {n_bytes}"):
        Pool(MIB).allocate(n_bytes, "kv")


@pytest.mark.parametrize(("n_bytes", "purpose"), [(1.5, "kv"), ("9", "kv"), (9, None), (9, b"kv")])
def test_wrong_types(n_bytes, purpose):
    with pytest.raises(TypeError):
        Pool(MIB).allocate(n_bytes, purpose)


@pytest.mark.parametrize("limit", [-1, 0, OS_PAGE - 1, MAX_LIMIT + 1, 1 << 80])
def test_impossible_limits(limit):
    with pytest.raises(ValueError, match="limit"):
        Pool(limit)


def test_an_allocation_comes_from_a_pool_only():
    with pytest.raises(TypeError):
        Allocation()
    stray = Allocation.__new__(Allocation)
    with pytest.raises(ValueError):
        memoryview(stray)
    with pytest.raises(ValueError):
        stray.free()


def test_exhausted_says_what_and_who():
    pool = Pool(MIB)
    held = [pool.allocate(512 << 10, "kv"), pool.allocate(256 << 10, "scratch")]
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate(300 << 10, "head")
    error = caught.value
    assert isinstance(error, MemoryError)
    assert (error.requested, error.purpose, error.limit) == (300 << 10, "head", MIB)
    assert error.available == error.largest == 256 << 10
    assert error.by_purpose == {"kv": 512 << 10, "scratch": 256 << 10, "head": 0}
    assert error.os_error is None
    for part in ("'head'", "300.0 KiB", "256.0 KiB", "1.0 MiB", "'kv' 512.0 KiB, 'scratch' 256.0"):
        assert part in str(error)
    twin = copy.copy(error)  # by way of __reduce__, as pickle does
    assert type(twin) is PoolExhausted and str(twin) == str(error)
    assert vars(twin) == vars(error)
    del held
    assert pool.allocate(MIB, "head").nbytes == MIB


def test_quotas():
    with Pool(MIB, quotas={"kv": 1000, "none": 0}) as pool:
        one = pool.allocate(900, "kv")
        with pytest.raises(PoolExhausted) as caught:
            pool.allocate(100, "kv")
        error = caught.value
        assert (error.requested, error.purpose, error.quota, error.limit) == (100, "kv", 1000, MIB)
        assert error.by_purpose["kv"] == 960 and error.available == MIB - 960
        assert str(error) == (
            "no memory for 'kv', which asked for 100 bytes: "
            "960 bytes of its quota of 1000 bytes are in use"
        )
        assert vars(copy.copy(error)) == vars(error)
        with pytest.raises(PoolExhausted, match="'none'"):
            pool.allocate(1, "none")
        assert pool.allocate(500_000, "scratch").nbytes == 500_000
        with pytest.raises(ValueError, match=r"quota: 100 bytes for 'kv' \(960 are in use\)"):
            pool.set_quota("kv", 100)
        assert pool.stats().quotas == {"kv": 1000, "none": 0}
        pool.set_quota("kv", 1024)
        two = pool.allocate(64, "kv")
        one.free()
        assert pool.allocate(900, "kv").nbytes == 900 and two.nbytes == 64
        pool.set_quota("kv", None)
        assert pool.allocate(5000, "kv").nbytes == 5000
        with pytest.raises(PoolExhausted) as caught:
            pool.allocate(2 * MIB, "kv")
        assert caught.value.quota is None


@pytest.mark.parametrize("quota", [-1, MAX_LIMIT + 1, 1 << 80])
def test_impossible_quotas(quota):
    with pytest.raises(ValueError, match="quota"):
        Pool(MIB, quotas={"kv": quota})


def test_the_limit_changes():
    pool = Pool(MIB)
    one = pool.allocate(900_000, "kv")
    with pytest.raises(PoolExhausted):
        pool.allocate(900_000, "kv")
    pool.limit = 10 * MIB
    two = pool.allocate(900_000, "kv")
    with pytest.raises(ValueError, match=r"limit: 1048576 bytes \(18\d{5} are in use\)"):
        pool.limit = MIB
    assert pool.limit == 10 * MIB
    two.free()
    assert pool.reserved > MIB  # free memory does not stand in the way
    pool.limit = MIB
    assert pool.reserved <= pool.limit == MIB and one.nbytes
    for impossible in (0, -1, MAX_LIMIT + 1, 1 << 80):
        with pytest.raises(ValueError, match="limit"):
            pool.limit = impossible


def test_statistics():
    pool = Pool(4 * MIB)
    held = [pool.allocate(n, "kv") for n in (MIB, 1000, MIB)]
    held.pop(1)
    stats = pool.stats()
    assert (stats.n_allocations, stats.n_made, stats.peak) == (2, 3, 2 * MIB + 1024)
    largest = 2 * MIB - 1024  # the hole is in a page that is in use
    assert stats.largest_free == largest - (4 * MIB - stats.reserved)
    assert stats.fragmentation == 1024 / (2 * MIB)
    assert stats.utilisation == 2 * MIB / stats.reserved
    held.clear()
    pool.trim()
    assert pool.stats().utilisation == 1 and pool.stats().fragmentation == 0


def test_closing_frees_every_allocation():
    with Pool(16 * MIB) as pool:
        one = pool.allocate(100, "kv")
        many = [pool.allocate(3 * MIB, "scratch") for _ in range(3)]
        view = memoryview(one)
        with pytest.raises(BufferError, match="'kv'"):
            pool.close()
        assert pool.in_use and one.address
        view.release()
    assert (pool.reserved, pool.in_use, pool.arenas()) == (0, 0, [])
    for freed in (one, *many):
        with pytest.raises(ValueError, match="freed"):
            freed.free()
        with pytest.raises(ValueError, match="freed"):
            memoryview(freed)
    with pytest.raises(ValueError, match="closed"):
        pool.allocate(1, "kv")
    pool.close()
    assert pool.stats().by_purpose == {"kv": (0, 128, 0), "scratch": (0, 9 * MIB, 0)}


def test_threads_and_the_garbage_collector():
    pool = Pool(8 * MIB)
    failures = []

    def work(seed):
        choose = random.Random(seed)
        live = []
        try:
            for step in range(3_000):
                n_bytes = choose.randrange(1, 20_000)
                try:
                    one = pool.allocate(n_bytes, f"purpose {choose.randrange(50)}", step % 7 == 0)
                except PoolExhausted:
                    live.clear()
                    continue
                bytes_of(one)[:] = seed
                if step % 3:
                    live.append(one)
                else:
                    cycle = [one]
                    cycle.append(cycle)  # freed by whichever thread collects it
                if len(live) > 50:
                    old = live.pop(choose.randrange(len(live)))
                    assert (bytes_of(old) == seed).all()
                    old.free()
                if step % 100 == 0:
                    pool.trim()
                    with contextlib.suppress(ValueError):  # the others may have more in use
                        pool.limit = choose.choice([4 * MIB, 8 * MIB])
                    stats = pool.stats()
                    assert stats.in_use <= stats.reserved <= stats.limit
                if step % 500 == 0:
                    gc.collect()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    gc.collect()
    stats = pool.stats()
    assert stats.in_use == stats.n_allocations == 0
    assert all(n == count == 0 for n, _, count in stats.by_purpose.values())
    pool.trim()
    assert pool.arenas() == []


class Rubbish:
    """A cycle that uses the pool as it is collected."""

    def __init__(self, pool, done):
        self.pool, self.done, self.itself = pool, done, self
        self.held = pool.allocate(1000, "rubbish")

    def __del__(self):
        self.held.free()
        self.done.append(self.pool.allocate(500, "last will").nbytes)


def test_the_garbage_collector_inside_an_allocation():
    pool, done, refused = Pool(64 * OS_PAGE), [], 0
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for step in range(300):
            Rubbish(pool, done)
            try:
                pool.allocate(100 * OS_PAGE if step % 2 else 100, f"purpose {step}")
            except PoolExhausted:  # made of many objects: collects in between
                refused += 1
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
    assert refused == 150 and done == [500] * 300
    assert pool.in_use == 0


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [
        (0, "0 bytes"),
        (1000, "1000 bytes"),
        (1024, "1.0 KiB"),
        (-1536, "-1.5 KiB"),
        (MIB - 1, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 55, "32768.0 TiB"),
    ],
)
def test_format_bytes(n_bytes, shown):
    assert format_bytes(n_bytes) == shown
