"""One generation on its way through the scheduler, and what comes out of it."""

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from ..errors import ContextFull
from .sampling import best, log_probabilities


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
    def completion_tokens(self):
        """How many tokens were generated."""
        return len(self.token_ids)

    def __str__(self):
        return self.text


class Request:
    """One generation on its way through an engine; made by the caller, run by Scheduler.

    prompt_ids: at least one token id. sampler: of make_sampler. limits: generation.Limits.
    text: a Detokenizer, or None where only ids are wanted. n_logprobs: None, or of how many of
    the likeliest tokens the probabilities are wanted at each place. constraint (may be set): has
    allowed() -> bool (vocab,), which tokens may come next, and accept(token_id). drafts: None, or
    what proposes tokens that the next step is to try as well, speculation.NgramDrafts.
    pieces: deque of text that was not collected yet. is_done; completion or error once it is.
    logprobs: of each token [(id, log of its probability)], its own first, then the likeliest; of
    the model's logits as they are, before temperature, penalties and biases.
    """

    def __init__(self, prompt_ids, sampler, limits, text=None, n_logprobs=None, drafts=None):
        self.tokens = list(prompt_ids)
        self.n_prompt = len(self.tokens)
        self.sampler, self.limits, self.text = sampler, limits, text
        self.n_logprobs, self.logprobs = n_logprobs, []
        self.constraint, self.drafts = None, drafts
        self.draft = []  # tokens that the planned step tries behind the latest one
        self.cache = None  # while it has a slot
        self.n_cached = 0  # tokens of the prompt that another sequence had read
        self.pieces = deque()
        self.is_cancelled, self.completion, self.error = False, None, None
        self._all_pieces = []
        self._n_settled = self.n_prompt  # tokens whose text and end conditions were seen to
        self._seen = dict.fromkeys(self.tokens) if sampler.penalises else {}
        self._counts = {}  # of generated tokens, if the sampler asks
        self._times = []  # of the first forward pass, the first token, the latest one

    @property
    def is_done(self):
        return self.completion is not None or self.error is not None

    @property
    def pending(self):
        """How many tokens are not in the cache yet."""
        return len(self.tokens) - self.cache.length

    @property
    def is_full(self):
        """Whether its cache has no room for the latest settled token, and no window moves on."""
        return self._n_settled >= self.cache.capacity and not self.limits.n_sinks

    def start_clock(self):
        if not self._times:
            self._times = [time.perf_counter()] * 3

    def make_draft(self, most):
        """Propose at most ``most`` tokens for the next step, as far as there is use and room."""
        rest = self.limits.max_tokens - (len(self.tokens) - self.n_prompt)
        most = min(most, rest - 1, self.cache.capacity - len(self.tokens))
        self.draft = self.drafts.propose(self.tokens, most) if most > 0 else []

    def wanted(self, n):
        """Of which logits each of the next n tokens depends, [head.LogitsQuery or None]."""
        if self.n_logprobs is not None or self.constraint is not None:
            return [None] * n
        ids = [*(self._seen or self._counts), *self.draft]
        return [self.sampler.wanted(len(self.tokens) + i, ids) for i in range(n)]

    def advance(self, logits):
        """Sample from logits (1 + len(draft), vocab): as many tokens as the draft was right, + 1.

        The cache is left with all tokens but the last.
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
            self.cache.trim(len(self.tokens) - 1)
        if draft:
            self.drafts.record(len(draft), n_right)

    def sample(self, logits):
        """Choose the next token from logits (vocab,) and see to what follows from it."""
        seen = np.fromiter(self._seen, np.intp, len(self._seen)) if self._seen else ()
        allowed = None if self.constraint is None else self.constraint.allowed()
        token = self.sampler(logits, len(self.tokens), seen, self._counts, allowed)
        if self.constraint is not None and token not in self.limits.eos_ids:
            self.constraint.accept(token)
        if self.n_logprobs is not None:
            ids = [token, *best(logits, self.n_logprobs).tolist()] if self.n_logprobs else [token]
            self.logprobs.append(list(zip(ids, log_probabilities(logits, ids), strict=True)))
        self._times[2] = time.perf_counter()
        if len(self.tokens) == self.n_prompt:
            self._times[1] = self._times[2]
        self.tokens.append(token)
        self.settle()

    def settle(self):
        """Text and end conditions of new tokens: once for each, also after an interrupt."""
        while self._n_settled < len(self.tokens) and not self.is_done:
            token = self.tokens[self._n_settled]
            if self.sampler.penalises:
                self._seen[token] = None
            if self.sampler.counts:
                self._counts[token] = self._counts.get(token, 0) + 1
            reason = "stop" if token in self.limits.eos_ids else self._add_text(token)
            n_generated = self._n_settled + 1 - self.n_prompt
            if reason is None and n_generated >= self.limits.max_tokens:
                reason = "length"
            elif reason is None and self.is_full:
                reason = "context"
                if self.limits.context_end == "error":
                    raise ContextFull(self._n_settled, 1, self.cache.capacity)
            self._n_settled += 1
            if reason:
                self._complete(reason)

    def _add_text(self, token):
        if self.text is not None:
            self._emit(self.text.push(token))
            if self.text.stopped is not None:
                return "stop"
        return None

    def _emit(self, piece):
        if piece:
            self.pieces.append(piece)
            self._all_pieces.append(piece)

    def _complete(self, reason):
        if self.text is not None:
            self._emit(self.text.finish())
        started, first, latest = self._times
        generated = self.tokens[self.n_prompt :]
        self.completion = Completion(
            text="".join(self._all_pieces),
            token_ids=generated,
            finish_reason=reason,
            stop=self.text and self.text.stopped,
            seed=self.sampler.seed,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            prompt_tps=_rate(self.n_prompt - self.n_cached, first - started),
            generation_tps=_rate(len(generated) - 1, latest - first),
            drafted_tokens=self.drafts.drafted if self.drafts else 0,
            accepted_tokens=self.drafts.accepted if self.drafts else 0,
        )


def _rate(n, seconds):
    return n / seconds if n and seconds > 0 else 0.0
