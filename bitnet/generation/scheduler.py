"""The scheduler: which sequence runs when, on one transformer. Knows token ids, no prompt text.

Requests wait in order of arrival, join and leave between steps. A step is one ragged forward pass:
one row for each sequence that generates, and as much of the waiting prompts as fits beside them.
There is no thread: whoever waits for a request runs steps, for all of them; other threads queue.
"""

import threading
import traceback
from contextlib import contextmanager

import numpy as np

from ..checks import check_ids
from ..errors import Cancelled, ContextFull
from ..runtime.kv_cache import check_window
from .fairness import SHARED_ROWS, PrefillBudget, split_fair, split_fifo
from .prefix_cache import PrefixCache

PAGE_TOKENS = 128  # of a cache's page
FORKED = "the model was in use in another thread when the process was forked: load it again"
DRAFT_ROWS = 8  # of a step, for all sequences: 9 rows of a 2B model take as long as 3 steps of one


class Scheduler:
    """Runs requests on a transformer, up to ``slots`` at a time.

    transformer: model.Transformer, or what has its forward, new_cache, max_batch, context and
    vocab_size. kv_dtype: of the caches. All methods may be called from any thread.

    prefix_cache: keep the caches of finished sequences, so that a prompt that begins like one of
    them, or like a running one, reads the rest only. Kept and running ones together take no more
    than ``slots`` sequences of full length.

    is_fair (may be set): prompts take no more than half of the time while others generate, and the
    prompt that came first no more than half of what prompts get while others are shorter. Otherwise
    a step reads as much of the prompts as it can, in order of arrival.
    """

    def __init__(self, transformer, *, slots=1, kv_dtype="f16", prefix_cache=True):
        self.transformer, self.kv_dtype = transformer, kv_dtype
        self.is_fair = False
        self._pace = PrefillBudget()
        self.prefixes = PrefixCache() if prefix_cache else None
        transformer.make_room = self._make_room
        self.slots = min(slots, transformer.max_batch)
        self._requests = []  # those not done, in order of arrival
        self._token_ids = np.empty(transformer.max_batch, np.int32)
        self._lock = threading.RLock()
        self._depth = 0  # of exclusive, in the thread that holds the lock
        self._why_closed = "the model is closed"

    def submit(self, request):
        """Queue a request. ValueError for a bad token id, ContextFull for a prompt too long."""
        self.check(request)
        self._requests.append(request)
        return request

    def check(self, request):
        """Raise what submit would."""
        transformer = self._open()
        check_ids(request.tokens, transformer.vocab_size)
        if request.n_prompt > transformer.context:
            raise ContextFull(0, request.n_prompt, transformer.context)
        if request.limits.n_sinks:
            check_window(transformer.context)

    def pieces(self, request):
        """Submit, and yield the text as it comes. Raises what stopped it; closing cancels it."""
        try:
            self.submit(request)
            is_last = False
            while not is_last:
                if not request.is_done:
                    self.progress(request)
                is_last = request.is_done  # asked first: another thread may add pieces meanwhile
                while request.pieces:
                    yield request.pieces.popleft()
            if request.error is not None:
                raise request.error
        finally:
            self.cancel(request)

    def complete(self, requests):
        """Submit, run until all are done: their completions. The first error cancels the rest."""
        try:
            for request in requests:
                self.submit(request)
            for request in requests:
                while not request.is_done:
                    request.pieces.clear()  # nobody collects them
                    self.progress(request)
                if request.error is not None:
                    raise request.error
            return [request.completion for request in requests]
        finally:
            for request in requests:
                self.cancel(request)

    def progress(self, request):
        """Run a step, unless another thread has just done what this request waits for."""
        with self.exclusive():
            if not request.is_done and not request.pieces and not self.step():
                raise Cancelled("the request is not queued in this engine")

    def step(self):
        """One forward pass for the sequences whose turn it is; False if there is nothing to do."""
        with self.exclusive():
            self._open()
            self._drop_cancelled()
            self._admit()
            batch = self._plan()
            if batch:
                with self._pace.measure(any(r.pending > 1 for r, _ in batch)):
                    self._run(batch)
            self._forget_done()
            return bool(batch)

    def cancel(self, request):
        """End a request that is not done and free its memory: at once, or after a running step."""
        request.is_cancelled = True
        self._drop_cancelled_if_free()

    @contextmanager
    def exclusive(self):
        """The transformer to oneself, for forward passes outside of any request.

        An error's traceback does not keep the transformer's arrays alive, but for the variables of
        the caller.
        """
        with self._lock:
            self._depth += 1
            try:
                yield self._open()
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)
                raise
            finally:
                self._depth -= 1
        self._drop_cancelled_if_free()

    def close(self):
        """Cancel everything and let go of the transformer. May be repeated."""
        with self._lock:
            for request in tuple(self._requests):
                request.is_cancelled = True
            self._drop_cancelled()
            if self.prefixes is not None:
                self.prefixes.clear()
            self.transformer = None

    def after_fork(self):
        """In the child of a fork: a step that another thread was running does not go on here."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock, self.transformer, self._why_closed = threading.RLock(), None, FORKED

    def _open(self):
        if self.transformer is None:
            raise ValueError(self._why_closed)
        return self.transformer

    def _forget_done(self):
        for request in tuple(self._requests):  # in place: submit appends without the lock
            if request.is_done:
                self._requests.remove(request)

    # ------------------------------------------------------------------------------------ one step
    def _admit(self):
        """Give free slots to those who have waited longest, while their tokens will have room."""
        waiting = [r for r in tuple(self._requests) if r.cache is None]
        running = [r for r in tuple(self._requests) if r.cache is not None]
        for request in waiting[: max(0, self.slots - len(running))]:
            if running and not self._has_room(request, running):
                break
            running.append(request)
            try:
                request.cache = self._cache_for(request)
                request.cache.sinks = request.limits.n_sinks
                if request.drafts:
                    self.transformer.reserve_logits(self.slots + DRAFT_ROWS)
            except Exception as error:
                self._end(request, error)

    def _has_room(self, request, running):
        """Whether the pool can hold this request at its longest beside those that run."""
        pool = getattr(self.transformer, "pool", None)
        cache = next((r.cache for r in running if r.cache is not None), None)
        if pool is None or cache is None:
            return True
        n_pages = -(-cache.capacity // PAGE_TOKENS)
        longest = (
            min(r.n_prompt + r.limits.max_tokens, cache.capacity) for r in (*running, request)
        )
        wanted = sum(-(-n // PAGE_TOKENS) for n in longest) * (cache.full_nbytes // n_pages)
        stats = pool.stats()
        held = stats.by_purpose.get("kv", (0,))[0]  # by those that run, or by prefixes, which go
        return wanted <= held + stats.largest_free + stats.limit - stats.reserved

    def _cache_for(self, request):
        """An empty cache, or a fork of one that holds the beginning of the prompt."""
        if self.prefixes is not None:
            live = [
                (r.tokens[: r.cache.length], r.cache)
                for r in tuple(self._requests)
                if r.cache is not None
            ]
            cache, request.n_cached = self.prefixes.fork(request.tokens, live)
            if cache is not None:
                return cache
        return self.transformer.new_cache(dtype=self.kv_dtype)

    def _make_room(self):
        """Called where the pool is exhausted: whether something could be given back."""
        return self.prefixes is not None and self.prefixes.drop_oldest()

    def _keep(self, request):
        """A finished request's cache becomes a prefix, within the memory of all slots."""
        cache, request.cache = request.cache, None
        limit = self.slots * cache.full_nbytes
        self.prefixes.keep(request.tokens[: cache.length], cache)
        live = sum(r.cache.nbytes for r in tuple(self._requests) if r.cache is not None)
        while self.prefixes.nbytes + live > limit and self.prefixes.drop_oldest():
            pass

    def _plan(self):
        """[(request, n_tokens)]: those that generate, then prompts as far as rows are left."""
        active = [r for r in tuple(self._requests) if r.cache is not None]
        for request in active:
            self._guard(request, request.settle)  # what an interrupt left undone
            if not request.is_done and request.pending < 1:  # its logits were lost to an interrupt
                request.cache.trim(len(request.tokens) - 1)
        active = [r for r in active if not r.is_done]
        running = [r for r in active if r.pending == 1][: self.transformer.max_batch]
        prompts = [r for r in active if r.pending > 1]
        shares = self._shares(running, prompts)
        self._make_drafts(running, self.transformer.max_batch - len(running) - sum(shares.values()))
        generating = [(r, 1 + len(r.draft)) for r in running]
        return generating + [(r, shares[r]) for r in prompts if shares.get(r)]

    def _make_drafts(self, running, n_left):
        """Drafts of those that generate, within the rows that are left and those of DRAFT_ROWS."""
        n_left = min(n_left, DRAFT_ROWS)
        for request in running:
            request.draft = []
            if request.drafts:
                request.make_draft(n_left)
                n_left -= len(request.draft)

    def _shares(self, running, prompts):
        """{request: rows of the step it gets} of those whose prompt is still read."""
        n_left = self.transformer.max_batch - len(running)
        if not self.is_fair:
            return split_fifo(prompts, n_left)
        self._pace.is_shared = bool(running and prompts)
        if self._pace.prompts_wait():
            return {}
        return split_fair(prompts, min(n_left, SHARED_ROWS) if running else n_left)

    def _run(self, batch):
        """Run a planned batch; if it fails, each sequence alone, so that only the guilty ends."""
        wanted = [max(0, 1 + n - request.pending) for request, n in batch]
        try:
            logits = self._forward(batch, wanted)
        except Exception as error:
            if len(batch) == 1 and not batch[0][0].draft:
                self._end(batch[0][0], error)
                return
            for request, n in batch:
                n -= len(request.draft)  # which may want memory that the text does not
                request.draft = []
                self._run([(request, n)])
            return
        first = 0
        for (request, _), n in zip(batch, wanted, strict=True):
            if n:
                self._guard(request, request.advance, logits[first : first + n])
            first += n

    def _forward(self, batch, logits):
        """The forward pass of a batch; whatever interrupts it, the caches are as before."""
        n_rows = 0
        for request, n in batch:
            request.start_clock()
            begin = request.cache.length
            self._token_ids[n_rows : n_rows + n] = request.tokens[begin : begin + n] + request.draft
            n_rows += n
        sequences = [(request.cache, n) for request, n in batch]
        lengths = [cache.length for cache, _ in sequences]
        try:
            rows = (w for (r, _), n in zip(batch, logits, strict=True) for w in r.wanted(n))
            return self.transformer.forward(
                self._token_ids[:n_rows], sequences, logits=logits, wanted=rows
            )
        except BaseException:
            for (cache, _), length in zip(sequences, lengths, strict=True):
                cache.trim(length)
            raise

    def _guard(self, request, action, *arguments):
        """Do something for one request; what it raises ends that request only."""
        try:
            action(*arguments)
        except Exception as error:
            del arguments  # logits, which the traceback would keep
            self._end(request, error)
        if request.is_done:
            self._release(request)

    def _end(self, request, error):
        traceback.clear_frames(error.__traceback__)
        request.error = error
        self._release(request)

    def _release(self, request):
        if request.cache is None:
            return
        if self.prefixes is not None and request.completion is not None:
            return self._keep(request)
        cache, request.cache = request.cache, None
        cache.close()

    # ---------------------------------------------------------------------------------- cancelling
    def _drop_cancelled(self):
        for request in tuple(self._requests):
            if request.is_cancelled and not request.is_done:
                self._end(request, Cancelled("the request was cancelled, or its model closed"))
        self._forget_done()

    def _drop_cancelled_if_free(self):
        """A flag raised while the lock was held is seen by its holder here, after the release."""
        while any(r.is_cancelled and not r.is_done for r in tuple(self._requests)):
            if not self._lock.acquire(blocking=False):
                return
            try:
                if self._depth:  # called by the garbage collector in a step of this very thread
                    return
                self._drop_cancelled()
            finally:
                self._lock.release()
