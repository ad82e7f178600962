"""Checkpoint: what the files of a model hold, every tensor checked and none read yet.

A model is an HF folder or a GGUF file; open_checkpoint() reads either. Tensors have one name
whatever the container: that of HF checkpoints without "model." and ".weight" (embed_tokens,
layers.0.self_attn.q_proj).
"""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ..formats import ternary_layouts
from ..formats.float_blocks import dequantize
from ..formats.ggml_types import FLOAT_TYPES
from ..formats.gguf import GGUFFile
from ..formats.group_scales import GROUPS, GroupedMatrix, Steps, steps, to_float16
from ..formats.safetensors import SafetensorsFile
from ..formats.tensor import Tensor
from ..formats.ternary_layouts import WHOLE_ROWS, Quantization
from ..models import lm_head_screen
from ..models.architecture import Architecture, split_name
from ..models.config import ModelConfig
from ..models.rotation import Rotation
from ..text.vocabulary import TokenizerSource

log = logging.getLogger("bitnet")

# How a tensor of type I2_S may lie, which its file does not say: see docs/models.md.
I2_S_LAYOUTS = {"128x32": "I2_S", "64x16": "I2_S_64", "4row": "I2_S_4ROW"}
DEFAULT_LAYOUT = "128x32"  # the layout of microsoft/BitNet and of nearly every published file

# How activations are rounded by groups of columns where weights have scales of groups: bits.
ACTIVATIONS = {"int16": 16, "int8": 8}
DEFAULT_ACTIVATIONS = "int16"  # as good as float: docs/models.md

Codes = Iterator[np.ndarray]  # uint8 (some rows, n_cols) of 0, 1, 2 in row order


@dataclass(frozen=True)
class TernaryTensor:
    """A linear layer as a file holds it, or an embedding or head that is ternary too.

    stored_as: its type ("I2_S", "TQ2_0", "HF packed", "BF16 masters", ...).
    scales_may_differ: whether the type could hold a scale for each row.
    in_place: uint8 (n_rows, padded(n_cols) // 4), the codes where the kernels can read them as they
        lie, else None.
    unpack: () -> (scales, codes), as read() gives them but unchecked; ValueError.
    quantization: the groups of weights and of activations that have a scale of their own in the
        file. Groups of a row whose scales are equal are read as one.
    grouped: the matrix where kernels for scales of groups can read it as it lies, else None.
    unpack_groups: () -> what read_groups() yields, but unchecked; None: rows have one scale.
    """

    name: str
    tensor: Tensor
    n_rows: int
    n_cols: int
    stored_as: str
    scales_may_differ: bool
    in_place: np.ndarray | None
    unpack: Callable[[], tuple[np.ndarray, Codes]]
    quantization: Quantization = WHOLE_ROWS
    grouped: GroupedMatrix | None = None
    unpack_groups: Callable[[], Steps] | None = None

    @property
    def grouped_type(self) -> str:
        """The layout in which kernels for scales of groups read it, a type of GroupedMatrix.

        FormatError for rows that are no whole number of groups.
        """
        if self.grouped is not None:
            return self.grouped.type
        large, small = GROUPS
        if self.n_cols % small:
            limit = f"a multiple of {small}, in a model whose groups of columns have scales"
            raise FormatError(self.tensor.path, f"{self.tensor.name} columns", self.n_cols, limit)
        group = self.quantization.weight_group or self.n_cols
        return "Q2_0_G64" if group % large else "PQ2_0"

    def read_groups(self) -> Steps:
        """Yield (scales, codes) of some rows, in the order of rows, of a model with group scales.

        scales: float32 (some, n_groups), each of which float16 holds; 0 makes its weights 0. codes:
        uint8 (some, n_cols). FormatError as of read().
        """
        row = 0
        try:
            for scales, codes in self._steps():
                to_float16(scales, row)
                yield scales, codes
                row += len(codes)
        except ValueError as error:
            raise self._error(error) from None

    def _steps(self) -> Steps:
        if self.grouped is not None:
            yield from steps(self.grouped)
        elif self.unpack_groups is not None:
            yield from self.unpack_groups()
        else:
            yield from _by_rows(self.n_rows, *self.unpack())

    def scales_differ(self) -> bool:
        """Whether groups of a row have different scales, of a type that may be used either way."""
        type_name = self.tensor.type
        return ternary_layouts.groups_differ(type_name, self.tensor.data, self.n_rows, self.n_cols)

    @property
    def are_masters(self) -> bool:
        """Whether the file holds floats of which codes and scale are made."""
        return self.stored_as.endswith(" masters")

    def scales(self) -> np.ndarray:
        """float32 (1, 1), or (n_rows, 1) where rows differ; they multiply the integer products."""
        return self.read()[0]

    def read(self) -> tuple[np.ndarray, Codes]:
        """(scales, codes): codes are uint8 (some rows, n_cols) of 0, 1, 2, chunks in row order.

        Each chunk is valid until the next. FormatError for scales that no kernel applies, and for
        illegal codes, when they come by.
        """
        try:
            scales, chunks = self.unpack()
            _refuse_groups(scales, self.quantization)
        except ValueError as error:
            raise self._error(error) from None
        return scales, self._checked(chunks)

    def _checked(self, chunks: Codes) -> Codes:
        try:
            yield from chunks
        except ValueError as error:
            raise self._error(error) from None

    def _error(self, error: ValueError) -> FormatError:
        if isinstance(error, FormatError):
            return error
        found, _, limit = str(error).partition(", limit: ")
        limit = limit or f"a ternary tensor of type {self.stored_as}"
        return FormatError(self.tensor.path, self.tensor.name, found, limit)


def _refuse_groups(scales: np.ndarray, quantization: Quantization) -> None:
    """ValueError for scales of groups in a model without: its activations have one scale a token.

    The one place that refuses them. scales: float32 (n_rows, n_groups).
    """
    low, high = scales.min(axis=1), scales.max(axis=1)
    for row in np.flatnonzero(low < high):
        values = f"{low[row]:g} and {high[row]:g} in row {row}"
        raise ValueError(f"group scales, {values}, limit: one scale for a row")
    if scales.shape[1] > 1 or quantization.activation_group:
        raise ValueError(f"{quantization}, limit: one scale for a row")


@dataclass(frozen=True)
class EmbeddingRows:
    """An embedding or head as it lies in the file. data: uint8 (n_rows, row_bytes), at any address.

    type: one of ggml_types.ROW_TYPES. where: file and name of the tensor, for messages.
    """

    type: str
    data: np.ndarray
    n_rows: int
    n_cols: int
    where: str

    def dequantize(self, ids: Any) -> np.ndarray:
        """The rows of these ids as float32 (len(ids), n_cols)."""
        return dequantize(self.type, self.data[ids], self.n_cols)


@dataclass
class Checkpoint:
    """The tensors of one model where they lie.

    ternary: {name: TernaryTensor} of linear layers, and of embedding and head where these are
        ternary. floats: {name: Tensor} of norms, and of embedding and head where they are not.
    files: the mapped files, each with path and data. changed_by: paths whose change changes it.
    layout: of its I2_S tensors, a key of I2_S_LAYOUTS.
    prompts: {name: text} an embedding model puts in front of texts, {"query": "Instruct: ..."}.
    rotation: what its weights were rotated with, None: they were not.
    groups: what has_group_scales gives; None until the scales were read that decide it.
    """

    path: Path
    config: ModelConfig
    tokenizer_source: TokenizerSource
    ternary: dict[str, TernaryTensor]
    floats: dict[str, Tensor]
    files: Sequence[GGUFFile | SafetensorsFile]
    changed_by: list[Path]
    layout: str = DEFAULT_LAYOUT
    prompts: dict[str, str] = field(default_factory=dict)
    groups: bool | None = None
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        if self.groups is None:
            self.groups = _have_groups(self.config.arch, self.ternary)

    @property
    def has_group_scales(self) -> bool:
        """Whether groups of columns of its ternary tensors have scales of their own.

        One answer for the whole model, since its activations are rounded in one way. The first time
        it may read scales, of TQ1_0 and TQ2_0; FormatError for what is wrong there.
        """
        if self.groups is None:
            tensors = (t for t in self.ternary.values() if t.quantization.weight_group)
            self.groups = any(t.scales_differ() for t in tensors)
        return self.groups

    def activation_bits(self, activations: str | None = None) -> int | None:
        """Bits to which activations are rounded by groups of columns; None: 8 with one scale a
        token, where linear layers have one scale a row.

        activations: a key of ACTIVATIONS, None for the default. ValueError where one is given and
        there is no choice.
        """
        if self.has_group_scales:
            return ACTIVATIONS[activations or DEFAULT_ACTIVATIONS]
        if activations is not None:
            limit = "None: this model has one scale a row, and was trained with one a token"
            raise ValueError(f"activations: {activations!r} ({limit})")
        return None

    def is_undecided(self) -> bool:
        """Whether weights have to be read, or a repacked file, to say what it is."""
        return self.groups is None or bool(self.float_tables())

    def is_in_place(self, tensor: TernaryTensor) -> bool:
        """Whether kernels read one of its ternary tensors as it lies in the file."""
        return (tensor.grouped if self.has_group_scales else tensor.in_place) is not None

    def steps(self, name: str) -> Steps:
        """Yield (scales, codes) of some rows of a ternary tensor: scales float32 (some, n_groups),
        codes uint8 (some, n_cols). FormatError as of TernaryTensor.read()."""
        t = self.ternary[name]
        if self.has_group_scales:
            yield from t.read_groups()
            return
        yield from _by_rows(t.n_rows, *t.read())

    def table(self, name: str) -> str:
        """The tensor that is embed_tokens or lm_head: the embedding where they are tied."""
        is_tied_head = name == "lm_head" and self.config.tie_word_embeddings
        return "embed_tokens" if is_tied_head else name

    def float_tables(self) -> list[str]:
        """Embedding and head that are floats in the file, of which a sample was ternary."""
        tables = (name for name in ("embed_tokens", "lm_head") if name in self.ternary)
        return [name for name in tables if self.ternary[name].tensor.type in FLOAT_TYPES]

    def settle_tables(self) -> None:
        """Read float_tables() whole: one with any other weight stays floats."""
        for name in self.float_tables():
            try:
                for _ in self.ternary[name].read_groups():
                    pass
            except FormatError as error:
                log.info("used as floats: %s", error)
                self.keep_floats(name)

    def keep_floats(self, name: str) -> None:
        """Take one of float_tables() as floats."""
        self.floats[name] = self.ternary.pop(name).tensor

    def screened_head(self) -> "EmbeddingRows | None":
        """The head, where it is worth a screen; else None."""
        if self.table("lm_head") in self.ternary:
            return None
        rows = self.rows("lm_head")
        is_worth_it = lm_head_screen.is_worth_it(rows.type, (rows.n_rows, rows.n_cols))
        return rows if is_worth_it else None

    def rows(self, name: str) -> EmbeddingRows:
        """embed_tokens, lm_head or another of an Architecture's rows, one that is not ternary."""
        tensor = self.floats[self.table(name)]
        n_rows, n_cols = tensor.shape
        return EmbeddingRows(tensor.type, tensor.rows(), n_rows, n_cols, tensor.where)

    def vector(self, name: str) -> np.ndarray:
        """A norm's weight as it is applied, or another small tensor, float32 of its shape;
        FormatError for numbers that are not finite, or make no sense."""
        tensor, arch = self.floats[name], self.config.arch
        n = math.prod(tensor.shape)
        stored = dequantize(tensor.type, tensor.data.reshape(1, -1), n)[0].reshape(tensor.shape)
        if not np.isfinite(stored).all():
            raise FormatError(tensor.path, tensor.name, "NaN or infinite", "finite weights")
        if limit := arch.vector_limit(self.config, split_name(name)[1], stored):
            raise FormatError(tensor.path, tensor.name, f"{stored.max():g}", limit)
        values = self.config.arch.applied_norm(name, stored, self.config.norms_are_offsets)
        return np.require(values, requirements=["C", "A"])  # safetensors aligns nothing


def _by_rows(n_rows: int, scales: np.ndarray, chunks: Codes) -> Steps:
    """Yield the scales of each chunk's rows with it. scales: of one row for all, or of n_rows."""
    scales, row = np.broadcast_to(scales, (n_rows, scales.shape[1])), 0
    for codes in chunks:
        yield scales[row : row + len(codes)], codes
        row += len(codes)


def _have_groups(arch: Architecture, ternary: Mapping[str, TernaryTensor]) -> bool | None:
    """has_group_scales by the headers alone; None where scales have to be read."""
    if arch.rounds_by_group:
        return True
    if not arch.may_have_group_scales:
        return False
    if any(t.quantization.weight_group in GROUPS for t in ternary.values()):
        return True
    if not all(map(arch.is_linear, ternary)):
        return True  # of an embedding, which has no other kernels
    return None if any(t.quantization.weight_group for t in ternary.values()) else False


# for the readers of containers --------------------------------------------------------------------


def check_tensor(
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    types: Collection[str],
    path: Path,
) -> Tensor:
    """The tensor of this name in a file, if its shape and type are right."""
    tensor = tensors.get(name)
    if tensor is None:
        raise FormatError(path, name, "missing", f"the configuration needs it, of shape {shape}")
    if tensor.shape != shape:
        limit = f"the configuration needs {shape}"
        raise FormatError(tensor.path, f"{name} shape", tensor.shape, limit)
    if tensor.type not in types:
        raise FormatError(tensor.path, f"{name} type", tensor.type, f"one of {', '.join(types)}")
    return tensor


def stored_scale(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path
) -> np.float32:
    """The one number of a tensor of floats that is a scale."""
    tensor = check_tensor(tensors, name, shape, FLOAT_TYPES, path)
    return check_scale(dequantize(tensor.type, tensor.data.reshape(1, -1), 1)[0, 0], tensor)


def check_scale(value: float | np.floating, tensor: Tensor) -> np.float32:
    """The scale of a tensor as a float32; FormatError if it is not finite and above 0."""
    if not 0 < value < math.inf:  # NaN fails too
        raise FormatError(tensor.path, f"{tensor.name} scale", float(value), "finite and above 0")
    return np.float32(value)


def check_all_used(
    tensors: Mapping[str, Tensor], used: set[str], path: Path, ignored: tuple[str, ...] = ()
) -> None:
    """No tensor may be left over: one we do not know could change the result in silence. One of no
    elements cannot (torch saves some for state that is not there).

    ignored: how names begin of those that are of another model in the same files.
    """
    for name in sorted(tensors.keys() - used):
        if 0 in tensors[name].shape or name.startswith(ignored):
            continue
        raise FormatError(path, name, "unexpected", "every tensor must have a place in the model")
