"""A sequence under the caller's own control: feed tokens, look at logits, go back, branch off."""

import numpy as np

from ..checks import check_ids
from ..compute import ops
from ..models.lm_head_screen import LogitsQuery
from . import session_file


class Session:
    """One sequence with its own KV cache; made by Model.session, closed with its model.

    All token ids go in through feed and decode, which return logits: a read-only float32 view
    (vocab,), valid until the model's next step (copy it to keep it; Model.close refuses with
    BufferError while one is alive). With context_end="window" it may go on beyond its capacity:
    see Model.generate.
    """

    def __init__(self, engine, cache, siblings, fingerprint):
        self._scheduler, self._cache, self._siblings = engine, cache, siblings
        self._fingerprint = fingerprint  # a function
        self._token_ids = []
        siblings.add(self)  # those the model closes

    @property
    def token_ids(self):
        """The tokens of the sequence so far, a new list."""
        return list(self._token_ids)

    @property
    def length(self):
        """How many tokens the sequence has."""
        return self._cache.length

    @property
    def capacity(self):
        """How many tokens it may have, or see where a window moves."""
        return self._cache.capacity

    @property
    def nbytes(self):
        """Bytes of the keys and values it holds, those shared with forks counted in full."""
        return self._cache.nbytes

    def feed(self, token_ids):
        """Append at least one token id; the logits after the last, float32 (vocab,).

        ContextFull, PoolExhausted, or ValueError for a bad id: the sequence is as it was, or where
        the window has moved meanwhile, ends with those of the tokens that it has seen.
        """
        return self._feed(token_ids, None)

    def best(self, token_ids):
        """Append at least one token id; the likeliest after the last: feed(token_ids).argmax().

        Faster than that where the head is large. Errors as of feed.
        """
        return ops.argmax(self._feed(token_ids, [LogitsQuery(1)]))

    def _feed(self, token_ids, wanted):
        length, start = self._cache.length, self._cache.start
        with self._scheduler.exclusive():
            try:
                logits = self._run(token_ids, wanted)
            except BaseException:
                self._cache.trim(length if self._cache.start == start else self._cache.length)
                raise
            finally:
                self._token_ids[length:] = map(int, token_ids[: self._cache.length - length])
        return logits

    def _run(self, token_ids, wanted):
        transformer = self._scheduler.transformer
        check_ids(token_ids, transformer.vocab_size)
        ids = np.array(token_ids, np.int32)
        begin = 0
        while begin < len(ids):
            part = ids[begin : begin + self._cache.chunk(transformer.max_batch)]
            begin += len(part)
            which = "last" if begin == len(ids) else "none"
            sequences = [(self._cache, len(part))]
            logits = transformer.forward(part, sequences, logits=which, wanted=wanted)
        return logits[0]

    def decode(self, token_id):
        """Append one token id; the logits after it, float32 (vocab,). Errors as of feed."""
        return self.feed((token_id,))

    def trim(self, length):
        """Forget the tokens from this position on. ValueError if there are fewer, or where a window
        has moved: what it saw before is not held any more."""
        if self._cache.start:
            raise ValueError(f"trim: {length} (tokens before {self._cache.start} are not held)")
        self._cache.trim(length)
        del self._token_ids[length:]

    def fork(self):
        """A second session with the same tokens; keys and values are shared until either writes."""
        twin = Session(self._scheduler, self._cache.fork(), self._siblings, self._fingerprint)
        twin._token_ids = self.token_ids
        return twin

    def save(self, path):
        """Write the sequence to a file, for restore: tokens, keys and values, and whose they are.

        The file appears under its name only when complete. ValueError for an empty sequence, or
        where a window has moved.
        """
        if not self._token_ids:
            raise ValueError("save: the sequence is empty")
        session_file.save(path, self._token_ids, self._cache, self._fingerprint())

    def restore(self, path):
        """Become the sequence of a file that save wrote, with the same model and kv_dtype.

        FormatError for a file that is damaged or of another model, ContextFull if it is longer than
        the capacity, PoolExhausted: the sequence is as it was.
        """
        cache = self._cache.fork()
        try:
            cache.reset()
            with self._scheduler.exclusive():
                token_ids = session_file.load(path, cache, self._fingerprint())
                check_ids(token_ids, self._scheduler.transformer.vocab_size)
        except BaseException:
            cache.close()
            raise
        self._cache.close()
        self._cache, self._token_ids = cache, token_ids

    def close(self):
        """Give the memory back; any later use raises ValueError."""
        self._cache.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
