"""A second kind of layer memory, of fixed size, never trimmed; and a mock transformer with it."""

import zlib

import numpy as np
from support.mock_model import MockTransformer, TokensPart, random_logits

from bitnet.models.sequence_state import StoredTensor


class RunningHash:
    """A hash that folds in one token after the other, as a recurrent layer would: float64 (2,), of
    the tokens that count, and of those that were written behind them."""

    is_trimmable, is_intact, start, nbytes = False, True, 0, 16

    def __init__(self, take=np.zeros, on_close=lambda part: None):
        self.take, self.on_close = take, on_close
        self.length, self.hashes = 0, None

    def __repr__(self):
        return f"<RunningHash of {self.length}>"

    def nbytes_at(self, length):
        return self.nbytes

    def describe(self, n_sequences):
        return f"hashes: {n_sequences}"

    def reservable(self, n):
        return n

    def reserve(self, n):
        if self.hashes is None:
            self.hashes = self.take((2,), np.float64)
            self.hashes[:] = 0
        self.hashes[1] = self.hashes[0]

    def write(self, token):
        """What the layers do in a forward pass."""
        self.hashes[1] = zlib.crc32(np.int64(token).tobytes(), int(self.hashes[1]))

    def advance(self, n):
        self.hashes[0] = self.hashes[1]
        self.length += n

    def can_go_back(self, checkpoint):
        return True

    def checkpoint(self, holds):
        return self.length, 0.0 if self.hashes is None else float(self.hashes[0])

    def rollback(self, checkpoint):
        self.length, value = checkpoint
        if self.hashes is not None:
            self.hashes[:] = value

    def trim(self, length):
        assert length in (0, self.length)  # nobody may ask for more
        if self.hashes is not None:
            self.hashes[:] = self.hashes[0] if length else 0
        self.length = length

    def fork(self, sinks):
        twin = self._new()
        twin.length = self.length
        if self.hashes is not None:
            twin.reserve(0)
            twin.hashes[:] = self.hashes[0]
        return twin

    def _new(self):
        return RunningHash(self.take, self.on_close)

    def layout(self, length):
        return [StoredTensor("hash", "F32", 8)]

    def export(self):
        yield self.hashes[:1].view(np.uint8)

    def import_(self, length, tensors):
        (data,) = tensors
        self.hashes[1:].view(np.uint8)[:] = data

    def close(self):
        self.hashes = None
        self.on_close(self)


class TrackedHash(RunningHash):
    """One of a mock transformer, which knows what is open."""

    def __init__(self, model):
        super().__init__(on_close=model.open_parts.discard)
        self.model = model
        model.open_parts.add(self)

    def _new(self):
        return TrackedHash(self.model)


class RecurrentTransformer(MockTransformer):
    """Its logits depend on the RunningHash of a state alone; they are those of MockTransformer.

    kinds: of parts: "hash", and "kv" for tokens beside it, which could be trimmed.
    """

    def __init__(self, *, kinds=("hash",), **options):
        super().__init__(**options)
        self.kinds = kinds

    def new_parts(self, capacity):
        made = {"kv": lambda: TokensPart(self, capacity), "hash": lambda: TrackedHash(self)}
        return {kind: made[kind]() for kind in self.kinds}

    def logits_of(self, state):
        return random_logits(int(state.parts["hash"].hashes[1]))
