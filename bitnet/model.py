"""The graph of a ternary transformer, one function a block, shapes at the margin.

Knows arithmetic; knows no text and no file format. All work arrays are taken from the pool once,
so that a step allocates nothing.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from . import ops
from .arrays import Batch, Codes, Linear, Matrix, Norm, Rows
from .cache import KVCache
from .formats import FormatError
from .rope import rope_tables


@dataclass
class Layer:
    """The weights of one block, bound for ops. q, k, v and gate, up are stacked."""

    input_layernorm: Norm
    qkv_proj: Linear
    attn_sub_norm: Norm | None
    o_proj: Linear
    post_attention_layernorm: Norm
    gate_up_proj: Linear
    ffn_sub_norm: Norm | None
    down_proj: Linear


class Transformer:
    """A model bound to its mapped weights.

    weights: of weights.open(). pool: where norms, rotary tables and work arrays come from.
    n_threads: threads of every operation (may be changed between calls). context: positions a
    sequence may have. max_batch: rows of one forward pass at most. max_sequences: sequences of one.
    """

    def __init__(self, weights, pool, *, n_threads=1, context=None, max_batch=256, max_sequences=1):
        self.config = config = weights.config
        self.pool = pool
        self.context = context or config.max_position_embeddings
        self.max_batch, self.vocab_size = max_batch, config.vocab_size
        self.batch = Batch(max_batch, max_sequences, n_threads)
        self.embed_tokens = self._rows(weights, "embed_tokens")
        self.lm_head = self._rows(weights, "lm_head")
        self.norm = self._norm(weights, "norm")
        self.layers = [self._layer(weights, f"layers.{i}") for i in range(config.num_hidden_layers)]
        self._unchecked = weights  # until the first pass has seen every code
        self.cosines, self.sines = map(
            self._rope_table, rope_tables(self.context, config.head_dim, config.rope_theta)
        )
        self.scratch = self._scratch(max_batch)
        self.logits = self._matrix(max_sequences, config.vocab_size, "logits")

    # ------------------------------------------------------------------------------------ binding
    def _matrix(self, n_rows, n_cols, purpose="scratch"):
        return Matrix(self.pool.array((n_rows, n_cols), np.float32, purpose))

    def _rope_table(self, values):
        matrix = self._matrix(*values.shape, "rope")
        matrix.array()[:] = values
        return matrix

    def _rows(self, weights, name):
        rows = weights.rows(name)
        return Rows(rows.data, rows.type, rows.n_cols)

    def _norm(self, weights, name):
        values = weights.vector(name)
        copy = self.pool.array(values.shape, np.float32, "norms")
        copy[:] = values
        return Norm(copy, self.config.rms_norm_eps)

    def _linear(self, weights, *names):
        parts = [weights.ternary(name) for name in names]
        return Linear(
            [(p.codes, np.atleast_1d(np.float32(p.scale))) for p in parts], parts[0].n_cols
        )

    def _layer(self, weights, name):
        sub_norms = self.config.sub_norms
        attn, mlp = f"{name}.self_attn", f"{name}.mlp"
        return Layer(
            input_layernorm=self._norm(weights, f"{name}.input_layernorm"),
            qkv_proj=self._linear(weights, f"{attn}.q_proj", f"{attn}.k_proj", f"{attn}.v_proj"),
            attn_sub_norm=self._norm(weights, f"{attn}.attn_sub_norm") if sub_norms else None,
            o_proj=self._linear(weights, f"{attn}.o_proj"),
            post_attention_layernorm=self._norm(weights, f"{name}.post_attention_layernorm"),
            gate_up_proj=self._linear(weights, f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            ffn_sub_norm=self._norm(weights, f"{mlp}.ffn_sub_norm") if sub_norms else None,
            down_proj=self._linear(weights, f"{mlp}.down_proj"),
        )

    def _scratch(self, n):
        """Work arrays of one forward pass; codes are as wide as the widest linear input."""
        c = self.config
        q_width = c.num_attention_heads * c.head_dim
        padded = -(-max(c.hidden_size, q_width, c.intermediate_size) // 128) * 128
        return SimpleNamespace(
            hidden=self._matrix(n, c.hidden_size),
            normed=self._matrix(n, c.hidden_size),
            qkv=self._matrix(n, q_width + 2 * c.num_key_value_heads * c.head_dim),
            attended=self._matrix(n, q_width),
            gate_up=self._matrix(n, 2 * c.intermediate_size),
            gated=self._matrix(n, c.intermediate_size),
            codes=Codes(
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
        self.batch.n_threads = n

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

    def forward(self, token_ids, sequences, *, logits="last"):
        """Run a ragged batch and append it to the sequences' caches.

        token_ids: int32 (n,), the new tokens of all sequences, one sequence after the other.
        sequences: list of (KVCache, n_tokens). logits: "last" gives float32 (n_sequences, vocab),
        "all" (n, vocab), "none" None. The result is read-only and valid until the next call.

        Raises ContextFull or PoolExhausted before anything has changed, ValueError for a token id
        out of range, FormatError the first time the weights turn out to hold an illegal code.
        """
        if logits not in ("last", "all", "none"):
            raise ValueError(f"logits is {logits!r}, not last, all or none")
        batch, s = self.batch.set(sequences), self.scratch
        ops.embed(s.hidden, self.embed_tokens, token_ids, batch)            # (n, hidden)
        for i, layer in enumerate(self.layers):
            if self._unchecked:
                self._check_codes(i, layer)
            self._attention(i, layer, s, batch)
            self._feed_forward(layer, s, batch)
        self._unchecked = None
        out = self._head(s, batch, logits)
        for cache, n_tokens in sequences:
            cache.advance(n_tokens)
        return out

    # -------------------------------------------------------------------------------------- graph
    def _attention(self, i, layer, s, batch):
        """hidden += o_proj(sub_norm(attention(rope(qkv_proj(norm(hidden))))))"""
        config = self.config
        ops.rms_norm(s.normed, layer.input_layernorm, s.hidden, batch)      # (n, hidden)
        ops.quantize(s.codes, s.normed, batch)
        ops.linear(s.qkv, layer.qkv_proj, s.codes, batch)                   # (n, (H + 2 Hkv) D)
        n_rotated = config.num_attention_heads + config.num_key_value_heads
        ops.rope(s.qkv, self.cosines, self.sines, n_rotated, config.rope_interleaved, batch)
        ops.store_kv(s.qkv, i, batch)
        ops.attention(s.attended, s.qkv, i, batch)                          # (n, H D)
        if layer.attn_sub_norm:
            ops.rms_norm(s.attended, layer.attn_sub_norm, s.attended, batch)
        ops.quantize(s.codes, s.attended, batch)
        ops.linear(s.hidden, layer.o_proj, s.codes, batch, add=True)        # (n, hidden)

    def _feed_forward(self, layer, s, batch):
        """hidden += down_proj(sub_norm(act(gate_proj(x)) * up_proj(x))), x = norm(hidden)"""
        ops.rms_norm(s.normed, layer.post_attention_layernorm, s.hidden, batch)
        ops.quantize(s.codes, s.normed, batch)
        ops.linear(s.gate_up, layer.gate_up_proj, s.codes, batch)           # (n, 2 ffn)
        ops.gate(s.gated, s.gate_up, self.config.hidden_act, batch)         # (n, ffn)
        if layer.ffn_sub_norm:
            ops.rms_norm(s.gated, layer.ffn_sub_norm, s.gated, batch)
        ops.quantize(s.codes, s.gated, batch)
        ops.linear(s.hidden, layer.down_proj, s.codes, batch, add=True)     # (n, hidden)

    def _head(self, s, batch, logits):
        """The final norm and the float head, over the rows that were asked for."""
        if logits == "none":
            return None
        n = batch.n_sequences if logits == "last" else batch.n_tokens
        out = self.logits
        if n > out.n_rows:  # evaluation, not decoding
            out = self._matrix(n, self.vocab_size, "logits")
        ops.rms_norm(s.normed, self.norm, s.hidden, batch)
        ops.head(out, self.lm_head, s.normed, batch, last_only=logits == "last")
        view = out.array()[:n]                                              # (n, vocab)
        view.flags.writeable = False
        return view

    def _check_codes(self, i, layer):
        """Code 3 means nothing: looked for once, in the first pass, not in every dot product."""
        weights, stacks = self._unchecked, {
            layer.qkv_proj: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            layer.o_proj: ("self_attn.o_proj",),
            layer.gate_up_proj: ("mlp.gate_proj", "mlp.up_proj"),
            layer.down_proj: ("mlp.down_proj",),
        }
        for linear, names in stacks.items():
            found = ops.find_code_3(linear, self.n_threads)
            if found:
                part, row = found
                where = weights.ternary(f"layers.{i}.{names[part]}").where
                limit = "codes are 0, 1, 2 for -1, 0, 1"
                raise FormatError(weights.path, f"{where} row {row}", "code 3", limit)
