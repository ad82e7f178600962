"""Logits of known text, for evaluation: all of them, or the likelihood of continuations."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import PoolExhausted
from ..models.sequence_state import SequenceState
from ..progress import Steps
from ..runtime.float_mode import in_ieee_mode
from .logits_processors import Logits
from .sampling import best, check_finite, log_mass, log_probabilities
from .scheduler import Scheduler
from .session_file import common
from .token_ids import TokenIds

LOGITS_ROWS = 32  # rows of logits that are held at once: 16 MiB for a vocabulary of 128k
MIN_SHARED = 8  # tokens: to read fewer again costs less than a fork, which copies a page a layer
MAX_DEPTH = 4  # of shared beginnings within each other; each may hold a page a layer more

Score = tuple[float, bool]  # log of a probability, and whether each token was the likeliest


def all_logits(scheduler: Scheduler, token_ids: Sequence[int]) -> Logits:
    """The logits after every token: float32 (n_tokens, vocab), a copy."""
    out = np.empty((len(token_ids), scheduler.transformer.vocab_size), np.float32)
    for position, rows in logits_from(scheduler, token_ids, 0):
        out[position : position + len(rows)] = rows
    return out


def logits_from(
    scheduler: Scheduler,
    token_ids: Sequence[int] | NDArray[np.int32],
    first: int,
    state: SequenceState | None = None,
) -> Iterator[tuple[int, Logits]]:
    """Yield (position, logits (n, vocab) of n positions from there on), from position first on.

    They are copies, so that nobody waits for what is done with them. state: None, or one that has
    seen the first tokens, at most ``first``; it sees the others.
    """
    ids: NDArray[np.int32] = np.array(token_ids, np.int32)
    with ExitStack() as stack:
        if state is None:
            state = stack.enter_context(closing(new_state(scheduler, len(ids))))
        read(scheduler, state, ids[state.length : first])
        n_rows = min(LOGITS_ROWS, scheduler.transformer.max_batch)
        while (begin := state.length) < len(ids):
            part = ids[begin : begin + n_rows]
            with scheduler.alone():
                try:
                    logits = scheduler.forward(part, [(state, len(part))], logits="all").copy()
                except PoolExhausted:
                    n_planned = scheduler.transformer.logits.n_rows
                    if n_rows <= n_planned:
                        raise
                    n_rows = n_planned
                    continue
            yield begin, logits


def new_state(scheduler: Scheduler, capacity: int) -> SequenceState:
    """An empty state for so many tokens."""
    return scheduler.transformer.new_state(capacity, scheduler.kv_dtype)


def read(scheduler: Scheduler, state: SequenceState, ids: NDArray[np.int32]) -> None:
    """Let a state see these tokens; other threads' steps come between."""
    for begin in range(0, len(ids), scheduler.transformer.max_batch):
        with scheduler.alone():
            part = ids[begin : begin + scheduler.transformer.max_batch]
            scheduler.forward(part, [(state, len(part))], logits="none")


def continuation_ids(
    encode: Callable[[str], list[int]], pair: tuple[str | TokenIds, str | TokenIds]
) -> tuple[list[int], int]:
    """(token ids of both, how many are the context's): see Model.loglikelihood."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"loglikelihood: {str(pair)[:60]} (a context and a continuation)")
    context, continuation = pair
    if isinstance(context, str) and isinstance(continuation, str):
        cut = len(context.rstrip())
        ids = encode(context + continuation)
        n_context = len(encode(context[:cut]))
    elif isinstance(context, str) or isinstance(continuation, str) or continuation is None:
        raise ValueError("loglikelihood: one text (two, or two lists of token ids)")
    else:
        ids, n_context = [*context, *continuation], len(context)
    if not 1 <= n_context < len(ids):
        n_tokens = f"{n_context} of context, {len(ids) - n_context} of continuation"
        raise ValueError(f"loglikelihood: {n_tokens} (at least 1 token each)")
    return ids, n_context


class TokenScore(NamedTuple):
    """What the model says of a token that is there: its rank, 1 the likeliest, and the logs of the
    probabilities [(id, log)] of the token itself and of the likeliest."""

    rank: int
    logprobs: list[tuple[int, float]]


def token_scores(
    scheduler: Scheduler, token_ids: Sequence[int], n_best: int
) -> Generator[list[TokenScore], None, None]:
    """Yield the scores of all tokens but the first, some at a time; other steps come between.

    What was read is kept as a prefix: who goes on from these tokens reads the last one alone.
    """
    if len(token_ids) < 2:
        return
    state = scheduler.transformer.new_state(dtype=scheduler.kv_dtype)  # with room to go on
    try:
        for position, rows in logits_from(scheduler, token_ids[:-1], 0, state):
            yield [
                _token_score(row, int(token_ids[at]), at, n_best)
                for at, row in enumerate(rows, position + 1)
            ]
    except BaseException:
        state.close()
        raise
    scheduler.keep(token_ids[:-1], state)


@in_ieee_mode
def _token_score(logits: Logits, token_id: int, position: int, n_best: int) -> TokenScore:
    check_finite(logits, position)
    ids = [token_id, *best(logits, n_best).tolist()] if n_best else [token_id]
    rank = 1 + int(np.count_nonzero(logits > logits[token_id]))
    return TokenScore(rank, list(zip(ids, log_probabilities(logits, ids), strict=True)))


def loglikelihood_steps(
    scheduler: Scheduler, sequences: Sequence[tuple[Sequence[int], int]]
) -> Steps[list[Score]]:
    """The score of token_ids[n_context:] after those before, of each (token_ids, n_context).

    What several of them begin with is read once, and continuations are read side by side, as many
    as the model has slots: with the same bits as each alone. The steps count scored sequences, and
    are to be done in IEEE mode.
    """
    return _Scoring(scheduler, sequences).steps()


class _Scoring:
    def __init__(
        self, scheduler: Scheduler, sequences: Sequence[tuple[Sequence[int], int]]
    ) -> None:
        self._scheduler = scheduler
        self._ids = [np.array(ids, np.int32) for ids, _ in sequences]
        self._n_contexts = [n_context for _, n_context in sequences]
        self._scores: dict[int, Score] = {}

    def steps(self) -> Steps[list[Score]]:
        """All scores."""
        order = sorted(range(len(self._ids)), key=lambda i: self._ids[i].tolist())
        if not order:
            return []
        capacity = max(len(ids) for ids in self._ids) - 1
        try:
            with closing(new_state(self._scheduler, capacity)) as root:
                for _ in self._score_all(order, root, 0):
                    yield len(self._scores), len(order)
        except PoolExhausted:  # forks take some pages more than one sequence
            for i in order:
                if i not in self._scores:
                    self._score_alone(i, None)
                    yield len(self._scores), len(order)
        return [self._scores[i] for i in range(len(self._ids))]

    def _score_all(
        self, indices: list[int], state: SequenceState, depth: int
    ) -> Generator[None, None, None]:
        """Score sequences, in the order of their tokens; the state has seen what all begin with.
        Yield behind each batch."""
        leaves = []
        for group in self._groups(indices, state.length + MIN_SHARED):
            n_shared = self._shared(group)
            if len(group) == 1 or depth == MAX_DEPTH or n_shared < state.length + MIN_SHARED:
                leaves += group
                continue
            with closing(state.fork()) as node:
                read(self._scheduler, node, self._ids[group[0]][node.length : n_shared])
                yield from self._score_all(group, node, depth + 1)
        for batch in self._batches(leaves, state.length):
            if len(batch) > 1:
                self._score_together(batch, state)
            else:
                with closing(state.fork()) as fork:
                    self._score_alone(batch[0], fork)
            yield

    def _groups(self, indices: list[int], n: int) -> Iterator[list[int]]:
        """Neighbours that share their first n tokens."""
        group = indices[:1]
        for one, other in pairwise(indices):
            if common(self._ids[one], self._ids[other]) < n:
                yield group
                group = []
            group.append(other)
        yield group

    def _shared(self, group: list[int]) -> int:
        """The tokens all begin with, less those after which logits are asked for."""
        n_scored_from = min(self._n_contexts[i] for i in group) - 1
        return min(common(self._ids[group[0]], self._ids[group[-1]]), n_scored_from)

    def _batches(self, indices: list[int], n_seen: int) -> Iterator[list[int]]:
        """Sequences whose rest fits one forward pass; a longer one comes alone."""
        transformer = self._scheduler.transformer
        batch: list[int] = []
        n_tokens = n_rows = 0
        for i in indices:
            tokens = len(self._ids[i]) - 1 - n_seen
            rows = len(self._ids[i]) - self._n_contexts[i]
            fits = (
                n_tokens + tokens <= transformer.max_batch
                and n_rows + rows <= transformer.logits.n_rows
                and len(batch) < transformer.max_sequences
            )
            if batch and not fits:
                yield batch
                batch, n_tokens, n_rows = [], 0, 0
            batch.append(i)
            n_tokens, n_rows = n_tokens + tokens, n_rows + rows
        if batch:
            yield batch

    def _score_together(self, batch: list[int], state: SequenceState) -> None:
        with ExitStack() as stack:
            rests = [self._ids[i][state.length : -1] for i in batch]
            sequences = [(stack.enter_context(closing(state.fork())), len(rest)) for rest in rests]
            counts = [len(self._ids[i]) - self._n_contexts[i] for i in batch]
            with self._scheduler.alone():
                logits = self._scheduler.forward(np.concatenate(rests), sequences, logits=counts)
                begin = 0
                for i, n in zip(batch, counts, strict=True):
                    self._scores[i] = _sum(
                        self._rows(i, self._n_contexts[i] - 1, logits[begin:][:n])
                    )
                    begin += n

    def _score_alone(self, i: int, state: SequenceState | None) -> None:
        parts = logits_from(self._scheduler, self._ids[i][:-1], self._n_contexts[i] - 1, state)
        self._scores[i] = _sum(
            score for position, logits in parts for score in self._rows(i, position, logits)
        )

    def _rows(self, i: int, position: int, logits: Logits) -> Iterator[Score]:
        """The score of each token that follows these logits, from position on."""
        for at, row in enumerate(logits, position + 1):
            yield score_of(row, int(self._ids[i][at]), at)


def score_of(logits: Logits, token_id: int, position: int) -> Score:
    """(log of the probability of a token, whether it is the likeliest) by logits (vocab,)."""
    check_finite(logits, position)
    top, mass = log_mass(logits)
    return float(logits[token_id]) - top - mass, int(logits.argmax()) == token_id


def _sum(scores: Iterator[Score]) -> Score:
    total, is_greedy = 0.0, True
    for value, is_likeliest in scores:
        total += value
        is_greedy = is_greedy and is_likeliest
    return total, is_greedy
