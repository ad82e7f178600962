"""The one thread that runs the model, and generations as the event loop sees them.

Everything that computes happens in the thread, a step of the engine at a time; requests, calls and
cancellations come to it through a queue, pieces go back by call_soon_threadsafe.
"""

import asyncio
import queue
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass

from ..errors import Cancelled
from .errors import overloaded, unavailable
from .log import log_mistake

MAX_UNREAD = 16384  # events nobody took: the client does not read, and its request is cancelled


@dataclass(frozen=True)
class Event:
    """News of one sequence of a generation. index: which. text: new. logprobs: of new tokens.

    completion: the engine's, with the last event. error: what ended it instead.
    """

    index: int
    text: str = ""
    logprobs: tuple = ()
    completion: object = None
    error: BaseException | None = None


class Generation:
    """The sequences of one HTTP request; made by Worker.start, used in the event loop only.

    first, ended: when the first token and the last came, seconds since the start.
    """

    def __init__(self, worker, requests):
        self.requests = requests
        self._worker, self._events, self._news = worker, deque(), asyncio.Event()
        self._n_open = len(requests)
        self._started = time.perf_counter()
        self.first = self.ended = None
        self.is_cancelled = False

    async def take(self, seconds=None):
        """New Events, at least one; [] after so many seconds without, None at the end."""
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

    def cancel(self):
        """End what is not complete; its memory is free within a step."""
        if not self.is_cancelled and self._n_open:
            self.is_cancelled = True
            self._worker.cancel(self)

    def put(self, event):
        """What the worker has to say."""
        now = time.perf_counter() - self._started
        self.first = now if self.first is None else self.first
        self._events.append(event)
        if event.completion is not None or event.error is not None:
            self._n_open -= 1
            self.ended = now
            self._worker.release(1, now)
        if len(self._events) > MAX_UNREAD:
            self.cancel()
        self._news.set()


class Worker:
    """Owns a Model: nobody else may compute with it. capacity: sequences that run or wait."""

    def __init__(self, model, n_waiting):
        self.model = model
        self._scheduler = model.scheduler
        self._scheduler.fair = True
        self.slots = self._scheduler.slots
        self.capacity = self.slots + n_waiting
        self.n_open = 0  # sequences that run or wait, counted in the event loop
        self.is_draining = False
        self._seconds = 1.0  # that a sequence takes from start to end, lately
        self._inbox = queue.SimpleQueue()
        self._open = []  # [(generation, index, request)], of the thread
        self._is_stopping = False
        self._thread = threading.Thread(target=self._main, name="bitnet-engine", daemon=True)
        self._loop = None

    # ------------------------------------------------------------------------- in the event loop
    def begin(self):
        """Start the thread; from the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self):
        """Whether the thread runs; without it nothing will be computed."""
        return self._thread.is_alive()

    def reserve(self, n):
        """Room for n sequences, or ApiError 429, 503. To be given to start, or back by release."""
        if self.is_draining or not self.is_alive:
            raise unavailable("the server is shutting down")
        if self.n_open + n > self.capacity:
            rounds = -(-self.n_open // self.slots)
            wait = min(60, max(1, round(self._seconds * rounds)))
            raise overloaded(f"{self.n_open} sequences run or wait, no room for {n} more", wait)
        self.n_open += n

    def release(self, n, seconds=None):
        """Give back what reserve gave. seconds: how long it was used."""
        self.n_open -= n
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)

    def start(self, requests):
        """A Generation of engine requests, for which there is a reservation."""
        generation = Generation(self, requests)
        self._inbox.put(lambda: self._submit(generation))
        return generation

    def cancel(self, generation):
        """See Generation.cancel."""
        for request in generation.requests:
            request.is_cancelled = True
        self._inbox.put(_nothing)

    async def call(self, function, *arguments):
        """The result of a function that computes, in the thread, between two steps."""
        result = self._loop.create_future()
        self._inbox.put(lambda: self._call(result, function, arguments))
        return await result

    def stop(self):
        """Cancel everything and end the thread, after the step it is in."""
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    # ----------------------------------------------------------------------------- in the thread
    def _main(self):
        try:
            while not self._is_stopping:
                self._take_commands()
                if self._open:
                    self._step()
        except Exception as error:
            log_mistake(error)
        finally:
            self._stop()

    def _take_commands(self):
        """Run what came in; wait for something if there is nothing to compute."""
        try:
            while True:
                self._inbox.get(block=not self._open and not self._is_stopping)()
        except queue.Empty:
            pass

    def _submit(self, generation):
        failed = []
        for index, request in enumerate(generation.requests):
            try:
                self._scheduler.submit(request)
                self._open.append((generation, index, request))
            except Exception as error:
                failed.append((generation, Event(index, error=error)))
        self._send(failed)

    def _step(self):
        try:
            self._scheduler.step()
        except Exception as error:  # not of one request, which the engine sees to
            log_mistake(error)
            traceback.clear_frames(error.__traceback__)
            for _, _, request in self._open:
                self._scheduler.cancel(request)
        self._send([found for entry in self._open for found in self._news(*entry)])
        self._open = [entry for entry in self._open if not entry[2].is_done]

    @staticmethod
    def _news(generation, index, request):
        """At most one (generation, Event): what a request has to say since the last step."""
        text = "".join(request.deltas)
        request.deltas.clear()
        logprobs = tuple(request.logprobs)
        request.logprobs.clear()
        if text or logprobs or request.is_done:
            yield generation, Event(index, text, logprobs, request.completion, request.error)

    def _call(self, result, function, arguments):
        if result.cancelled():
            return
        try:
            self._post(_settle, result, function(*arguments), None)
        except Exception as error:
            self._post(_settle, result, None, error)

    def _stop(self):
        self._is_stopping = True
        stopped = Cancelled("the server stops")
        self._send([(g, Event(index, error=stopped)) for g, index, _ in self._open])
        self._open = []

    def _send(self, events):
        if events:
            self._post(_put_all, events)

    def _post(self, function, *arguments):
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: nobody waits
            self._is_stopping = True


def _put_all(events):
    for generation, event in events:
        generation.put(event)


def _settle(result, value, error):
    if result.cancelled():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)


def _nothing():
    """A command that only wakes the thread."""
