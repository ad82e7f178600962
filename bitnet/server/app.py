"""The endpoints: from a request's body to the engine, and its events to the answer."""

import asyncio
import base64
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from importlib import resources

import msgspec
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router

from ..api.load import BUNDLED_MODEL
from . import schema
from .answer import ResponseStream, watched
from .bodies import BodyLimit
from .errors import JSON, ApiError, of_exception
from .grammar import Grammars
from .guard import ClientGone, Guard
from .metrics import Metrics
from .replies import ChatReply, TextReply
from .responses import ResponseReply
from .tools import Tools, history

SEEDS = 1 << 64


class Application:
    """The ASGI application around a Worker. model_name: what it calls the model."""

    def __init__(self, model, worker, options):
        self._model, self._worker, self._options = model, worker, options
        self.metrics, self._bodies = Metrics(), BodyLimit(schema.MAX_BODY, schema.MAX_BODIES)
        self.model_name = options.model_name or _name_of(model.path)
        self._grammars = Grammars(model)
        # tokenizers and templates take milliseconds that the event loop cannot spare
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="bitnet-prompts")
        endpoints = {
            "/": ("GET", self.page),
            "/health": ("GET", self.health),
            "/ready": ("GET", self.ready),
            "/metrics": ("GET", self.show_metrics),
            "/tokenize": ("POST", self.tokenize),
            "/detokenize": ("POST", self.detokenize),
            "/v1/models": ("GET", self.models),
            "/v1/models/{name:path}": ("GET", self.models),
            "/v1/chat/completions": ("POST", self.chat),
            "/v1/completions": ("POST", self.complete),
            "/v1/responses": ("POST", self.respond),
            "/v1/embeddings": ("POST", self.embed),
        }
        routes = [Route(path, end, methods=[m]) for path, (m, end) in endpoints.items()]
        router = Router(routes, redirect_slashes=False)
        self._guarded = Guard(router, options, self.metrics, endpoints)

    async def __call__(self, scope, receive, send):
        await self._guarded(scope, receive, send)

    # ------------------------------------------------------------------------------- the small ones
    async def page(self, request):
        """The chat page: one file without parts from elsewhere."""
        return Response(*self._page)

    @cached_property
    def _page(self):
        text = resources.files(__package__).joinpath("page.html").read_text()
        script, style = (
            f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
            for found in (re.search(rf"<{t}>(.*?)</{t}>", text, re.S) for t in ("script", "style"))
        )
        policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return (
            text,
            200,
            {"content-security-policy": policy, "referrer-policy": "no-referrer"},
            "text/html",
        )

    async def health(self, request):
        """Whether the process can compute; where it cannot it is to be started anew."""
        alive = self._worker.is_alive
        return JSON({"status": "ok" if alive else "dead"}, 200 if alive else 500)

    async def ready(self, request):
        """Whether requests are taken."""
        draining = self._worker.is_draining
        return JSON({"status": "draining" if draining else "ready"}, 503 if draining else 200)

    async def show_metrics(self, request):
        text = self.metrics.text(self._worker, self._model.pool_stats())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request):
        about = {
            "id": self.model_name,
            "object": "model",
            "created": 0,
            "owned_by": "local",
            "max_model_len": self._model.context,
        }
        name = request.path_params.get("name")
        if name is None:
            return JSON({"object": "list", "data": [about]})
        self._check_model(name)
        return JSON(about)

    async def tokenize(self, request):
        wanted = await self._parse(request, schema.TokenizeRequest)
        if (wanted.prompt is msgspec.UNSET) == (wanted.messages is msgspec.UNSET):
            raise ApiError(400, "prompt or messages: one of them is needed", param="prompt")
        with self._reservation(1):
            ids = await self._read(self._tokenize, wanted)
        return JSON({"tokens": ids, "count": len(ids), "max_model_len": self._model.context})

    def _tokenize(self, wanted):
        tokenizer, limit = self._model.tokenizer, schema.MAX_TOKENS_LISTED
        if wanted.prompt is not msgspec.UNSET:
            return tokenizer.encode(wanted.prompt, add_bos=wanted.add_special_tokens, limit=limit)
        messages = history(wanted.messages)
        return tokenizer.chat(messages, wanted.add_generation_prompt, limit=limit)

    async def detokenize(self, request):
        wanted = await self._parse(request, schema.DetokenizeRequest)
        size = self._model.config.vocab_size
        if max(wanted.tokens, default=0) >= size:
            raise ApiError(400, f"tokens: an id outside of 0 to {size - 1}", param="tokens")
        with self._reservation(1):
            text = await self._read(self._model.tokenizer.decode, wanted.tokens)
        return JSON({"prompt": text})

    async def embed(self, request):
        wanted = await self._parse(request, schema.EmbeddingRequest)
        model, form = self._model, wanted.encoding_format or "float"
        if model.config.pooling is None:
            raise ApiError(400, f"model: {self.model_name} is no embedding model", param="model")
        if form not in ("float", "base64"):
            raise ApiError(400, "encoding_format: float or base64", param="encoding_format")
        if wanted.dimensions not in (None, model.config.hidden_size):
            message = f"dimensions: always {model.config.hidden_size}"
            raise ApiError(400, message, param="dimensions")
        inputs = schema.sequences(wanted.input, "input", schema.MAX_INPUTS)
        with self._reservation(1):
            ids = await self._read(self._encode_inputs, inputs)
            data = []
            async with watched(request) as gone:
                for group in _groups(ids, self._worker.slots):
                    if gone.is_set():  # between two forward passes: what is left is not computed
                        raise ClientGone
                    try:
                        rows = await self._worker.call(model.embed_tokens, group)
                    except Exception as error:
                        raise of_exception(error, "input") or error from None
                    for row in rows.astype("<f4"):
                        shown = row.tolist()
                        if form == "base64":
                            shown = base64.b64encode(row.tobytes()).decode()
                        entry = {"object": "embedding", "index": len(data), "embedding": shown}
                        data.append(entry)
        n = sum(map(len, ids))
        used = {"prompt_tokens": n, "total_tokens": n}
        return JSON({"object": "list", "data": data, "model": self.model_name, "usage": used})

    def _encode_inputs(self, inputs):
        encode, limit = self._model.tokenizer.encode, self._model.context
        return [encode(t, add_eos=True, limit=limit) if isinstance(t, str) else t for t in inputs]

    # ----------------------------------------------------------------------------------- generation
    async def chat(self, request):
        wanted = await self._parse(request, schema.ChatRequest)
        if wanted.top_logprobs is not None and not wanted.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs", param="top_logprobs")
        most = wanted.max_completion_tokens or wanted.max_tokens or self._model.context
        n_logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None

        tools = _tools(wanted)

        def prompts():
            messages = history(wanted.messages)
            yield self._model.encode_chat(tools.tell(messages) if tools else messages)

        may_call = tools is not None and tools.may_call
        reply = ChatReply(self.model_name, self._spell, n_logprobs is not None, may_call)
        n = wanted.n or 1
        return await self._generate(request, wanted, prompts, n, most, n_logprobs, reply, tools)

    async def complete(self, request):
        wanted = await self._parse(request, schema.TextRequest)
        given = schema.sequences(wanted.prompt, "prompt", schema.MAX_PROMPTS)

        def prompts():
            for prompt in given:
                yield self._model.encode_prompt(prompt)

        n, most = len(given) * (wanted.n or 1), wanted.max_tokens or 16
        reply = TextReply(self.model_name, self._spell, wanted.logprobs is not None)
        return await self._generate(request, wanted, prompts, n, most, wanted.logprobs, reply)

    async def respond(self, request):
        wanted = await self._parse(request, schema.ResponsesRequest)
        most = wanted.max_output_tokens or self._model.context

        def prompts():
            yield self._model.encode_chat(list(wanted.messages()))

        reply = ResponseReply(wanted, self.model_name)
        return await self._generate(request, wanted, prompts, 1, most, None, reply)

    async def _generate(self, request, wanted, prompts, n, most, n_logprobs, reply, tools=None):
        """The answer to a request for n sequences."""
        if n > self._worker.capacity:
            message = f"n: {n} sequences (at most {self._worker.capacity} may run or wait)"
            raise ApiError(400, message, param="n")
        with self._reservation(n) as reservation:
            requests = await self._read(self._requests, wanted, prompts, most, n_logprobs, tools)
            generation = self._worker.start(requests)
            reservation.n = 0  # each sequence gives its own back when it ends
        answer = ResponseStream(request, generation, reply, self.metrics)
        if not wanted.stream:
            return JSON(await answer.whole())
        has_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        return await answer.stream(has_usage)

    def _requests(self, wanted, prompts, most, n_logprobs, tools):
        """Engine requests for every choice of every prompt; in the reader's thread."""
        seed = int.from_bytes(os.urandom(8), "little") if wanted.seed is None else wanted.seed
        options = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty",
                         "presence_penalty", "frequency_penalty", "logit_bias", "stop")
            if (value := getattr(wanted, name)) is not None
        }  # fmt: skip
        if options.get("top_k") == -1:  # what others write for "all"
            options["top_k"] = 0
        made = []
        schema = getattr(getattr(wanted, "response_format", None), "schema", None)
        constraint = None
        if tools is not None and tools.may_call:
            constraint = self._grammars.of_tools(tools, schema)
        elif schema is not None:
            constraint = self._grammars.of_schema(schema, wanted.format_field)
        for index, ids in enumerate(prompts()):
            for choice in range(wanted.n or 1):
                one = {**options, "seed": (seed + choice) % SEEDS}
                request = self._model.request(
                    ids,
                    n_logprobs=n_logprobs,
                    constraint=constraint and constraint(),
                    max_tokens=most,
                    **one,
                )
                request.prompt_index = index
                made.append(request)
        return made

    # -------------------------------------------------------------------------------- what all need
    async def _parse(self, request, kind):
        with self._bodies.one() as body:
            await body.read(request, self._options.read_seconds)
            wanted = schema.parse(bytes(body.data), kind)
        self._check_model(wanted.model)
        return wanted

    def _check_model(self, name):
        if name not in (None, self.model_name):
            message = f"model: {name[:80]!r} is not here (this server has {self.model_name!r})"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _read(self, function, *arguments):
        """Something of the tokenizer or the template, in its own thread."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reader, function, *arguments)
        except Exception as error:
            raise of_exception(error) or error from None

    @contextmanager
    def _reservation(self, n):
        """Room in the worker; its n is given back at the end."""
        self._worker.reserve(n)
        held = _Held(n)
        try:
            yield held
        finally:
            if held.n:
                self._worker.release(held.n)

    def _spell(self, token_id):
        """(text, bytes) of a token."""
        tokenizer = self._model.tokenizer
        data = tokenizer.token_bytes(token_id)
        if data:
            return data.decode(errors="replace"), data
        return tokenizer._vocabulary.token(token_id) or "", data


class _Held:
    def __init__(self, n):
        self.n = n


def _name_of(path):
    if path == BUNDLED_MODEL:
        return "bundled"
    return path.name.removesuffix(".gguf")


def _tools(wanted):
    """The Tools of a chat request, None without."""
    choice = wanted.tool_choice
    if not isinstance(choice, str | None):
        choice = choice.function.name
    if not wanted.tools:
        if choice in (None, "none", "auto"):
            return None
        raise ApiError(400, f"tool_choice: {choice!r} without tools", param="tool_choice")
    functions = [tool.function for tool in wanted.tools]
    return Tools(functions, choice or "auto", wanted.parallel_tool_calls is not False)


def _groups(items, n):
    return (items[i : i + n] for i in range(0, len(items), n))
