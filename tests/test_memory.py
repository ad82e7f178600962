"""The pool: against a plain list of live allocations, at its limit, closing, and from threads."""
import copy
import gc
import mmap
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from bitnet.memory import MAX_LIMIT, Allocation, Pool, PoolExhausted, format_bytes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import bitnet

OS_PAGE = mmap.PAGESIZE
MIB = 1 << 20


def rounded(n_bytes):
    return -(-n_bytes // 64) * 64


def bytes_of(allocation):
    return np.frombuffer(allocation, np.uint8)


sizes = st.one_of(st.integers(1, 300), st.integers(1, 70).map(lambda n: 64 * n),
                  st.integers(1, 200_000), st.sampled_from([OS_PAGE, 32_768, 327_680, 2 * MIB]))


picks = st.integers(0, 1 << 20)                     # of a list, modulo its length


class PoolMachine(RuleBasedStateMachine):
    """The pool does what a list of live (allocation, purpose, fill) says it must."""

    @initialize(limit=st.sampled_from([OS_PAGE, 10 * OS_PAGE + 17, MIB, 5 * MIB]))
    def make(self, limit):
        self.pool = Pool(limit)
        self.live = []
        self.freed = []
        self.views = []
        self.peak = 0
        self.peaks = {}
        self.fill = 0

    def in_use(self, purpose=None):
        return sum(rounded(one.nbytes) for one, name, _ in self.live if purpose in (None, name))

    @rule(n_bytes=sizes, purpose=st.sampled_from(["kv", "scratch", "head"]))
    def allocate(self, n_bytes, purpose):
        try:
            allocation = self.pool.allocate(n_bytes, purpose)
        except PoolExhausted as error:
            assert error.largest < rounded(n_bytes)
            assert error.available == self.pool.limit - self.in_use()
            assert error.by_purpose.get("kv", 0) == self.in_use("kv")
            return
        assert (allocation.nbytes, allocation.purpose) == (n_bytes, purpose)
        self.fill = (self.fill + 1) % 251
        bytes_of(allocation)[:] = self.fill
        self.live.append((allocation, purpose, self.fill))
        self.peak = max(self.peak, self.in_use())
        self.peaks[purpose] = max(self.peaks.get(purpose, 0), self.in_use(purpose))

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
        assert stats.in_use <= stats.reserved <= stats.limit == self.pool.limit
        assert stats.peak == self.pool.peak == self.peak
        assert stats.n_allocations == len(self.live)
        assert stats.largest_free <= stats.reserved - stats.in_use
        assert {name for _, name, _ in self.live} <= set(stats.by_purpose)
        assert stats.by_purpose == {
            name: (self.in_use(name), self.peaks.get(name, 0),
                   sum(purpose == name for _, purpose, _ in self.live))
            for name in stats.by_purpose}

    @invariant()
    def nothing_overlaps(self):
        blocks = self.pool.ranges()
        assert sum(n for _, n in blocks) == self.pool.reserved
        pieces = sorted((one.address, one.nbytes) for one, _, _ in self.live)
        for regions in (blocks, pieces):
            ends = [address + n for address, n in regions]
            assert all(e <= address for e, (address, _) in zip(ends, regions[1:], strict=False))
            assert all(address % 64 == 0 for address, _ in regions)
        for address, n in pieces:
            assert any(b <= address and address + n <= b + size for b, size in blocks)

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        self.views.clear()
        while self.live:
            self.free(0, forget=len(self.live) % 2)
        self.figures_agree()
        assert len(self.pool.ranges()) <= 1
        everything = self.pool.limit // OS_PAGE * OS_PAGE
        assert self.pool.allocate(everything, "all").nbytes == everything


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
    twin = copy.copy(error)                         # by way of __reduce__, as pickle does
    assert type(twin) is PoolExhausted and str(twin) == str(error)
    assert vars(twin) == vars(error)
    del held
    assert pool.allocate(MIB, "head").nbytes == MIB


def test_the_operating_system_may_refuse():
    pool = Pool(MAX_LIMIT)
    with pytest.raises(PoolExhausted, match="operating system says") as caught:
        pool.allocate(MAX_LIMIT, "kv")              # more than a process can address
    assert caught.value.os_error
    assert pool.reserved == 0 and pool.allocate(100, "kv").nbytes == 100


def test_closing_frees_every_allocation():
    with Pool(16 * MIB) as pool:
        one = pool.allocate(100, "kv")
        many = [pool.allocate(3 * MIB, "scratch") for _ in range(3)]
        view = memoryview(one)
        with pytest.raises(BufferError, match="'kv'"):
            pool.close()
        assert pool.in_use and one.address
        view.release()
    assert (pool.reserved, pool.in_use, pool.ranges()) == (0, 0, [])
    for freed in (one, *many):
        with pytest.raises(ValueError, match="freed"):
            freed.free()
        with pytest.raises(ValueError, match="freed"):
            memoryview(freed)
    with pytest.raises(ValueError, match="closed"):
        pool.allocate(1, "kv")
    pool.close()
    assert pool.stats().by_purpose == {"kv": (0, 128, 0), "scratch": (0, 9 * MIB, 0)}


def test_neighbours_are_joined():
    pool = Pool(4 * MIB)
    pieces = [pool.allocate(64 << 10, "kv") for _ in range(64)]
    with pytest.raises(PoolExhausted):
        pool.allocate(64, "kv")
    for piece in pieces[::2]:
        piece.free()
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate(65 << 10, "kv")
    assert caught.value.available == 2 * MIB and caught.value.largest == 64 << 10
    for piece in pieces[1::2]:
        piece.free()
    assert pool.allocate(4 * MIB, "kv").nbytes == 4 * MIB


def test_a_freed_page_is_found_again_when_others_of_its_class_are_smaller():
    pool = Pool(MIB)
    exact = pool.allocate(10_048, "kv")             # 9984 .. 10239 bytes are one size class
    barriers = [pool.allocate(64, "kv")]
    small = []
    for _ in range(40):                             # more than are looked at before a larger class
        small.append(pool.allocate(9_984, "kv"))
        barriers.append(pool.allocate(64, "kv"))
    rest = pool.allocate(pool.limit - pool.in_use, "kv")
    exact.free()
    for piece in small:
        piece.free()
    assert pool.allocate(10_048, "kv").nbytes == 10_048
    assert rest.nbytes and barriers


def test_free_blocks_go_back_to_the_os():
    pool = Pool(1 << 30)
    kept = pool.allocate(64, "kv")
    pages = [pool.allocate(327_680, "kv") for _ in range(200)]
    large = pool.allocate(100 * MIB, "head")
    full = pool.reserved
    assert len(pool.ranges()) > 3
    large.free()
    assert pool.reserved == full - 100 * MIB
    pages.clear()
    assert len(pool.ranges()) == 2                  # the one in use and one spare
    kept.free()
    assert len(pool.ranges()) == 1


def test_a_spare_block_does_not_stand_in_the_way():
    pool = Pool(4 * MIB)
    pool.allocate(MIB, "kv")
    assert 0 < pool.reserved < 4 * MIB
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate(5 * MIB, "kv")
    assert caught.value.largest == 4 * MIB
    assert pool.allocate(4 * MIB, "kv").nbytes == 4 * MIB


LITTLE_ADDRESS_SPACE = """
import resource
from bitnet.memory import Pool
pool = Pool(1 << 40)
large = pool.allocate(320 << 20, "head")            # the next block would have an eighth: 40 MiB
with open("/proc/self/statm") as file:
    in_use = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (20 << 20), resource.RLIM_INFINITY))
small = pool.allocate(1 << 20, "kv")
print(pool.reserved - large.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="asan maps terabytes")
def test_a_smaller_block_when_the_os_refuses_a_large_one():
    done = subprocess.run([sys.executable, "-c", LITTLE_ADDRESS_SPACE], capture_output=True,
                          text=True, cwd=Path(bitnet.__file__).parents[1])
    assert (done.returncode, done.stdout.strip()) == (0, str(MIB)), done.stderr


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_nothing_stays_mapped():
    def mapped():
        return int(Path("/proc/self/statm").read_text().split()[0]) * OS_PAGE

    before = mapped()
    for _ in range(100):
        with Pool(64 * MIB) as pool:
            pool.allocate(3 * MIB, "kv")
            pool.allocate(100, "scratch")
    assert mapped() - before < 50 * MIB


def test_large_blocks_can_have_huge_pages():
    pool = Pool(64 * MIB)
    pages = [pool.allocate(MIB, "kv") for _ in range(40)]
    assert all(address % (2 * MIB) == 0 for address, n in pool.ranges() if n >= 2 * MIB)
    assert pages[0].nbytes == MIB


def test_a_hundred_thousand_random_operations():
    choose = random.Random(1)
    pool = Pool(16 * MIB)
    live = []
    fullest = []
    for step in range(100_000):
        if live and choose.random() < 0.45:
            place = choose.randrange(len(live))
            live[place], live[-1] = live[-1], live[place]
            live.pop()
        else:
            n_bytes = choose.choice([64, 5_120, 32_768, int(2 ** choose.uniform(4, 16))])
            try:
                live.append(pool.allocate(n_bytes, f"purpose {n_bytes % 7}"))
            except PoolExhausted as error:
                fullest.append(1 - error.available / error.limit)
                del live[choose.randrange(len(live)):]
        if step % 5_000 == 0:
            assert pool.in_use == sum(rounded(one.nbytes) for one in live)
            assert pool.in_use == sum(n for n, _, _ in pool.stats().by_purpose.values())
    assert fullest and min(fullest) > 0.9           # so full is the pool when it refuses
    live.clear()
    assert pool.in_use == 0 and len(pool.ranges()) == 1


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
                    one = pool.allocate(n_bytes, f"purpose {choose.randrange(50)}")
                except PoolExhausted:
                    live.clear()
                    continue
                bytes_of(one)[:] = seed
                if step % 3:
                    live.append(one)
                else:
                    cycle = [one]
                    cycle.append(cycle)             # freed by whichever thread collects it
                if len(live) > 50:
                    old = live.pop(choose.randrange(len(live)))
                    assert (bytes_of(old) == seed).all()
                    old.free()
                if step % 500 == 0:
                    gc.collect()
                    assert pool.in_use <= pool.stats().reserved <= pool.limit
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


@pytest.mark.parametrize(("n_bytes", "shown"), [
    (0, "0 bytes"), (1000, "1000 bytes"), (1024, "1.0 KiB"), (-1536, "-1.5 KiB"),
    (MIB - 1, "1.0 MiB"), (5 << 30, "5.0 GiB"), (1 << 55, "32768.0 TiB")])
def test_format_bytes(n_bytes, shown):
    assert format_bytes(n_bytes) == shown
