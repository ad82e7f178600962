"""The prism.hadamard.* keys of a GGUF: what its weights were rotated with. All that the contract
does not allow is refused, for a wrong reading gives fluent nonsense."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError
from ..formats.gguf_metadata import StringArray
from ..models.config import ModelConfig
from ..models.registry import BY_GGUF_ARCHITECTURE
from ..models.rotation import Rotation

PREFIX = "prism.hadamard."
TRANSFORM, AXIS = "normalized-sylvester-walsh-hadamard", "input-last-dimension"
EMBEDDING, OUT_PROJ = "token_embd.weight", "linear_attn.out_proj"
MAX_BLOCK = 1 << 16  # columns; published files have 1024
KEYS = {
    "version", "block_size", "transform", "axis", "sign_mode", "sign_widths", "sign_values",
    "weight_names", "inverse_weight_names", "gdn_v_grouped", "tied_output",
}  # fmt: skip


def read_rotation(
    metadata: dict[str, Any], path: Path, config: ModelConfig, ternary: Collection[str]
) -> Rotation | None:
    """The Rotation of a file, None without such keys. FormatError for what cannot be applied.

    ternary: our names of the tensors that are ternary.
    """
    values = {k.removeprefix(PREFIX): v for k, v in metadata.items() if k.startswith(PREFIX)}
    if not values:
        return None
    return _Reader(values, path, config, ternary).read()


def check_family(metadata: dict[str, Any], path: Path) -> None:
    """FormatError for rotated weights of a family whose graph does not transform its inputs."""
    key = next((key for key in metadata if key.startswith(PREFIX)), None)
    name = metadata.get("general.architecture")
    arch = BY_GGUF_ARCHITECTURE.get(name) if isinstance(name, str) else None
    if key is not None and arch is not None and not arch.may_be_rotated:
        limit = f"rotated weights of {name} are not supported"
        raise FormatError(path, key, metadata[key], limit)


class _Reader:
    def __init__(
        self, values: dict[str, Any], path: Path, config: ModelConfig, ternary: Collection[str]
    ) -> None:
        self.values, self.path, self.config, self.ternary = values, path, config, ternary
        self.shapes = config.tensor_shapes()
        self.known = {f"{config.arch.gguf_name(name)}.weight": name for name in self.shapes}

    def error(self, key: str, value: object, limit: str) -> FormatError:
        return FormatError(self.path, PREFIX + key, value, limit)

    def read(self) -> Rotation:
        unknown = sorted(self.values.keys() - KEYS)
        if unknown:
            raise self.error(unknown[0], self.values[unknown[0]], "a key of version 1 or 2")
        is_tied = self._version()
        block = self._whole("block_size")
        if not 2 <= block <= MAX_BLOCK or block & (block - 1):
            raise self.error("block_size", block, f"a power of two, 2 to {MAX_BLOCK}")
        self._choice("transform", (TRANSFORM,))
        self._choice("axis", (AXIS,))
        signs = self._signs()
        linears = {self._linear(name) for name in self._names("weight_names", required=True)}
        inverse = self._names("inverse_weight_names", required=False)
        for name in inverse:
            if name != EMBEDDING:
                raise self.error("inverse_weight_names", name, f"{EMBEDDING} alone")
        self._check_table(bool(inverse), is_tied)
        if is_tied:
            linears.add("lm_head")
        widths = {self._width(name) for name in linears}
        if inverse:
            widths.add(self.config.hidden_size)
        self._check_widths(widths, block, signs)
        return Rotation(block, signs, frozenset(linears), bool(inverse), self._groups(linears))

    def _version(self) -> bool:
        """Whether the head is the rotated embedding: version 2."""
        version, tied = self._whole("version"), self.values.get("tied_output", False)
        if not isinstance(tied, bool):
            raise self.error("tied_output", tied, "true or false")
        if version == 1 and not tied:
            return False
        if version != 2 or not tied or not self.config.tie_word_embeddings:
            limit = "1, or 2 with tied_output and no output.weight"
            raise self.error("version", version, limit)
        return True

    def _check_table(self, is_rotated: bool, is_tied: bool) -> None:
        if is_rotated and "embed_tokens" not in self.ternary:
            raise self.error("inverse_weight_names", EMBEDDING, "a ternary embedding")
        if is_rotated != is_tied and self.config.tie_word_embeddings:
            limit = "version 2 with tied_output, where output.weight is the rotated embedding"
            raise self.error("version", self.values["version"], limit)

    def _whole(self, key: str) -> int:
        value = self.values.get(key, "missing")
        if type(value) is not int:
            raise self.error(key, value, "a whole number")
        return value

    def _choice(self, key: str, options: Sequence[str]) -> str:
        value = self.values.get(key, "missing")
        if not isinstance(value, str) or value not in options:
            raise self.error(key, value, f"this version supports {', '.join(options)}")
        return value

    def _names(self, key: str, *, required: bool) -> list[str]:
        value = self.values.get(key, ())
        names = list(value) if isinstance(value, StringArray | tuple) else None
        if names is None or (required and not names):
            raise self.error(key, "empty" if names == [] else type(value).__name__, "names")
        if len(set(names)) < len(names):
            raise self.error(key, "a name twice", "each name once")
        return names

    def _linear(self, name: str) -> str:
        """Our name of a matrix whose inputs can be transformed."""
        ours = self.known.get(name)
        is_matrix = ours is not None and (self.config.arch.is_linear(ours) or ours == "lm_head")
        if not is_matrix or ours not in self.ternary:
            raise self.error("weight_names", name, "a ternary matrix of this file, but for gates")
        return str(ours)

    def _width(self, name: str) -> int:
        return self.config.hidden_size if name == "lm_head" else self.shapes[name][1]

    def _signs(self) -> dict[int, Any]:
        if self._choice("sign_mode", ("identity", "explicit")) == "identity":
            for key in ("sign_widths", "sign_values"):
                if len(self.values.get(key, ())):
                    raise self.error(key, "given", "nothing, as sign_mode is identity")
            return {}
        widths, values = self._integers("sign_widths"), self._integers("sign_values")
        if (widths < 1).any() or len(set(widths.tolist())) < len(widths):
            raise self.error("sign_widths", widths.tolist()[:8], "at least 1, each once")
        if len(values) != widths.sum():
            raise self.error("sign_values count", len(values), f"{widths.sum()}, of sign_widths")
        if (np.abs(values) != 1).any():
            raise self.error("sign_values", "another number", "1 and -1")
        parts = np.split(values.astype(np.float32), np.cumsum(widths)[:-1])
        return {int(width): part for width, part in zip(widths, parts, strict=True)}

    def _integers(self, key: str) -> Any:
        value = self.values.get(key, "missing")
        if not isinstance(value, np.ndarray) or value.dtype.kind != "i" or not len(value):
            shown = value if isinstance(value, str) else "no whole numbers"
            raise self.error(key, shown, "an array of whole numbers")
        return value.astype(np.int64)

    def _check_widths(self, widths: set[int], block: int, signs: dict[int, Any]) -> None:
        for width in sorted(widths):
            if width % block:
                raise self.error("block_size", block, f"a divisor of all rotated widths, {width}")
            if signs and width not in signs:
                raise self.error("sign_widths", f"no {width}", "signs for each rotated width")

    def _groups(self, linears: set[str]) -> bool:
        """Whether inputs of DeltaNet's out_proj are to be put in grouped order first."""
        net, value = self.config.delta_net, self.values.get("gdn_v_grouped", False)
        if not isinstance(value, bool):
            raise self.error("gdn_v_grouped", value, "true or false")
        is_rotated = any(name.endswith(OUT_PROJ) for name in linears)
        if net is None or not is_rotated or net.value_heads == net.key_heads:
            return False
        if not value:
            limit = "true, as ssm_out is rotated and there are more value heads than key heads"
            raise self.error("gdn_v_grouped", self.values.get("gdn_v_grouped", "missing"), limit)
        return True
