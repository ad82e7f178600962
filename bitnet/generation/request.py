"""One generation on its way through the scheduler, and what comes out of it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ContextFull
from ..models.lm_head_screen import LogitsQuery
from ..models.sequence_state import RollbackPoint, SequenceState
from .detokenizer import Detokenizer
from .hooks import Hooks
from .sampling import Sampler, best, log_probabilities
from .stopping import StopConditions


@dataclass(frozen=True)
class Completion:
    """What was generated.

    text: without the stop string and special tokens. token_ids: all that were generated, the end
    token included. finish_reason: "stop" (an end token or a stop string), "length" (max_tokens) or
    "context" (no room for another token). stop: the stop string that was met, or None. seed: gives
    the same text again. cached_tokens: of the prompt, not read since another sequence began alike.
    prompt_tps, generation_tps: tokens a second, 0 where nothing was timed. drafted_tokens,
    accepted_tokens: proposed by speculation, and those that were right.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stop: str | None
    seed: int
    prompt_tokens: int
    cached_tokens: int
    prompt_tps: float
    generation_tps: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated."""
        return len(self.token_ids)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, and how it came about."""
        import html  # 10 ms, for those who show one

        figures = [
            f"{self.completion_tokens} tokens ({self.finish_reason})",
            f"{self.generation_tps:.1f} tokens/s",
            f"prompt {self.prompt_tokens} tokens, {self.cached_tokens} cached",
            f"{self.prompt_tps:.1f} tokens/s",
            f"seed {self.seed}",
        ]
        text, line = html.escape(self.text), html.escape(", ".join(figures))
        return f'<div style="white-space: pre-wrap">{text}</div><small>{line}</small>'


class Constraint(Protocol):
    """Which tokens may come next, as a grammar has it."""

    def allowed(self) -> NDArray[np.bool_]:
        """bool (vocab,): the tokens that may come next."""

    def accept(self, token_id: int) -> None:
        """Go on past this token."""


class Drafts(Protocol):
    """Proposals of the next tokens of one sequence: see prompt_lookup.NgramDrafts and
    draft_model.ModelDrafts.

    drafted, accepted: how many tokens were proposed, and how many of them were right.
    """

    drafted: int
    accepted: int

    def propose(self, tokens: list[int], n_max: int) -> list[int]:
        """At most n_max tokens that may follow these."""

    def record(self, n_drafted: int, n_accepted: int) -> None:
        """Learn how the latest draft fared."""


class Request:
    """One generation; made by the caller, run by Scheduler.

    prompt_ids: at least one token id. detokenizer: None where only ids are wanted. n_logprobs:
    None, or of how many of the likeliest tokens the probabilities are wanted at each place.
    drafts: None, or what proposes tokens that the next step is to try as well. constraint: None,
    or what says which tokens may come. reuses: whether it may begin with what the model remembers
    of a sequence that began alike. hooks: the caller's own functions. client: whose it is, where
    slots are shared out among clients (fairness.ClientShares). snapshots: the lengths of the prompt
    at which a state that cannot go back is kept, ascending.

    deltas: deque of text that was not collected yet. is_done; completion or error once it is.
    logprobs: of each token [(id, log of its probability)], its own first, then the likeliest; of
    the model's logits as they are, before temperature, penalties and biases.
    """

    def __init__(
        self,
        prompt_ids: Iterable[int],
        sampler: Sampler,
        stopping: StopConditions,
        detokenizer: Detokenizer | None = None,
        *,
        n_logprobs: int | None = None,
        drafts: Drafts | None = None,
        constraint: Constraint | None = None,
        reuses: bool = True,
        hooks: Hooks | None = None,
        client: Hashable = None,
        snapshots: Sequence[int] = (),
    ) -> None:
        self.tokens = list(prompt_ids)
        self.n_prompt = len(self.tokens)
        self.sampler, self.stopping, self.detokenizer = sampler, stopping, detokenizer
        self.n_logprobs, self.drafts, self.constraint = n_logprobs, drafts, constraint
        self.reuses, self.hooks, self.client = reuses, hooks or Hooks(), client
        self.snapshots = snapshots
        self.logprobs: list[list[tuple[int, float]]] = []
        self.draft: list[int] = []  # tokens that the planned step tries behind the latest one
        self.n_cached = 0  # tokens of the prompt that another sequence had read
        self.admitted = 0.0  # time.perf_counter() when it took its slot, 0 before
        self.deltas: deque[str] = deque()
        self.is_cancelled = False
        self.completion: Completion | None = None
        self.error: BaseException | None = None
        self._state: SequenceState | None = None  # while it has a slot
        self._checkpoint: RollbackPoint | None = None  # of the state before the latest step
        self._text: list[str] = []  # all deltas
        self._n_settled = self.n_prompt  # tokens whose text and end conditions were seen to
        self._seen = dict.fromkeys(self.tokens) if sampler.penalises else {}
        self._counts: dict[int, int] = {}  # of generated tokens, if the sampler asks
        self._times: list[float] = []  # of the first forward pass, the first token, the latest one

    @property
    def is_done(self) -> bool:
        return self.completion is not None or self.error is not None

    def cancel(self) -> None:
        """Ask for its end; the scheduler sees to it before its next step."""
        self.is_cancelled = True

    def fail(self, error: BaseException) -> None:
        """End it with an error, which result raises."""
        self.error = error

    def result(self) -> Completion:
        """The completion, once it is done. Raises what ended it instead."""
        if self.error is not None:
            raise self.error
        if self.completion is None:
            raise ValueError("the request is not complete")
        return self.completion

    @property
    def outcome(self) -> Completion | BaseException | None:
        """The completion or the error that it ended in; None before."""
        return self.completion or self.error

    @property
    def has_slot(self) -> bool:
        """Whether it runs, or waits for memory only."""
        return self._state is not None

    @property
    def state(self) -> SequenceState:
        """What the model remembers of its tokens; while it has a slot."""
        if self._state is None:
            raise ValueError("the request has no slot")
        return self._state

    def take_slot(self, state: SequenceState) -> None:
        """Begin with a state that has seen the first n_cached tokens."""
        self._state, self.n_cached, self.admitted = state, state.length, time.perf_counter()

    def leave_slot(self) -> SequenceState:
        """The state, which somebody else has to close."""
        state, self._state = self.state, None
        return state

    @property
    def pending(self) -> int:
        """How many tokens its state has not seen yet."""
        return len(self.tokens) - self.state.length

    def unbroken(self, n: int) -> int:
        """How many of its next n tokens a step may read, up to the next of its snapshots."""
        length = self.state.length
        return next((min(n, place - length) for place in self.snapshots if place > length), n)

    @property
    def is_full(self) -> bool:
        """Whether its state has no room for the latest settled token, and no window moves on."""
        return self._n_settled >= self.state.capacity and not self.stopping.n_sinks

    @property
    def prompt_seconds(self) -> float:
        """From its first forward pass to its first token."""
        started, first, _ = self._times or (0.0, 0.0, 0.0)
        return first - started

    # ------------------------------------------------------------------------------------ one step
    def begin_step(self) -> None:
        """To be called before a forward pass: its time, and the place to which it can be undone."""
        if not self._times:
            self._times = [time.perf_counter()] * 3
        state = self.state
        if not state.is_trimmable:  # trim undoes others; where it cannot, no checkpoint could
            self._checkpoint = state.checkpoint(holds=bool(self.draft))

    def rewind(self, length: int) -> None:
        """Let the state forget what the latest step saw from this token on.

        A state that cannot go back there goes to where the step began, or to nothing: the next
        step reads the tokens between once more.
        """
        state, checkpoint = self.state, self._checkpoint
        if not state.trim(length) and not (checkpoint and state.rollback(checkpoint)):
            state.trim(0)

    def draft_room(self, n_max: int) -> int:
        """How many of n_max drafted tokens the next step has use and room for; may be negative."""
        rest = self.stopping.max_tokens - (len(self.tokens) - self.n_prompt)
        return min(n_max, rest - 1, self.state.capacity - len(self.tokens))

    def make_draft(self, n_max: int) -> None:
        """Propose at most n_max tokens for the next step, as far as there is use and room."""
        self.draft = []
        if self.drafts is None:
            return
        n_max = self.draft_room(n_max)
        if n_max > 0:
            self.draft = self.drafts.propose(self.tokens, n_max)

    def drop_draft(self) -> int:
        """Forget what make_draft proposed; how many tokens that were."""
        n, self.draft = len(self.draft), []
        return n

    def queries(self, n: int) -> list[LogitsQuery | None]:
        """Which logits the choice of each of the next n tokens depends on, None for all."""
        must_go_on = len(self.tokens) - self.n_prompt < self.stopping.min_tokens
        has_own = self.constraint is not None or self.hooks.processors
        if self.n_logprobs is not None or has_own or must_go_on:
            return [None] * n
        ids = [*(self._seen or self._counts), *self.draft]
        return [self.sampler.query(len(self.tokens) + i, ids) for i in range(n)]

    def guess_query(self, draft: list[int]) -> LogitsQuery | None:
        """Which logits of another model guess needs; None for all."""
        ids = [*(self._seen or self._counts), *draft]
        return self.sampler.query(len(self.tokens) + len(draft), ids)

    def guess(self, logits: NDArray[np.float32], draft: list[int]) -> int:
        """The token behind the text and a draft, from another model's logits (vocab,).

        Chosen as sample does, with the noise of that position, but for what a constraint allows.
        """
        seen: Sequence[int] = ()
        counts = self._counts
        if self.sampler.penalises:
            seen = list(dict.fromkeys([*self._seen, *draft]))
        if self.sampler.counts:
            counts = Counter(self._counts)
            counts.update(draft)
        return self.sampler(logits, len(self.tokens) + len(draft), seen, counts)

    def advance(self, logits: NDArray[np.float32]) -> None:
        """Sample from logits (1 + len(draft), vocab): as many tokens as the draft was right, + 1.

        The state is left with all tokens but the last, or with fewer where it cannot go back to
        that: the next step reads the others once more.
        """
        draft, self.draft = self.draft, []
        n_right = 0
        try:
            self.sample(logits[0])
            for i, token in enumerate(draft):
                if self.is_done or self.tokens[-1] != token:
                    break
                n_right += 1
                self.sample(logits[i + 1])
        finally:
            if self.pending < 1:
                self.rewind(len(self.tokens) - 1)
        if draft and self.drafts is not None:
            self.drafts.record(len(draft), n_right)
            if self.completion is not None:  # it was made before the last draft was counted
                n_drafted, n_accepted = self.drafts.drafted, self.drafts.accepted
                self.completion = replace(
                    self.completion, drafted_tokens=n_drafted, accepted_tokens=n_accepted
                )

    def sample(self, logits: NDArray[np.float32]) -> None:
        """Choose the next token from logits (vocab,) and see to what follows from it."""
        seen = np.fromiter(self._seen, np.intp, len(self._seen)) if self._seen else ()
        allowed = self._allowed(len(logits))
        changed, allowed = self.hooks.change(self.tokens, logits, allowed)
        token = self.sampler(changed, len(self.tokens), seen, self._counts, allowed)
        if self.constraint is not None and token not in self.stopping.end_ids:
            self.constraint.accept(token)
        if self.n_logprobs is not None:
            ids = [token, *best(logits, self.n_logprobs).tolist()] if self.n_logprobs else [token]
            self.logprobs.append(list(zip(ids, log_probabilities(logits, ids), strict=True)))
        self._times[2] = time.perf_counter()
        if len(self.tokens) == self.n_prompt:
            self._times[1] = self._times[2]
        self.tokens.append(token)
        self.settle()

    def _allowed(self, vocab_size: int) -> NDArray[np.bool_] | None:
        """Which tokens may come next, bool (vocab,); None for all."""
        allowed = None if self.constraint is None else self.constraint.allowed()
        if len(self.tokens) - self.n_prompt >= self.stopping.min_tokens:
            return allowed
        going_on = np.ones(vocab_size, np.bool_) if allowed is None else allowed.copy()
        going_on[[i for i in self.stopping.end_ids if i < vocab_size]] = False
        return going_on if going_on.any() else allowed  # a grammar's text may be at its end

    # ---------------------------------------------------------------------------- text and its end
    def settle(self) -> None:
        """Text and end conditions of new tokens: once for each, also after an interrupt."""
        while self._n_settled < len(self.tokens) and not self.is_done:
            token = self.tokens[self._n_settled]
            n_generated = self._n_settled + 1 - self.n_prompt
            may_stop, should_stop = n_generated >= self.stopping.min_tokens, self.hooks.should_stop
            # first: what interrupts a caller's function leaves nothing done by half
            ends = should_stop and may_stop and should_stop(self.tokens[: self._n_settled + 1])
            if self.sampler.penalises:
                self._seen[token] = None
            if self.sampler.counts:
                self._counts[token] = self._counts.get(token, 0) + 1
            if token in self.stopping.end_ids:
                reason: str | None = "stop"
            else:
                reason = self._add_text(token, may_stop) or ("stop" if ends else None)
            if reason is None and n_generated >= self.stopping.max_tokens:
                reason = "length"
            elif reason is None and self.is_full:
                reason = "context"
                if self.stopping.context_end == "error":
                    raise ContextFull(self._n_settled, 1, self.state.capacity)
            self._n_settled += 1
            if reason:
                self._complete(reason)

    def _add_text(self, token: int, may_stop: bool) -> str | None:
        if self.detokenizer is not None:
            self._emit(self.detokenizer.push(token, may_stop))
            if self.detokenizer.stopped is not None:
                return "stop"
        return None

    def _emit(self, delta: str) -> None:
        if delta:
            self.deltas.append(delta)
            self._text.append(delta)

    def _complete(self, reason: str) -> None:
        if self.detokenizer is not None:
            self._emit(self.detokenizer.finish())
        started, first, latest = self._times
        generated = self.tokens[self.n_prompt :]
        self.completion = Completion(
            text="".join(self._text),
            token_ids=generated,
            finish_reason=reason,
            stop=None if self.detokenizer is None else self.detokenizer.stopped,
            seed=self.sampler.seed,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            prompt_tps=_rate(self.n_prompt - self.n_cached, first - started),
            generation_tps=_rate(len(generated) - 1, latest - first),
            drafted_tokens=self.drafts.drafted if self.drafts else 0,
            accepted_tokens=self.drafts.accepted if self.drafts else 0,
        )


def _rate(n: int, seconds: float) -> float:
    return n / seconds if n and seconds > 0 else 0.0
