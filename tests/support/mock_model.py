"""A transformer without weights: its logits are a function of the tokens so far, and nothing else.

With it the engine's rules are tested alone. It keeps books: which caches are open, what each step
was given; it fails where a test asks it to.
"""

import zlib
from types import SimpleNamespace

import numpy as np

from bitnet.errors import ContextFull

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


class MockCache:
    def __init__(self, model, capacity):
        self.model, self.capacity, self.tokens = model, capacity, []
        model.open_caches.add(self)

    @property
    def length(self):
        return len(self.tokens)

    start, page = 0, 16

    @property
    def nbytes(self):
        return -(-self.length // self.page) * self.page

    @property
    def full_nbytes(self):
        return -(-self.capacity // self.page) * self.page

    def fork(self):
        other = MockCache(self.model, self.capacity)
        other.tokens = list(self.tokens)
        return other

    def trim(self, length):
        assert 0 <= length <= self.length
        del self.tokens[length:]

    def close(self):
        self.model.open_caches.discard(self)


class MockTransformer:
    """script: f(tokens of the sequence) -> id of the next, or None for logits made of their hash.

    on_forward: called with the list of (tokens, n_tokens) before each step; may raise.
    """

    def __init__(self, script=None, *, max_batch=16, context=512, on_forward=None):
        self.vocab_size, self.max_batch, self.context = VOCAB, max_batch, context
        self.script, self.on_forward = script, on_forward
        self.open_caches, self.steps = set(), []
        self._logits = np.zeros((max_batch, VOCAB), np.float32)

    def new_cache(self, capacity=None, dtype="f16"):
        return MockCache(self, capacity or self.context)

    def reserve_logits(self, n_rows):
        assert n_rows >= 1

    def forward(self, token_ids, sequences, *, logits="last", wanted=None):
        assert token_ids.dtype == np.int32
        assert sum(n for _, n in sequences) == len(token_ids) <= self.max_batch
        assert len({id(cache) for cache, _ in sequences}) == len(sequences)
        assert all(n > 0 and cache in self.open_caches for cache, n in sequences)
        for cache, n in sequences:
            if cache.length + n > cache.capacity:
                raise ContextFull(cache.length, n, cache.capacity)
        if self.on_forward:
            self.on_forward([(cache.tokens, n) for cache, n in sequences])
        self.steps.append([n for _, n in sequences])
        if isinstance(logits, str):
            logits = [int(logits == "last")] * len(sequences)
        begin = n_rows = 0
        for (cache, n), n_wanted in zip(sequences, logits, strict=True):
            for i in range(n):
                cache.tokens.append(int(token_ids[begin + i]))
                if i >= n - n_wanted:
                    self._logits[n_rows] = self.logits_after(cache.tokens)
                    n_rows += 1
            begin += n
        return self._logits[:n_rows] if n_rows else None

    def logits_after(self, tokens):
        if self.script is None:
            seed = zlib.crc32(np.array(tokens, np.int64).tobytes())
            logits = np.random.default_rng(seed).standard_normal(VOCAB) * 3
            logits[256:] = -20  # the text goes on
            return logits
        logits = np.full(VOCAB, -30)
        logits[self.script(tokens)] = 30
        return logits


def says(text, then=END):
    """A script: after n_prompt tokens the reply is this text (or these ids), then an end token."""
    reply = [*(text.encode() if isinstance(text, str) else text), then]

    def script(tokens):
        start = script.n_prompt
        return reply[min(len(tokens) - start, len(reply) - 1)]

    script.n_prompt = 1
    return script
