"""The scheduler: which sequence runs when, on one transformer. Knows token ids, no prompt text.

Requests wait in order of arrival, where they are of several clients these take turns; they join and
leave between steps. A step is one ragged forward pass: one row for each sequence that generates,
and as much of the waiting prompts as fits beside them.
There is no thread: whoever waits for a request runs steps, for all of them; other threads queue.

A thread that is inside a step may be called back: by a signal handler between two layers, a
finalizer, a constraint. What it asks for then is refused (RuntimeError), but for closing and
cancelling, which are carried out when the step has ended.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice
from ..errors import Cancelled, ContextFull, PoolExhausted
from ..models.sequence_state import SequenceState
from ..models.transformer import Transformer
from ..models.workspace import DRAFT_ROWS
from ..progress import Steps, finish
from ..runtime.kv_cache import DEFAULT_KV_DTYPE, check_window
from ..runtime.step_lock import StepLock
from .draft_model import DraftModel
from .fairness import SHARED_ROWS, ClientShares, PrefillBudget, split_fair, split_fifo
from .prefix_cache import PrefixCache
from .prefix_cache_disk import DiskPrefixCache
from .prompt_lookup import NgramDrafts
from .request import Completion, Drafts, Request
from .token_ids import check_ids

# How to draft: by prompt lookup, by a small model, not at all.
SPECULATION_METHODS = NGRAM, DRAFT, OFF = "ngram", "draft", "off"
CLOSED = "the model is closed"
FORKED = "the model was in use in another thread when the process was forked: load it again"
REENTERED = (
    "the model was called inside one of its own steps, by a signal handler, a finalizer or a "
    "callback: only closing and cancelling is possible there, and is done at the step's end"
)

Batch = list[tuple[Request, int]]  # requests and how many of their tokens a step reads


class Scheduler:
    """Runs requests on a transformer, up to ``slots`` at a time.

    transformer: a Transformer, or what has its forward, new_state, max_batch,
    context and vocab_size. kv_dtype: of cached keys and values. All methods may be called from any
    thread.

    prefix_cache: None, or what keeps the states of finished sequences, so that a prompt that begins
    like one of them, or like a running one, reads the rest only. Kept and running ones together
    take no more than ``slots`` sequences of full length.

    fair: prompts take no more than half of the time while others generate, and the prompt that came
    first no more than half of what prompts get while others are shorter. Otherwise a step reads as
    much of the prompts as it can, in order of arrival.

    snapshots: of states that cannot go back, how many are kept for each slot, those of finished
    sequences among them; None: as many as the memory of all slots allows.

    draft_model: None, or what drafts for the requests whose drafts are of its new_drafts. Its
    states give way where the transformer needs memory.
    """

    def __init__(
        self,
        transformer: Transformer,
        *,
        slots: int = 1,
        kv_dtype: str = DEFAULT_KV_DTYPE,
        prefix_cache: PrefixCache | None = None,
        fair: bool = False,
        draft_model: DraftModel | None = None,
        snapshots: int | None = None,
    ) -> None:
        self._transformer: Transformer | None = transformer  # until it is closed
        self.kv_dtype, self.prefix_cache, self.fair = kv_dtype, prefix_cache, fair
        self.draft_model, self.snapshots = draft_model, snapshots
        self._max_batch = transformer.max_batch
        self.slots = min(slots, self._max_batch)
        self._budget, self._clients = PrefillBudget(), ClientShares()
        self._requests: list[Request] = []  # those not done, in order of arrival
        self._token_ids = np.empty(self._max_batch, np.int32)
        self._lock = StepLock(REENTERED)
        self._why_closed = CLOSED

    def keep_prefixes(self, folder: str | os.PathLike[str], limit: int, fingerprint: str) -> None:
        """Keep states of finished sequences in files as well: see load's prefix_folder."""
        if self.prefix_cache is None:
            raise ValueError("prefix_folder: nothing is kept without prefix_cache")
        new_state = partial(self.transformer.new_state, dtype=self.kv_dtype)
        disk = DiskPrefixCache(folder, limit, fingerprint, self.kv_dtype, new_state)
        self.prefix_cache.keep_on_disk(disk)

    def submit(self, request: Request) -> Request:
        """Queue a request. ValueError for a bad token id, ContextFull for a prompt too long."""
        self.check(request)
        self._requests.append(request)
        return request

    def check_outside(self) -> None:
        """RuntimeError where this thread is inside a step."""
        self._lock.check()

    def check(self, request: Request) -> None:
        """Raise what submit would; RuntimeError inside a step."""
        self.check_outside()
        transformer = self.transformer
        check_ids(request.tokens, transformer.vocab_size)
        if request.n_prompt > transformer.context:
            raise ContextFull(0, request.n_prompt, transformer.context)
        if request.stopping.n_sinks:
            check_window(transformer.context)
            state = transformer.new_state(dtype=self.kv_dtype, sinks=request.stopping.n_sinks)
            state.close()  # ValueError: of layers for which no window can move

    def stream(self, request: Request) -> Generator[str, None, None]:
        """Submit, and yield the text as it comes. Raises what stopped it; closing cancels it."""
        try:
            self.submit(request)
            is_last = False
            while not is_last:
                if not request.is_done:
                    self.progress(request)
                is_last = request.is_done  # asked first: another thread may add deltas meanwhile
                while request.deltas:
                    yield request.deltas.popleft()
            request.result()
        finally:
            self.cancel(request)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Submit, run until all are done: their completions. The first error cancels the rest."""
        self.run(requests)
        return [request.result() for request in requests]

    def run(self, requests: Sequence[Request], *, stop_at_error: bool = True) -> None:
        """Submit, and run until all are done. stop_at_error: the first error, in their order, is
        raised and cancels the rest; otherwise each request keeps its own."""
        finish(self.steps(requests, stop_at_error=stop_at_error))

    def steps(self, requests: Sequence[Request], *, stop_at_error: bool = True) -> Steps[None]:
        """The same a step at a time, to be closed where it is not finished: requests done."""
        try:
            for request in requests:
                self.submit(request)
            for i, request in enumerate(requests):
                while not request.is_done:
                    request.deltas.clear()  # nobody collects them
                    self.progress(request)
                    yield i, len(requests)
                if stop_at_error:
                    request.result()
        finally:
            for request in requests:
                self.cancel(request)

    def progress(self, request: Request) -> None:
        """Run a step, unless another thread has just done what this request waits for."""
        with self.alone():
            is_waiting = not request.is_done and not request.deltas
            if is_waiting and not self._step() and not request.is_done:
                raise Cancelled("the request is not queued in this scheduler")

    def step(self) -> bool:
        """One forward pass for the sequences whose turn it is; False if there is nothing to do."""
        with self.alone():
            return self._step()

    def cancel(self, request: Request) -> None:
        """End a request that is not done and free its memory: at once, or after a running step."""
        request.cancel()
        if not request.is_done:
            self._lock.defer(self._end_cancelled)

    def alone(self) -> StepLock:
        """A context in which no step runs; also where the model is closed. See StepLock."""
        return self._lock

    def use_threads(self, n: int) -> None:
        """Let the transformer compute on n threads, from the next step on."""
        with self.alone():
            self.transformer.n_threads = n
            if self.draft_model is not None:
                self.draft_model.transformer.n_threads = n

    def counts(self) -> tuple[int, int]:
        """(requests that have a slot, requests that wait for one)."""
        requests = tuple(self._requests)
        n_running = sum(r.has_slot for r in requests)
        return n_running, len(requests) - n_running

    @property
    def is_inside(self) -> bool:
        """Whether this thread is inside a step, or alone()."""
        return self._lock.is_inside

    def defer(self, action: Callable[[], object]) -> None:
        """Run an action, which must not raise, once no thread is inside a step: see StepLock."""
        self._lock.defer(action)

    def forward(
        self,
        token_ids: NDArray[np.int32],
        sequences: list[tuple[SequenceState, int]],
        **options: Any,
    ) -> NDArray[np.float32]:
        """The transformer's forward, within alone(). Where the pool has no room for it, kept
        prefixes are dropped, one after the other, then states of the draft model; PoolExhausted
        once there is none."""
        while True:
            try:
                return self.transformer.forward(token_ids, sequences, **options)
            except PoolExhausted:
                holders = (self.prefix_cache, self.draft_model)
                if not any(holder is not None and holder.drop_oldest() for holder in holders):
                    raise

    def close(self) -> None:
        """Cancel everything and let go of the transformer. May be repeated; not inside a step."""
        with self.alone():
            for request in tuple(self._requests):
                request.cancel()
            self._drop_cancelled()
            if self.prefix_cache is not None:
                self.prefix_cache.clear()
            if self.draft_model is not None:
                self.draft_model.close()
            self._transformer = self.prefix_cache = self.draft_model = None

    def after_fork(self) -> None:
        """In the child of a fork: a step that another thread was running does not go on here."""
        if not self._lock.after_fork():
            self._transformer, self._why_closed = None, FORKED

    @property
    def transformer(self) -> Transformer:
        """What runs; ValueError once it is closed."""
        if self._transformer is None:
            raise ValueError(self._why_closed)
        return self._transformer

    def new_drafts(self, method: str | None) -> Drafts | None:
        """The drafts of one sequence by a method, one of SPECULATION_METHODS; None where that is
        None or "off". ValueError for an unknown one, or without a model that drafts."""
        if method is not None:
            check_choice("speculative", method, SPECULATION_METHODS)
        if method == NGRAM:
            return NgramDrafts()
        if method != DRAFT:
            return None
        if self.draft_model is None:
            raise ValueError("speculative: 'draft', but load was given no model that drafts")
        return self.draft_model.new_drafts()

    def _forget_done(self) -> None:
        done = [r for r in tuple(self._requests) if r.is_done]
        for request in done:  # in place: submit appends without the lock
            self._requests.remove(request)
            self._clients.charge(request.client, 0, len(request.tokens) - request.n_prompt)
        if done:
            self._clients.forget_others({r.client for r in tuple(self._requests)})

    def _active(self) -> list[Request]:
        """Those that have a slot."""
        return [r for r in tuple(self._requests) if r.has_slot]

    # ----------------------------------------------------------------------------------- admission
    def _admit(self) -> None:
        """Give free slots to those whose turn it is, while their tokens will have room."""
        running = self._active()
        if len(running) == len(self._requests):
            return
        waiting = [r for r in tuple(self._requests) if not r.has_slot]
        while waiting and len(running) < self.slots:
            request = self._clients.next(waiting, running)
            if running and not self._has_room(request, running):
                break
            waiting.remove(request)
            running.append(request)
            try:
                request.take_slot(self._state_for(request))
                self._clients.charge(request.client, request.pending)
            except Exception as error:
                self._end(request, error)

    def _has_room(self, request: Request, running: list[Request]) -> bool:
        """Whether the pool can hold this request at its longest beside those that run."""
        pool = getattr(self.transformer, "pool", None)
        state = next((r.state for r in running if r.has_slot), None)
        if pool is None or state is None:
            return True
        longest = (
            min(r.n_prompt + r.stopping.max_tokens, state.capacity) for r in (*running, request)
        )
        needed = sum(state.nbytes_at(n) for n in longest)
        stats = pool.stats()
        # Held by those that run, or by prefixes, which go.
        held = sum(stats.by_purpose.get(purpose, (0,))[0] for purpose in state.parts)
        free: int = held + stats.largest_free + stats.limit - stats.reserved
        return needed <= free

    def _state_for(self, request: Request) -> SequenceState:
        """An empty state, or a fork of one that has seen the beginning of the prompt."""
        sinks = request.stopping.n_sinks
        if self.prefix_cache is not None and request.reuses:
            live = [(r.tokens[: r.state.length], r.state) for r in self._active()]
            state = self.prefix_cache.fork(request.tokens, live, sinks=sinks)
            if state is not None:
                return state
        return self.transformer.new_state(dtype=self.kv_dtype, sinks=sinks)

    def _insert_prefix(self, prefix_cache: PrefixCache, request: Request) -> None:
        """A finished request's state becomes a prefix."""
        state = request.leave_slot()
        self._keep(prefix_cache, request.tokens[: state.length], state)

    def keep(self, token_ids: Sequence[int], state: SequenceState) -> None:
        """Let a state that has seen these tokens be a prefix of what comes; it belongs to the
        scheduler from now on. It is closed where none are kept."""
        with self.alone():
            if self.prefix_cache is None:
                state.close()
            else:
                self._keep(self.prefix_cache, token_ids, state)

    def _keep(
        self, prefix_cache: PrefixCache, token_ids: Sequence[int], state: SequenceState
    ) -> None:
        """The state becomes a prefix, within the memory of all slots."""
        limit = self.slots * state.full_nbytes
        prefix_cache.insert(token_ids, state)
        if not state.is_trimmable and self.snapshots is not None:
            self._limit_snapshots(prefix_cache, self.snapshots)
            return
        live = sum(r.state.nbytes for r in self._active())
        while prefix_cache.nbytes + live > limit and prefix_cache.drop_oldest():
            pass

    def _keep_snapshot(self, request: Request) -> None:
        """Keep the state of the beginning of a prompt. It is copied when the next step writes."""
        state = request.state
        if self.prefix_cache is not None and not state.is_trimmable and self.snapshots:
            self.prefix_cache.insert(request.tokens[: state.length], state.fork())
            self._limit_snapshots(self.prefix_cache, self.snapshots)

    def _limit_snapshots(self, prefix_cache: PrefixCache, n_of_slot: int) -> None:
        while len(prefix_cache) > self.slots * n_of_slot and prefix_cache.drop_oldest():
            pass

    # ------------------------------------------------------------------------------------ one step
    def _step(self) -> bool:
        """The step of step(), within alone()."""
        self._drop_cancelled()
        self._admit()
        batch, has_prompts = self._plan()
        if batch:
            start = time.perf_counter()
            n_rows = sum(n for _, n in batch)
            self._run(batch)
            seconds = time.perf_counter() - start
            self._budget.record(has_prompts, seconds)
            if self.draft_model is not None and not has_prompts:
                self.draft_model.record_step([r for r, _ in batch], n_rows, seconds)
        self._forget_done()
        return bool(batch)

    def _plan(self) -> tuple[Batch, bool]:
        """[(request, n_tokens)]: those that generate, then prompts as far as rows are left; and
        whether there are prompts among them."""
        running: list[Request] = []
        prompts: list[Request] = []
        for request in self._active():
            self._guard(request, request.settle)  # what an interrupt left undone
            if request.is_done:
                continue
            pending = request.pending
            if pending < 1:  # its logits were lost to an interrupt
                request.rewind(len(request.tokens) - 1)
                pending = request.pending
            (running if pending == 1 else prompts).append(request)
        del running[self._max_batch :]
        shares = self._shares(running, prompts)
        n_left = min(self._max_batch - len(running) - sum(shares.values()), DRAFT_ROWS)
        if self.draft_model is not None and running and not shares:
            self.draft_model.prepare(running, n_left)
        self._make_drafts(running, n_left)
        generating = [(r, 1 + len(r.draft)) for r in running]
        reading = [(r, r.state.reservable(r.unbroken(shares[r]))) for r in prompts if shares.get(r)]
        return generating + reading, bool(reading)

    def _make_drafts(self, running: list[Request], n_left: int) -> None:
        """Drafts of those that generate, within the rows that are left for them."""
        for request in running:
            request.make_draft(n_left)
            n_left -= len(request.draft)

    def _shares(self, running: list[Request], prompts: list[Request]) -> dict[Request, int]:
        """{request: rows of the step it gets} of those whose prompt is still read."""
        n_left = self._max_batch - len(running)
        if not self.fair:
            return split_fifo(prompts, n_left)
        if self._budget.prompts_wait(is_shared=bool(running and prompts)):
            return {}
        return split_fair(prompts, min(n_left, SHARED_ROWS) if running else n_left)

    def _run(self, batch: Batch) -> None:
        """Run a planned batch; if it fails, each sequence alone, so that only the guilty ends."""
        counts = [max(0, 1 + n - request.pending) for request, n in batch]
        try:
            logits = self._forward(batch, counts)
        except Exception as error:
            if len(batch) == 1 and not batch[0][0].draft:
                self._end(batch[0][0], error)
                return
            for request, n in batch:
                # Drafts may need memory that the text does not.
                self._run([(request, n - request.drop_draft())])
            if not isinstance(error, MemoryError) and not any(r.error for r, _ in batch):
                raise  # nobody's: a signal handler's, as that of a timer
            return
        first = 0
        for (request, _), n in zip(batch, counts, strict=True):
            if request.state.length in request.snapshots:
                self._keep_snapshot(request)
            if n:
                self._guard(request, request.advance, logits[first : first + n])
            first += n

    def _forward(self, batch: Batch, counts: list[int]) -> NDArray[np.float32]:
        """The forward pass of a batch; whatever interrupts it, the states are as before.

        counts: of logits that each request wants.
        """
        n_rows, sequences, lengths = 0, [], []
        for request, n in batch:
            request.begin_step()
            state = request.state
            begin = state.length
            self._token_ids[n_rows : n_rows + n] = request.tokens[begin : begin + n] + request.draft
            n_rows += n
            sequences.append((state, n))
            lengths.append(begin)
        # A generator: read only where there is a screen, once all memory is taken.
        queries = (q for (r, _), n in zip(batch, counts, strict=True) for q in r.queries(n))
        try:
            return self.forward(self._token_ids[:n_rows], sequences, logits=counts, queries=queries)
        except BaseException:
            for (request, _), length in zip(batch, lengths, strict=True):
                request.rewind(length)
            raise

    def _guard(self, request: Request, action: Callable[..., None], *arguments: Any) -> None:
        """Do something for one request; what it raises ends that request only."""
        try:
            action(*arguments)
        except Exception as error:
            del arguments  # logits, which the traceback would keep
            self._end(request, error)
        if request.is_done:
            self._release(request)

    def _end(self, request: Request, error: BaseException) -> None:
        traceback.clear_frames(error.__traceback__)
        request.fail(error)
        self._release(request)

    def _release(self, request: Request) -> None:
        if not request.has_slot:
            return
        if self.draft_model is not None:
            self.draft_model.release(request)
        if self.prefix_cache is not None and request.completion is not None:
            self._insert_prefix(self.prefix_cache, request)
        else:
            request.leave_slot().close()

    # ---------------------------------------------------------------------------------- cancelling
    def _drop_cancelled(self) -> None:
        for request in tuple(self._requests):
            if request.is_cancelled and not request.is_done:
                self._end(request, Cancelled("the request was cancelled, or its model closed"))
        self._forget_done()

    def _end_cancelled(self) -> None:
        with self._lock:
            self._drop_cancelled()
