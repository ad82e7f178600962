"""The forward pass of a ternary transformer: embedding, the blocks of its family, final norm, head.

Knows arithmetic; knows no text and no file format. The graph of a block is in families/. All work
arrays are taken from the pool once, so that a step allocates nothing.
"""

from itertools import accumulate
from types import SimpleNamespace

import numpy as np

from ..compute import ops
from ..compute.operands import (
    Batch,
    Linear,
    Matrix,
    Norm,
    QuantizedActivations,
    QuantizedRows,
    Rope,
    Screen,
)
from ..errors import FormatError, PoolExhausted
from ..runtime import mmap
from ..runtime.kv_cache import KVCache
from .lm_head_screen import MAX_ROWS, Backoff
from .registry import ARCHITECTURES
from .rope import inverse_frequencies


class Binder:
    """What a family's block takes its weights from: one layer of a model, bound for ops.

    config: ModelConfig. layer: its number. window: positions it sees, 0 for all. rope_theta: its
    RoPE base. query_scale: what queries are to be multiplied with.
    """

    def __init__(self, transformer, weights, layer):
        self.config, self.layer = transformer.config, layer
        self.query_scale = self.config.query_scale
        slides = bool(self.config.sliding_layers) and self.config.sliding_layers[layer]
        self.window = self.config.sliding_window if slides else 0
        self.rope_theta = self.config.rope_local_theta if slides else self.config.rope_theta
        self._transformer, self._weights = transformer, weights

    def norm(self, name, scale=1.0):
        """The norm of this name, a copy in the pool, its weight times scale."""
        return self._transformer.bind_norm(self._weights, f"layers.{self.layer}.{name}", scale)

    def linear(self, *names):
        """The linear layers of these names, stacked: their outputs lie side by side."""
        names = [f"layers.{self.layer}.{name}" for name in names]
        return self._transformer.bind_linear(self._weights, self.layer, names)

    def rope(self, theta):
        """The Rope of a RoPE base."""
        return self._transformer.bind_rope(theta)


class Transformer:
    """A model bound to its mapped weights.

    weights: of weights.open(). pool: where norms and work arrays come from.
    n_threads: threads of every operation (may be changed between calls). context: positions a
    sequence may have. max_batch: rows of one forward pass at most. max_sequences: sequences of one.
    """

    def __init__(self, weights, pool, *, n_threads=1, context=None, max_batch=256, max_sequences=1):
        self.config = config = weights.config
        self.pool = pool
        self.context = context or config.max_position_embeddings
        self.max_batch, self.max_sequences = max_batch, max_sequences
        self.vocab_size = config.vocab_size
        self.batch = Batch(max_batch, max_sequences, n_threads)
        self.head_batch = Batch(max_batch, 1, n_threads)  # the rows whose logits are wanted
        self.embed_tokens = self._rows(weights, "embed_tokens")
        self.lm_head = self._rows(weights, "lm_head")
        self.norm = self.bind_norm(weights, "norm")
        self._ropes, self._linears = {}, [[] for _ in range(config.num_hidden_layers)]
        self.screen, self._patience = self._screen(weights), Backoff()
        self._mapped = [*([] for _ in self._linears), [self._head_data(weights)]]
        block = ARCHITECTURES[config.family].block
        self.layers = [block(Binder(self, weights, i)) for i in range(config.num_hidden_layers)]
        self.prefetch = False  # whether the first pass asks for pages a layer ahead
        self.make_room = None  # a function that frees memory of the pool, or returns False
        self._check_maps = weights.check_maps
        self._unchecked = weights  # until the first pass has seen every code
        self.scratch = self._scratch(max_batch)
        n_found = ops.partials_floats(config.num_attention_heads, config.head_dim)
        self.batch.found = self.pool.array((n_found,), np.float32, "scratch")
        self.n_threads = n_threads
        self.logits = self._matrix(max_sequences, config.vocab_size, "logits")

    # ------------------------------------------------------------------------------------ binding
    def _matrix(self, n_rows, n_cols, purpose="scratch"):
        return Matrix(self.pool.array((n_rows, n_cols), np.float32, purpose))

    def _rows(self, weights, name):
        rows = weights.rows(name)
        return QuantizedRows(rows.data, rows.type, rows.n_cols)

    def _screen(self, weights):
        """The bound screen of the head, None where it is too small for one."""
        if weights.screen is None:
            return None
        take = self.pool.array
        return Screen(*weights.screen, lambda shape, dtype: take(shape, dtype, "scratch"))

    def _head_data(self, weights):
        return weights.screen[0] if weights.screen else weights.rows("lm_head").data

    def bind_norm(self, weights, name, scale=1.0):
        values = weights.vector(name)
        copy = self.pool.array(values.shape, np.float32, "norms")
        np.multiply(values, np.float32(scale), out=copy)
        return Norm(copy, self.config.rms_norm_eps)

    def bind_linear(self, weights, layer, names):
        parts = [weights.ternary(name) for name in names]
        linear = Linear([(p.codes, p.scales.reshape(-1)) for p in parts], parts[0].n_cols)
        self._linears[layer].append((linear, [part.where for part in parts]))
        self._mapped[layer] += [part.codes for part in parts]
        return linear

    def bind_rope(self, theta):
        c, n_rows = self.config, self.max_batch + self.max_sequences
        if theta not in self._ropes:
            frequencies = self.pool.array((c.head_dim // 2,), np.float32, "rope")
            frequencies[:] = inverse_frequencies(c.head_dim, theta)
            turns = self.pool.array((2, n_rows, c.head_dim // 2), np.float32, "rope")
            trained = c.max_position_embeddings
            self._ropes[theta] = Rope(frequencies, turns, c.rope_interleaved, trained)
        return self._ropes[theta]

    def _scratch(self, n):
        """Work arrays of one forward pass; codes are as wide as the widest linear input."""
        c = self.config
        has_norms = "self_attn.q_proj.norm" in ARCHITECTURES[c.family].norms
        q_width = c.num_attention_heads * c.head_dim
        padded = -(-max(c.hidden_size, q_width, c.intermediate_size) // 128) * 128
        return SimpleNamespace(
            hidden=self._matrix(n, c.hidden_size),
            normed=self._matrix(n, c.hidden_size),
            qkv=self._matrix(n, q_width + 2 * c.num_key_value_heads * c.head_dim),
            attended=self._matrix(n, q_width),
            gate_up=self._matrix(n, 2 * c.intermediate_size),
            gated=self._matrix(n, c.intermediate_size),
            projected=self._matrix(n, c.hidden_size) if has_norms else None,
            codes=QuantizedActivations(
                self.pool.array((n, padded), np.int8, "scratch"),
                self.pool.array((n,), np.float32, "scratch"),
                self.pool.array((n,), np.int32, "scratch"),
            ),
        )

    # ------------------------------------------------------------------------------------- public
    @property
    def n_threads(self):
        """Threads of every operation."""
        return self.batch.n_threads

    @n_threads.setter
    def n_threads(self, n):
        n_rows = max(linear.fewest_rows for layer in self._linears for linear, _ in layer)
        n_bytes = ops.workspace_bytes(n_rows)
        if n_bytes and self.batch.workspace.shape[0] < n:
            self.batch.workspace = self.pool.array((n, n_bytes), np.uint8, "scratch")
        self.batch.n_threads = self.head_batch.n_threads = n

    def reserve_logits(self, n_rows):
        """Take room for so many rows of logits; PoolExhausted."""
        if n_rows > self.logits.n_rows:
            self.logits = self._matrix(n_rows, self.vocab_size, "logits")

    def new_cache(self, capacity=None, dtype="f16"):
        """An empty KVCache for one sequence of up to ``capacity`` tokens (None: the context)."""
        if capacity is not None and not 0 < capacity <= self.context:
            raise ValueError(f"capacity: {capacity} (1 to the context, {self.context})")
        return KVCache(
            self.pool,
            n_layers=self.config.num_hidden_layers,
            n_kv_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            capacity=capacity or self.context,
            dtype=dtype,
        )

    def forward(self, token_ids, sequences, *, logits="last", wanted=None, after_layer=None):
        """Run a ragged batch and append it to the sequences' caches.

        token_ids: int32 (n,), the new tokens of all sequences, one sequence after the other.
        sequences: list of (KVCache, n_tokens). logits: "last" gives float32 (n_sequences, vocab),
        "all" (n, vocab), "hidden" the final norm's output (n, hidden), "none" None; a list says of
        how many of its last tokens each sequence wants them: (sum, vocab). The result is read-only
        and valid until the next call. wanted: None, or an iterable, read where there is a screen,
        of a head.LogitsQuery for each row of logits, None for all: others may be ops.screened, the least
        float32. after_layer(i, hidden) is called behind each layer with float32 (n, hidden), to
        look at.

        Raises ContextFull or PoolExhausted before anything has changed, ValueError for a token id
        out of range, FormatError the first time the weights turn out to hold an illegal code, and
        when a mapped file has shrunk.
        """
        rows = wanted_rows(sequences, logits)
        batch, s = self._set_batch(sequences), self.scratch
        for rope in self._ropes.values():
            ops.rope_table(rope, batch)
        scale = self.config.embedding_scale
        ops.embed(s.hidden, self.embed_tokens, token_ids, batch, scale=scale)  # (n, hidden)
        for i, layer in enumerate(self.layers):
            if self._unchecked:
                self._prefetch(i + 1)
                self._check_codes(i)
            layer(s, batch)
            if after_layer:
                after_layer(i, s.hidden.array()[: batch.n_tokens])
        self._unchecked = self._mapped = None
        out = self._head(s, rows, logits == "hidden", wanted)
        self._check_maps()
        for cache, n_tokens in sequences:
            cache.advance(n_tokens)
        return out

    def _set_batch(self, sequences):
        """Reserve room in every cache; where the pool has none, what others can do without goes."""
        while True:
            try:
                return self.batch.set(sequences)
            except PoolExhausted:
                if self.make_room is None or not self.make_room():
                    raise

    def _head(self, s, rows, is_hidden, wanted):
        """The final norm and the float head, over the rows that are wanted."""
        if not rows:
            return None
        n, batch = len(rows), self.head_batch.rows_only(len(rows))
        ops.gather_rows(s.normed, s.hidden, rows)  # (n, hidden)
        ops.rms_norm(s.normed, self.norm, s.normed, batch)
        out = s.normed if is_hidden else self.logits
        if n > out.n_rows:  # evaluation, not decoding
            out = self._matrix(n, self.vocab_size, "logits")
        if not is_hidden and not self._is_screened(out, s.normed, batch, wanted):
            ops.head(out, self.lm_head, s.normed, batch)
        view = out.array()[:n]  # (n, vocab)
        view.flags.writeable = False
        return view

    def _is_screened(self, out, x, batch, wanted):
        """Whether out has the logits that are wanted, by the screen."""
        n = batch.n_tokens
        if not (wanted is not None and self.screen and n <= MAX_ROWS) or self._patience.is_over():
            return False
        rows = list(wanted)
        if None in rows:
            return False
        counts = ops.screen(out, self.lm_head, self.screen, x, batch, rows)
        self._patience.record(2 * counts.count(self.vocab_size) <= n)
        return True

    def _prefetch(self, layer):
        """Ask for the pages of a layer, or of the head behind the last one."""
        if self.prefetch:
            for data in self._mapped[layer]:
                mmap.willneed(data.ctypes.data, data.nbytes)

    def _check_codes(self, layer):
        """Code 3 means nothing: looked for once, in the first pass, not in every dot product."""
        for linear, where in self._linears[layer]:
            found = ops.find_code_3(linear, self.n_threads)
            if found:
                part, row = found
                limit = "codes are 0, 1, 2 for -1, 0, 1"
                path = self._unchecked.path
                raise FormatError(path, f"{where[part]} row {row}", "code 3", limit)


def wanted_rows(sequences, logits):
    """The rows of a batch whose logits are wanted; sequences and logits as of forward."""
    lengths = [n for _, n in sequences]
    counts = logits
    if isinstance(logits, str):
        if logits not in ("last", "all", "hidden", "none"):
            raise ValueError(f"logits is {logits!r}, not last, all, hidden or none")
        counts = {"last": [1] * len(lengths), "none": [0] * len(lengths)}.get(logits, lengths)
    elif len(logits) != len(lengths) or any(
        not 0 <= k <= n for k, n in zip(logits, lengths, strict=True)
    ):
        raise ValueError(f"logits is {logits}, of sequences of {lengths} tokens")
    return [
        row
        for end, n_wanted in zip(accumulate(lengths), counts, strict=True)
        for row in range(end - n_wanted, end)
    ]
