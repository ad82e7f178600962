"""A transformer without weights: its logits are a function of the tokens so far, and nothing else.

With it the scheduler's rules are tested alone. It keeps books: which states are open, what each
step was given; it fails where a test asks it to.
"""

import zlib
from types import SimpleNamespace

import numpy as np

from bitnet.errors import ContextFull
from bitnet.models.sequence_state import SequenceState, StoredTensor

VOCAB = 300
BOS, END, EOT = 256, 257, 258


class ByteTokenizer:
    """Token ids are bytes; BOS, END and EOT have no text."""

    def encode(self, text):
        return [BOS, *text.encode()]

    def stream(self):
        import codecs

        characters = codecs.getincrementaldecoder("utf-8")("replace")
        return SimpleNamespace(
            push=lambda i: characters.decode(bytes([i]) if i < 256 else b""),
            finish=lambda: characters.decode(b"", final=True),
        )


class TokensPart:
    """A part that holds the tokens themselves, as keys and values do: it can go back to any."""

    is_trimmable, is_intact, start, page = True, True, 0, 16

    def __init__(self, model, capacity, tokens=()):
        self.model, self.capacity, self.tokens, self.new = model, capacity, list(tokens), []
        model.open_parts.add(self)

    @property
    def length(self):
        return len(self.tokens)

    @property
    def nbytes(self):
        return self.nbytes_at(self.length)

    def nbytes_at(self, length):
        return -(-min(length, self.capacity) // self.page) * self.page

    def reservable(self, n):
        return n

    def reserve(self, n):
        assert self in self.model.open_parts
        if self.length + n > self.capacity:
            raise ContextFull(self.length, n, self.capacity)
        self.new = []

    def write(self, token):
        """What the layers do in a forward pass."""
        self.new.append(token)

    def advance(self, n):
        assert n == len(self.new)
        self.tokens, self.new = self.tokens + self.new, []

    def checkpoint(self, holds):
        return self.length

    def can_go_back(self, checkpoint):
        return True

    rollback = property(lambda self: self.trim)

    def trim(self, length):
        assert 0 <= length <= self.length
        self.tokens, self.new = self.tokens[:length], []

    def fork(self, sinks):
        return TokensPart(self.model, self.capacity, self.tokens)

    def layout(self, length):
        return [StoredTensor("tokens", "F32", 4 * length)]

    def export(self):
        yield np.array(self.tokens, np.int32).view(np.uint8)

    def import_(self, length, tensors):
        (data,) = tensors
        self.new = data.view(np.int32).tolist()

    def close(self):
        self.model.open_parts.discard(self)


class MockTransformer:
    """script: f(tokens of the sequence) -> id of the next, or None for logits made of their hash.

    on_forward: called with the list of (tokens, n_tokens) before each step; may raise. open_parts:
    those of states that are not closed.
    """

    def __init__(self, script=None, *, max_batch=16, context=512, on_forward=None):
        self.vocab_size, self.max_batch, self.context = VOCAB, max_batch, context
        self.script, self.on_forward = script, on_forward
        self.open_parts, self.steps = set(), []
        self._logits = np.zeros((max_batch, VOCAB), np.float32)

    def new_state(self, capacity=None, dtype="f16", sinks=0):
        capacity = capacity or self.context
        return SequenceState(self.new_parts(capacity), capacity=capacity, dtype=dtype)

    def new_parts(self, capacity):
        return {"kv": TokensPart(self, capacity)}

    def forward(self, token_ids, sequences, *, logits="last", queries=None):
        assert token_ids.dtype == np.int32
        assert sum(n for _, n in sequences) == len(token_ids) <= self.max_batch
        assert len({id(state) for state, _ in sequences}) == len(sequences)
        for state, n in sequences:
            assert n > 0
            state.reserve(n)
        if self.on_forward:
            self.on_forward([(tokens_of(state), n) for state, n in sequences])
        self.steps.append([n for _, n in sequences])
        if isinstance(logits, str):
            logits = [int(logits == "last")] * len(sequences)
        begin = n_rows = 0
        for (state, n), n_wanted in zip(sequences, logits, strict=True):
            for i in range(n):
                for part in state.parts.values():
                    part.write(int(token_ids[begin + i]))
                if i >= n - n_wanted:
                    self._logits[n_rows] = self.logits_of(state)
                    n_rows += 1
            begin += n
        for state, n in sequences:
            state.advance(n)
        return self._logits[:n_rows]

    def logits_of(self, state):
        """Logits behind what was written so far."""
        part = state.parts["kv"]
        return self.logits_after(part.tokens + part.new)

    def logits_after(self, tokens):
        if self.script is None:
            return random_logits(zlib.crc32(np.array(tokens, np.int64).tobytes()))
        logits = np.full(VOCAB, -30)
        logits[self.script(tokens)] = 30
        return logits


def tokens_of(state):
    """The tokens a state has seen, where a part of it holds them."""
    return state.parts["kv"].tokens if "kv" in state.parts else []


def random_logits(seed):
    logits = np.random.default_rng(seed).standard_normal(VOCAB) * 3
    logits[256:] = -20  # the text goes on
    return logits


def says(text, then=END):
    """A script: after n_prompt tokens the reply is this text (or these ids), then an end token."""
    reply = [*(text.encode() if isinstance(text, str) else text), then]

    def script(tokens):
        start = script.n_prompt
        return reply[min(len(tokens) - start, len(reply) - 1)]

    script.n_prompt = 1
    return script
