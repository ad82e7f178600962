"""Whose a request is, and turns: nobody's many requests keep others' few from being served."""

import hashlib
import ipaddress
import queue
import threading
from collections import OrderedDict, deque
from contextvars import ContextVar
from functools import lru_cache
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
    return _client_at(str((scope.get("client") or ("",))[0]))


@lru_cache(1024)
def _client_at(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


class Turns(Generic[T]):
    """A queue between threads in which clients take turns; one client's things come in order."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()  # the next client's first
        self._lock = threading.Lock()
        # One for each item: a queue in C wakes its reader without a lock that both would want, as
        # a Condition has, which took 0.1 ms of every job.
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, client: str, item: T) -> None:
        with self._lock:
            self._queues.setdefault(client, deque()).append(item)
        self._signals.put(None)

    def get(self) -> T:
        """The next one; waits for it."""
        self._signals.get()
        with self._lock:
            client, own = self._queues.popitem(last=False)
            item = own.popleft()
            if own:
                self._queues[client] = own
            return item

    def get_now(self) -> T | None:
        """The next one, None if there is none; of the only thread that gets any."""
        return None if self._signals.empty() else self.get()

    def __bool__(self) -> bool:
        return not self._signals.empty()
