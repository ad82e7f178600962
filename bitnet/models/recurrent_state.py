"""The state of DeltaNet layers: of fixed size, whatever the length of a sequence.

A step writes it in place, so it cannot go back. Copies share memory until one of them is written:
whoever wants to come back to a place keeps a fork of it, or takes a checkpoint that holds it. A
step that failed behind its first layer has spoiled the state: all that is left is to begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compute.delta_net import DeltaShape
from ..runtime.pool import Pool
from .sequence_state import Bytes, StatePart, StoredTensor, kv_part

PURPOSE = "state"  # in the pool, in plans and reports
Floats = NDArray[np.float32]
# Kept states of a slot: of a conversation the last two turns, each before its reply and behind it.
DEFAULT_SNAPSHOTS = 4


@dataclass(frozen=True)
class DeltaNetConfig:
    """What a model's DeltaNet layers are.

    layers: whether each layer of the model is one; the others are attention. key_heads of key_dim
    columns; value_heads of value_dim. n_taps: of the convolution. tiled_heads: value head j has
    key head j mod key_heads, as in GGUF files; otherwise j // (value_heads / key_heads).
    decays_are_logs: the file holds A_log, and -e^A_log multiplies; otherwise that number.
    """

    layers: tuple[bool, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    n_taps: int
    tiled_heads: bool
    decays_are_logs: bool

    @property
    def shape(self) -> DeltaShape:
        """For ops.delta_rule."""
        return DeltaShape(
            self.key_heads, self.value_heads, self.key_dim, self.value_dim, self.tiled_heads
        )

    @property
    def n_channels(self) -> int:
        """Columns of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def index(self, layer: int) -> int:
        """The number of a layer among those of its kind."""
        return self.layers[:layer].count(self.layers[layer])


class _Memory:
    """The state of all layers, float32 (n_layers, n), and who holds it."""

    def __init__(self, array: Floats, holder: object) -> None:
        self.array, self.holders = array, {holder}  # a set's methods are atomic


class RecurrentPart:
    """The states of all DeltaNet layers of a sequence: a part of a SequenceState.

    pool: where they come from, purpose "state". config: of the layers. memory, length: of a fork,
    what it shares and the tokens of that.
    """

    is_trimmable, start = False, 0

    def __init__(
        self, pool: Pool, config: DeltaNetConfig, memory: _Memory | None = None, length: int = 0
    ) -> None:
        self._pool, self._config = pool, config
        n_taps = (config.n_taps - 1) * config.n_channels
        self._widths = n_taps, math.prod(config.shape.delta_shape)
        self._n_layers = sum(config.layers)
        self._memory = memory
        self._held: tuple[_Memory, int] | None = None  # at a checkpoint, with its length
        self._is_written = False  # since the last advance: by a step that has not ended
        self._is_closed = False
        self._me, self._checkpoint = object(), object()  # holders
        self.length = length
        if memory is not None:
            memory.holders.add(self._me)

    def __repr__(self) -> str:
        return f"<RecurrentPart of {self._n_layers} layers, {self.length} tokens>"

    @property
    def full_nbytes(self) -> int:
        """Bytes of the state, from its first token on."""
        return 4 * self._n_layers * sum(self._widths)

    @property
    def nbytes(self) -> int:
        """Bytes held, also for a checkpoint; shared ones count in each holder."""
        memories = {id(m) for m in (self._memory, self._held and self._held[0]) if m}
        return len(memories) * self.full_nbytes

    def nbytes_at(self, length: int) -> int:
        return self.full_nbytes if length else 0

    def describe(self, n_sequences: int) -> str:
        return f"{n_sequences} x {self._n_layers} DeltaNet layers, of any length"

    # -------------------------------------------------------------------------------------- a step
    def reservable(self, n: int) -> int:
        return n

    def reserve(self, n: int) -> None:
        """Have memory that nobody shares."""
        self._check()
        memory = self._memory
        if memory is not None and len(memory.holders) == 1:
            return
        shape = (self._n_layers, sum(self._widths))
        array = self._pool.array(shape, np.float32, PURPOSE)
        array[:] = 0 if memory is None else memory.array
        self._let_go()
        self._memory = _Memory(array, self._me)

    def layer(self, index: int) -> tuple[Floats, Floats]:
        """The state of the layer of this number among its kind, to be written: taps, delta."""
        assert self._memory is not None
        self._is_written = True  # first: an interrupt may come at once
        row: Floats = self._memory.array[index]
        return row[: self._widths[0]], row[self._widths[0] :]

    def advance(self, n: int) -> None:
        self.length += n
        self._is_written = False

    # ---------------------------------------------------------------------------------- going back
    @property
    def is_intact(self) -> bool:
        """Whether it is that of its tokens: no step has failed that had begun to write."""
        return not self._is_written

    def checkpoint(self, holds: bool) -> int:
        """The length. holds: keep the state of now, a copy as soon as a step writes."""
        self._drop_held()
        if holds and self._memory is not None:
            self._memory.holders.add(self._checkpoint)
            self._held = self._memory, self.length
        return self.length

    def can_go_back(self, checkpoint: int) -> bool:
        is_held = self._held is not None and self._held[1] == checkpoint
        return checkpoint == 0 or is_held or (self.is_intact and checkpoint == self.length)

    def rollback(self, checkpoint: int) -> None:
        held = self._held
        if checkpoint == 0:
            self.trim(0)
        elif held is not None and held[0] is not self._memory:
            self._let_go()
            self._memory = held[0]
            self._memory.holders.add(self._me)
        self.length, self._is_written = checkpoint, False

    def trim(self, length: int) -> None:
        """length: 0, or its own."""
        self._check()
        self._drop_held()
        if length == 0:
            self._let_go()
            self.length, self._is_written = 0, False

    def _let_go(self) -> None:
        if self._memory is not None:
            self._memory.holders.discard(self._me)
        self._memory = None

    def _drop_held(self) -> None:
        if self._held is not None:
            self._held[0].holders.discard(self._checkpoint)
        self._held = None

    def _check(self) -> None:
        if self._is_closed:
            raise ValueError("the state is closed")

    # ------------------------------------------------------------------------------------- copies
    def fork(self, sinks: int | None) -> RecurrentPart:
        self._check()
        if not self.is_intact:
            raise ValueError("a step of this state has failed: it can begin anew alone")
        return RecurrentPart(self._pool, self._config, self._memory, self.length)

    def layout(self, length: int) -> list[StoredTensor]:
        n_bytes = 4 * sum(self._widths)
        n_layers = self._n_layers if length else 0
        return [StoredTensor(f"layer.{i}.state", "F32", n_bytes) for i in range(n_layers)]

    def export(self) -> Iterator[Bytes]:
        memory = self._memory
        for i in range(self._n_layers if memory is not None else 0):
            assert memory is not None
            yield memory.array[i].view(np.uint8)

    def import_(self, length: int, tensors: Iterable[Bytes]) -> None:
        memory = self._memory
        assert memory is not None
        self._is_written = True
        for i, data in zip(range(self._n_layers), tensors, strict=True):
            memory.array[i].view(np.uint8)[:] = data

    def close(self) -> None:
        self._drop_held()
        self._let_go()
        self._is_closed = True


def delta_net_parts(
    config: Any, pool: Pool, *, capacity: int, dtype: str, sinks: int
) -> dict[str, StatePart]:
    """The parts of a model with attention and DeltaNet layers. ValueError for sinks."""
    if sinks:
        raise ValueError(
            "context_end: 'window' is not possible with layers that have a state, which remembers "
            "what a window leaves behind"
        )
    n_attention = config.delta_net.layers.count(False)
    kv = kv_part(config, pool, n_layers=n_attention, capacity=capacity, dtype=dtype, sinks=0)
    return {"kv": kv, PURPOSE: RecurrentPart(pool, config.delta_net)}
