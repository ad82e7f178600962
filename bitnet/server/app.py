"""The ASGI application: the table of endpoints, behind the policy of who may call."""

import errno
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ..api.model import Model
from .access_policy import AccessPolicy
from .endpoints.chat import chat
from .endpoints.completions import completions
from .endpoints.embeddings import embeddings
from .endpoints.messages import count_tokens, messages
from .endpoints.models import models
from .endpoints.openapi import docs, openapi
from .endpoints.page import page, page_file
from .endpoints.responses import delete_response, responses, stored_response
from .endpoints.status import health, metrics, ready
from .endpoints.tokenize import detokenize, tokenize, tokenizer_info
from .options import Options
from .service import Service
from .worker import Worker

# (method, path, the endpoint's function): a new endpoint is a file of its own, a line here and one
# in openapi.OPERATIONS
ENDPOINTS = (
    ("GET", "/", page),
    ("GET", "/page/{name:path}", page_file),
    ("GET", "/health", health),
    ("GET", "/ready", ready),
    ("GET", "/metrics", metrics),
    ("GET", "/openapi.json", openapi),
    ("GET", "/docs", docs),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/tokenizer_info", tokenizer_info),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{name:path}", models),
    ("POST", "/v1/chat/completions", chat),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/responses", responses),
    ("GET", "/v1/responses/{response_id}", stored_response),
    ("DELETE", "/v1/responses/{response_id}", delete_response),
    ("POST", "/v1/messages", messages),
    ("POST", "/v1/messages/count_tokens", count_tokens),
    ("POST", "/v1/embeddings", embeddings),
)


class Application:
    """The ASGI application around one model, and one of embeddings beside it.

    service: what its endpoints work with. begin() and stop() are called by what runs it.
    """

    def __init__(self, models: Sequence[Model], options: Options) -> None:
        model, *others = models
        self.worker = Worker(model, options.queue)
        self.service = service = Service(model, self.worker, options, *others)
        routes = [
            Route(path, partial(_answer, service, endpoint), methods=[method])
            for method, path, endpoint in ENDPOINTS
        ]
        router = Router(routes, redirect_slashes=False)
        paths = {path for _, path, _ in ENDPOINTS}
        self._guarded = AccessPolicy(router, options, service.metrics, paths)

    def begin(self) -> None:
        """Start the threads, in the event loop that is to be used. OSError where there are none."""
        try:
            self.worker.begin()
            self.service.begin()
        except RuntimeError as error:
            message = f"the server's three threads cannot be started: {error} (see ulimit -u)"
            raise OSError(errno.EAGAIN, message) from None

    def stop(self) -> None:
        """Cancel what runs and end the threads, after the step that the model is in."""
        self.service.stop()
        self.worker.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guarded(scope, receive, send)


async def _answer(
    service: Service, endpoint: Callable[[Service, Request], Awaitable[ASGIApp]], request: Request
) -> ASGIApp:
    """The endpoint's answer; until it is there, what the request's body becomes is counted."""
    with service.bodies.one() as request.state.body:
        try:
            return await endpoint(service, request)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold what the body became
            raise
