"""What a model remembers of a sequence, whatever its layers are: the seam between layers, which
read and write it, and schedulers, sessions, kept prefixes, saved files and the memory plan.

A SequenceState has one part for each kind of layer memory; an Architecture says which its layers
need. Keys and values of all attention layers are such a part, in a KVCache.

A step of the model goes: reserve(n), the layers write, advance(n). Until advance the state is that
of the tokens before, so that a step which fails has changed nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runtime.kv_cache import PAGE, KVCache
from ..runtime.pool import Pool

Bytes = NDArray[np.uint8]
RollbackPoint = tuple[int, int, list[Any]]  # start, length, and a checkpoint of each part


class StoredTensor(NamedTuple):
    """One of the named tensors a state is exported as. type: ggml's name of its numbers."""

    name: str
    type: str
    n_bytes: int


class StatePart(Protocol):
    """What one kind of layers remembers of a sequence; its methods as those of SequenceState.

    is_trimmable: whether trim may go back to any token it holds; otherwise it is asked for none or
    for all of them only. is_intact: False where a step that failed has spoiled it, as it may one
    that is not trimmable. A new part holds nothing of the pool: reserve takes what it needs.
    """

    is_trimmable: bool

    @property
    def is_intact(self) -> bool: ...

    @property
    def start(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def nbytes_at(self, length: int) -> int: ...
    def reservable(self, n: int) -> int: ...
    def reserve(self, n: int) -> None: ...
    def advance(self, n: int) -> None: ...
    def checkpoint(self, holds: bool) -> Any: ...
    def can_go_back(self, checkpoint: Any) -> bool: ...
    def rollback(self, checkpoint: Any) -> None: ...
    def trim(self, length: int) -> None: ...
    def fork(self, sinks: int | None) -> StatePart: ...
    def layout(self, length: int) -> list[StoredTensor]: ...
    def export(self) -> Iterator[Bytes]: ...
    def import_(self, length: int, tensors: Iterable[Bytes]) -> None: ...
    def close(self) -> None: ...
    def describe(self, n_sequences: int) -> str:
        """What the memory of so many full sequences is, for the memory plan."""


class SequenceState:
    """The memory of one sequence; not for two threads at once, though its forks may be.

    parts: {purpose in the pool: part}, at least one, all of length tokens. capacity: tokens that
    are seen at once. dtype: of cached keys and values, "f16", "f32" or "int8".

    length: tokens it has seen. Set here alone: the parts move with it.
    """

    def __init__(
        self, parts: Mapping[str, StatePart], *, capacity: int, dtype: str, length: int = 0
    ) -> None:
        self.parts, self.capacity, self.dtype = dict(parts), capacity, dtype
        self.length = length
        self._parts = tuple(self.parts.values())
        self.is_trimmable = all(part.is_trimmable for part in self._parts)

    def __repr__(self) -> str:
        return f"<SequenceState {self.start} to {self.length}: {', '.join(map(repr, self._parts))}>"

    @property
    def start(self) -> int:
        """The first token it holds in full: 0, or where a window has moved to."""
        return max([part.start for part in self._parts])

    @property
    def nbytes(self) -> int:
        """Bytes held, reserved ones included; shared ones count in each holder."""
        return sum(part.nbytes for part in self._parts)

    @property
    def full_nbytes(self) -> int:
        """Bytes held at the capacity."""
        return self.nbytes_at(self.capacity)

    def nbytes_at(self, length: int) -> int:
        """Bytes held with so many tokens."""
        return sum(part.nbytes_at(length) for part in self._parts)

    # -------------------------------------------------------------------------------------- a step
    def reservable(self, n: int) -> int:
        """How many of the next n tokens may be reserved at once, at least 1."""
        return min(part.reservable(n) for part in self._parts)

    def reserve(self, n: int) -> None:
        """Make room for the next n tokens. ContextFull, PoolExhausted: no token has been lost."""
        for part in self._parts:
            part.reserve(n)

    def advance(self, n: int) -> None:
        """Count n reserved tokens as seen. ValueError if they are not reserved."""
        self.length += n  # first: an interrupt between two parts is undone from there
        for part in self._parts:
            part.advance(n)

    # ---------------------------------------------------------------------------------- going back
    @property
    def is_intact(self) -> bool:
        """Whether it is the state of its tokens. False behind a step that failed while it wrote
        what cannot be trimmed: then only trim(0) is possible, or a rollback to what is held."""
        return all(part.is_intact for part in self._parts)

    def checkpoint(self, *, holds: bool = False) -> RollbackPoint:
        """This place, for rollback; good until another one is taken, or the state is trimmed.

        holds: keep what cannot be trimmed, which is copied before it is written. Otherwise rollback
        may refuse once it was.
        """
        return self.start, self.length, [part.checkpoint(holds) for part in self._parts]

    def rollback(self, checkpoint: RollbackPoint) -> bool:
        """Become what the state was at a checkpoint, and forget what is reserved.

        False, and nothing is done, where a window has moved since, or a part cannot.
        """
        start, length, places = checkpoint
        pairs = list(zip(self._parts, places, strict=True))
        if self.start != start or not all(part.can_go_back(place) for part, place in pairs):
            return False
        for part, place in pairs:
            part.rollback(place)
        self.length = length
        return True

    def trim(self, length: int) -> bool:
        """Forget the tokens from this one on, and what is reserved; memory is given back.

        False, and nothing is done, where it cannot go back there: 0 and its length are always
        possible, others only if it is_trimmable and no window has moved beyond them; 0 alone where
        it is not intact. ValueError if there are fewer tokens.
        """
        n = self.length
        if not 0 <= length <= n:
            raise ValueError(f"length: {length} ({self.start} to {n}, what is held)")
        if 0 < length < n and not (self.is_trimmable and self.start <= length):
            return False
        if length and not self.is_intact:
            return False
        for part in self._parts:
            part.trim(length)
        self.length = length
        return True

    # ------------------------------------------------------------------------------------- copies
    def fork(self, sinks: int | None = None) -> SequenceState:
        """A second state of the same tokens; they share memory until either one writes.

        sinks: as of KVCache, None for those of this one. What is reserved is given back first.
        """
        parts = {purpose: part.fork(sinks) for purpose, part in self.parts.items()}
        return SequenceState(parts, capacity=self.capacity, dtype=self.dtype, length=self.length)

    def layout(self, length: int) -> list[StoredTensor]:
        """What export gives of a sequence of this length: a StoredTensor for each."""
        return [tensor for part in self._parts for tensor in part.layout(length)]

    def export(self) -> Iterator[Bytes]:
        """Yield the tensors of layout(length), uint8 (n_bytes,), each valid until the next step."""
        for part in self._parts:
            yield from part.export()

    def import_(self, length: int, tensors: Iterable[Bytes]) -> None:
        """Write what was exported of a sequence of this length; the state is empty, and so many
        tokens are reserved. They count once they are advanced over."""
        rest = iter(tensors)
        for part in self._parts:
            part.import_(length, islice(rest, len(part.layout(length))))

    def close(self) -> None:
        """Give all memory back; any later use raises ValueError. May be repeated."""
        for part in self._parts:
            part.close()


class KVCachePart:
    """Keys and values of all attention layers, in pages.

    cache: a KVCache. It can go back to any token that its window has not left behind.
    """

    is_trimmable = is_intact = True
    # Of a page in a file. In int8 a page ends in float32 scales and is whole float32s.
    STORED_TYPES = {"f16": "F16", "f32": "F32", "int8": "F32"}  # noqa: RUF012

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.reservable, self.reserve = cache.reservable, cache.reserve
        self.advance, self.close = cache.advance, cache.close

    def __repr__(self) -> str:
        return repr(self.cache)

    @property
    def start(self) -> int:
        return self.cache.start

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def nbytes_at(self, length: int) -> int:
        n_pages = -(-min(length, self.cache.capacity) // PAGE)
        return n_pages * (self.cache.full_nbytes // self.cache.n_pages)

    def checkpoint(self, holds: bool) -> int:
        return self.cache.length

    def can_go_back(self, checkpoint: int) -> bool:
        return True

    def rollback(self, checkpoint: int) -> None:
        self.cache.trim(checkpoint)

    def trim(self, length: int) -> None:
        if length:
            self.cache.trim(length)
        else:
            self.cache.reset()  # also where a window has moved

    def fork(self, sinks: int | None) -> KVCachePart:
        return KVCachePart(self.cache.fork(sinks))

    def layout(self, length: int) -> list[StoredTensor]:
        cache, stored_type = self.cache, self.STORED_TYPES[self.cache.dtype]
        n_bytes = cache.full_nbytes // cache.n_pages // cache.n_layers
        return [
            StoredTensor(f"layer.{layer}.page.{page}", stored_type, n_bytes)
            for layer, page in self._pages(length)
        ]

    def export(self) -> Iterator[Bytes]:
        for layer, page in self._pages(self.cache.length):
            yield self.cache.export_page(layer, page)

    def import_(self, length: int, tensors: Iterable[Bytes]) -> None:
        for (layer, page), data in zip(self._pages(length), tensors, strict=True):
            self.cache.import_page(layer, page, data)

    def _pages(self, length: int) -> Iterator[tuple[int, int]]:
        """(layer, page) of every page."""
        n_pages = -(-length // PAGE)
        return ((i, page) for page in range(n_pages) for i in range(self.cache.n_layers))

    def describe(self, n_sequences: int) -> str:
        cache = self.cache
        pages = f"{n_sequences} x {cache.n_pages} pages of {PAGE} positions"
        return f"keys and values: {pages} in {cache.n_layers} layers"


def attention_parts(
    config: Any, pool: Pool, *, capacity: int, dtype: str, sinks: int
) -> dict[str, StatePart]:
    """The parts of a model all of whose layers are attention."""
    n_layers = config.num_hidden_layers
    part = kv_part(config, pool, n_layers=n_layers, capacity=capacity, dtype=dtype, sinks=sinks)
    return {"kv": part}


def kv_part(
    config: Any, pool: Pool, *, n_layers: int, capacity: int, dtype: str, sinks: int
) -> KVCachePart:
    """Keys and values of n_layers of a model."""
    cache = KVCache(
        pool,
        n_layers=n_layers,
        n_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        capacity=capacity,
        dtype=dtype,
        sinks=sinks,
    )
    return KVCachePart(cache)
