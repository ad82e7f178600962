"""A thread for work that the event loop cannot spare the time for: one job after the other."""

import asyncio
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .clients import CLIENT, Turns

R = TypeVar("R")


class JobThread:
    """Runs functions, in the order in which they come of each client; clients take turns.

    A job that nobody waits for any more is passed over. The thread does not keep the process alive:
    a job that is being run ends with the server.
    """

    def __init__(self, name: str) -> None:
        # (future, function, arguments)
        self._jobs: Turns[tuple[asyncio.Future[Any], Callable[..., Any], Any]] = Turns()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def begin(self) -> None:
        """Start the thread. RuntimeError where the system allows no more of them."""
        self._thread.start()

    async def run(self, function: Callable[..., R], *arguments: object) -> R:
        """The result of a function that is called in the thread, or what it raises."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._jobs.put(CLIENT.get(), (result, function, arguments))
        del function, arguments  # see perform
        return await result

    def _main(self) -> None:
        while True:
            perform(*self._jobs.get())


def perform(
    result: asyncio.Future[Any], function: Callable[..., Any], arguments: Sequence[Any]
) -> bool:
    """Settle a future of another thread's event loop with what a function returns or raises.

    False if its loop is closed: nobody waits for it. What the function held is free when this
    returns: an error would keep it by its traceback, and a future its error.
    """
    error: BaseException | None = None
    value = None
    try:
        if result.cancelled():
            return True
        try:
            value = function(*arguments)
        except BaseException as raised:
            error = raised
            while raised is not None:
                traceback.clear_frames(raised.__traceback__)
                raised = raised.__context__  # type: ignore[assignment]
        result.get_loop().call_soon_threadsafe(_settle, result, value, error)
        return True
    except RuntimeError:
        return False
    finally:
        del result, function, arguments, value, error


def _settle(result: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if result.cancelled():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)
