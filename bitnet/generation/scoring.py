"""Logits of known text, for evaluation: all of them, or the likelihood of a continuation."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from ..errors import PoolExhausted
from .logits_processors import Logits
from .sampling import check_finite, log_mass
from .scheduler import Scheduler

LOGITS_ROWS = 32  # rows of logits that are held at once: 16 MiB for a vocabulary of 128k


def all_logits(scheduler: Scheduler, token_ids: Sequence[int]) -> Logits:
    """The logits after every token: float32 (n_tokens, vocab), a copy."""
    out = np.empty((len(token_ids), scheduler.transformer.vocab_size), np.float32)
    for position, rows in _logits(scheduler, token_ids, 0):
        out[position : position + len(rows)] = rows
    return out


def loglikelihood(
    scheduler: Scheduler, token_ids: Sequence[int], n_context: int
) -> tuple[float, bool]:
    """(log of the probability of token_ids[n_context:] after those before, whether greedy)."""
    total, is_greedy = 0.0, True
    for position, rows in _logits(scheduler, token_ids[:-1], n_context - 1):
        for i, row in enumerate(rows, position + 1):
            check_finite(row, i)
            top, mass = log_mass(row)
            total += float(row[token_ids[i]]) - top - mass
            is_greedy = is_greedy and int(row.argmax()) == token_ids[i]
    return total, is_greedy


def _logits(
    scheduler: Scheduler, token_ids: Sequence[int], first: int
) -> Iterator[tuple[int, Logits]]:
    """Yield (position, logits (n, vocab) of n positions from there on), from position first on."""
    with scheduler.exclusive() as transformer:
        ids: NDArray[np.int32] = np.array(token_ids, np.int32)
        with closing(transformer.new_state(len(ids), scheduler.kv_dtype)) as state:
            for begin in range(0, first, transformer.max_batch):
                part = ids[begin : min(first, begin + transformer.max_batch)]
                scheduler.forward(part, [(state, len(part))], logits="none")
            n_rows, begin = min(LOGITS_ROWS, transformer.max_batch), first
            while begin < len(ids):
                part = ids[begin : begin + n_rows]
                try:
                    logits = scheduler.forward(part, [(state, len(part))], logits="all")
                except PoolExhausted:
                    if n_rows <= transformer.logits.n_rows:
                        raise
                    n_rows = transformer.logits.n_rows  # which were planned for
                    continue
                yield begin, logits
                begin += len(part)
