"""Whether a small model can draft for a large one: both generate, and their tokens are the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..checkpoints.checkpoint import Checkpoint
from ..text import vocabulary
from ..text.tokenizer import Tokenizer

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


def check_draft(model: Checkpoint, tokenizer: Tokenizer | None, draft: Checkpoint) -> None:
    """ValueError, which says why, unless one can draft for the other.

    tokenizer: of the model. Every token is compared, as the vocabularies spell it. FormatError for
    a vocabulary of the draft's that is damaged.
    """
    name, other = draft.path.name, model.path.name
    for checkpoint in (draft, model):
        if checkpoint.config.pooling is not None:
            raise ValueError(f"speculative: {checkpoint.path.name} is an embedding model")
    if draft.config.delta_net is not None:
        what = "has layers with a state, which cannot go back behind a draft that was wrong"
        raise ValueError(f"speculative: {name} {what}")
    n, n_others = draft.config.vocab_size, model.config.vocab_size
    if n != n_others:
        raise ValueError(f"speculative: {name} has {n} tokens ({other}: {n_others})")
    if tokenizer is not None and _are_equal(draft, model):
        return
    tokens = vocabulary.from_source(draft.tokenizer_source, draft.config)
    for vocab, owner in ((tokens, name), (tokenizer, other)):
        if vocab is None:
            raise ValueError(f"speculative: {owner} has no tokenizer to compare its tokens by")
    assert tokens is not None and tokenizer is not None
    different = [i for i in range(n) if tokens.token(i) != tokenizer.token(i)]
    if different:
        first = different[0]
        raise ValueError(
            f"speculative: {name} has other tokens: {len(different)} of {n}, as {first}, "
            f"{tokens.token(first)!r} ({other}: {tokenizer.token(first)!r})"
        )


def _are_equal(draft: Checkpoint, model: Checkpoint) -> bool:
    """Whether two GGUF files list the same tokens, which need not be built to be compared."""
    ours, others = (c.tokenizer_source.metadata or {} for c in (draft, model))
    return (
        bool(_tokens(ours))
        and _tokens(ours) == _tokens(others)
        and (np.array_equal(ours.get(TYPES, ()), others.get(TYPES, ())))
    )


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    return list(metadata.get(TOKENS) or ())
