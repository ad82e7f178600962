"""Keys and values of a conversation on disk: what a later process need not read again."""

import os
from collections.abc import Sequence
from contextlib import closing

from . import session_file
from .scheduler import Scheduler
from .token_ids import check_ids


def save_prefix(
    scheduler: Scheduler, tokens: Sequence[int], path: str | os.PathLike[str], fingerprint: str
) -> int:
    """Write the state of the longest beginning of ``tokens`` that is kept; returns its length.

    0, and no file, where none is kept. fingerprint: of the weights.
    """
    with scheduler.alone():
        kept = scheduler.prefix_cache
        state = None if kept is None else kept.fork([*tokens, 0])  # one that is left to read
    if state is None:
        return 0
    with closing(state):
        session_file.save(path, tokens[: state.length], state, fingerprint)
        return int(state.length)


def restore_prefix(scheduler: Scheduler, path: str | os.PathLike[str], fingerprint: str) -> int:
    """Keep the state of such a file, for prompts that begin with its tokens; returns its length.

    FormatError for a file that is damaged or of another model or dtype, ContextFull where it is
    longer than the context, PoolExhausted, OSError: nothing is kept then.
    """
    with scheduler.alone():
        kept = scheduler.prefix_cache
        if kept is None:
            return 0
        state = scheduler.transformer.new_state(None, scheduler.kv_dtype)
        try:
            tokens = session_file.load(path, state, fingerprint)
            check_ids(tokens, scheduler.transformer.vocab_size)
        except BaseException:
            state.close()
            raise
        kept.clear()  # the memory is that of one conversation
        kept.insert(tokens, state)
        return len(tokens)
