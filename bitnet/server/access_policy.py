"""Before every endpoint: who may call, from where, and how long taking the answer may last.

Browsers are the danger on a loopback address: any web page can send requests to it. A page of a
foreign name that points here (DNS rebinding) is refused by its Host header, any other by its
Origin.
"""

import asyncio
import hmac
import ipaddress
import re
import secrets
import time
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .anthropic_errors import error_response, is_anthropic
from .clients import CLIENT, address_of, hash_of
from .errors import ApiError, ClientGone
from .log import log_mistake, log_request
from .metrics import Metrics
from .options import Options
from .request_record import RequestRecord

# They need no key: they tell nothing of what is here
OPEN_ROUTES = ("/", "/health", "/ready", "/docs", "/openapi.json")
OPEN_FOLDER = "/page/"  # of the chat page's files, as open
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
MAX_HEADER_BYTES = 16 << 10  # bytes of a request's headers, as most servers allow
MAX_DISCARDED = 64 << 20  # bytes of a body that are read only so that its client sees an answer
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[^:\[\]]+))(?::\d{1,5})?")
_HEADER_NAME = re.compile(r"[\w-]+", re.A)
_ID = re.compile(rb"[\w.:-]{1,128}")  # of a request that a client named

Headers = dict[bytes, bytes]  # a request's; names in lower case


class AccessPolicy:
    """ASGI middleware around the whole application.

    routes: paths that log and metrics name; all others are "other", so that no caller can make up
    names.
    """

    def __init__(
        self, app: ASGIApp, options: Options, metrics: Metrics, routes: Collection[str]
    ) -> None:
        self._app, self._options, self._metrics, self._routes = app, options, metrics, routes
        self._keys = {key.encode(): hash_of(key.encode()) for key in options.keys}
        self._names = {"localhost", options.host.lower(), *map(str.lower, options.allow_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        exchange = Exchange(scope, receive, send, self._options, self._cors(headers))
        record = RequestRecord(exchange.id.decode(), self._keys.get(self._key_of(headers)))
        # where keys tell clients apart they do, else addresses: all have the one key
        several = len(self._keys) > 1 and record.key is not None
        CLIENT.set(f"key {record.key}" if several else address_of(scope))
        scope["state"] = {**scope.get("state", {}), "record": record}
        try:
            await self._respond(scope, headers, exchange)
        except (ClientGone, asyncio.CancelledError):
            self._metrics.cancel()
            exchange.abort()
        finally:
            path = route_path(scope)
            route = path if path in self._routes else "other"
            seconds = time.perf_counter() - exchange.start
            self._metrics.count(route, exchange.status, seconds)
            method = scope["method"] if scope["method"] in METHODS else "other"
            fields = record.fields() if self._options.log_format == "json" else {}
            log_request(method, route, exchange.status, seconds, **fields)

    async def _respond(self, scope: Scope, headers: Headers, exchange: "Exchange") -> None:
        """Call the application; what it raises becomes the answer if there is none yet."""
        app = self._refusal(scope, headers) or self._app
        try:
            # with an "app", a router raises what it would answer in plain text
            await app({**scope, "app": app}, exchange.receive, exchange.send)
        except Exception as error:
            if isinstance(error, ClientGone):
                raise
            if isinstance(error, HTTPException):
                error = ApiError(error.status_code, error.detail, headers=error.headers)
            if not isinstance(error, ApiError):
                log_mistake(error)
                error = ApiError(500, "the server made a mistake; its log says where")
            if exchange.status:
                raise ClientGone from None
            await written(error, scope)(scope, exchange.receive, exchange.send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The response to a request that may not pass, or to a CORS preflight; None for others."""
        error = _size_error(scope) or self._host_error(headers) or self._origin_error(headers)
        if error is not None:
            return written(error, scope)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            # the headers it asks for: clients name a dozen of their own (x-stainless-*), and what
            # a page that is allowed may send needs no list
            allowed = {
                "access-control-allow-methods": "GET, POST, DELETE",
                "access-control-allow-headers": _names_in(
                    headers.get(b"access-control-request-headers", b"")
                ),
                "access-control-max-age": "600",
            }
            return Response(status_code=204, headers=allowed if self._cors(headers) else {})
        path = route_path(scope)
        is_open = not self._keys or path in OPEN_ROUTES or path.startswith(OPEN_FOLDER)
        if not is_open and not self._key_of(headers):
            challenge = {"www-authenticate": "Bearer"}
            message = "no valid API key (Authorization: Bearer KEY, or x-api-key: KEY)"
            error = ApiError(401, message, code="invalid_api_key", headers=challenge)
            return written(error, scope)
        return None

    def _key_of(self, headers: Headers) -> bytes:
        """The key of the server's that a request has, in OpenAI's header or Anthropic's; b""."""
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        bearer = token if scheme.lower() == b"bearer" else b""
        given = [bearer.strip(), headers.get(b"x-api-key", b"").strip()]
        found = b""
        for key in self._keys:  # all of them, so that the time tells nothing
            for one in given:
                found = key if hmac.compare_digest(one, key) else found
        return found

    def _host_error(self, headers: Headers) -> ApiError | None:
        """An address is safe, a name only if it is ours: others could point here."""
        match = _HOST.fullmatch(headers.get(b"host", b"").decode("latin-1"))
        if match is None:
            return ApiError(400, "Host: missing or malformed")
        name = (match["six"] or match["name"]).lower()
        if name in self._names:
            return None
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return ApiError(403, "Host: not a name of this server (see --allow-host)")
        return None

    def _origin_error(self, headers: Headers) -> ApiError | None:
        origin = headers.get(b"origin")
        if origin is None or self._cors(headers):
            return None
        if origin.partition(b"://")[2] == headers.get(b"host"):
            return None
        return ApiError(403, "Origin: not a page of this server (see --cors-origin)")

    def _cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Headers for a page of another origin that is allowed, else none."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin not in self._options.cors_origins:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"Origin"),
        ]


def _names_in(value: bytes) -> str:
    """The names of headers in a list of them."""
    return ", ".join(_HEADER_NAME.findall(value.decode("latin-1")))


def route_path(scope: Scope) -> str:
    """The path within the application, wherever that is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and (path == root or path.startswith(root.rstrip("/") + "/")):
        return path[len(root.rstrip("/")) :] or "/"
    return path


def written(error: ApiError, scope: Scope) -> Response:
    """An error as the clients of its endpoint read it."""
    return error_response(error) if is_anthropic(route_path(scope)) else error.response()


def _size_error(scope: Scope) -> ApiError | None:
    """For what came at once; uvicorn refuses those that come in pieces."""
    n = (
        len(scope["method"])
        + len(scope.get("raw_path") or scope["path"])
        + len(scope["query_string"])
    )
    n += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if n <= MAX_HEADER_BYTES:
        return None
    return ApiError(431, f"the headers have {n} bytes (at most {MAX_HEADER_BYTES})")


class Exchange:
    """One request and its answer. id: the client's or one of ours. status: that was sent, 0 before.
    headers: more of the answer."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        options: Options,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._receive, self._send, self._headers, self._options = receive, send, headers, options
        self._transport = scope.get("state", {}).get("transport")
        self.status, self.start = 0, time.perf_counter()
        given = dict(scope["headers"])
        own_id = given.get(b"x-request-id", b"")
        self.id = own_id if _ID.fullmatch(own_id) else secrets.token_hex(16).encode()
        length = given.get(b"content-length", b"0")
        # whether the client still writes its body; one that expects a 100 waits for the answer
        self._is_written = b"expect" in given or (
            b"transfer-encoding" not in given and length == b"0"
        )

    async def receive(self) -> Message:
        """As ASGI's; notes when the body is there."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._is_written = True
        return message

    async def send(self, message: Message) -> None:
        """Send, with our headers. ClientGone if the client does not read for too long."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_written |= self.status == 408  # nothing comes
            headers = [
                *message.get("headers", ()),
                (b"x-content-type-options", b"nosniff"),
                (b"x-request-id", self.id),
            ]
            message = {**message, "headers": headers + self._headers}
        if message["type"] != "http.response.body" or message.get("more_body"):
            await self._send_in_time(message)
            return
        if not self._is_written:
            await self._send_in_time({**message, "more_body": True})
            await self._discard()
            message = {"type": "http.response.body"}
        await self._send_in_time(message)

    async def _discard(self) -> None:
        """Read on what nobody wants: a connection closed before is a reset to those who write, and
        they never see the answer. Bounded as a body is in time, and in size."""
        n = 0
        try:
            async with asyncio.timeout(self._options.read_seconds):
                while not self._is_written and n < MAX_DISCARDED:
                    n += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass

    async def _send_in_time(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._options.write_seconds):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None

    def abort(self) -> None:
        """Drop the connection with what it has not taken yet."""
        if self._transport is not None:
            self._transport.abort()
