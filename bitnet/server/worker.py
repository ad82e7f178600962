"""The one thread that runs the model, and generations as the event loop sees them.

Everything that computes happens in the thread, a step of the scheduler at a time; requests, calls
and cancellations come to it through a queue, events go back by call_soon_threadsafe.
"""

import asyncio
import queue
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..api.model import Model
from ..errors import Cancelled
from ..generation.request import Completion, Request
from .clients import CLIENT, Turns
from .errors import overloaded, unavailable
from .job_thread import perform
from .log import log_mistake
from .metrics import Counts, Load, ModelMetrics

MAX_UNREAD = 16384  # events that a client has not taken; with more its request is cancelled
# Places that a client may have for each free one, where others could want it: one who asks for all
# gets three quarters of them, of the rest the next one the same share. (The dynamic thresholds of
# Choudhury and Hahne, by which switches share a buffer.)
SHARE = 3


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
    metrics: told of it, None for nobody.
    are_prompts_read: whether the HTTP request had all of its prompts read before, to score them.
    """

    def __init__(
        self,
        worker: "Worker",
        requests: Sequence[Request],
        prompt_indices: Sequence[int],
        metrics: ModelMetrics | None,
    ) -> None:
        self.requests, self.prompt_indices = requests, prompt_indices
        self._worker, self._news, self._metrics = worker, asyncio.Event(), metrics
        self._events: deque[Event] = deque()
        self._n_open = len(requests)
        self._started = time.perf_counter()
        self._latest: dict[int, float] = {}  # index: when its latest text came, since the start
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
        self._events.append(event)
        if event.error is None:
            self._measure(event.index, now)
        if event.completion is not None or event.error is not None:
            self._n_open -= 1
            self.ended = now
            self._worker.release(1, now, self.requests[event.index].client)
            if not self._n_open and self._metrics is not None:
                self._tell(self._metrics)
        if len(self._events) > MAX_UNREAD:
            self.cancel()
        self._news.set()

    def counts(self) -> Counts:
        """Tokens so far. A prompt counts once, however many texts continue it."""
        found, read = Counts(), set()
        for request, index in zip(self.requests, self.prompt_indices, strict=True):
            found.generated += len(request.tokens) - request.n_prompt
            if request.drafts is not None:
                found.drafted += request.drafts.drafted
                found.accepted += request.drafts.accepted
            if not request.admitted or index in read:
                continue
            read.add(index)
            found.prompt += request.n_prompt
            found.cached += request.n_cached
            found.lookups += request.reuses
            found.hits += request.n_cached > 0
        return found

    def _measure(self, index: int, now: float) -> None:
        self.first = self.first or now
        if self._metrics is not None and index in self._latest:
            self._metrics.gaps.observe(now - self._latest[index])
        self._latest[index] = now

    def _tell(self, metrics: ModelMetrics) -> None:
        """Let the metrics have what became of it."""
        metrics.count(self.counts())
        for request in self.requests:
            if request.admitted:
                metrics.queue.observe(max(0.0, request.admitted - self._started))
        if self.first:
            metrics.first_token.observe(self.first)
        if all(request.completion is not None for request in self.requests):
            metrics.generation.observe(self.ended)


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
        self._held: Counter[Hashable] = Counter()  # of n_open, by client
        self.is_draining = False
        self._seconds = 1.0  # moving average: of a sequence from start to end
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._calls: Turns[Callable[[], object]] = Turns()  # what computes, one between two steps
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

    def reserve(self, n: int, client: Hashable = None) -> None:
        """Take room for n sequences: ApiError 429 or 503 if there is none, or none for this client.

        Who has many keeps some places free for others, see SHARE; slots that would be idle are
        nobody's. release gives the room back, or each sequence of start at its end.
        """
        if self.is_draining or not self.is_alive:
            raise unavailable("the server is shutting down")
        held, free = self._held[client], self.capacity - self.n_open
        is_idle = self.n_open + n <= self.slots
        if n > free or (held + n > SHARE * free and not is_idle):
            rounds = -(-self.n_open // self.slots)
            wait = min(60, max(1, round(self._seconds * rounds)))
            others = "" if n > free else f", {held} of them yours: the free ones are for others"
            message = f"{self.n_open} sequences run or wait, no room for {n} more{others}"
            raise overloaded(message, wait)
        self.n_open += n
        self._held[client] += n

    def release(self, n: int, seconds: float | None = None, client: Hashable = None) -> None:
        """Give back what reserve gave to a client. seconds: how long it was used."""
        self.n_open -= n
        self._held[client] -= n
        if not self._held[client]:
            del self._held[client]
        if seconds is not None:
            self._seconds += 0.1 * (seconds - self._seconds)

    def load(self) -> Load:
        """How many sequences there are at this moment."""
        running, waiting = self._scheduler.counts()
        return Load(self.n_open, running, waiting, self.capacity, self.slots)

    def start(
        self,
        requests: Sequence[Request],
        prompt_indices: Sequence[int] | None = None,
        metrics: ModelMetrics | None = None,
    ) -> Generation:
        """A Generation of requests of the model, for which there is a reservation of their client.

        prompt_indices, metrics: see Generation; prompt_indices None where each has a prompt of its
        own.
        """
        indices = prompt_indices or range(len(requests))
        generation = Generation(self, requests, indices, metrics)
        self._inbox.put(lambda: self._submit(generation))
        return generation

    def cancel(self, generation: Generation) -> None:
        """See Generation.cancel."""
        for request in generation.requests:
            request.cancel()
        self._inbox.put(_nothing)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that computes, in the thread, between two steps; clients take
        turns."""
        result: asyncio.Future[Any] = self._loop.create_future()
        self._calls.put(CLIENT.get(), lambda: self._call(result, function, arguments))
        self._inbox.put(_nothing)
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
                if (call := self._calls.get_now()) is not None:
                    call()
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
                is_busy = self._open or self._calls or self._is_stopping
                self._inbox.get(block=not is_busy)()
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
