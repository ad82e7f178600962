"""Embeddings: the last token's hidden state behind the final norm, of length 1."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NotFinite
from ..models.transformer import Transformer
from ..progress import Steps
from .scheduler import Scheduler
from .token_ids import TokenIds

Vectors = NDArray[np.float32]


def embed_steps(scheduler: Scheduler, token_ids: Sequence[TokenIds]) -> Steps[Vectors]:
    """The embedding of each list of token ids: float32 (n, hidden_size), each row of length 1.

    The steps count lists.
    """
    hidden_size = scheduler.transformer.config.hidden_size
    out = np.empty((len(token_ids), hidden_size), np.float32)
    for first, group in list(_groups(token_ids, scheduler.transformer)):  # which may be closed
        last = first + len(group)
        with scheduler.alone():
            _embed_group(out[first:last], scheduler, group)
        yield last, len(token_ids)
    return out


def _groups(
    token_ids: Sequence[TokenIds], transformer: Transformer
) -> Iterator[tuple[int, list[TokenIds]]]:
    """Yield (index of the first, sequences) that fit one forward pass; a longer one comes alone."""
    first, n_rows = 0, 0
    group: list[TokenIds] = []
    for i, ids in enumerate(token_ids):
        full = len(group) == transformer.max_sequences or n_rows + len(ids) > transformer.max_batch
        if group and full:
            yield first, group
            first, group, n_rows = i, [], 0
        group.append(ids)
        n_rows += len(ids)
    if group:
        yield first, group


def _embed_group(out: Vectors, scheduler: Scheduler, group: list[TokenIds]) -> None:
    transformer, forward = scheduler.transformer, scheduler.forward  # ValueError once it is closed
    states = [transformer.new_state(len(ids), scheduler.kv_dtype) for ids in group]
    try:
        ids, step = np.concatenate(group).astype(np.int32), transformer.max_batch
        while len(ids) > step:  # one sequence: the last part gives the embedding
            forward(ids[:step], [(states[0], step)], logits="none")
            ids = ids[step:]
        lengths = [len(ids)] if len(group) == 1 else [len(part) for part in group]
        hidden = forward(ids, list(zip(states, lengths, strict=True)), logits="hidden")
        assert hidden is not None
        for i, last in enumerate(np.cumsum(lengths) - 1):
            if not np.isfinite(hidden[last]).all():
                raise NotFinite(f"the embedding of a text of {len(group[i])} tokens is not finite")
            out[i] = normalized(hidden[last])
    finally:
        for state in states:
            state.close()


def normalized(values: NDArray[np.floating[Any]]) -> Vectors:
    """values / |values|, float32; the sum of squares is exact, so the same on every CPU."""
    values = values.astype(np.float64)
    length = math.sqrt(math.fsum(values * values))
    return (values / max(length, 1e-12)).astype(np.float32)
