"""Requests' bodies on their way in: bounded in size, in time, and all of them together."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from .errors import ApiError, ClientGone, unavailable


class BodyLimit:
    """Counts the bodies that are being read. limit: bytes of one. limit_of_all: of all of them."""

    def __init__(self, limit: int, limit_of_all: int) -> None:
        self.limit, self._limit_of_all = limit, limit_of_all
        self._n_bytes = 0

    @contextmanager
    def one(self) -> "Iterator[Body]":
        """A Body that counts until the end of the block."""
        body = Body(self)
        try:
            yield body
        finally:
            self._n_bytes -= len(body.data)

    def add(self, n: int) -> None:
        """Count n more bytes of a body, or ApiError 503."""
        if self._n_bytes + n > self._limit_of_all:
            raise unavailable("too many large requests come in; try again later")
        self._n_bytes += n


class Body:
    """The body of one request. data: what has come so far."""

    def __init__(self, limits: BodyLimit) -> None:
        self._limits, self.data = limits, bytearray()

    async def read(self, request: Request, seconds: float) -> None:
        """All of it. ApiError 413, 503, or 408 if it takes too long to come."""
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._limits.limit:
            raise self._too_large()
        try:
            async with asyncio.timeout(seconds):
                while await self._read_message(request):
                    pass
        except TimeoutError:
            headers = {"connection": "close"}
            raise ApiError(408, "the body did not come in time", headers=headers) from None

    async def _read_message(self, request: Request) -> bool:
        """Whether more is to come."""
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        data = message.get("body", b"")
        if len(self.data) + len(data) > self._limits.limit:
            raise self._too_large()
        self._limits.add(len(data))
        self.data += data
        return bool(message.get("more_body", False))

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._limits.limit} bytes"
        return ApiError(413, message, code="body_too_large")
