"""A loaded model as users see it: generate, stream, chat, score, branch, account for memory."""

import gc
import math
import os
import time
import weakref

import numpy as np

from ..checks import check_ids, check_whole
from ..errors import ContextFull, FormatError
from ..generation import embedding, scoring
from ..generation.detokenizer import Detokenizer
from ..generation.prefix_cache_disk import DiskPrefixCache
from ..generation.prompt_lookup import make_drafts
from ..generation.request import Request
from ..generation.sampling import Sampling, make_sampler
from ..generation.scheduler import Scheduler
from ..generation.session import Session
from ..generation.stopping import StopConditions
from ..models.transformer import Transformer
from ..runtime import cpu

_models = weakref.WeakSet()  # those that are open


def _after_fork():
    for model in list(_models):
        model._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Model:
    """A loaded model; made by load, a context manager. May be used from several threads.

    config: ModelConfig. path: of the file or folder. context: tokens a sequence may hold.
    """

    def __init__(
        self, files, pool, tokenizer, n_threads, context, kv_dtype, slots, prefix_cache=True,
        prefetch=False,
    ):  # fmt: skip
        self.path, self.config, self.context = files.path, files.config, context
        self._weights, self._pool, self._tokenizer = files, pool, tokenizer
        self.needs = []  # memory_plan.Need: what was planned
        self.measured = []  # (name, bytes) of what the process grew by, measured at its loading
        transformer = Transformer(
            files, pool, n_threads=n_threads, context=context, max_sequences=slots
        )
        transformer.prefetch = prefetch
        self._scheduler = Scheduler(
            transformer, slots=slots, kv_dtype=kv_dtype, prefix_cache=prefix_cache
        )
        self._sessions = weakref.WeakSet()
        self._worker = None
        self._most_threads = None  # where fewer are used when the machine grants no more
        self._looked = -math.inf  # when that was looked at
        _models.add(self)

    def __repr__(self):
        return f"<Model {self.path.name}: {self.config.architecture}, context {self.context}>"

    # ---------------------------------------------------------------------------------- generation
    def generate(self, prompt, *, parse_special=False, **options):
        """Continue a prompt, or each of a list of prompts: a Completion, or a list of them.

        prompt: text, or token ids as they are. parse_special: special tokens written in the text
        are those tokens. The prompts of a list share the model's slots.

        max_tokens=256; temperature, top_k, top_p: None for the model's own settings if it has any,
            else 0, the most likely token; min_p=0; repetition_penalty=1; logit_bias={id: number};
            presence_penalty=0, frequency_penalty=0: see sampling.Sampling.
        seed=None: a new one, which the Completion tells. The same seed gives the same text in any
            batch, with any number of threads, on any CPU.
        stop: a string or several, before which the text ends.
        context_end="stop": what happens when the context is full; "error" for ContextFull; "window"
            to go on in the same memory: a token then sees the first 4 and the latest ones, which
            are at least context - 255 (Xiao et al. 2023). The context must be at least 257.
        speculative=None: "ngram" tries what followed the last time the text went like this, several
            tokens in one step: the same text, sooner where it repeats itself or the prompt.
        """
        one = isinstance(prompt, str) or (len(prompt) and isinstance(prompt[0], int | np.integer))
        prompts = [prompt] if one else prompt
        requests = [self._request(self._ids(p, parse_special), **options) for p in prompts]
        completions = self._scheduler.complete(requests)
        return completions[0] if one else completions

    def stream(self, prompt, *, parse_special=False, **options):
        """The same for one prompt as a Stream: an iterator of pieces of text as they come."""
        return Stream(self._scheduler, self._request(self._ids(prompt, parse_special), **options))

    async def astream(self, prompt, *, parse_special=False, **options):
        """The same as an asynchronous iterator. Leaving it early (aclose) cancels generation."""
        import asyncio  # 60 ms, for those who have imported it already

        request = self._request(self._ids(prompt, parse_special), **options)
        pieces = self._scheduler.pieces(request)
        loop, worker = asyncio.get_running_loop(), self._async_worker()
        try:
            while (piece := await loop.run_in_executor(worker, next, pieces, None)) is not None:
                yield piece
        finally:
            self._scheduler.cancel(request)

    def chat(self, messages, **options):
        """The model's reply to [{"role": "user", "content": text}, ...], as a Completion.

        Options as of generate. Special tokens in a content are text. TemplateError if the model has
        no chat template or its template fails.
        """
        request = self._request(self._chat_ids(messages), **options)
        return self._scheduler.complete([request])[0]

    def chat_stream(self, messages, **options):
        """The same as a Stream."""
        return Stream(self._scheduler, self._request(self._chat_ids(messages), **options))

    # --------------------------------------------------------------------------------- evaluation
    def logits(self, token_ids):
        """The logits after each of these token ids: float32 (n_tokens, vocab_size), a new array."""
        return scoring.all_logits(self._open_scheduler(), self._token_ids(token_ids))

    def loglikelihood(self, context, continuation):
        """(log of the probability of the continuation after the context, whether it is greedy).

        Two texts, or two lists of token ids. Texts are encoded together, spaces at the context's
        end counting to the continuation. Greedy: each token is the most likely one at its place.
        """
        if isinstance(context, str):
            cut = len(context.rstrip())
            context, continuation = context[:cut], context[cut:] + continuation
            ids = self._ids(context + continuation)
            n_context = len(self._ids(context))
        else:
            ids, n_context = [*context, *continuation], len(context)
        if not 1 <= n_context < len(ids):
            n_tokens = f"{n_context} of context, {len(ids) - n_context} of continuation"
            raise ValueError(f"loglikelihood: {n_tokens} (at least 1 token each)")
        return scoring.loglikelihood(self._open_scheduler(), self._token_ids(ids), n_context)

    # --------------------------------------------------------------------------------- embeddings
    @property
    def prompts(self):
        """{name: text} an embedding model's author puts in front of texts, often under "query"."""
        return dict(self._weights.checkpoint.prompts)

    def embed(self, texts, *, prompt_name=None, prompt=""):
        """Embeddings of a text or a list of texts: float32 (hidden_size,) or (n, hidden_size).

        Rows have length 1: their dot products are cosines. For embedding models only, ValueError
        for others. prompt: text put in front of each, as such models want for queries; prompt_name:
        the same by its name in model.prompts. With slots several texts share a forward pass.
        """
        if prompt_name is not None:
            if prompt_name not in self.prompts:
                known = ", ".join(self.prompts) or "none; give a prompt instead"
                raise ValueError(f"prompt_name: {prompt_name!r} (the model has {known})")
            prompt = self.prompts[prompt_name]
        one = isinstance(texts, str)
        encode, limit = self.tokenizer.encode, self.context
        ids = [encode(prompt + t, add_eos=True, limit=limit) for t in ([texts] if one else texts)]
        rows = self.embed_tokens(ids)
        return rows[0] if one else rows

    def embed_tokens(self, token_ids):
        """The same of lists of token ids, as they are: float32 (n, hidden_size)."""
        if self.config.pooling is None:
            raise ValueError(f"{self.path.name}: {self.config.architecture} is no embedding model")
        for i, sequence in enumerate(token_ids):
            if not len(sequence):
                raise ValueError(f"texts[{i}]: no tokens (at least 1)")
        ids = [self._token_ids(sequence) for sequence in token_ids]
        return embedding.embed(self._open_scheduler(), ids)

    def session(self, capacity=None, context_end="error"):
        """A Session: one sequence with its own cache of ``capacity`` tokens (None: the context).

        context_end: what feeding it more ends in: "error", ContextFull, or "window" (see generate).
        """
        check_whole("capacity", self.context if capacity is None else capacity, self.context)
        if context_end not in ("error", "window"):
            raise ValueError(f"context_end: {context_end!r} (error or window)")
        engine = self._open_scheduler()
        self._follow_machine()
        cache = engine.transformer.new_cache(capacity, engine.kv_dtype)
        cache.sinks = StopConditions(context_end=context_end).n_sinks
        return Session(engine, cache, self._sessions, self._weights.fingerprint)

    # ------------------------------------------------------------------------------------ the rest
    @property
    def tokenizer(self):
        """The Tokenizer. FormatError where the model came without one: token ids still work."""
        self._open_scheduler()
        if self._tokenizer is None:
            raise FormatError(self.path, "tokenizer", "missing", "only token ids can be used")
        return self._tokenizer

    @property
    def threads(self):
        """Threads of every operation. May be set at any time; takes effect with the next step.

        None: what environment or machine grant, as load asks them. Such a number is looked at again
        at the beginning of a generation or session, once a second at most: where affinity or cgroup
        quota have become smaller, fewer are used until they grow again.
        """
        return self._open_scheduler().transformer.n_threads

    @threads.setter
    def threads(self, n):
        n, why = cpu.threads(n)
        with self._open_scheduler().exclusive() as transformer:
            transformer.n_threads = n
        self._most_threads = None if why in cpu.ASKED else n

    def _follow_machine(self):
        """Use the threads that are ours now, if nobody said how many."""
        now = time.monotonic()
        if self._most_threads is None or now - self._looked < 1:
            return
        self._looked, n = now, min(self._most_threads, cpu.threads()[0])
        if n != self.threads:
            with self._open_scheduler().exclusive() as transformer:
                transformer.n_threads = n

    def _after_fork(self):
        """In the child of a fork: threads that waited or worked for us are not there."""
        self._worker = None
        if self._scheduler is not None:
            self._scheduler.after_fork()

    def memory(self):
        """The MemoryReport: mapped files, pool by purpose, what the OS says. Print it."""
        from ..runtime import memory_report

        self._open_scheduler()
        planned = {need.purpose: need.nbytes for need in self.needs}
        return memory_report.measure(self._weights.mappings(), self._pool, self.measured, planned)

    def keep_prefixes(self, folder, limit):
        """Keep caches of finished sequences in files as well: see load's prefix_folder."""
        engine, dtype = self._open_scheduler(), self._scheduler.kv_dtype
        if engine.prefixes is None:
            raise ValueError("prefix_folder: nothing is kept without prefix_cache")
        engine.prefixes.files = DiskPrefixCache(
            folder, limit, self._weights.fingerprint(), dtype,
            lambda: engine.transformer.new_cache(dtype=dtype),
        )  # fmt: skip

    def close(self):
        """Cancel what runs and free everything now. May be repeated.

        BufferError while logits of a session are alive, which lie in the model's memory.
        """
        if self._scheduler is not None:
            self._scheduler.close()
        if self._worker is not None:
            self._worker.shutdown()
        for session in list(self._sessions):
            session.close()
        self._scheduler = self._worker = self._tokenizer = None
        self._weights.close()
        try:
            self._pool.close()
        except BufferError:
            gc.collect()  # tracebacks of errors that are over hold arrays in cycles
            self._pool.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            self.close()
        except BufferError:
            if error is None:
                raise
            # the frames of the error's traceback hold arrays; the pool goes with them

    def _open_scheduler(self):
        if self._scheduler is None:
            raise ValueError("the model is closed")
        return self._scheduler

    def _async_worker(self):
        """One thread for all asynchronous calls: each thread that runs kernels has its own team."""
        if self._worker is None:
            from concurrent.futures import ThreadPoolExecutor

            self._worker = ThreadPoolExecutor(1, thread_name_prefix="bitnet")
        return self._worker

    def _ids(self, prompt, parse_special=False):
        if isinstance(prompt, str):
            encode = self.tokenizer.encode
            return encode(prompt, parse_special=parse_special, limit=self.context)
        return self._token_ids(prompt)

    def _token_ids(self, token_ids):
        ids = np.asarray(token_ids)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise ValueError(f"tokens: {ids.dtype} of shape {ids.shape} (whole numbers in a row)")
        ids = ids.tolist()
        check_ids(ids, self.config.vocab_size)
        if len(ids) > self.context:
            raise ContextFull(0, len(ids), self.context)
        return ids

    def _chat_ids(self, messages):
        return self.tokenizer.chat(messages, limit=self.context)

    def _request(
        self,
        token_ids,
        *,
        max_tokens=256,
        temperature=None,
        top_k=None,
        top_p=None,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=None,
        stop=(),
        logit_bias=None,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        context_end="stop",
        speculative=None,
    ):
        """A Request of the engine, everything in it checked; see generate."""
        config, engine = self.config, self._open_scheduler()
        if config.pooling is not None:
            raise ValueError(f"{self.path.name}: an embedding model (embed works, not generation)")
        defaults = (0.0, 0, 1.0)
        if config.do_sample:
            defaults = (config.temperature, config.top_k, config.top_p)
        given = (temperature, top_k, top_p)
        chosen = [d if value is None else value for value, d in zip(given, defaults, strict=True)]
        penalties = presence_penalty, frequency_penalty
        sampling = Sampling(*chosen, min_p, repetition_penalty, seed, logit_bias or {}, *penalties)
        stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        eos_ids = frozenset(config.eos_token_ids)
        text = None
        if self._tokenizer is not None or stop:
            eos_ids |= frozenset(self.tokenizer.eos_ids)
            text = Detokenizer(self.tokenizer.stream(), stop)
        limits = StopConditions(max_tokens, stop, eos_ids, context_end)
        sampler = make_sampler(sampling, config.vocab_size)
        request = Request(token_ids, sampler, limits, text, drafts=make_drafts(speculative))
        engine.check(request)
        self._follow_machine()
        return request


class Stream:
    """An iterator of pieces of text, of one generation. Leaving it early (close) cancels that.

    completion: the Completion once the text is complete, None before.
    """

    def __init__(self, engine, request):
        self._request, self._pieces = request, engine.pieces(request)

    @property
    def completion(self):
        return self._request.completion

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._pieces)

    def close(self):
        """Cancel the generation, if it is not complete, and free its memory."""
        self._pieces.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
