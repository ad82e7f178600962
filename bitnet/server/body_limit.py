"""Requests' bodies: bounded in size, in time, in what they become, and all of them together.

A body grows when it is read into objects and texts: five times where it is plain text (objects
hold it, a template copies it), a hundred times where it is a list of small values. What is counted
is what it may become, from before it is parsed until its request is answered or its stream begins.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from .errors import ApiError, ClientGone, unavailable

MAX_BODY = 4 << 20  # bytes of a body: a text of 128k tokens eight times
MAX_VALUES = 1 << 18  # values in a body's JSON: two of the longest lists of ids
MAX_BODIES = 256 << 20  # bytes that all bodies may become: twelve of the largest texts

# Bytes of memory for a byte of a body, for one more where a character of the text is wide (Python
# then takes four bytes for each of them), and for a value: 22 to 134 were measured.
PER_BYTE, PER_WIDE_BYTE, PER_VALUE = 5, 12, 150
_CHUNK = 1 << 16  # bytes between which other threads may run


class BodyLimit:
    """Counts what the bodies of all requests may become."""

    def __init__(self) -> None:
        self._n_bytes = 0

    @contextmanager
    def one(self) -> "Iterator[Body]":
        """A Body that counts until the end of the block."""
        body = Body(self)
        try:
            yield body
        finally:
            self._n_bytes -= body.cost

    def add(self, n: int) -> None:
        """Count n more bytes, or ApiError 503."""
        if self._n_bytes + n > MAX_BODIES:
            raise unavailable("too many large requests come in; try again later")
        self._n_bytes += n


class Body:
    """The body of one request. cost: bytes that are counted for it."""

    def __init__(self, limits: BodyLimit) -> None:
        self._limits, self._data = limits, bytearray()
        self.cost = 0

    async def read(self, request: Request, seconds: float) -> bytes:
        """All of it. ApiError 413, 503, or 408 if it takes too long to come."""
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MAX_BODY:
            raise _too_large()
        try:
            async with asyncio.timeout(seconds):
                while await self._read_message(request):
                    pass
        except TimeoutError:
            headers = {"connection": "close"}
            raise ApiError(408, "the body did not come in time", headers=headers) from None
        data, self._data = bytes(self._data), bytearray()
        return data

    def count_values(self, data: bytes, n: int) -> None:
        """Count what the n_values of data will take. ApiError 503."""
        self._count(PER_VALUE * n)
        if not data.isascii() or b"\\u" in data:
            self._count(PER_WIDE_BYTE * len(data))

    async def _read_message(self, request: Request) -> bool:
        """Whether more is to come."""
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        data = message.get("body", b"")
        if len(self._data) + len(data) > MAX_BODY:
            raise _too_large()
        self._count(PER_BYTE * len(data))
        self._data += data
        return bool(message.get("more_body", False))

    def _count(self, n: int) -> None:
        self._limits.add(n)
        self.cost += n


def n_values(body: bytes) -> int:
    """How many values a text of JSON has, about; ApiError for more than MAX_VALUES."""
    n = _n_separators(body)
    if n <= MAX_VALUES:  # as a rule, with those within strings
        return n
    text = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    n, in_string = 0, 0
    for at in range(0, len(text), _CHUNK):
        pieces = text[at : at + _CHUNK].split(b'"')
        n += _n_separators(b"".join(pieces[in_string::2]))
        in_string ^= (len(pieces) - 1) & 1
        if n > MAX_VALUES:
            message = f"the body has more than {MAX_VALUES} values"
            raise ApiError(400, message, code="body_too_large")
    return n


def _n_separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BODY} bytes", code="body_too_large")
