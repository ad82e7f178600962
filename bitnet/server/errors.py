"""Errors in OpenAI's shape, and which of ours becomes which."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from ..errors import ContextFull, FormatError, GrammarError, NotFinite, PoolExhausted

_FIELD = re.compile(r"[a-z_]+(?:\[[^\]]*\]|\.[a-z_]+)*(?=:)")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.S)
_AT = re.compile(r" - at `(?:key in )?\$\.?(.*?)`$")


class ApiError(Exception):
    """An answer other than 200. param: the field at fault. headers: extra ones of the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """{"error": {...}}."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> "JSON":
        """The error as an HTTP response."""
        return JSON(self.body(), self.status, self.headers)


class ClientGone(Exception):
    """The client left, or does not take what is sent."""


class JSON(Response):
    """A response of JSON, written by msgspec."""

    media_type = "application/json"

    def __init__(
        self, content: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status, headers)

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


def overloaded(message: str, seconds: int) -> ApiError:
    """429, with the time after which another try makes sense."""
    headers = {"retry-after": str(seconds)}
    return ApiError(429, message, code="queue_full", headers=headers)


def unavailable(message: str) -> ApiError:
    """503: not the request's fault, and it may pass."""
    return ApiError(503, message, code="unavailable", headers={"retry-after": "5"})


def to_api_error(error: BaseException, param: str | None = None) -> ApiError | None:
    """The ApiError of what the engine or a check raised; None for what is a mistake of ours.

    param: the field at fault where the error does not name one.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextFull):
        message = (  # clients such as LiteLLM know a full context by these words of OpenAI's
            f"This model's maximum context length is {error.capacity} tokens. However, the prompt "
            f"has {error.requested} tokens or more."
        )
        return ApiError(400, message, param=param, code="context_length_exceeded")
    if isinstance(error, PoolExhausted | MemoryError):
        return unavailable("the server's memory is in use; try again later")
    if isinstance(error, FormatError):
        return ApiError(400, f"the model lacks what this needs: {error.field}")
    if isinstance(error, NotFinite):
        return ApiError(500, f"the model's weights are at fault: {error}", code="not_finite")
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), param=error.field)
    if isinstance(error, ValueError):
        named = _FIELD.match(str(error))
        return ApiError(400, str(error), param=named[0] if named else param)
    return None


def json_error(error: Exception) -> ApiError:
    """The ApiError of JSON that msgspec refused."""
    if isinstance(error, RecursionError):
        return ApiError(400, "the body is nested too deeply")
    if not isinstance(error, msgspec.ValidationError):
        return ApiError(400, f"the body is not JSON: {error}")
    text = str(error)
    where = _AT.search(text)
    param = where[1] if where else None
    message = text[: where.start()] if where else text
    if unknown := _UNKNOWN.match(message):
        param, message = f"{param}.{unknown[1][:80]}" if param else unknown[1][:80], "unknown field"
    return ApiError(400, f"{param}: {message}" if param else message, param=param or None)
