"""The forward pass of a ternary transformer: embedding, blocks of its architecture, norm, LM head.

Knows arithmetic; knows no text and no file format. The graph of a block is in the architecture's
file. All work arrays are taken from the pool once (see workspace.py): a step allocates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute import ops
from ..compute.grouped import GroupedActivations, GroupedLinear
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
from ..compute.rotation import Hadamard
from ..errors import FormatError
from ..formats.group_scales import GroupedMatrix, row_of_wrong_bias
from ..runtime import mmap
from ..runtime.kv_cache import DEFAULT_KV_DTYPE
from ..runtime.pool import Pool
from .lm_head_screen import MAX_ROWS, Backoff, LogitsQuery
from .registry import ARCHITECTURES
from .rope import inverse_frequencies
from .sequence_state import SequenceState
from .workspace import (
    MAX_BATCH,
    WorkArray,
    activation_arrays,
    fine_arrays,
    quantized_arrays,
    rope_name,
    screen_arrays,
    thread_arrays,
    work_arrays,
)


class Binder:
    """What an architecture's block takes its weights from: one layer of a model, bound for ops.

    config: ModelConfig. layer: its number. window: positions it sees, 0 for all. query_scale: what
    queries are to be multiplied with.
    """

    def __init__(self, transformer, weights, layer):
        self.config, self.layer = transformer.config, layer
        self.query_scale = self.config.query_scale
        self._slides = bool(self.config.sliding_layers) and self.config.sliding_layers[layer]
        self.window = self.config.sliding_window if self._slides else 0
        self._transformer, self._weights = transformer, weights

    def norm(self, name, scale=1.0):
        """The norm of this name, its weight times scale."""
        return self._transformer.bind_norm(self._weights, f"layers.{self.layer}.{name}", scale)

    def linear(self, *names):
        """The linear layers of these names, stacked: their outputs lie side by side."""
        names = [f"layers.{self.layer}.{name}" for name in names]
        return self._transformer.bind_linear(self._weights, self.layer, names)

    def vector(self, name):
        """A small tensor as float32, an array of the pool; of two axes the last one first."""
        return self._transformer.bind_vector(self._weights, f"layers.{self.layer}.{name}")

    def rows(self, name):
        """A matrix that is floats in most files: QuantizedRows, or a GroupedLinear."""
        name = f"layers.{self.layer}.{name}"
        return self._transformer.bind_rows(self._weights, self.layer, name)

    def unit_norm(self, name, scale):
        """The norm that makes a head of n columns as long as scale, 1e-6 beside its squares."""
        return self._transformer.bind_unit_norm(name, scale)

    def rotated_linear(self, *names):
        """As linear, called (out, x, s, batch): x is rotated in place if the weights were, and
        quantised into s.codes."""
        stems = [f"layers.{self.layer}.{name}" for name in names]
        return RotatedLinear(self.linear(*names), self._transformer.bind_rotation(stems))

    @property
    def groups_values(self):
        """See Rotation."""
        rotation = self._weights.rotation
        return rotation is not None and rotation.groups_values

    def rope(self):
        """The layer's Rope: of the local base, and not scaled, where its window slides."""
        return self._transformer.bind_rope(self._slides)


class RotatedLinear:
    """A linear layer and what its inputs are rotated by before they are quantised, or None."""

    def __init__(self, linear, hadamard):
        self._linear, self._hadamard = linear, hadamard
        self.is_rotated = hadamard is not None

    def __call__(self, out, x, s, batch, add=False):
        if self._hadamard is not None:
            ops.rotate(x, self._hadamard, batch)
        ops.quantize(s.codes, x, batch)
        ops.linear(out, self._linear, s.codes, batch, add=add)


class Transformer:
    """A model bound to its mapped weights.

    weights: of weights.open(). pool: where work arrays come from. n_threads: threads of every
    operation (may be changed between calls). context: positions a sequence may have. max_batch:
    rows of one forward pass at most. max_sequences: sequences of one. prefetch: whether the first
    pass asks for each layer's pages while it computes the one before.
    """

    def __init__(
        self,
        weights: Any,
        pool: Pool,
        *,
        n_threads: int = 1,
        context: int | None = None,
        max_batch: int = MAX_BATCH,
        max_sequences: int = 1,
        prefetch: bool = False,
    ) -> None:
        self.config = config = weights.config
        self.pool = pool
        self.context = context or config.max_position_embeddings
        self.max_batch, self.max_sequences = max_batch, max_sequences
        self.vocab_size = config.vocab_size
        arrays = work_arrays(
            config, n_rows=max_batch, n_sequences=max_sequences, n_threads=n_threads,
            has_screen=weights.screen is not None, activation_bits=weights.activation_bits,
        )  # fmt: skip
        self._arrays = {array.name: array.take(pool) for array in arrays}  # until they are bound
        self.batch = Batch(
            max_batch, max_sequences, n_threads,
            partials=self._arrays["attention.partials"], workspace=self._arrays.get("threads"),
        )  # fmt: skip
        self.head_batch = Batch(max_batch, 1, n_threads)  # the rows whose logits are asked for
        self._activation_bits = weights.activation_bits
        self._path, self._rotation, self._hadamards = weights.path, weights.rotation, {}
        self._tables = []  # of embedding and head, those that are a GroupedLinear
        self.embed_tokens = self._rows(weights, "embed_tokens")
        is_tied = config.tie_word_embeddings
        self.lm_head = self.embed_tokens if is_tied else self._rows(weights, "lm_head")
        self.norm = self.bind_norm(weights, "norm")
        self._head_rotation = self.bind_rotation(["lm_head"])
        has_rotated = self._rotation is not None and self._rotation.has_embedding
        self._embedding_rotation = self._hadamard(config.hidden_size) if has_rotated else None
        self._ropes, self._linears = {}, [[] for _ in range(config.num_hidden_layers)]
        self.screen, self._backoff = self._screen(weights), Backoff()
        self._mapped = [*([] for _ in self._linears), [self._head_data(weights)]]
        block = ARCHITECTURES[config.family].block
        self.layers = [block(Binder(self, weights, i)) for i in range(config.num_hidden_layers)]
        self._prefetches = prefetch
        self._check_maps = weights.check_maps
        self._unchecked = weights  # until the first pass has seen every code
        self.activations = self._activations(weights.activation_bits)
        self.logits = Matrix(self._arrays.pop("logits"))
        self._arrays = None

    # ------------------------------------------------------------------------------------ binding
    def _rows(self, weights, name):
        """An embedding or head: rows of floats, or a ternary matrix with scales of groups."""
        rows = weights.rows(name)
        if isinstance(rows, GroupedMatrix):
            table = grouped_linear([rows])
            self._tables.append((table, [rows]))
            return table
        return QuantizedRows(rows.data, rows.type, rows.n_cols)

    def _screen(self, weights):
        """The bound screen of the head, None where it is too small for one."""
        if weights.screen is None:
            return None
        work = iter([self._arrays[array.name] for array in screen_arrays(self.config)])
        return Screen(*weights.screen, lambda shape, dtype: next(work))

    def _head_data(self, weights):
        return weights.screen[0] if weights.screen else weights.rows("lm_head").data

    def bind_norm(self, weights, name, scale=1.0):
        copy = self._arrays[name]
        np.multiply(weights.vector(name), np.float32(scale), out=copy)
        return Norm(copy, self.config.rms_norm_eps)

    def bind_rotation(self, names):
        """What the inputs of a stack of matrices are rotated by, None: they are not.

        FormatError where some are rotated and others are not, which share their inputs.
        """
        rotation = self._rotation
        are_rotated = {rotation is not None and name in rotation.linears for name in names}
        if len(are_rotated) > 1:
            limit = "all or none of the matrices that share their inputs"
            raise FormatError(self._path, "rotation", "some of " + ", ".join(names), limit)
        if are_rotated == {False}:
            return None
        hidden, shapes = self.config.hidden_size, self.config.tensor_shapes()
        return self._hadamard(hidden if names == ["lm_head"] else shapes[names[0]][1])

    def _hadamard(self, width):
        if width not in self._hadamards:
            signs = self._rotation.signs.get(width)
            self._hadamards[width] = Hadamard(signs, self._rotation.block, width)
        return self._hadamards[width]

    def bind_vector(self, weights, name):
        copy = self._arrays[name]
        copy[:] = weights.vector(name).T
        return copy

    def bind_unit_norm(self, name, scale):
        copy = self._arrays[name]
        copy[:] = scale / math.sqrt(len(copy))
        return Norm(copy, 1e-6 / len(copy))

    def bind_rows(self, weights, layer, name):
        rows = weights.rows(name)
        if isinstance(rows, GroupedMatrix):
            return self.bind_linear(weights, layer, [name])
        self._mapped[layer].append(rows.data)
        return QuantizedRows(rows.data, rows.type, rows.n_cols)

    def bind_linear(self, weights, layer, names):
        stack = [weights.ternary(name) for name in names]
        if isinstance(stack[0], GroupedMatrix):
            linear = grouped_linear(stack)
            self._mapped[layer] += [array for t in stack for array in t.arrays()]
        else:
            linear = Linear([(t.codes, t.scales) for t in stack], stack[0].n_cols)
            self._mapped[layer] += [t.codes for t in stack]
        self._linears[layer].append((linear, stack))
        return linear

    def bind_rope(self, is_local):
        c = self.config
        if is_local not in self._ropes:
            theta = c.rope_local_theta if is_local else c.rope_theta
            scaling = None if is_local else c.rope_scaling
            name = rope_name(is_local)
            frequencies = self._arrays[f"{name}.frequencies"]
            frequencies[:] = inverse_frequencies(c.rotary_dim or c.head_dim, theta, scaling)
            self._ropes[is_local] = Rope(
                frequencies,
                self._arrays[f"{name}.cos_sin"],
                c.rope_interleaved,
                c.max_position_embeddings,
                1.0 if scaling is None else scaling.attention_factor,
            )
        return self._ropes[is_local]

    def _activations(self, bits):
        """What a block's graph works on: a Matrix for each of activation_arrays, and codes."""
        arrays = self._arrays
        names = [array.name for array in activation_arrays(self.config, self.max_batch)]
        wanted = quantized_arrays(self.config, self.max_batch, bits)
        codes = [arrays[array.name] for array in wanted]
        matrices = {name: Matrix(arrays[name]) for name in names}
        quantized = GroupedActivations(*codes, bits) if bits else QuantizedActivations(*codes)
        fine = [arrays[array.name] for array in fine_arrays(self.config, self.max_batch, bits)]
        fine_codes = GroupedActivations(*fine, 16) if fine else quantized
        return SimpleNamespace(**matrices, codes=quantized, fine_codes=fine_codes)

    # ------------------------------------------------------------------------------------- public
    @property
    def n_threads(self) -> int:
        """Threads of every operation."""
        return self.batch.n_threads

    @n_threads.setter
    def n_threads(self, n: int) -> None:
        for array in thread_arrays(self.config, n, self._activation_bits):
            if self.batch.n_workspaces < n:
                self.batch.set_workspace(array.take(self.pool))
        self.batch.n_threads = self.head_batch.n_threads = n

    def _more_logits(self, n_rows: int) -> Matrix:
        shape = (n_rows, self.vocab_size)
        return Matrix(WorkArray("logits", shape, np.float32, "logits").take(self.pool))

    def new_state(
        self, capacity: int | None = None, dtype: str = DEFAULT_KV_DTYPE, sinks: int = 0
    ) -> SequenceState:
        """An empty SequenceState for up to ``capacity`` tokens (None: the context).

        dtype: of cached keys and values. sinks: 0, or more for a window that moves: see KVCache.
        """
        if capacity is not None and not 0 < capacity <= self.context:
            raise ValueError(f"capacity: {capacity} (1 to the context, {self.context})")
        return ARCHITECTURES[self.config.family].new_state(
            self.config, self.pool, capacity=capacity or self.context, dtype=dtype, sinks=sinks
        )

    def forward(
        self,
        token_ids: NDArray[np.int32],
        sequences: list[tuple[SequenceState, int]],
        *,
        logits: str | Sequence[int] = "last",
        queries: Iterable[LogitsQuery | None] | None = None,
        after_layer: Callable[[int, NDArray[np.float32]], None] | None = None,
    ) -> NDArray[np.float32]:
        """Run a ragged batch and append it to the sequences' states.

        token_ids: int32 (n,), the new tokens of all sequences, one sequence after the other.
        sequences: list of (SequenceState, n_tokens).
        logits: "last" gives float32 (n_sequences, vocab), "all" (n, vocab), "hidden" the final
            norm's output (n, hidden), "none" (0, vocab); a list says of how many of its last tokens
            each sequence wants them: (sum, vocab). The result is read-only and valid until the next
            call.
        queries: None, or an iterable, read where there is a screen, of a LogitsQuery for each row
            of logits, None for all of its logits: others may be ops.screened, the least float32.
        after_layer: called behind each layer with its number and float32 (n, hidden), to look at.

        Raises ContextFull or PoolExhausted before anything has changed, ValueError for a token id
        out of range, FormatError the first time the weights turn out to hold an illegal code, and
        when a mapped file has shrunk.
        """
        mmap.arm()
        rows, is_hidden = logits_rows(sequences, logits), logits == "hidden"
        batch, s = self._set_batch(sequences), self.activations
        out = s.normed if is_hidden else self.logits
        if len(rows) > out.n_rows:  # evaluation, not decoding
            out = self._more_logits(len(rows))
        for rope in self._ropes.values():
            ops.rope_table(rope, batch)
        if self._unchecked:
            self._check_codes(self._tables)
        scale = self.config.embedding_scale
        ops.embed(s.hidden, self.embed_tokens, token_ids, batch, scale=scale)  # (n, hidden)
        if self._embedding_rotation is not None:
            ops.rotate(s.hidden, self._embedding_rotation, batch, inverse=True)
        for i, layer in enumerate(self.layers):
            if self._unchecked:
                self._prefetch(i + 1)
                self._check_codes(self._linears[i])
            layer(s, batch)
            if after_layer:
                after_layer(i, s.hidden.array()[: batch.n_tokens])
        self._unchecked = self._mapped = self._tables = None
        if rows:
            self._head(out, s, rows, is_hidden, queries)
        self._check_maps()
        for state, n_tokens in sequences:
            state.advance(n_tokens)
        view = out.array()[: len(rows)]
        view.flags.writeable = False
        return view

    def _set_batch(self, sequences):
        """The batch of these sequences, with room for their new tokens in every state."""
        caches, states = [], []
        for state, n_tokens in sequences:
            if len(state.parts) > 1:  # keys and values are reserved by the batch
                state.reserve(n_tokens)
            caches.append((state.parts["kv"].cache, n_tokens))
            states.append(state)
        return self.batch.set(caches, tuple(states))

    def _head(self, out, s, rows, is_hidden, queries):
        """The final norm into s.normed, and the LM head into out, unless that is s.normed: of the
        rows whose logits are asked for."""
        batch = self.head_batch.rows_only(len(rows))
        ops.gather_rows(s.normed, s.hidden, rows)  # (n, hidden)
        ops.rms_norm(s.normed, self.norm, s.normed, batch)
        if not is_hidden and not self._is_screened(out, s.normed, batch, queries):
            self._all_logits(out, s, batch)

    def _all_logits(self, out, s, batch):
        """out (n, vocab) = the head of s.normed; a ternary one takes quantised inputs."""
        if isinstance(self.lm_head, GroupedLinear):
            if self._head_rotation is not None:
                ops.rotate(s.normed, self._head_rotation, batch)
            ops.quantize(s.codes, s.normed, batch)
            ops.linear(out, self.lm_head, s.codes, batch)
        else:
            ops.head(out, self.lm_head, s.normed, batch)

    def _is_screened(self, out, x, batch, queries):
        """Whether out has the logits that queries ask for, by the screen."""
        n = batch.n_tokens
        can_screen = queries is not None and self.screen and n <= MAX_ROWS
        if not can_screen or self._backoff.should_skip():
            return False
        rows = list(queries)
        if None in rows:
            return False
        counts = ops.screen(out, self.lm_head, self.screen, x, batch, rows)
        self._backoff.record(2 * counts.count(self.vocab_size) <= n)
        return True

    def _prefetch(self, layer):
        """Ask for the pages of a layer, or of the head behind the last one."""
        if self._prefetches:
            for data in self._mapped[layer]:
                mmap.willneed(data.ctypes.data, data.nbytes)

    def _check_codes(self, linears):
        """Code 3 means nothing, nor does a scale that is no number: looked for once, in the first
        pass, not in every dot product.

        linears: [(operand, [what its matrices were bound from])].
        """
        for linear, stack in linears:
            is_grouped = isinstance(linear, GroupedLinear)
            find = ops.scan_groups if is_grouped else ops.find_code_3
            place = find(linear, self.n_threads)
            if place:
                part, row = place
                raise self._unchecked.illegal_row(stack[part], row)
            for matrix in stack if is_grouped else ():
                row = row_of_wrong_bias(matrix)
                if row is not None:
                    raise self._unchecked.illegal_row(matrix, row)


def grouped_linear(stack: Sequence[GroupedMatrix]) -> GroupedLinear:
    """The matrices as an operand, stacked."""
    return GroupedLinear([(m.type, m.data, m.scales) for m in stack], stack[0].n_cols)


def logits_rows(
    sequences: Sequence[tuple[SequenceState, int]], logits: str | Sequence[int]
) -> list[int]:
    """The rows of a batch whose logits are asked for; sequences and logits as of forward."""
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
        for end, n_rows in zip(accumulate(lengths), counts, strict=True)
        for row in range(end - n_rows, end)
    ]
