"""A thread for work that the event loop cannot spare the time for: one job after the other."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")


class JobThread:
    """Runs functions in the order in which they come.

    A job that nobody waits for any more is passed over. The thread does not keep the process alive:
    a job that is being run ends with the server.
    """

    def __init__(self, name: str) -> None:
        # (future, function, arguments)
        self._jobs: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], Any]]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def begin(self) -> None:
        """Start the thread. RuntimeError where the system allows no more of them."""
        self._thread.start()

    async def run(self, function: Callable[..., R], *arguments: object) -> R:
        """The result of a function that is called in the thread, or what it raises."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._jobs.put((result, function, arguments))
        return await result

    def _main(self) -> None:
        while True:
            self._run_next()  # in a call of its own, so that nothing of a job outlives it

    def _run_next(self) -> None:
        result, function, arguments = self._jobs.get()
        if not result.cancelled():
            try:
                post(result, function(*arguments), None)
            except BaseException as error:
                post(result, None, error)


def post(result: asyncio.Future[Any], value: object, error: BaseException | None) -> bool:
    """Settle a future from another thread; False if its loop is closed: nobody waits for it."""
    try:
        result.get_loop().call_soon_threadsafe(_settle, result, value, error)
    except RuntimeError:
        return False
    return True


def _settle(result: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if result.cancelled():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)
