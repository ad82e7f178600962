"""The thread of jobs: in order, nothing that nobody waits for, nothing kept of what failed."""

import asyncio
import gc
import threading
import weakref

import pytest

pytest.importorskip("starlette")

from bitnet.server.job_thread import JobThread


@pytest.fixture
def thread():
    one = JobThread("test")
    one.begin()
    return one


def test_results_and_errors(thread):
    async def run():
        assert await thread.run(max, 1, 2) == 2
        with pytest.raises(ZeroDivisionError):
            await thread.run(divmod, 1, 0)
        assert await thread.run(lambda: threading.current_thread().daemon)

    asyncio.run(run())


def test_what_nobody_waits_for_is_passed_over(thread):
    may_go_on, done = threading.Event(), []

    async def run():
        first = asyncio.create_task(thread.run(may_go_on.wait))
        second = asyncio.create_task(thread.run(done.append, "second"))
        third = asyncio.create_task(thread.run(done.append, "third"))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        await asyncio.gather(first, third)

    asyncio.run(run())
    assert done == ["third"]


def test_a_loop_that_is_closed_does_not_end_the_thread(thread):
    may_go_on = threading.Event()

    async def leave():
        job = asyncio.create_task(thread.run(may_go_on.wait))
        await asyncio.sleep(0)
        job.cancel()

    async def use():
        return await thread.run(int, "5")

    asyncio.run(leave())
    may_go_on.set()
    assert asyncio.run(use()) == 5


def test_an_error_keeps_nothing_of_its_job(thread):
    class Large:
        pass

    seen = []

    def fail(argument):
        local = Large()
        seen.extend(map(weakref.ref, (argument, local)))
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    async def run():
        with pytest.raises(ValueError, match="outer"):
            await thread.run(fail, Large())
        assert [reference() for reference in seen] == [None, None]

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
