"""Before every endpoint: who may call, from where, and how long taking the answer may last.

Browsers are the danger on a loopback address: any web page can send requests to it. A page of a
foreign name that points here (DNS rebinding) is refused by its Host header, any other by its
Origin.
"""

import asyncio
import hmac
import ipaddress
import re
import time
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, ClientGone
from .log import log, log_mistake
from .metrics import Metrics
from .options import Options

OPEN_ROUTES = ("/", "/health", "/ready")  # they need no key: they tell nothing
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[^:\[\]]+))(?::\d{1,5})?")

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
        self._key = None if options.api_key is None else options.api_key.encode()
        self._names = {"localhost", options.host.lower(), *map(str.lower, options.allow_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        exchange = Exchange(scope, send, self._options, self._cors(headers))
        try:
            await self._respond(scope, headers, receive, exchange)
        except (ClientGone, asyncio.CancelledError):
            exchange.abort()
        finally:
            path = scope["path"]
            route = path if path in self._routes else "other"
            self._metrics.count(route, exchange.status)
            milliseconds = 1000 * (time.perf_counter() - exchange.start)
            log.info("%s %s %s %.1f ms", scope["method"], route, exchange.status, milliseconds)

    async def _respond(
        self, scope: Scope, headers: Headers, receive: Receive, exchange: "Exchange"
    ) -> None:
        """Call the application; what it raises becomes the answer if there is none yet."""
        app = self._refusal(scope, headers) or self._app
        try:
            # with an "app", a router raises what it would answer in plain text
            await app({**scope, "app": app}, receive, exchange.send)
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
            await error.response()(scope, receive, exchange.send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The response to a request that may not pass, or to a CORS preflight; None for others."""
        error = self._host_error(headers) or self._origin_error(headers)
        if error is not None:
            return error.response()
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            allowed = {
                "access-control-allow-methods": "GET, POST",
                "access-control-allow-headers": "authorization, content-type",
                "access-control-max-age": "600",
            }
            return Response(status_code=204, headers=allowed if self._cors(headers) else {})
        if self._key is not None and scope["path"] not in OPEN_ROUTES:
            given = headers.get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
                challenge = {"www-authenticate": "Bearer"}
                message = "no valid API key (Authorization: Bearer KEY)"
                return ApiError(401, message, code="invalid_api_key", headers=challenge).response()
        return None

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
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]


class Exchange:
    """One request and its answer. status: that was sent, 0 before. headers: more of the answer."""

    def __init__(
        self, scope: Scope, send: Send, options: Options, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self._send, self._headers, self._seconds = send, headers, options.write_seconds
        self._transport = scope.get("state", {}).get("transport")
        self.status, self.start = 0, time.perf_counter()

    async def send(self, message: Message) -> None:
        """Send, with our headers. ClientGone if the client does not read for too long."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": headers + self._headers}
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None

    def abort(self) -> None:
        """Drop the connection with what it has not taken yet."""
        if self._transport is not None:
            self._transport.abort()
