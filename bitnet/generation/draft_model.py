"""A small model drafts for a large one (Leviathan et al. 2023; Chen et al. 2023), for all sequences
of a scheduler side by side.

It chooses a token as the large model does: by the sequence's own sampler, with the noise of the
same position. The large model's choice decides, so the text is that of plain decoding whatever is
drafted. How much is drafted follows from measured times, see draft_policy.py. Of a text it reads
what can be afforded: its end at first, all of it once drafts have paid for that. What it has read
may be dropped at any time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError, NotFinite, PoolExhausted
from ..models.lm_head_screen import LogitsQuery
from ..models.sequence_state import SequenceState
from ..models.transformer import Transformer
from ..models.workspace import DRAFT_ROWS
from ..runtime.kv_cache import DEFAULT_KV_DTYPE
from .draft_policy import (
    MAX_PLAIN_AGE,
    N_KEPT,
    TRY,
    Agreement,
    Candidate,
    Losses,
    Savings,
    StepCosts,
    best_lengths,
)
from .fairness import SHARED_ROWS
from .prefix_cache import PrefixCache
from .request import Request

log = logging.getLogger("bitnet")

MAX_UNREAD = 2  # tokens that the first step of a draft reads; what is before them is read before
MIN_READ = 8  # latest tokens of a text without which nothing is drafted
MIN_PLAIN = 2  # plain steps that are measured before the first draft
MIN_KNOWN = 3  # steps of a number of rows without which its cost is no reason against a try
MAX_AGE_WAITING = 64  # steps after which costs are measured again by which none can be afforded
N_ASLEEP = 8  # tokens until a sequence that cannot afford a draft is looked at again


class ModelDrafts:
    """The drafts of one sequence, and what the small model has read of it.

    drafted, accepted: tokens proposed, and those that were right. state: has seen the tokens from
    begin on, and some of the draft; None: nothing. draft: tokens behind the first n_text of the
    text. is_reading: whether it reads what it could afford before it drafts. latest: of this step's
    draft, tokens and how many were right.
    """

    def __init__(self, prior: Agreement) -> None:
        self.drafted = self.accepted = 0
        self.state: SequenceState | None = None
        self.begin = self.n_text = self.asleep_until = 0
        self.is_reading, self.is_new = False, True
        self.draft: list[int] = []
        self.latest = (0, 0)
        self.agreement, self.savings = Agreement(prior), Savings()

    def propose(self, tokens: list[int], n_max: int) -> list[int]:
        """What DraftModel.prepare has drafted behind these tokens, at most n_max of it."""
        return self.draft[:n_max] if self.n_text == len(tokens) else []

    def record(self, n_drafted: int, n_accepted: int) -> None:
        """Learn how the latest draft fared."""
        self.drafted += n_drafted
        self.accepted += n_accepted
        self.latest = n_drafted, n_accepted
        self.agreement.record(n_drafted, n_accepted)

    def settle(self, tokens: Sequence[int]) -> None:
        """Go on from these tokens: forget what was drafted, and of that what did not come."""
        n_right = 0
        for drafted, token in zip(self.draft, tokens[self.n_text :], strict=False):
            if drafted != token:
                break
            n_right += 1
        n_seen = min(self.n_text + n_right, len(tokens) - 1) - self.begin
        self.draft, self.n_text, self.latest = [], len(tokens), (0, 0)
        if self.state is not None and self.state.length > n_seen and not self.state.trim(n_seen):
            self.state.trim(0)

    @property
    def n_unread(self) -> int:
        """Tokens from begin on that the small model has not seen."""
        return self.n_text - self.begin - (self.state.length if self.state is not None else 0)


class DraftModel:
    """Drafts for the sequences of one Scheduler, which alone calls it, within its steps.

    transformer: the small model. slots, kv_dtype: as of Scheduler. prefix_cache: None, or what
    keeps the small model's states of finished sequences. clock: gives seconds.

    FormatError where the small model's weights are damaged: it runs, to be measured.
    """

    def __init__(
        self,
        transformer: Transformer,
        *,
        slots: int = 1,
        kv_dtype: str = DEFAULT_KV_DTYPE,
        prefix_cache: PrefixCache | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.transformer = transformer
        self.target_costs, self.costs = StepCosts(), StepCosts()
        self.agreement, self.losses = Agreement(), Losses()
        self._slots, self._kv_dtype, self._clock = slots, kv_dtype, clock
        self._prefix_cache = prefix_cache
        self._max_rows = transformer.max_batch
        self._token_ids = np.empty(self._max_rows, np.int32)
        self._live: list[ModelDrafts] = []  # those with a state
        self._part: list[ModelDrafts] = []  # those with a draft in this step
        self._rows: list[int] = []  # of the small model's steps for it
        self._plain_age = 0  # steps since one without a draft
        self._age = 0  # of costs: steps since one of the small model
        self._is_broken = False
        self._measure(1, MIN_READ)  # the first pass also looks for damage, which takes time
        self.costs = StepCosts()
        for _ in range(N_KEPT):
            self._measure(1, MIN_READ)

    def _measure(self, *numbers: int) -> None:
        """Learn what steps of these numbers of rows cost."""
        with closing(self._new_state()) as state:
            for n_rows in (min(n, self._max_rows, state.capacity) for n in numbers):
                state.trim(0)
                self._timed_forward([(state, [0] * n_rows)])

    def new_drafts(self) -> ModelDrafts:
        """The drafts of one more sequence."""
        return ModelDrafts(self.agreement)

    # -------------------------------------------------------------------------------------- a step
    def prepare(self, running: Sequence[Request], n_rows: int) -> None:
        """Draft for what runs, at most n_rows tokens in all: ModelDrafts.propose gives them.

        running: all sequences of the step, of which some may have other drafts, or none.
        """
        self._part = []
        n_plain = self.target_costs.n_measured(len(running))
        if self._is_broken or n_plain < MIN_PLAIN or self._plain_age >= MAX_PLAIN_AGE:
            return
        try:
            ready = [r for r in running if self._is_ready(r, n_rows, len(running))]
            if ready:
                self._draft(self._lengths(ready, n_rows, len(running)))
        except PoolExhausted as error:
            log.debug("no memory for drafts: %s", str(error))
            if self._prefix_cache is None or not self._prefix_cache.drop_oldest():
                for request in running:
                    self._sleep(request, 8 * N_ASLEEP)
        except (FormatError, NotFinite) as error:
            log.warning("speculative: nothing is drafted any more: %s", str(error))
            self._is_broken = True
            self.close()

    def record_step(self, running: Sequence[Request], n_rows: int, seconds: float) -> None:
        """Learn what the large model's step over so many rows has taken, behind prepare."""
        n_sequences = len(running)
        self._plain_age = self._plain_age + 1 if n_rows > n_sequences else 0
        self._age += 1
        self.target_costs.record(n_rows, seconds)
        plain = self.target_costs.of(n_sequences)
        self.losses.record_step()
        for request in running:
            if isinstance(request.drafts, ModelDrafts):
                request.drafts.savings.record_step(seconds / n_sequences)
        if self._part:
            cost = self.target_costs.of(n_rows) + sum(map(self.costs.of, self._rows)) - plain
            gain = sum(drafts.latest[1] for drafts in self._part) * plain / n_sequences - cost
            # One number of rows that was measured once may have been held up.
            self.losses.record(max(gain, -plain), plain)
            for drafts in self._part:
                drafts.savings.record_draft(gain / len(self._part))
        self._part = []

    def _lengths(
        self, ready: list[Request], n_rows: int, n_running: int
    ) -> list[tuple[Request, int]]:
        """[(request, tokens to draft)]: what gains most, and a try where that may have changed."""
        pairs = [(request, _of(request)) for request in ready]
        candidates = [
            Candidate(d.agreement.probability, self._room(r, n_rows), d.n_unread) for r, d in pairs
        ]
        lengths = best_lengths(self.target_costs, self.costs, candidates, n_running, n_rows)
        left, n_left = self.losses.left(self.target_costs.of(n_running)), n_rows - sum(lengths)
        for i, request in enumerate(ready):
            if lengths[i] or min(n_left, candidates[i].room) < TRY:
                continue
            if self._cost_of_try(n_running) <= left:
                lengths[i] = TRY
                n_left -= TRY
                left -= self._cost_of_try(n_running)
            else:
                self._wait(request, n_running)
        return [(request, n) for request, n in zip(ready, lengths, strict=True) if n]

    def _cost_of_try(self, n_running: int) -> float:
        """Seconds that the shortest draft costs if it is wrong: as far as that is known, or nobody
        would learn that a step which was held up once takes less."""
        costs, n_rows = self.target_costs, n_running + TRY
        is_known = costs.n_measured(n_rows) >= MIN_KNOWN
        more = costs.of(n_rows) - costs.of(n_running) if is_known else 0.0
        return self.costs.of(TRY) + more

    def _draft(self, work: list[tuple[Request, int]]) -> None:
        """Draft tokens for each request, a step of the small model for one of each."""
        self._part, self._rows = [_of(request) for request, _ in work], []
        for level in range(max((n for _, n in work), default=0)):
            active = [(r, _of(r)) for r, n in work if n > level]
            sequences = [(self._state_of(d), r.tokens[d.n_text - d.n_unread :] if level == 0
                          else d.draft[-1:]) for r, d in active]  # fmt: skip
            self._rows.append(sum(len(ids) for _, ids in sequences))
            logits = self._timed_forward(sequences, [r.guess_query(d.draft) for r, d in active])
            for (request, drafts), row in zip(active, logits, strict=True):
                drafts.draft.append(request.guess(row, drafts.draft))

    # ------------------------------------------------------------------------------------- reading
    def _is_ready(self, request: Request, n_rows: int, n_running: int) -> bool:
        """Whether a sequence may draft now. What it has to read before is read, a part a step."""
        drafts = request.drafts
        if not isinstance(drafts, ModelDrafts) or len(request.tokens) < drafts.asleep_until:
            return False
        if request.draft_room(n_rows) < 1:
            return False
        if drafts.is_new:
            drafts.savings.record_prompt(request.prompt_seconds)
            drafts.is_new = False
        drafts.settle(request.tokens)
        if not self._choose_beginning(request, drafts, n_running):
            self._wait(request, n_running)
            return False
        if drafts.n_unread <= MAX_UNREAD:
            drafts.is_reading = False
            return True
        n_more = drafts.n_unread - 1
        n = min(n_more, self._max_rows if n_running == 1 else min(SHARED_ROWS, self._max_rows))
        first = drafts.n_text - drafts.n_unread
        self._timed_forward([(self._state_of(drafts), request.tokens[first : first + n])])
        lacking = drafts.savings.pay(self.costs.of(n))
        self.losses.record(-lacking, self.target_costs.of(n_running))
        drafts.is_reading = n < n_more
        return not drafts.is_reading

    def _choose_beginning(self, request: Request, drafts: ModelDrafts, n_running: int) -> bool:
        """Decide what is read of a text before the next draft; False where it cannot be afforded.

        At first that is its end, and twice as much or more whenever savings can pay that.
        """
        reach = drafts.n_text - drafts.begin
        has_room = drafts.state is not None and reach + DRAFT_ROWS <= self.transformer.context
        if drafts.is_reading and has_room:
            return True
        savings = drafts.savings.seconds
        left = self.losses.left(self.target_costs.of(n_running)) - self._cost_of_try(n_running)
        first = self._reading(min(MIN_READ, drafts.n_text))
        spare = max(savings, first if first <= savings + left else 0.0)
        if has_room:
            if drafts.begin and self._affordable(drafts.n_text, savings) >= 2 * reach:
                return self._begin(request, drafts, savings)
            if drafts.n_unread <= MAX_UNREAD:
                return True
            if self._reading(drafts.n_unread) <= spare:
                drafts.is_reading = True
                return True
        return self._begin(request, drafts, spare)

    def _begin(self, request: Request, drafts: ModelDrafts, seconds: float) -> bool:
        """Begin anew, with as much of the text as may be read in this time; False where that is
        too little, and nothing is done."""
        n, state = drafts.n_text, None
        n_read = self._affordable(n, seconds)
        if self._prefix_cache is not None and self._most(n) == n:
            state = self._prefix_cache.fork(request.tokens)
        if state is not None and self._reading(n - state.length) <= seconds:
            n_read = n
        else:
            if state is not None:
                state.close()
            if not n_read:
                return False
            state = self._new_state()
        self._drop(drafts)
        drafts.state, drafts.begin, drafts.is_reading = state, n - n_read, True
        self._live.append(drafts)
        return True

    def _affordable(self, n: int, seconds: float) -> int:
        """How many of the latest tokens of a text of n may be read in this time; 0: too few."""
        n_read = self._most(n)
        while n_read > MIN_READ and self._reading(n_read) > seconds:
            n_read = max(MIN_READ, n_read // 2)
        return n_read if self._reading(n_read) <= seconds else 0

    def _most(self, n: int) -> int:
        """Of a text of n tokens, the latest ones that it may begin with: all, or as many as leave
        half of the small model's context free."""
        capacity = self.transformer.context
        return n if n + DRAFT_ROWS <= capacity else min(n, max(1, capacity // 2))

    def _reading(self, n: int) -> float:
        """Seconds in which n tokens are read."""
        n_whole, rest = divmod(n, self._max_rows)
        seconds = n_whole * self.costs.of(self._max_rows)
        return seconds + self.costs.of(rest) if rest else seconds

    def _room(self, request: Request, n_rows: int) -> int:
        """Tokens that may be drafted for a sequence."""
        drafts = _of(request)
        here = self.transformer.context - (drafts.n_text - drafts.begin)
        return min(request.draft_room(n_rows), here)

    # -------------------------------------------------------------------------------------- memory
    def release(self, request: Request) -> None:
        """Give back what a sequence holds that has ended; keep its state, where it has seen all."""
        drafts = request.drafts
        if not isinstance(drafts, ModelDrafts) or drafts.state is None:
            return
        cache = self._prefix_cache
        if cache is None or request.completion is None or drafts.begin:
            self._drop(drafts)
            return
        drafts.settle(request.tokens)
        state, drafts.state = drafts.state, None
        self._live.remove(drafts)
        cache.insert(request.tokens[: state.length], state)
        live = sum(self._state_of(d).nbytes for d in self._live)
        while cache.nbytes + live > self._slots * state.full_nbytes and cache.drop_oldest():
            pass

    def drop_oldest(self) -> bool:
        """Give memory back, for the large model: a kept state, or that of a sequence which begins
        anew then; False if there is none."""
        if self._prefix_cache is not None and self._prefix_cache.drop_oldest():
            return True
        if self._live:
            self._drop(self._live[0])
            return True
        return False

    def close(self) -> None:
        """Give all memory of states back."""
        while self.drop_oldest():
            pass

    def _drop(self, drafts: ModelDrafts) -> None:
        if drafts.state is not None:
            self._live.remove(drafts)
            drafts.state.close()
        drafts.state, drafts.begin, drafts.is_reading, drafts.draft = None, 0, False, []

    def _state_of(self, drafts: ModelDrafts) -> SequenceState:
        assert drafts.state is not None
        return drafts.state

    def _wait(self, request: Request, n_running: int) -> None:
        """Look at a sequence later, that cannot afford a draft by the costs of now. Costs that are
        old are measured again: nothing else would bring them down."""
        self._sleep(request, N_ASLEEP)
        plain = self.target_costs.of(n_running)
        if self._age > MAX_AGE_WAITING and self.losses.left(plain) > 0:
            old, self.costs, begin = self.costs, StepCosts(), self._clock()
            self._measure(1, 1)  # after a while the first one takes five times as long
            if self.costs.of(1) < 0.9 * old.of(1):
                self._measure(MIN_READ)
            else:
                self.costs = old
            self.losses.record(begin - self._clock(), plain)

    def _sleep(self, request: Request, n_tokens: int) -> None:
        if isinstance(request.drafts, ModelDrafts):
            request.drafts.asleep_until = len(request.tokens) + n_tokens

    # ----------------------------------------------------------------------------------- the model
    def _new_state(self) -> SequenceState:
        return self.transformer.new_state(dtype=self._kv_dtype)

    def _timed_forward(
        self,
        sequences: list[tuple[SequenceState, list[int]]],
        queries: list[LogitsQuery | None] | None = None,
    ) -> NDArray[np.float32]:
        begin = self._clock()
        logits = self._forward(sequences, queries)
        self.costs.record(sum(len(ids) for _, ids in sequences), self._clock() - begin)
        self._age = 0
        return logits

    def _forward(
        self,
        sequences: list[tuple[SequenceState, list[int]]],
        queries: list[LogitsQuery | None] | None = None,
    ) -> NDArray[np.float32]:
        """A step of the small model: logits (n_sequences, vocab), without queries none.

        Whatever interrupts it, the states are as before.
        """
        ids = [token for _, part in sequences for token in part]
        self._token_ids[: len(ids)] = ids
        lengths = [state.length for state, _ in sequences]
        try:
            return self.transformer.forward(
                self._token_ids[: len(ids)],
                [(state, len(part)) for state, part in sequences],
                logits="none" if queries is None else "last",
                queries=queries,
            )
        except BaseException:
            for (state, _), length in zip(sequences, lengths, strict=True):
                if not state.trim(length):
                    state.trim(0)
            raise


def _of(request: Request) -> ModelDrafts:
    assert isinstance(request.drafts, ModelDrafts)
    return request.drafts
