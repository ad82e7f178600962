"""The life of a server: bind, load, serve, drain; and what uvicorn leaves open to slow clients."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..api.model import Model
from ..text.vocabulary.library import NO_THREADS
from .access_policy import MAX_HEADER_BYTES
from .app import Application
from .log import log, log_mistake, set_up
from .options import Options
from .systemd import Notifier
from .tls import check_pair

MAX_CONNECTIONS = 512  # connections at once: half of the 1024 files a process may usually open
KEEP_ALIVE_SECONDS = 15  # seconds that a connection without a request stays open
# Seconds the event loop waits for the model's thread to give up the interpreter lock; Python's own
# 5 ms are 20 steps of a small model.
SWITCH_SECONDS = 5e-4


def run(load: Callable[[], Sequence[Model]], options: Options) -> None:
    """See serve."""
    set_up(options.log_format)
    if options.tls_cert is not None and options.tls_key is not None:
        check_pair(options.tls_cert, options.tls_key)
    with _bound(options) as listener, contextlib.ExitStack() as opened:
        models = [opened.enter_context(model) for model in load()]
        sys.setswitchinterval(SWITCH_SECONDS)
        os.environ.setdefault(NO_THREADS, "false")
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # AccessPolicy logs ours
        application = Application(models, options)
        gc.collect()
        gc.freeze()  # what is there stays: collections need not look through it, 1 % of the time
        try:
            Server(_config(application, options), application).run(sockets=[listener])
        finally:
            application.stop()
    log.info("ended")


def _bound(options: Options) -> socket.socket:
    """A socket that holds the address, so that nothing is loaded in vain; it does not listen."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, f"{options.host}:{options.port}") from None
    return listener


def _config(application: Application, options: Options) -> uvicorn.Config:
    class Protocol(BoundedProtocol):
        header_seconds = options.read_seconds

    return uvicorn.Config(
        application,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(options.trusted_proxies),
        forwarded_allow_ips=list(options.trusted_proxies),
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=options.drain_seconds,  # type: ignore[arg-type]  # floats work
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


class BoundedProtocol(H11Protocol):
    """Closes connections beyond a number, and those whose headers do not come in time."""

    header_seconds = 20.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}  # for AccessPolicy, to abort it
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        self._await_headers()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if self._deadline is None and idle:
            self._deadline = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _log_unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own handler would log the error's message, which could quote a request."""
    if (error := context.get("exception")) is not None:
        log_mistake(error)


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT drains and the process exits 0; the second ends it at once."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application, self._systemd = application, Notifier()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_log_unhandled)
        self._application.begin()  # now, so that it is no client who learns of what is missing
        await super().startup(sockets)
        scheme = "https" if self.config.is_ssl else "http"
        names = " and ".join(one.name for one in self._application.service.served)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            where = f"[{host}]" if ":" in host else host
            log.info("serving %s on %s://%s:%d", names, scheme, where, port)
        self._systemd.tell("READY=1", f"STATUS=serving {' '.join(names.split())}")
        self._tell_alive()

    def _tell_alive(self) -> None:
        """Again and again, while the event loop turns and the thread that computes is there."""
        seconds = self._systemd.watchdog_seconds
        if seconds is None or not self._application.worker.is_alive:
            return
        self._systemd.tell("WATCHDOG=1")
        asyncio.get_running_loop().call_later(seconds, self._tell_alive)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = self._application.worker.is_draining = True
        log.info("ending at once" if self.force_exit else "draining")
        self._systemd.tell("STOPPING=1", "STATUS=draining")
