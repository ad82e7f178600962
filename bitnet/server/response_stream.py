"""From a generation's events to an HTTP response: whole, or as a stream of server-sent events."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import Cancelled
from ..generation.request import Completion
from .errors import ApiError, ClientGone, to_api_error
from .openai_chunks import usage
from .reply_protocol import Chunk, Reply
from .worker import Event, Generation

R = TypeVar("R")

WATCHED_SECONDS = 0.02  # seconds before anybody looks whether a client is there: it costs 0.2 ms
PING_SECONDS = 10  # seconds between comments in an idle stream, which nginx would end after 60
_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class ResponseStream:
    """The response to one request: a Generation, written down by a reply (reply_protocol).

    When the client leaves, the generation is cancelled. is_silent: what is written is left out,
    where a client wants its prompt read only.
    """

    def __init__(
        self,
        request: Request,
        generation: Generation,
        reply: Reply,
        is_silent: bool = False,
    ) -> None:
        self._request, self._generation = request, generation
        self._reply, self._is_silent = reply, is_silent
        self._completions: dict[int, Completion] = {}

    async def whole(self) -> Chunk:
        """The fold of all chunks. ApiError, or ClientGone."""
        async with self._watched():
            chunks = list(self._opening())
            while (events := await self._generation.take()) is not None:
                chunks += self._chunks(events)
        return self._reply.fold([*chunks, self._closing()])

    async def stream(self, has_usage: bool) -> ASGIApp:
        """An ASGI response of all chunks. ApiError if the first event is an error, ClientGone.

        has_usage: whether the closing chunk is sent whatever the reply's ``closes`` says.
        """
        async with self._watched():
            first = await self._generation.take(PING_SECONDS)
            chunks = [*self._opening(), *self._chunks(first or ())]

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            async with self._watched():
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                async for data in self._lines(chunks, has_usage):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})

        return respond

    async def _lines(self, chunks: Iterable[Chunk], has_usage: bool) -> AsyncIterator[bytes]:
        empty: Chunk
        empty, line = {"usage": None} if has_usage else {}, self._reply.line
        try:
            yield b"".join(line(chunk | empty) for chunk in chunks)
            while (events := await self._generation.take(PING_SECONDS)) is not None:
                lines = [line(chunk | empty) for chunk in self._chunks(events)]
                yield b"".join(lines) or b": ping\n\n"
            closing = self._closing()
            if has_usage or self._reply.closes:
                yield line(closing)
        except ApiError as error:
            yield self._reply.failure(error)
        yield self._reply.end

    def _opening(self) -> Iterable[Chunk]:
        return self._reply.opening(len(self._generation.requests))

    def _chunks(self, events: Iterable[Event]) -> Iterator[Chunk]:
        for event in events:
            if isinstance(event.error, Cancelled):
                raise ClientGone
            if event.error is not None:
                raise to_api_error(event.error) or event.error
            if self._is_silent:
                if event.completion is None:
                    continue
                completion = dataclasses.replace(
                    event.completion, text="", token_ids=[], finish_reason="length"
                )
                event = Event(event.index, completion=completion)
            if event.completion is not None:
                self._completions[event.index] = event.completion
            yield from self._reply.chunks(event)

    def _closing(self) -> Chunk:
        completions = [self._completions[index] for index in sorted(self._completions)]
        return self._reply.closing(usage(completions, self._generation))

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Within, the generation ends when the client leaves, or what is within fails."""
        try:
            async with watched(self._request, self._generation.cancel):
                yield
        except BaseException:
            self._generation.cancel()
            raise


async def while_connected(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """The result of work before any answer. ClientGone, and it is cancelled, if the client leaves.

    What a thread is at goes on to its end, what waits for the thread is passed over.
    """
    task, gone = asyncio.current_task(), False
    assert task is not None
    watcher: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(WATCHED_SECONDS, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientGone from None
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


@asynccontextmanager
async def watched(
    request: Request, on_disconnect: Callable[[], object] | None = None
) -> AsyncIterator[asyncio.Event]:
    """Within, on_disconnect is called when the client leaves; gives an Event of it."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()
        if on_disconnect is not None:
            on_disconnect()

    watcher = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watcher.cancel()
