"""Errors in Anthropic's shape, for its endpoints."""

from .errors import JSON, ApiError
from .reply_protocol import Chunk

PREFIX = "/v1/messages"  # of the paths whose errors are written so
TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 405: "invalid_request_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def is_anthropic(path: str) -> bool:
    """Whether a path is one of these endpoints."""
    return path == PREFIX or path.startswith(PREFIX + "/")


def error_body(error: ApiError) -> Chunk:
    """{"type": "error", "error": {...}}."""
    kind = TYPES.get(error.status, "api_error" if error.status >= 500 else TYPES[400])
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_response(error: ApiError) -> JSON:
    """The error as an HTTP response."""
    return JSON(error_body(error), error.status, error.headers)
