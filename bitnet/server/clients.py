"""Whose a request is, and turns: nobody's many requests keep others' few from being served."""

import hashlib
import ipaddress
import threading
from collections import OrderedDict, deque
from contextvars import ContextVar
from typing import Generic, TypeVar

from starlette.types import Scope

T = TypeVar("T")

# The client of the request that this task answers; AccessPolicy sets it.
CLIENT: ContextVar[str] = ContextVar("bitnet_client", default="")
HASH_LENGTH = 12  # hexadecimal digits: 48 bits, enough to tell a server's keys apart


def hash_of(key: bytes) -> str:
    """What stands for a key in the log."""
    return hashlib.sha256(key).hexdigest()[:HASH_LENGTH]


def address_of(scope: Scope) -> str:
    """Where a request comes from; of IPv6 the network of 64 bits, for one machine may have as many
    addresses. Behind a trusted proxy it is what that says (uvicorn sees to it); "" if unknown."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


class Turns(Generic[T]):
    """A queue between threads in which clients take turns; one client's things come in order."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()  # the next client's first
        self._is_filled = threading.Condition()

    def put(self, client: str, item: T) -> None:
        with self._is_filled:
            self._queues.setdefault(client, deque()).append(item)
            self._is_filled.notify()

    def get(self) -> T:
        """The next one; waits for it."""
        with self._is_filled:
            while not self._queues:
                self._is_filled.wait()
            return self._take()

    def get_now(self) -> T | None:
        """The next one, None if there is none."""
        with self._is_filled:
            return self._take() if self._queues else None

    def __bool__(self) -> bool:
        return bool(self._queues)

    def _take(self) -> T:
        client, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[client] = queue
        return item
