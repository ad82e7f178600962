"""Requests' bodies on their way in: bounded in size, in time, and all of them together."""

import asyncio
from contextlib import contextmanager

from .errors import ApiError, unavailable
from .guard import ClientGone


class BodyLimit:
    """All that are being read. limit: bytes of one. limit_of_all: of all of them."""

    def __init__(self, limit, limit_of_all):
        self.limit, self._limit_of_all = limit, limit_of_all
        self._n_bytes = 0

    @contextmanager
    def one(self):
        """A Body that counts until the end of the block."""
        body = Body(self)
        try:
            yield body
        finally:
            self._n_bytes -= len(body.data)

    def add(self, n):
        if self._n_bytes + n > self._limit_of_all:
            raise unavailable("too many large requests come in; try again later")
        self._n_bytes += n


class Body:
    """One. data: what has come so far."""

    def __init__(self, bodies):
        self._bodies, self.data = bodies, bytearray()

    async def read(self, request, seconds):
        """All of it. ApiError 413, 503, or 408 if it takes too long to come."""
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._bodies.limit:
            raise self._too_large()
        try:
            async with asyncio.timeout(seconds):
                while await self._read_part(request):
                    pass
        except TimeoutError:
            headers = {"connection": "close"}
            raise ApiError(408, "the body did not come in time", headers=headers) from None

    async def _read_part(self, request):
        """Whether more is to come."""
        part = await request.receive()
        if part["type"] == "http.disconnect":
            raise ClientGone
        data = part.get("body", b"")
        if len(self.data) + len(data) > self._bodies.limit:
            raise self._too_large()
        self._bodies.add(len(data))
        self.data += data
        return part.get("more_body", False)

    def _too_large(self):
        message = f"the body is larger than {self._bodies.limit} bytes"
        return ApiError(413, message, code="body_too_large")
