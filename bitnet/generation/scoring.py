"""Logits of known text, for evaluation: all of them, or the likelihood of a continuation."""

import math
from contextlib import closing

import numpy as np

from ..compute import ops
from .sampling import check_finite

ROWS = 32  # logits computed at once: 16 MiB for a vocabulary of 128k


def all_logits(engine, token_ids):
    """The logits after every token: float32 (n_tokens, vocab), a copy."""
    out = np.empty((len(token_ids), engine.transformer.vocab_size), np.float32)
    for position, rows in _rows(engine, token_ids, 0):
        out[position : position + len(rows)] = rows
    return out


def loglikelihood(engine, token_ids, n_context):
    """(log of the probability of token_ids[n_context:] after those before, whether greedy)."""
    total, is_greedy = 0.0, True
    for position, rows in _rows(engine, token_ids[:-1], n_context - 1):
        for i, row in enumerate(rows, position + 1):
            check_finite(row, i)
            top = row.max()
            mass = np.cumsum(ops.exp(row - top), dtype=np.float64)[-1]
            total += float(row[token_ids[i]]) - float(top) - math.log(mass)
            is_greedy = is_greedy and int(row.argmax()) == token_ids[i]
    return total, is_greedy


def _rows(engine, token_ids, first):
    """Yield (position, logits of some positions from there on), beginning at position first."""
    with engine.exclusive():
        yield from _forward(engine, token_ids, first)


def _forward(engine, token_ids, first):
    transformer, forward = engine.transformer, engine.forward
    ids = np.array(token_ids, np.int32)
    with closing(transformer.new_state(len(ids), engine.kv_dtype)) as state:
        for begin in range(0, first, transformer.max_batch):
            part = ids[begin : min(first, begin + transformer.max_batch)]
            forward(part, [(state, len(part))], logits="none")
        n_rows = min(ROWS, transformer.max_batch)
        for begin in range(first, len(ids), n_rows):
            part = ids[begin : begin + n_rows]
            yield begin, forward(part, [(state, len(part))], logits="all")
