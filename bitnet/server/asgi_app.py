"""The application for other servers: it starts and ends with their lifespan."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Receive, Scope, Send

from ..api.load import LoadSettings, load_model, load_with_embedding
from ..api.model import Model
from .access_policy import written
from .app import Application
from .errors import unavailable
from .log import log, log_mistake
from .options import Options

DEFAULT_SLOTS = 4  # sequences at once, as of `bitnet serve`

Source = Model | str | os.PathLike[str] | None


class ASGIApplication:
    """See start.asgi."""

    def __init__(
        self, model: Source, options: Options, embedding_model: Source, load: Mapping[str, Any]
    ) -> None:
        self._model, self._options, self._embedding_model = model, options, embedding_model
        self._is_loaded = isinstance(model, Model)
        if embedding_model is not None and isinstance(embedding_model, Model) != self._is_loaded:
            raise ValueError("embedding_model: one is a Model, the other a path")
        if self._is_loaded and load:
            raise ValueError(f"{next(iter(load))}: the model is loaded already")
        self._settings = LoadSettings(**{"slots": DEFAULT_SLOTS} | dict(load), fair=True)
        self._application: Application | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._follow(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif self._application is None:
            log.error("a request before the application was started: it needs a lifespan")
            error = unavailable("the application was not started")
            await written(error, scope)(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Within, requests are answered. app: ignored, so that Starlette and FastAPI take it."""
        if self._application is not None:
            raise RuntimeError("the application runs already")
        models = await asyncio.to_thread(self._loaded)
        application = Application(models, self._options)
        try:
            application.begin()
            self._application = application
            yield
        finally:
            self._application = None
            application.worker.is_draining = True
            await asyncio.to_thread(application.stop)
            if not self._is_loaded:
                for model in models:
                    model.close()

    def _loaded(self) -> Sequence[Model]:
        model, embedder = self._model, self._embedding_model
        if isinstance(model, Model):
            model.scheduler.fair = True
            return [model, embedder] if isinstance(embedder, Model) else [model]
        if embedder is None:
            return [load_model(model, self._settings)]
        assert not isinstance(embedder, Model)
        return load_with_embedding(model, self._settings, embedder)

    async def _follow(self, receive: Receive, send: Send) -> None:
        """The protocol of a server's lifespan."""
        await receive()
        is_started = False
        try:
            async with self.lifespan():
                is_started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            phase = "shutdown" if is_started else "startup"
            if is_started:
                log_mistake(error)
            await send({"type": f"lifespan.{phase}.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})
