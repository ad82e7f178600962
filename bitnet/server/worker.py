"""The one thread that runs the model, and generations as the event loop sees them.

Everything that computes happens in the thread, a step of the scheduler at a time; requests, calls
and cancellations come to it through a queue, events go back by call_soon_threadsafe.
"""

import asyncio
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..api.model import Model
from ..errors import Cancelled
from ..generation.request import Completion, Request
from .errors import overloaded, unavailable
from .job_thread import perform
from .log import log_mistake

MAX_UNREAD = 16384  # events that a client has not taken; with more its request is cancelled


@dataclass(frozen=True)
class Event:
    """News of one sequence of a generation.

    index: of the sequence. text: what is new of it. logprobs: of the new tokens, see
    generation.request.Request. completion: with the last event. error: what ended it instead.
    """

    index: int
    text: str = ""
    logprobs: Sequence[list[tuple[int, float]]] = ()
    completion: Completion | None = None
    error: BaseException | None = None


class Generation:
    """The sequences of one HTTP request; made by Worker.start, used in the event loop only.

    prompt_indices: of each sequence, which prompt of the HTTP request it continues.
    first, ended: when the first token and the last came, seconds since the start; 0 before.
    are_prompts_read: whether the HTTP request had all of its prompts read before, to score them.
    """

    def __init__(
        self, worker: "Worker", requests: Sequence[Request], prompt_indices: Sequence[int]
    ) -> None:
        self.requests, self.prompt_indices = requests, prompt_indices
        self._worker, self._news = worker, asyncio.Event()
        self._events: deque[Event] = deque()
        self._n_open = len(requests)
        self._started = time.perf_counter()
        self.first = self.ended = 0.0
        self.is_cancelled = self.are_prompts_read = False

    async def take(self, seconds: float | None = None) -> list[Event] | None:
        """New events, at least one; [] after so many seconds without, None at the end."""
        if self._n_open and not self._events:
            self._news.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                return []
        elif not self._events:
            return None
        events, self._events = list(self._events), deque()
        return events

    def cancel(self) -> None:
        """End what is not complete; its memory is free within a step."""
        if not self.is_cancelled and self._n_open:
            self.is_cancelled = True
            self._worker.cancel(self)

    def put(self, event: Event) -> None:
        """Add an event of the worker."""
        now = time.perf_counter() - self._started
        self.first = self.first or now
        self._events.append(event)
        if event.completion is not None or event.error is not None:
            self._n_open -= 1
            self.ended = now
            self._worker.release(1, now)
        if len(self._events) > MAX_UNREAD:
            self.cancel()
        self._news.set()


News = tuple[Generation, Event]


class Worker:
    """Owns a Model, loaded with fair=True: nobody else may compute with it.

    n_waiting: sequences that may wait for a slot. slots: sequences that run at once. capacity: the
    sum of both. n_open: sequences that run or wait now, counted in the event loop. is_draining: set
    to refuse what is new.
    """

    def __init__(self, model: Model, n_waiting: int) -> None:
        self._scheduler = model.scheduler
        self.slots = self._scheduler.slots
        self.capacity = self.slots + n_waiting
        self.n_open = 0
        self.is_draining = False
        self._seconds = 1.0  # moving average: of a sequence from start to end
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # (generation, index of the sequence, its request), used in the thread only
        self._open: list[tuple[Generation, int, Request]] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._main, name="bitnet-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    # ------------------------------------------------------------------------- in the event loop
    def begin(self) -> None:
        """Start the thread; from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; without it nothing will be computed."""
        return self._thread.is_alive()

    def reserve(self, n: int) -> None:
        """Take room for n sequences: ApiError 429 or 503 if there is none.

        release gives it back, or each sequence of start at its end.
        """
        if self.is_draining or not self.is_alive:
            raise unavailable("the server is shutting down")
        if self.n_open + n > self.capacity:
            rounds = -(-self.n_open // self.slots)
            wait = min(60, max(1, round(self._seconds * rounds)))
            raise overloaded(f"{self.n_open} sequences run or wait, no room for {n} more", wait)
        self.n_open += n

    def release(self, n: int, seconds: float | None = None) -> None:
        """Give back what reserve gave. seconds: how long it was used."""
        self.n_open -= n
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)

    def start(
        self, requests: Sequence[Request], prompt_indices: Sequence[int] | None = None
    ) -> Generation:
        """A Generation of requests of the model, for which there is a reservation.

        prompt_indices: see Generation; None where each has a prompt of its own.
        """
        generation = Generation(self, requests, prompt_indices or range(len(requests)))
        self._inbox.put(lambda: self._submit(generation))
        return generation

    def cancel(self, generation: Generation) -> None:
        """See Generation.cancel."""
        for request in generation.requests:
            request.cancel()
        self._inbox.put(_nothing)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that computes, in the thread, between two steps."""
        result: asyncio.Future[Any] = self._loop.create_future()
        self._inbox.put(lambda: self._call(result, function, arguments))
        return await result

    def stop(self) -> None:
        """Cancel everything and end the thread, after the step it is in."""
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    # ----------------------------------------------------------------------------- in the thread
    def _main(self) -> None:
        try:
            while not self._is_stopping:
                self._take_commands()
                if self._open:
                    self._step()
        except Exception as error:
            log_mistake(error)
        finally:
            self._stop()

    def _take_commands(self) -> None:
        """Run what came in; wait for something if there is nothing to compute."""
        try:
            while True:
                self._inbox.get(block=not self._open and not self._is_stopping)()
        except queue.Empty:
            pass

    def _submit(self, generation: Generation) -> None:
        failed = []
        for index, request in enumerate(generation.requests):
            try:
                self._scheduler.submit(request)
                self._open.append((generation, index, request))
            except Exception as error:
                failed.append((generation, Event(index, error=error)))
        self._send(failed)

    def _step(self) -> None:
        try:
            self._scheduler.step()
        except Exception as error:  # of no single request: those the scheduler catches
            log_mistake(error)
            traceback.clear_frames(error.__traceback__)
            for _, _, request in self._open:
                self._scheduler.cancel(request)
        self._send([news for entry in self._open for news in self._news(*entry)])
        self._open = [entry for entry in self._open if not entry[2].is_done]

    @staticmethod
    def _news(generation: Generation, index: int, request: Request) -> Iterator[News]:
        """At most one (generation, Event): what a request has to say since the last step."""
        text = "".join(request.deltas)
        request.deltas.clear()
        logprobs = tuple(request.logprobs)
        request.logprobs.clear()
        if text or logprobs or request.is_done:
            yield generation, Event(index, text, logprobs, request.completion, request.error)

    def _call(
        self, result: asyncio.Future[Any], function: Callable[..., Any], arguments: Sequence[Any]
    ) -> None:
        self._is_stopping |= not perform(result, function, arguments)

    def _stop(self) -> None:
        self._is_stopping = True
        stopped = Cancelled("the server stops")
        self._send([(g, Event(index, error=stopped)) for g, index, _ in self._open])
        self._open = []

    def _send(self, events: Sequence[News]) -> None:
        if not events:
            return
        try:
            self._loop.call_soon_threadsafe(_put_all, events)
        except RuntimeError:  # the loop is closed: nobody waits
            self._is_stopping = True


def _put_all(events: Sequence[News]) -> None:
    for generation, event in events:
        generation.put(event)


def _nothing() -> None:
    """A command that only wakes the thread."""
