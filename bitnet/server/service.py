"""What every endpoint works with: the model, its worker, and the way from bytes to a request."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request

from ..api.load import BUNDLED_MODEL
from ..api.model import Model
from ..errors import FormatError
from ..text.tool_forms import OURS, ToolForm
from . import parsing, schema
from .body_limit import BodyLimit, n_values
from .clients import CLIENT
from .errors import ApiError, to_api_error, unavailable
from .job_thread import JobThread
from .metrics import Metrics
from .options import Options
from .response_store import ResponseStore
from .worker import Worker

SHORT_BODY = 1 << 16  # bytes: 2 ms, which the event loop can spare

# Seconds that a request waits for its schema to be tried and compiled, with those before it: two of
# them and its own may take all of their time.
GRAMMAR_SECONDS = 8.0

R = TypeVar("R")
B = TypeVar("B", bound=schema.AnyRequest)


class Service:
    """Made once by the Application, given to every endpoint.

    model_name: what clients call the model; model_names: this and other names of it. embedder,
    embedder_name: the model of embeddings beside it, or the same one. metrics: of the server;
    model_metrics, embedder_metrics: of each model. passed: notes what requests ask for and do not
    get. Grammars are made in a thread of their own, where nobody waits who sends
    no schema.
    """

    def __init__(
        self, model: Model, worker: Worker, options: Options, embedder: Model | None = None
    ) -> None:
        self.model, self.worker, self.options = model, worker, options
        self.embedder = embedder or model
        self.passed = parsing.Passed(options.strict)
        self.model_names = options.model_names or (_name_of(model.path),)
        self.model_name = self.embedder_name = self.model_names[0]
        if embedder is not None:
            self.embedder_name = options.embedding_name or _name_of(embedder.path)
            if self.embedder_name in self.model_names:
                raise ValueError(f"embedding model: both models are called {self.embedder_name!r}")
        self.metrics = Metrics()
        own = self.metrics.of_model(self.model_name, model.pool_stats, worker.load)
        self.model_metrics = self.embedder_metrics = own
        if embedder is not None:
            self.embedder_metrics = self.metrics.of_model(self.embedder_name, embedder.pool_stats)
        self.bodies, self.responses = BodyLimit(), ResponseStore(options.response_store)
        self._tool_form: ToolForm | None = None  # once it was asked for
        # tokenizers and templates take milliseconds that the event loop cannot spare
        self._prompt_thread = JobThread("bitnet-prompts")
        self._grammar_thread = JobThread("bitnet-grammars")

    def begin(self) -> None:
        """Start the threads. RuntimeError where the system allows no more of them."""
        self._prompt_thread.begin()
        self._grammar_thread.begin()

    def stop(self) -> None:
        """End the process in which grammars are tried; the threads end with the server."""
        with suppress(FormatError):  # of a model without a tokenizer, which has none
            self.model.grammars.close()

    async def parse(self, request: Request, kind: type[B]) -> B:
        """The body of a Starlette request, checked and parsed as this kind of schema. ApiError.

        What it becomes is counted until the endpoint returns (app.py).
        """
        raw = request.state.body
        data = await raw.read(request, self.options.read_seconds)
        if len(data) < SHORT_BODY:
            raw.count_values(data, n_values(data))
            body = parsing.parse(data, kind, self.passed)
        else:
            raw.count_values(data, await self.in_prompt_thread(n_values, data))
            body = await self.in_prompt_thread(parsing.parse, data, kind, self.passed)
        if self.options.strict or self.embedder is not self.model:
            self.check_model(body.model)
        return body

    def check_model(self, name: str | None) -> None:
        """ApiError 404 unless this, or None, is the name of a model that is here."""
        if name is not None and name not in (*self.model_names, self.embedder_name):
            known = " and ".join(repr(one.name) for one in self.served)
            message = f"model: {name[:80]!r} is not here (this server has {known})"
            raise ApiError(404, message, param="model", code="model_not_found")

    def check_kind(self, name: str | None, *, embeds: bool) -> None:
        """ApiError 400 where two models are served and this is the name of the other one."""
        others = self.model_names if embeds else (self.embedder_name,)
        if name in others and self.embedder is not self.model:
            kind = "no embedding model" if embeds else "an embedding model"
            raise ApiError(400, f"model: {name} is {kind}", param="model")

    @property
    def served(self) -> "list[Named]":
        """The models, each with its name, by all of their names."""
        models = [Named(name, self.model) for name in self.model_names]
        if self.embedder is not self.model:
            models.append(Named(self.embedder_name, self.embedder))
        return models

    @property
    def embedder_names(self) -> tuple[str, ...]:
        """All names of the model of embeddings."""
        return self.model_names if self.embedder is self.model else (self.embedder_name,)

    def named(self, name: str | None) -> Model:
        """The model of a name that was checked; None for the first."""
        return next((one.model for one in self.served if one.name == name), self.model)

    async def in_prompt_thread(self, function: Callable[..., R], *arguments: object) -> R:
        """The result of what uses the tokenizer or the template; one text a call. ApiError."""
        return await _of_job(self._prompt_thread.run(function, *arguments))

    async def in_grammar_thread(self, function: Callable[..., R], *arguments: object) -> R:
        """The same of what uses the grammars; 503 where those of others take too long."""
        try:
            async with asyncio.timeout(GRAMMAR_SECONDS):
                return await _of_job(self._grammar_thread.run(function, *arguments))
        except ImportError as error:
            raise ApiError(400, f"{error}") from None
        except OSError as error:  # also TimeoutError
            if not isinstance(error, TimeoutError):
                raise unavailable(str(error)) from None
            message = "schemas of other requests are being compiled; try again later"
            raise unavailable(message) from None

    async def tool_form(self) -> ToolForm:
        """How the model's calls are written: see ChatTemplate."""
        template = self.model.tokenizer.chat_template
        if self._tool_form is None and template is not None:
            self._tool_form = await self.in_prompt_thread(lambda: template.tool_form)
        return self._tool_form or OURS

    @contextmanager
    def reservation(self, n: int) -> "Iterator[Reservation]":
        """Room for n sequences of the request's client; what is left in ``n`` is given back at the
        end."""
        client = CLIENT.get()
        self.worker.reserve(n, client)
        held = Reservation(n)
        try:
            yield held
        finally:
            if held.n:
                self.worker.release(held.n, client=client)

    def spell(self, token_id: int) -> tuple[str, bytes]:
        """(text, bytes) of a token; a special one has text only."""
        tokenizer = self.model.tokenizer
        data = tokenizer.token_bytes(token_id)
        if data:
            return data.decode(errors="replace"), data
        return tokenizer.token(token_id) or "", data


@dataclass(frozen=True)
class Named:
    """A model and what clients call it."""

    name: str
    model: Model


class Reservation:
    """Room for sequences. n: how many are still to be given back."""

    def __init__(self, n: int) -> None:
        self.n = n

    def hand_over(self) -> None:
        """Somebody else gives it back from now on."""
        self.n = 0


async def _of_job(job: Coroutine[Any, Any, R]) -> R:
    try:
        return await job
    except Exception as error:
        raise to_api_error(error) or error from None


def _name_of(path: Path) -> str:
    name = os.fsencode(path.name.removesuffix(".gguf")).decode("utf-8", "replace")
    return "bundled" if path == BUNDLED_MODEL else name
