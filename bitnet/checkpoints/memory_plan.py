"""What a model will need: bytes by purpose, from its headers alone, and which settings need less.

tests/checkpoints/test_memory_plan.py holds these figures against the pool of a loaded model, and
`bitnet memory --measure` against the operating system.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checks import format_bytes
from ..errors import MemoryLimitExceeded
from ..formats.ternary_layouts import n_bytes as n_bytes_of_layout
from ..formats.ternary_layouts import padded
from ..models.config import ModelConfig
from ..models.recurrent_state import DEFAULT_SNAPSHOTS
from ..models.sequence_state import SequenceState, StatePart
from ..models.workspace import MAX_BATCH, work_arrays
from ..runtime import cpu
from ..runtime.kv_cache import DEFAULT_KV_DTYPE, DTYPES, PAGE
from ..runtime.mmap import HUGE_PAGE
from ..runtime.pool import ALIGN, Pool
from . import repack_cache
from .checkpoint import Checkpoint, TernaryTensor

# What the process grows by beside the pool. Measured with vocabularies of 128,256 tokens: 42 to
# 45 MiB for a tokenizer and 6 MiB for the words it remembers, 3 MiB for Python's objects, 8 MiB for
# arrays of sampling, 64 to 80 KiB for a thread's stack (a huge page where every stack gets one).
WORDS_BYTES = 6 << 20  # bytes: the words a tokenizer remembers
TOKEN_BYTES = 400  # bytes of the tokenizer for each token of the vocabulary
OBJECTS_BYTES = 4 << 20  # bytes: Python's objects
SAMPLING_BYTES = 64  # bytes of sampling's arrays for each token of the vocabulary
THREAD_BYTES = 96 << 10  # bytes for each thread: the part of its stack that is touched
CODE_BYTES = 7 << 20  # bytes: the libraries that are loaded with the first model
FREE_BYTES = 64 << 10  # bytes the pool holds and does not use: it takes whole pages
ASKED_LIMIT = "memory_limit"  # the argument of load


@dataclass(frozen=True)
class Need:
    """Bytes for one purpose. where: "pool", counted there and exact; "heap", an estimate of what
    grows beside it; "files", mapped and shared by processes, which no limit counts."""

    purpose: str
    nbytes: int
    what: str
    where: str = "pool"


@dataclass(frozen=True)
class Settings:
    """The arguments of load on which memory depends."""

    context: int
    kv_dtype: str = DEFAULT_KV_DTYPE
    slots: int = 1
    threads: int = 1
    mapping: str = "map"
    activations: str | None = None
    snapshots: int = DEFAULT_SNAPSHOTS


class Planner:
    """The needs of one model with any settings. The checkpoint is read, and not kept.

    draft: the checkpoint of a small model that drafts for it, or None.
    """

    def __init__(self, checkpoint: Checkpoint, draft: Checkpoint | None = None) -> None:
        self.config = checkpoint.config
        self._draft = None if draft is None else Planner(draft)
        metadata = checkpoint.tokenizer_source.metadata
        tokens = () if metadata is None else metadata.get("tokenizer.ggml.tokens", ())
        self.n_tokens = self.config.vocab_size if metadata is None else len(tokens)
        if checkpoint.is_undecided():
            repack_cache.find(checkpoint)
        count = _grouped_bytes if checkpoint.has_group_scales else _codes_bytes
        ternary = [(checkpoint.is_in_place(t), count(t)) for t in checkpoint.ternary.values()]
        tables = [len(t.data) for t in checkpoint.floats.values() if len(t.shape) == 2]
        self._in_place = sum(n_bytes for is_in_place, n_bytes in ternary if is_in_place)
        self._in_place += sum(_array_bytes(n_bytes, item=1) for n_bytes in tables)
        self._repacked = sum(n_bytes for is_in_place, n_bytes in ternary if not is_in_place)
        self._headers = sum(len(file.data) for file in checkpoint.files)
        self._headers -= sum(len(t.data) for f in checkpoint.files for t in f.tensors.values())
        self._has_cache = repack_cache.has_folder()
        self._activation_bits = checkpoint.activation_bits
        self.has_group_scales = checkpoint.has_group_scales
        head = checkpoint.screened_head() if self._has_cache else None
        self._is_screened = head is not None
        if head:
            self._repacked += _array_bytes(head.n_rows, head.n_cols, item=1)
            self._repacked += _array_bytes(head.n_rows, 3)

    def needs(self, settings: Settings) -> list[Need]:
        """[Need] with every slot full."""
        s, weights = settings, self._weights_in_pool(settings)
        mapped = self._in_place + self._repacked - weights + self._headers
        needs = plan(
            self.config, context=s.context, kv_dtype=s.kv_dtype, slots=s.slots, threads=s.threads,
            n_tokens=self.n_tokens, weights=weights, is_screened=self._is_screened,
            activation_bits=self._activation_bits(s.activations), snapshots=s.snapshots,
        )  # fmt: skip
        return [
            *needs,
            *self._needs_of_draft(settings),
            Need("free", FREE_BYTES, "what chunks leave unused of the pool's pages"),
            Need("files", mapped, "mapped, shared by processes", "files"),
            Need("libraries", CODE_BYTES, "mapped, shared by processes", "files"),
        ]

    def _needs_of_draft(self, settings: Settings) -> list[Need]:
        """What the small model needs of pool and files: the rest is there for the large one."""
        if self._draft is None:
            return []
        needs = self._draft.needs(self._settings_of_draft(settings))
        return [
            replace(need, what=f"draft: {need.what}")
            for need in needs
            if need.where != "heap" and need.purpose not in ("free", "libraries")
        ]

    def _settings_of_draft(self, settings: Settings) -> Settings:
        assert self._draft is not None
        return settings_of_draft(settings, self._draft.config, self._draft.has_group_scales)

    def private(self, settings: Settings) -> int:
        """Bytes private to the process, every slot full."""
        return sum(need.nbytes for need in self.needs(settings) if need.where != "files")

    def minimum(self, settings: Settings) -> int:
        """The bytes without which load refuses: one slot full, the others wait for room, and no
        snapshots."""
        others = (settings.slots - 1) * self.slot_bytes(settings)
        return self.private(settings) - others - self._snapshot_bytes(settings)

    def _snapshot_bytes(self, settings: Settings) -> int:
        """Bytes of the states that are kept beside the slots."""
        parts = _new_state(self.config, settings.context, settings.kv_dtype).parts.values()
        each = sum(p.nbytes_at(settings.context) for p in parts if not p.is_trimmable)
        return settings.slots * settings.snapshots * each

    def full_slots(self, settings: Settings, limit: int) -> int:
        """How many slots may be full at once under a limit."""
        spare = (limit - self.minimum(settings)) // self.slot_bytes(settings)
        return min(settings.slots, 1 + spare)

    def longest_context(self, settings: Settings, limit: int) -> int:
        """Tokens of the longest context with which one slot fits, in whole pages but for the
        model's own longest; 0 where not even a page fits."""
        longest = self.config.max_position_embeddings
        contexts = [*range(PAGE, longest, PAGE), longest]
        return int(self._largest_fitting(settings, "context", contexts, limit).get("context", 0))

    def check(self, settings: Settings, limit: int, setter: str = ASKED_LIMIT) -> int:
        """The bytes a limit leaves to the pool. MemoryLimitExceeded if one slot does not fit.

        setter: who has set it. One that nobody asked for is not to be raised by asking.
        """
        needed, needs = self.minimum(settings), self.needs(settings)
        if needed > limit:
            remedies = self.remedies(settings, limit)
            if setter != ASKED_LIMIT:
                remedies = [entry for entry in remedies if ASKED_LIMIT not in entry[0]]
            raise MemoryLimitExceeded(limit, needed, needs, remedies, table(needs), setter)
        return limit - sum(need.nbytes for need in needs if need.where == "heap")

    def remedies(self, settings: Settings, limit: int) -> list[tuple[dict[str, Any], int]]:
        """[(changes, bytes needed then)] with which one slot fits: one setting each, or all."""
        dtypes = sorted(DTYPES, key=lambda dtype: state_bytes(self.config, PAGE, dtype))
        choices: dict[str, Sequence[Any]] = {
            "context": range(PAGE, settings.context, PAGE),
            "kv_dtype": dtypes[: dtypes.index(settings.kv_dtype)],
            "slots": range(1, settings.slots),
            "threads": range(1, settings.threads),
            "mapping": ["map"] if settings.mapping == "copy" else [],
        }
        remedies = [
            self._largest_fitting(settings, name, values, limit) for name, values in choices.items()
        ]
        if not any(remedies):
            smallest = {name: values[0] for name, values in choices.items() if values}
            all_smallest = replace(settings, **smallest)
            context = self._largest_fitting(all_smallest, "context", choices["context"], limit)
            remedies = [smallest | context] if context else []
        remedies = [changes for changes in remedies if changes]
        needed = [self._minimum_with(settings, changes) for changes in remedies]
        if self._draft is not None:
            alone = self.minimum(settings) - self._minimum_of_draft(settings)
            if alone <= limit:
                remedies.append({"speculative": None})
                needed.append(alone)
        needed.append(self.minimum(settings))
        remedies.append({ASKED_LIMIT: f"{-(-needed[-1] >> 20)}MiB"})
        return list(zip(remedies, needed, strict=True))

    def _largest_fitting(
        self, settings: Settings, name: str, values: Sequence[Any], limit: int
    ) -> dict[str, Any]:
        """{name: the largest value with which one slot fits}, {} where none does.

        values: in ascending order of the bytes needed.
        """
        n = bisect_right(values, limit, key=lambda v: self._minimum_with(settings, {name: v}))
        return {name: values[n - 1]} if n else {}

    def _minimum_with(self, settings: Settings, changes: Mapping[str, Any]) -> int:
        return self.minimum(replace(settings, **changes))

    def _weights_in_pool(self, settings: Settings) -> int:
        if settings.mapping == "copy":
            return self._in_place + self._repacked
        return 0 if self._has_cache else self._repacked

    def slot_bytes(self, settings: Settings) -> int:
        """Bytes of what a full slot holds."""
        own = state_bytes(self.config, settings.context, settings.kv_dtype)
        if self._draft is None:
            return own
        return own + self._draft.slot_bytes(self._settings_of_draft(settings))

    def _minimum_of_draft(self, settings: Settings) -> int:
        """What minimum would be less by without the small model."""
        assert self._draft is not None
        needs = self._needs_of_draft(settings)
        full = sum(need.nbytes for need in needs if need.where != "files")
        state = self._draft.slot_bytes(self._settings_of_draft(settings))
        return full - (settings.slots - 1) * state


def settings_of_draft(settings: Settings, config: ModelConfig, has_groups: bool) -> Settings:
    """The settings of a small model that drafts for a large one.

    settings: of the large one. config: of the small one. has_groups: whether its weights have
    scales of groups, for which alone rounding of activations is a choice.
    """
    return replace(
        settings,
        context=min(settings.context, config.max_position_embeddings),
        activations=settings.activations if has_groups else None,
    )


def plan(
    config: ModelConfig,
    *,
    context: int,
    kv_dtype: str = DEFAULT_KV_DTYPE,
    slots: int = 1,
    threads: int = 1,
    n_tokens: int | None = None,
    weights: int = 0,
    is_screened: bool = False,
    activation_bits: int | None = None,
    snapshots: int = 0,
) -> list[Need]:
    """[Need] of a model that is loaded and in use, every slot full, without its mapped files.

    config: ModelConfig. context: positions a sequence may have. kv_dtype: of cached keys and
    values. slots: sequences at once. threads: of every operation. n_tokens: entries of the
    tokenizer, None for vocab_size. weights: bytes of tensors kept in the pool, where there is no
    cache folder or they are copied. is_screened: whether the head is, see lm_head_screen.py.
    activation_bits: as of weights.Weights. snapshots: of a slot, of parts of a state that cannot go
    back; their keys and values they share with the slots, or give way to them.
    """
    n_tokens = config.vocab_size if n_tokens is None else n_tokens
    state = _new_state(config, context, kv_dtype)
    work: Counter[str] = Counter()
    arrays = work_arrays(
        config, n_sequences=slots, n_threads=threads, has_screen=is_screened,
        activation_bits=activation_bits,
    )  # fmt: skip
    for array in arrays:
        work[array.purpose] += _aligned(array.nbytes)
    needs = [
        *(_need_of_part(purpose, part, context, slots, snapshots)
          for purpose, part in state.parts.items()),
        Need("scratch", work["scratch"], f"{MAX_BATCH} rows of a forward pass"),
        Need("rope", work["rope"], "cosines and sines of a forward pass"),
        Need("norms", work["norms"], "copies in float32"),
        Need("logits", work["logits"], f"{slots} x {config.vocab_size:,}"),
        Need("tokenizer", WORDS_BYTES + TOKEN_BYTES * n_tokens, f"{n_tokens:,} tokens", "heap"),
        Need("engine", OBJECTS_BYTES + SAMPLING_BYTES * config.vocab_size,
             "objects, and arrays of sampling", "heap"),
        Need("threads", threads * _thread_bytes(), f"{threads} with their stacks", "heap"),
    ]  # fmt: skip
    if weights:
        needs.insert(0, Need("weights", weights, "tensors that are not used in the mapped file"))
    return needs


def _need_of_part(purpose: str, part: StatePart, context: int, slots: int, snapshots: int) -> Need:
    n, what = slots, part.describe(slots)
    if snapshots and not part.is_trimmable:
        n += slots * snapshots
        what += f", and {slots * snapshots} snapshots"
    return Need(purpose, n * part.nbytes_at(context), what)


def table(needs: Iterable[Need]) -> list[str]:
    """Lines of text: bytes, purpose and what it is; the sum of what is private."""
    needs = list(needs)
    mapped = [(n.nbytes, n.purpose, n.what) for n in needs if n.where == "files"]
    rows = [
        (n.nbytes, n.purpose, n.what + (" (estimate)" if n.where == "heap" else ""))
        for n in needs
        if n.where != "files"
    ]
    rows += [(sum(n_bytes for n_bytes, _, _ in rows), "sum", "private to the process"), *mapped]
    cells = [(format_bytes(n_bytes), purpose, what) for n_bytes, purpose, what in rows]
    widths = [max(len(row[i]) for row in cells) for i in (0, 1)]
    return [f"{a:>{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in cells]


def state_bytes(config: ModelConfig, capacity: int, dtype: str) -> int:
    """Bytes of the state of one sequence of `capacity` tokens."""
    return _new_state(config, capacity, dtype).full_nbytes


def _new_state(config: ModelConfig, capacity: int, dtype: str) -> SequenceState:
    pool = Pool(1 << 16)  # nothing is taken from it: a state takes memory as it needs it
    return config.arch.new_state(config, pool, capacity=capacity, dtype=dtype)


def _thread_bytes() -> int:
    return HUGE_PAGE if cpu.huge_pages() == "always" else THREAD_BYTES


def _codes_bytes(ternary: TernaryTensor) -> int:
    """Bytes of a linear layer's codes in the layout that kernels read."""
    return _array_bytes(ternary.n_rows, padded(ternary.n_cols) // 4, item=1)


def _grouped_bytes(ternary: TernaryTensor) -> int:
    """Bytes of a tensor with scales of groups in the layout that kernels read."""
    if ternary.grouped is not None:
        return sum(_array_bytes(array.nbytes, item=1) for array in ternary.grouped.arrays())
    shape = ternary.n_rows, ternary.n_cols
    return _array_bytes(n_bytes_of_layout(ternary.grouped_type, *shape), item=1)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGN) * ALIGN


def _array_bytes(*shape: int, item: int = 4) -> int:
    """Bytes the pool gives to an array. item: bytes of an item."""
    return _aligned(math.prod(shape) * item)
