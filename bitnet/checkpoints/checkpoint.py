"""open_checkpoint(): what the files of a model hold, every tensor checked and none made yet.

A model is an HF folder or a GGUF file. Tensors have one name whatever the container: that of HF
checkpoints without "model." and ".weight" (embed_tokens, layers.0.self_attn.q_proj).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..formats.float_blocks import dequantize
from ..formats.tensor import Tensor
from ..models.config import ModelConfig
from ..models.registry import ARCHITECTURES

FLOATS = ("F32", "F16", "BF16")
TERNARY_TYPES = (
    "I2_S", "TQ1_0", "TQ2_0", "IQ1_BN", "IQ2_BN", "IQ2_BN_R4", "Q2_0_G64", "Q2_0_G128",
)  # fmt: skip
# How a tensor of type I2_S may lie, which its file does not say: see docs/models.md.
LAYOUTS = {"128x32": "I2_S", "64x16": "I2_S_64", "4row": "I2_S_4ROW"}
DEFAULT_LAYOUT = "128x32"  # that of microsoft/BitNet, and of nearly every file there is


@dataclass(frozen=True)
class TernaryTensor:
    """A linear layer as a file holds it.

    stored_as: its type ("I2_S", "TQ2_0", "HF packed", "BF16 masters", ...).
    in_place: uint8 (n_rows, padded(n_cols) // 4), the codes where the kernels can read them as they
        lie, else None. may_differ: whether the type could hold a scale for each row.
    """

    name: str
    tensor: Tensor
    n_rows: int
    n_cols: int
    stored_as: str
    may_differ: bool
    in_place: np.ndarray | None
    _read: Callable[[], tuple[np.ndarray, Iterator[np.ndarray]]]

    def scales(self):
        """float32 (1,), or (n_rows,) where they differ; they multiply the integer dot product."""
        return self.read()[0]

    def read(self):
        """(scales, codes): codes are uint8 (some rows, n_cols) of 0, 1, 2, chunks in row order.

        Each chunk is valid until the next. FormatError for illegal codes, when they come by.
        """
        try:
            scales, chunks = self._read()
        except ValueError as error:
            raise self._error(error) from None
        return scales, self._checked(chunks)

    def _checked(self, chunks):
        try:
            yield from chunks
        except ValueError as error:
            raise self._error(error) from None

    def _error(self, error):
        if isinstance(error, FormatError):
            return error
        limit = f"a ternary tensor of type {self.stored_as}"
        return FormatError(self.tensor.path, self.tensor.name, str(error), limit)


@dataclass(frozen=True)
class TokenizerSource:
    """What a tokenizer is built from: files of an HF folder, or the metadata of a GGUF."""

    path: Path  # the file or folder, for messages
    tokenizer_json: Path | None = None
    sentencepiece: Path | None = None  # tokenizer.model, where there is no tokenizer.json
    tokenizer_config: dict = field(default_factory=dict)
    metadata: dict | None = None  # the tokenizer.* keys, tokenizer.ggml.pre always there


@dataclass
class Checkpoint:
    """The tensors of one model where they lie.

    ternary: {name: TernaryTensor}. floats: {name: Tensor} of norms, embedding and head.
    files: the mapped files, each with path and data. changed_by: paths whose change changes it.
    prompts: {name: text} an embedding model puts in front of texts, {"query": "Instruct: ..."}.
    """

    path: Path
    config: ModelConfig
    tokenizer_source: TokenizerSource
    ternary: dict[str, TernaryTensor]
    floats: dict[str, Tensor]
    files: list
    changed_by: list[Path]
    layout: str = "128x32"
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def family(self):
        return ARCHITECTURES[self.config.family]

    def vector(self, name):
        """A norm's weight as it is applied, float32 (n,); FormatError if not finite."""
        tensor = self.floats[name]
        values = dequantize(tensor.type, tensor.data.reshape(1, -1), *tensor.shape)[0]
        if not np.isfinite(values).all():
            raise FormatError(tensor.path, tensor.name, "NaN or infinite", "finite weights")
        if self.config.norms_are_offsets and not name.endswith("_proj.norm"):
            values = np.float32(1) + values
        return np.require(values, requirements=["C", "A"])  # safetensors aligns nothing


def is_linear(name):
    """Whether the tensor of this name is a ternary layer."""
    return name.endswith("_proj")


def check_tensor(found, name, shape, types, path):
    """The tensor of this name in a file, if its shape and type are right."""
    tensor = found.get(name)
    if tensor is None:
        raise FormatError(path, name, "missing", f"the configuration needs it, of shape {shape}")
    if tensor.shape != shape:
        limit = f"the configuration needs {shape}"
        raise FormatError(tensor.path, f"{name} shape", tensor.shape, limit)
    if tensor.type not in types:
        raise FormatError(tensor.path, f"{name} type", tensor.type, f"one of {', '.join(types)}")
    return tensor


def one_number(tensor):
    return dequantize(tensor.type, tensor.data.reshape(1, -1), 1)[0, 0]


def check_scale(value, path, name):
    if not 0 < value < math.inf:  # NaN fails too
        raise FormatError(path, f"{name} scale", float(value), "finite and above 0")
    return np.float32(value)


def check_all_used(found, used, path):
    """No tensor may be left over: one we do not know could change the result in silence."""
    for name in sorted(found.keys() - used):
        raise FormatError(path, name, "unexpected", "every tensor must have a place in the model")


# Hugging Face folders -----------------------------------------------------------------------------
