"""The pool and the operating system: what is taken, kept and returned, and in which pages."""

import ctypes
import mmap
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitnet
from bitnet.errors import PoolExhausted
from bitnet.runtime import memory_report
from bitnet.runtime.pool import MAX_LIMIT, Pool

OS_PAGE = mmap.PAGESIZE
KIB = 1 << 10
MIB = 1 << 20
PROC = Path("/proc/self")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_statm = pytest.mark.skipif(not (PROC / "statm").exists(), reason="no /proc")
needs_pagemap = pytest.mark.skipif(not (PROC / "pagemap").exists(), reason="no pagemap")
IS_SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
needs_huge_pages = pytest.mark.skipif(not HUGE_PAGES.exists(), reason="no huge pages")


def write(allocation):
    np.frombuffer(allocation, np.uint8)[:] = 1


def resident(pool):
    return sum(memory_report.resident_bytes(*arena, is_file=False) for arena in pool.arenas())


def flags(address):
    """The flags of the mapping that an address lies in, such as "hg": huge pages are wanted."""
    inside = False
    for line in (PROC / "smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])


def run(program, **environment):
    """A Python of its own."""
    command = [sys.executable, "-c", program]
    folder = Path(bitnet.__file__).parents[1]
    environment = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_the_operating_system_may_refuse():
    pool = Pool(MAX_LIMIT)
    with pytest.raises(PoolExhausted, match="operating system says") as caught:
        pool.allocate(MAX_LIMIT, "kv")  # more than a process can address
    assert caught.value.os_error
    assert pool.reserved == 0 and pool.allocate(100, "kv").nbytes == 100


LITTLE_ADDRESS_SPACE = """
import resource
from bitnet.runtime.pool import Pool
pool = Pool(1 << 40)
with open("/proc/self/statm") as file:
    in_use = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (10 << 20), resource.RLIM_INFINITY))
small = pool.allocate(1 << 20, "kv")                # an arena has 16 MiB
large = pool.allocate(5 << 20, "kv")                # and 2 more to align it
print(pool.reserved, sum(size for _, size in pool.arenas()))
"""


@needs_statm
@pytest.mark.skipif(IS_SANITIZED, reason="asan maps terabytes")
def test_a_smaller_arena_when_the_os_refuses_a_large_one():
    done = run(LITTLE_ADDRESS_SPACE)
    assert (done.returncode, done.stdout.split()) == (0, [str(6 * MIB)] * 2), done.stderr


@needs_statm
def test_nothing_stays_mapped():
    def mapped():
        return int((PROC / "statm").read_text().split()[0]) * OS_PAGE

    before = mapped()
    for _ in range(100):
        with Pool(64 * MIB) as pool:
            pool.allocate(3 * MIB, "kv")
            pool.allocate(10 * MIB, "kv")
            pool.allocate(100, "scratch")
    assert mapped() - before < 50 * MIB


MANY_POOLS = """
import random
from bitnet.runtime.pool import Pool, PoolExhausted
choose = random.Random(0)
for turn in range(6):
    pool, live = Pool(64 << 20, {"p1": 30 << 20}), []
    for step in range(5_000):
        try:
            live.append(pool.allocate(int(2 ** choose.uniform(6, 22.5)), f"p{step % 9}"))
        except PoolExhausted:
            del live[choose.randrange(len(live)):]
        if live and choose.random() < 0.45:
            live.pop(choose.randrange(len(live))).free()
        if step % 500 == 0:
            pool.trim(), pool.stats(), pool.arenas()
    if turn % 2:
        pool.close()                                # with allocations alive
"""


@pytest.mark.skipif(not IS_SANITIZED, reason="only gcc's leak sanitizer knows")
def test_no_description_of_a_chunk_is_leaked():
    done = run(MANY_POOLS, ASAN_OPTIONS="detect_leaks=1", PYTHONMALLOC="malloc")
    assert "Direct leak of" in done.stderr  # Python's own
    assert "bitnet/memory" not in done.stderr


def test_holes_do_not_stand_in_the_way():
    pool = Pool(4 * MIB)
    chunks = [pool.allocate(64 * KIB, "kv") for _ in range(64)]
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate(64, "kv")
    assert caught.value.available == caught.value.largest == 0
    for chunk in chunks[::2]:
        chunk.free()
    one = pool.allocate(2 * MIB, "kv")  # which no hole can hold
    assert pool.in_use == pool.reserved == 4 * MIB
    del one, chunks
    assert pool.allocate(4 * MIB, "kv").nbytes == 4 * MIB


def test_the_last_byte_can_be_had():
    pool = Pool(10 * OS_PAGE)
    pages = [pool.allocate(OS_PAGE, "kv") for _ in range(9)]
    chunks = [pool.allocate(64, "kv") for _ in range(OS_PAGE // 64)]
    assert pool.in_use == pool.reserved == pool.limit
    chunks[7].free()
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate(65, "kv")
    assert caught.value.largest == 64
    chunks[7] = pool.allocate(64, "kv")
    pages.pop(3).free()
    with pytest.raises(PoolExhausted):
        pool.allocate(OS_PAGE + 64, "kv")
    assert pool.allocate(OS_PAGE, "kv").nbytes == OS_PAGE


def test_a_large_allocation_cannot_use_the_rest_of_a_page():
    pool = Pool(16 * MIB)
    small = pool.allocate(100, "kv")
    with pytest.raises(PoolExhausted) as caught:
        pool.allocate(16 * MIB, "kv")
    assert caught.value.largest == 16 * MIB - OS_PAGE
    assert pool.allocate(caught.value.largest, "kv").nbytes and small.nbytes


def test_a_freed_page_is_found_again_when_others_of_its_class_are_smaller():
    pool = Pool(16 * MIB)
    exact = pool.allocate(10_048, "kv")  # 9984 .. 10239 bytes are one size class
    barriers = [pool.allocate(64, "kv")]
    small = []
    for _ in range(40):  # more than are looked at before a larger class
        small.append(pool.allocate(9_984, "kv"))
        barriers.append(pool.allocate(64, "kv"))
    rest = [pool.allocate(3 * MIB, "kv") for _ in range(5)]
    rest.append(pool.allocate(pool.limit - pool.in_use, "kv"))  # the arena is full
    address = exact.address
    exact.free()
    for chunk in small:
        chunk.free()
    assert pool.allocate(10_048, "kv").address == address
    assert rest and barriers


def test_large_allocations_go_back_at_once():
    pool = Pool(1 << 30)
    kept = pool.allocate(64, "kv")
    before = pool.arenas()
    large = pool.allocate(100 * MIB, "head")
    assert pool.reserved >= 100 * MIB
    assert all(address % (2 * MIB) == 0 for address, _ in pool.arenas())
    large.free()
    assert pool.arenas() == before and pool.reserved <= 2 * MIB and kept.nbytes


def test_little_free_memory_is_kept():
    pool = Pool(1 << 30)
    pages = [pool.allocate(320 * KIB, "kv") for _ in range(1000)]
    choose = random.Random(0)
    choose.shuffle(pages)
    while pages:
        pages.pop()
        assert pool.reserved - pool.in_use <= max(2 * MIB, pool.in_use // 12)
    assert len(pool.arenas()) == 1  # a spare arena
    pool.trim()
    assert pool.reserved == 0 and pool.arenas() == []


def test_what_is_kept_is_used_again():
    pool = Pool(1 << 30)
    pages = [pool.allocate(320 * KIB, "kv") for _ in range(300)]
    addresses = {page.address for page in pages[10:20]}  # from 3.1 to 6.2 MiB
    full = pool.reserved
    del pages[10:20]
    assert pool.reserved == full
    pages += [pool.allocate(320 * KIB, "kv") for _ in range(10)]
    assert {page.address for page in pages[-10:]} == addresses and pool.reserved == full


def test_trim_returns_every_free_page():
    pool = Pool(64 * MIB)
    pages = [pool.allocate(OS_PAGE, "kv") for _ in range(1000)]
    del pages[::2]
    before = pool.reserved
    assert pool.trim() == before - pool.reserved
    assert pool.in_use == pool.reserved == 500 * OS_PAGE
    assert pool.trim() == 0


@needs_pagemap
def test_no_more_is_resident_than_reserved():
    pool = Pool(1 << 30)
    choose = random.Random(1)
    pages = []
    for step in range(400):
        n_bytes = choose.choice([320 * KIB, 64 * KIB, int(2 ** choose.uniform(12, 21))])
        pages.append(pool.allocate(n_bytes, "kv"))
        write(pages[-1])
        if step % 100 > 50:
            del pages[choose.randrange(len(pages))], pages[choose.randrange(len(pages))]
        if step % 50 == 0:
            assert pool.in_use <= resident(pool) <= pool.reserved
    for page in pages:
        assert (np.frombuffer(page, np.uint8) == 1).all()  # none of it was returned
    assert pool.in_use <= resident(pool) <= pool.reserved
    pool.trim()
    assert pool.in_use <= resident(pool) <= pool.reserved <= pool.in_use + 2 * OS_PAGE * len(pages)


@needs_statm
@pytest.mark.skipif(IS_SANITIZED, reason="asan locks nothing")
def test_locked_memory_stays():
    pool = Pool(16 * MIB)
    pages = [pool.allocate(32 * OS_PAGE, "kv") for _ in range(64)]
    mlock = ctypes.CDLL(None, use_errno=True).mlock
    if mlock(ctypes.c_void_p(pages[8].address), ctypes.c_size_t(8 * OS_PAGE)) != 0:
        pytest.skip("may not lock memory")
    for i in (8, 9, 12):
        pages[i].free()
    pool.trim()
    assert pool.in_use + 64 * OS_PAGE == pool.reserved  # the chunk of 8 and 9 is refused
    pages.clear()
    pool.trim()
    assert (pool.reserved, pool.arenas()) == (0, [])


@needs_huge_pages
def test_huge_pages_are_broken_and_become_whole_again():
    pool = Pool(64 * MIB)
    chunks = [pool.allocate(512 * KIB, "kv") for _ in range(32)]  # four to a huge page
    (address, _), = pool.arenas()  # fmt: skip
    assert address % (2 * MIB) == 0 and "hg" in flags(address)
    chunks[1].free()
    pool.trim()
    assert "nh" in flags(address) and "hg" in flags(address + 2 * MIB)
    assert pool.reserved == pool.in_use == 31 * 512 * KIB
    for i in (0, 2, 3):
        chunks[i].free()
    pool.trim()
    assert "hg" in flags(address) and pool.reserved == 14 * MIB
    chunks[0] = pool.allocate(512 * KIB, "kv")
    assert chunks[0].address == address and pool.reserved == 16 * MIB


@needs_pagemap
@pytest.mark.parametrize("n_bytes", [64, 10 * OS_PAGE + 100, 5 * MIB])
def test_prefault(n_bytes):
    for prefault in (False, True):
        with Pool(16 * MIB) as pool:
            pool.allocate(64, "kv")
            one = pool.allocate(n_bytes, "kv", prefault)
            found = memory_report.resident_bytes(one.address, n_bytes, is_file=False)
            assert found == (-(-n_bytes // OS_PAGE) * OS_PAGE if prefault else 0)


class Serving:
    """Sessions that grow by pages of all layers, fork and end, and arrays of many sizes."""

    def __init__(self, pool, n_layers, page_bytes):
        self.pool, self.n_layers, self.page_bytes = pool, n_layers, page_bytes
        self.choose = random.Random(1)
        self.sessions, self.arrays = [], []
        self.least, self.refusals = 1.0, []

    def take(self, n_bytes):
        while True:
            try:
                one = self.pool.allocate(n_bytes, "some")
                break
            except PoolExhausted:
                self.refusals.append((self.pool.in_use + n_bytes) / self.pool.limit)
                del self.sessions[0]
        if self.pool.in_use > 20 * MIB:
            self.least = min(self.least, self.pool.in_use / self.pool.reserved)
        return one

    def step(self):
        choose, sessions = self.choose, self.sessions
        what = choose.random()
        if what < 0.1 and len(self.arrays) > 20:
            del self.arrays[choose.randrange(20)]
        elif what < 0.2:
            self.arrays.append(self.take(int(2 ** choose.uniform(12, 21.6))))
        elif what < 0.3 or not sessions:
            sessions.append([])
        elif what < 0.33:
            sessions.append(list(choose.choice(sessions)))  # shares its pages
        elif what < 0.335:
            del sessions[choose.randrange(len(sessions)) :]  # the tide goes out
        else:
            pages = [self.take(self.page_bytes) for _ in range(self.n_layers)]
            choose.choice(sessions or [[]]).append(pages)


@pytest.mark.parametrize(
    ("n_layers", "page_bytes", "limit"), [(30, 320 * KIB, 2 << 30), (4, 64 * KIB, 64 * MIB)]
)
def test_utilisation_stays_above_nine_tenths(n_layers, page_bytes, limit):
    with Pool(limit) as pool:
        serving = Serving(pool, n_layers, page_bytes)
        for _ in range(5_000):
            serving.step()
        assert serving.least > 0.9
        assert len(serving.refusals) > 10 and min(serving.refusals) > 0.99
        serving.sessions.clear()
        serving.arrays.clear()
        assert pool.in_use == pool.stats().n_allocations == 0


def test_allocations_are_all_that_is_mapped():
    pool = Pool(64 << 20)
    kv = [pool.allocate(100, "kv") for _ in range(3)]
    scratch = pool.allocate(5 << 20, "scratch")
    kv.pop(1).free()
    listed = pool.allocations()
    assert listed == sorted(listed, key=lambda one: one[0])
    in_use = {one for one in listed if one[2]}
    assert in_use == {(kv[0].address, 128, "kv"), (kv[1].address, 128, "kv"),
                      (scratch.address, 5 << 20, "scratch")}  # fmt: skip
    assert sum(n for _, n, _ in listed) == sum(n for _, n in pool.arenas())
    pool.close()
    assert pool.allocations() == []
