"""The pool: how full it is kept in a million operations, and what each of them costs.

utilisation   in use / taken from the OS, after every operation once 20 MiB are in use
full          (in use + asked for) / limit, whenever the pool refuses; 1 when not a byte is wasted
"""

import random
import threading
import time

import numpy as np
import pytest

from bitnet.errors import PoolExhausted
from bitnet.runtime.pool import Pool

KIB, MIB = 1 << 10, 1 << 20
SHAPES = {  # layers, bytes of a KV page (128 positions of a layer, f16), most pages a layer
    "2B": (30, 2 * 5 * 128 * 128 * 2, 32),
    "bundled": (4, 2 * 2 * 128 * 64 * 2, 4),
}


class Serving:
    """Sessions that grow a page of every layer at a time, fork and end, and arrays of many sizes.

    The load they make moves at random between 0.3 and 1.5 times the limit.
    """

    def __init__(self, pool, shape, touch):
        self.pool, self.touch = pool, touch
        self.n_layers, self.page_bytes, self.longest = SHAPES[shape]
        self.choose = random.Random(0)
        self.sessions = []  # ([pages of all layers], how many they become)
        self.arrays = []
        self.load = 1.0
        self.allocating, self.freeing = [], []  # nanoseconds
        self.utilisation, self.full = [], []

    def count(self, times, begin):
        times.append(time.perf_counter_ns() - begin)
        in_use = self.pool.in_use
        if in_use > 20 * MIB:
            self.utilisation.append(in_use / self.pool.reserved)

    def take(self, n_bytes, purpose):
        while True:
            begin = time.perf_counter_ns()
            try:
                one = self.pool.allocate(n_bytes, purpose)
            except PoolExhausted:
                self.full.append((self.pool.in_use + n_bytes) / self.pool.limit)
                self.drop(self.sessions or self.arrays, 0)
                continue
            self.count(self.allocating, begin)
            if self.touch:
                np.frombuffer(one, np.uint8)[:: 4 * KIB] = 1
            return one

    def drop(self, held, i):
        """Forget one of them; what no fork shares is freed, one by one."""
        dropped = held.pop(i)
        for pages in dropped[0] if held is self.sessions else [[1, dropped]]:
            pages[0] -= 1
            while pages[0] == 0 and len(pages) > 1:
                begin = time.perf_counter_ns()
                pages.pop().free()
                self.count(self.freeing, begin)

    def extend(self, session):
        pages = (self.take(self.page_bytes, "kv") for _ in range(self.n_layers))
        session[0].append([1, *pages])  # the number of sessions that hold them, first

    def fork(self, session):
        shared = session[0][:-1]
        for pages in shared:
            pages[0] += 1
        self.sessions.append((shared, self.choose.randint(2, self.longest)))
        self.extend(self.sessions[-1])

    def step(self):
        choose, sessions, what = self.choose, self.sessions, self.choose.random()
        if choose.random() < 0.002:
            self.load = choose.uniform(0.3, 1.5)
        if sessions and self.pool.in_use > self.load * self.pool.limit:
            self.drop(sessions, choose.randrange(len(sessions)))
        elif what < 0.05 and len(self.arrays) > 20:
            self.drop(self.arrays, choose.randrange(len(self.arrays)))
        elif what < 0.1:
            self.arrays.append(self.take(int(2 ** choose.uniform(12, 21.6)), "scratch"))
        elif what < 0.13 and sessions:
            self.fork(choose.choice(sessions))
        elif what < 0.3 or not sessions:
            sessions.append(([], choose.randint(2, self.longest)))
        else:
            session = choose.choice(sessions)
            if len(session[0]) < session[1]:
                self.extend(session)

    def run(self, n_operations):
        while len(self.allocating) + len(self.freeing) < n_operations:
            self.step()


@pytest.mark.parametrize("touch", [False, True], ids=["addresses", "written"])
@pytest.mark.parametrize(("shape", "limit"), [("2B", 1024), ("bundled", 64), ("bundled", 512)])
def test_a_million_operations(shape, limit, touch, benchmark, figures):
    """written: a byte of every 4 KiB is, so the OS has memory to give and to take back."""
    with Pool(limit * MIB) as pool:
        serving = Serving(pool, shape, touch)
        benchmark.pedantic(serving.run, [1_000_000], rounds=1)
        allocating, freeing = np.array(serving.allocating), np.array(serving.freeing)
        figures(
            utilisation_mean=np.mean(serving.utilisation),
            utilisation_least=min(serving.utilisation),
            refusals=len(serving.full),
            full_least=min(serving.full),
            allocate_ns=np.median(allocating),
            allocate_mean_ns=np.mean(allocating),
            allocate_99_ns=np.quantile(allocating, 0.99),
            free_ns=np.median(freeing),
            free_mean_ns=np.mean(freeing),
            free_99_ns=np.quantile(freeing, 0.99),
            longest_ms=max(np.max(allocating), np.max(freeing)) / 1e6,
        )
        serving.sessions.clear()
        serving.arrays.clear()
        assert pool.in_use == 0
        pool.trim()
        assert pool.arenas() == []


@pytest.mark.parametrize("n_bytes", [64, 64 * KIB, 320 * KIB, 3 * MIB, 8 * MIB])
def test_allocate_and_free(n_bytes, timed, figures):
    pool = Pool(1 << 30)
    held = [pool.allocate(320 * KIB, "kv") for _ in range(500)]

    def run():
        for _ in range(10_000):
            pool.allocate(n_bytes, "kv")

    figures(ns=timed(run) * 1e5, in_use=len(held))


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_threads(n_threads, timed, figures):
    """Python threads that allocate and free, with the interpreter's lock around most of it."""
    pool = Pool(1 << 30)

    def work():
        for _ in range(20_000):
            pool.allocate(320 * KIB, "kv")

    def run():
        threads = [threading.Thread(target=work) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    figures(ns_each=timed(run) / n_threads / 20_000 * 1e9)


@pytest.mark.parametrize("prefault", [False, True], ids=["plain", "prefault"])
@pytest.mark.parametrize("pages", ["huge", "small", "kept"])
def test_first_write(pages, prefault, benchmark, figures):
    """A KV page of 2B: microseconds to allocate it, and to write it for the first time.

    huge: from huge pages. small: between others, in huge pages that were broken. kept: memory that
    was in use before.
    """
    n_bytes, n_pages, times = 320 * KIB, 64, []
    pool = Pool(1 << 30)
    others = [pool.allocate(n_bytes, "kv", True) for _ in range(32 * n_pages)]
    if pages == "huge":
        others = others[: 17 * n_pages]
    elif pages == "small":
        del others[1::2]

    def run():
        begin = time.perf_counter_ns()
        new = [pool.allocate(n_bytes, "kv", prefault) for _ in range(n_pages)]
        middle = time.perf_counter_ns()
        for one in new:
            np.frombuffer(one, np.uint8)[:: 4 * KIB] = 1
        times.append((middle - begin, time.perf_counter_ns() - middle))
        del new, one
        if pages != "kept":
            pool.trim()

    benchmark.pedantic(run, rounds=7, warmup_rounds=2)
    allocate, write = np.median(times[2:], axis=0) / n_pages / 1e3
    figures(allocate_us=allocate, write_us=write, in_use=len(others))


def test_statistics(timed, figures):
    pool = Pool(16 << 30)
    held = [pool.allocate(320 * KIB, "kv") for _ in range(26_000)]
    del held[::2]
    figures(microseconds=timed(pool.stats) * 1e6, in_use=len(held))
