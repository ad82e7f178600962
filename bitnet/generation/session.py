"""A sequence under the caller's own control: feed tokens, look at logits, go back, branch off."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..checks import check_number
from ..compute import ops
from ..models.lm_head_screen import LogitsQuery
from ..models.sequence_state import SequenceState
from . import session_file
from .sampling import check_finite
from .scheduler import Scheduler
from .token_ids import TokenIds, check_ids, token_array

if TYPE_CHECKING:
    from weakref import WeakSet


class Session:
    """One sequence with its own state; made by Model.session, closed with its model.

    All token ids go in through feed and decode, which return logits: a read-only float32 view
    (vocab,), valid until the model's next step, whichever thread's it is (copy it to keep it;
    Model.close refuses with BufferError while one is alive). With context_end="window" it may go on
    beyond its capacity: see Model.generate. Calls of several threads wait for each other.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        state: SequenceState,
        siblings: WeakSet[Session],
        fingerprint: Callable[[], str],
    ) -> None:
        self._scheduler, self._state, self._siblings = scheduler, state, siblings
        self._fingerprint = fingerprint
        self._is_closed = False
        self._token_ids: list[int] = []  # the first ``length`` count
        # Tokens whose state was lost to a step that failed, of a model whose state cannot go back:
        # they are read once more before anything else.
        self._n_lost = 0
        siblings.add(self)  # those the model closes

    def __repr__(self) -> str:
        if self._is_closed:
            return "<Session: closed>"
        return f"<Session: {self.length} of {self.capacity} tokens>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Session is of its process: save it, load its model there and restore it in a "
            "session of that (fork() makes a copy here)"
        )

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the sequence so far, a new list."""
        return self._token_ids[: self.length]

    @property
    def length(self) -> int:
        """How many tokens the sequence has."""
        return self._state.length + self._n_lost

    @property
    def capacity(self) -> int:
        """How many tokens it may have, or see where a window moves."""
        return self._state.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of the state it holds, those shared with forks counted in full."""
        return self._state.nbytes

    def feed(self, token_ids: TokenIds) -> NDArray[np.float32]:
        """Append at least one token id; the logits after the last, float32 (vocab,).

        ContextFull, PoolExhausted, or ValueError for a bad id: the sequence is as it was, or where
        the window has moved meanwhile, ends with those of the tokens that it has seen.
        """
        with self._scheduler.alone():
            return self._feed(token_ids, None)

    def best(self, token_ids: TokenIds) -> int:
        """Append at least one token id; the likeliest after the last: feed(token_ids).argmax().

        Faster than that where the head is large. Errors as of feed.
        """
        with self._scheduler.alone():  # others' steps write the logits anew
            logits = self._feed(token_ids, [LogitsQuery(1)])
            token_id: int = ops.argmax(logits)
            if not math.isfinite(logits[token_id]):
                check_finite(logits, self.length)
            return token_id

    def _feed(self, token_ids: TokenIds, queries: list[LogitsQuery] | None) -> NDArray[np.float32]:
        ids = token_array(token_ids, self._scheduler.transformer.vocab_size)
        self._recover()
        state = self._state
        checkpoint, length = state.checkpoint(), state.length
        self._token_ids[length:] = ids.tolist()  # first: an interrupt loses none that count
        try:
            return self._run(ids, queries)
        except BaseException:
            if not state.rollback(checkpoint):
                if state.is_trimmable:
                    state.trim(state.length)  # of what is reserved
                else:
                    state.trim(0)
                    self._n_lost = length
            raise

    def _recover(self) -> None:
        """Read once more what was lost. Errors as of feed."""
        if not self._n_lost:
            return
        n, state = self._n_lost, self._state
        try:
            self._run(np.array(self._token_ids[:n], np.int32), None)
            self._n_lost = 0
        except BaseException:
            state.trim(0)
            raise

    def _run(
        self, ids: NDArray[np.int32], queries: list[LogitsQuery] | None
    ) -> NDArray[np.float32]:
        begin, max_batch = 0, self._scheduler.transformer.max_batch
        while begin < len(ids):
            part = ids[begin : begin + self._state.reservable(max_batch)]
            begin += len(part)
            which = "last" if begin == len(ids) else "none"
            logits = self._scheduler.forward(
                part, [(self._state, len(part))], logits=which, queries=queries
            )
        last: NDArray[np.float32] = logits[0]
        return last

    def decode(self, token_id: int) -> NDArray[np.float32]:
        """Append one token id; the logits after it, float32 (vocab,). Errors as of feed."""
        return self.feed((token_id,))

    def trim(self, length: int) -> None:
        """Forget the tokens from this position on. ValueError if there are fewer, or where the
        model cannot go back there: what a window that has moved saw before is not held any more."""
        with self._scheduler.alone():
            check_number("length", length, int, 0, self.length)
            if self._n_lost and length in (0, self.length):
                self._n_lost = length
                return
            self._recover()
            state = self._state
            if state.start:
                raise ValueError(f"trim: {length} (tokens before {state.start} are not held)")
            if not state.trim(length):
                where = f"0 or {state.length}, where this model can go back"
                raise ValueError(f"trim: {length} ({where})")

    def fork(self) -> Session:
        """A second session with the same tokens; its state is shared until either writes."""
        with self._scheduler.alone():
            self._recover()
            state, token_ids = self._state.fork(), self.token_ids
        twin = Session(self._scheduler, state, self._siblings, self._fingerprint)
        twin._token_ids = token_ids
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sequence to a file, for restore: tokens and state, and whose they are.

        The file appears under its name only when complete. ValueError for an empty sequence, or
        where a window has moved.
        """
        with self._scheduler.alone():
            if not self.length:
                raise ValueError("save: the sequence is empty")
            self._recover()
            state, token_ids = self._state.fork(), self.token_ids
        with closing(state):  # others compute while the file is written
            session_file.save(path, token_ids, state, self._fingerprint())

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Become the sequence of a file that save wrote, with the same model and kv_dtype.

        FormatError for a file that is damaged or of another model, ContextFull if it is longer than
        the capacity, PoolExhausted: the sequence is as it was.
        """
        with self._scheduler.alone():
            if not self._state.is_intact:
                self._state.trim(0)
            state = self._state.fork()
            try:
                state.trim(0)
                token_ids = session_file.load(path, state, self._fingerprint())
                check_ids(token_ids, self._scheduler.transformer.vocab_size)
            except BaseException:
                state.close()
                raise
            self._state, before = state, self._state
            self._token_ids, self._n_lost = token_ids, 0
            before.close()

    def close(self) -> None:
        """Give the memory back, inside a step at its end; any later use raises ValueError."""
        if self._scheduler.is_inside:
            self._scheduler.defer(self.close)
            return
        with self._scheduler.alone():
            self._state.close()
            self._is_closed = True

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
