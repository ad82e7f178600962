"""Every work array of a forward pass: its name, shape, dtype, and what it counts as in the pool.

Transformer takes its arrays by this list, and the memory plan sums it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..compute import ops
from ..compute.grouped import activation_shapes
from ..compute.operands import screen_work
from ..formats.ternary_layouts import padded
from ..runtime.pool import Pool

MAX_BATCH = 256  # rows of one forward pass: more are no faster, and work arrays grow with them
# Rows of a pass, for all sequences, that check drafts: 9 rows of a 2B model take as long as 3 steps
# of one.
DRAFT_ROWS = 8


# Norms of DeltaNet that make queries and keys of length 1, before a query's scale: no tensors.
UNIT_NORMS = "unit.q", "unit.k"


class WorkArray(NamedTuple):
    """One work array. purpose: what the pool counts its bytes for."""

    name: str
    shape: tuple[int, ...]
    dtype: type
    purpose: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def take(self, pool: Pool) -> np.ndarray:
        """The array itself, of undefined contents. PoolExhausted."""
        return pool.array(self.shape, self.dtype, self.purpose)


def work_arrays(
    config: Any,
    *,
    n_rows: int = MAX_BATCH,
    n_sequences: int = 1,
    n_threads: int = 1,
    has_screen: bool = False,
    activation_bits: int | None = None,
) -> list[WorkArray]:
    """All work arrays of a model.

    config: ModelConfig. n_rows, n_sequences: of one forward pass at most. n_threads: of every
    operation. has_screen: whether the LM head is screened. activation_bits: as of
    weights.Weights.
    """
    arrays = [
        *norm_arrays(config),
        *rope_arrays(config, n_rows + n_sequences),
        *activation_arrays(config, n_rows),
        *quantized_arrays(config, n_rows, activation_bits),
        *fine_arrays(config, n_rows, activation_bits),
        WorkArray("attention.partials", (_partials(config),), np.float32, "scratch"),
        *thread_arrays(config, n_threads, activation_bits),
        WorkArray("logits", (n_sequences + DRAFT_ROWS, config.vocab_size), np.float32, "logits"),
    ]
    return arrays + (screen_arrays(config) if has_screen else [])


def norm_arrays(config: Any) -> list[WorkArray]:
    """The weights of norms and other small tensors in float32, by the names of their tensors; of a
    tensor with two axes the last one first."""
    shapes = {
        name: shape[::-1]
        for name, shape in config.tensor_shapes().items()
        if len(shape) == 1 or config.arch.is_vector(name)
    }
    if config.delta_net is not None:
        shapes |= dict.fromkeys(UNIT_NORMS, (config.delta_net.key_dim,))
    return [WorkArray(name, shape, np.float32, "norms") for name, shape in shapes.items()]


def rope_arrays(config: Any, n_rows: int) -> list[WorkArray]:
    """Frequencies, and cosines and sines of n_rows positions, of both kinds of RoPE in use."""
    half = (config.rotary_dim or config.head_dim) // 2
    return [
        WorkArray(f"{rope_name(is_local)}.{part}", shape, np.float32, "rope")
        for is_local in sorted(set(config.sliding_layers or (False,)))
        for part, shape in (("frequencies", (half,)), ("cos_sin", (2, n_rows, half)))
    ]


def rope_name(is_local: bool) -> str:
    """How the arrays of a RoPE begin. is_local: that of layers whose window slides."""
    return "rope.local" if is_local else "rope"


def activation_arrays(config: Any, n_rows: int) -> list[WorkArray]:
    """What a block's graph works on, float32 (n_rows, width): block_arrays of the Architecture."""
    widths = config.widths()
    return [
        WorkArray(name, (n_rows, sum(widths[part] for part in parts)), np.float32, "scratch")
        for name, parts in config.arch.block_arrays.items()
    ]


def quantized_arrays(config: Any, n_rows: int, bits: int | None = None) -> list[WorkArray]:
    """Quantised activations, as wide as the widest input of a linear layer.

    bits: of activations that are rounded by groups of columns, None: 8 with one scale a token.
    """
    widths = config.widths()
    widest = max(widths[inputs] for _, inputs in config.arch.linears.values())
    shapes = [(n_rows, padded(widest)), (n_rows,), (n_rows,)]
    if bits is not None:
        shapes = activation_shapes(n_rows, widest, bits)
    return _code_arrays("codes", shapes)


def fine_arrays(config: Any, n_rows: int, bits: int | None = None) -> list[WorkArray]:
    """The same in 16 bits, for the rows of an Architecture; none where the others have as many."""
    if not config.arch.rows or bits == 16:
        return []
    widths = config.widths()
    widest = max(widths[inputs] for _, inputs in config.arch.rows.values())
    return _code_arrays("fine_codes", activation_shapes(n_rows, widest, 16))


def _code_arrays(name: str, shapes: list[tuple[int, ...]]) -> list[WorkArray]:
    names, dtypes = (name, f"{name}.scales", f"{name}.sums"), (np.int8, np.float32, np.int32)
    return [
        WorkArray(name, shape, dtype, "scratch")
        for name, shape, dtype in zip(names, shapes, dtypes, strict=True)
    ]


def thread_arrays(config: Any, n_threads: int, bits: int | None = None) -> list[WorkArray]:
    """What each thread works in where a batch is large; none where no matrix is large enough.

    bits: as of quantized_arrays.
    """
    count = ops.workspace_bytes if bits is None else ops.grouped_workspace_bytes
    n_bytes = count(max(config.hidden_size, config.intermediate_size))
    shape = (n_threads, n_bytes)
    return [WorkArray("threads", shape, np.uint8, "scratch")] if n_bytes else []


def screen_arrays(config: Any) -> list[WorkArray]:
    """The work arrays of a screened LM head."""
    work = screen_work(config.vocab_size, config.hidden_size)
    names = ("screen.inputs", "screen.best", "screen.survivors")
    return [
        WorkArray(name, shape, dtype, "scratch")
        for name, (shape, dtype) in zip(names, work, strict=True)
    ]


def _partials(config: Any) -> int:
    """Floats of the partial sums of attention, where threads share a sequence's positions."""
    return ops.partials_floats(config.num_attention_heads, config.head_dim)
