"""RoPE for longer contexts than a model was first trained on: positions or frequencies scaled.

linear: every frequency divided by a factor (Chen et al. 2023). YaRN (Peng et al. 2023): frequencies
that turn often within the original context stay, slow ones are divided, those between blend, and
queries and keys are longer by an attention factor. At every position, as transformers
(modeling_rope_utils.py) and llama.cpp have it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

log = logging.getLogger("bitnet")

TYPES = ("none", "default", "linear", "yarn")
MAX_FACTOR = 65536.0  # of a context: 2^24 positions of 256
BETA_FAST, BETA_SLOW = 32.0, 1.0  # rotations within the original context


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies are scaled.

    type: "linear" or "yarn". factor: of the context. The rest is YaRN's: original_context, tokens;
    attention_factor: what cosines and sines are multiplied with; beta_fast, beta_slow: rotations
    within the original context above which a frequency stays, and below which it is divided;
    truncate: whether the pairs of channels where that is so are rounded outwards.
    """

    type: str
    factor: float
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = BETA_FAST
    beta_slow: float = BETA_SLOW
    truncate: bool = True

    def frequencies(self, periods: np.ndarray, theta: float) -> np.ndarray:
        """The frequencies for 1 / frequencies without scaling, both float32 (head_dim / 2,).

        theta: the RoPE base. Each step is rounded as float32, as in transformers.
        """
        fast, half = np.float32(1) / periods, len(periods)
        if self.type == "linear":
            return fast / np.float32(self.factor)
        slow = np.float32(1) / (np.float32(self.factor) * periods)
        low, high = (self._pair(beta, 2 * half, theta) for beta in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        if low == high:
            high += 0.001  # as transformers and llama.cpp
        ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
        stays = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
        return slow * (np.float32(1) - stays) + fast * stays

    def __str__(self) -> str:
        """All that it says, with as many digits as a GGUF's float32 holds."""
        values = f"{self.type}, factor {self.factor:.6g}"
        if self.type == "yarn":
            values += (
                f", original context {self.original_context}, attention factor "
                f"{self.attention_factor:.6g}, beta {self.beta_fast:.6g} and {self.beta_slow:.6g}"
            )
        return values if self.truncate else values + ", not truncated"

    def _pair(self, n_rotations: float, head_dim: int, theta: float) -> float:
        """Which pair of channels turns so often within the original context, not rounded."""
        wavelength = self.original_context / (n_rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))


def default_attention_factor(factor: float, scale: float = 1.0) -> float:
    """YaRN's own: 0.1 scale ln(factor) + 1."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def from_hf(rope: dict[str, Any], fields: Any, theta: float, context: int) -> RopeScaling | None:
    """From rope_parameters or rope_scaling of a config.json; None where nothing is scaled.

    fields: the file's, for errors. theta: the RoPE base. context: max_position_embeddings.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in TYPES[1:]:
        raise fields.error("rope_type", kind, f"this version supports {', '.join(TYPES[1:])}")
    if kind == "default":
        return None
    number = _Numbers(rope, fields, "")
    factor = number("factor", 1.0, MAX_FACTOR)
    if kind == "linear":
        return _linear(factor)
    given = number.optional("attention_factor", 1e-3, 1e3)
    scales = [number.optional(name, 1e-3, 1e3) for name in ("mscale", "mscale_all_dim")]
    if given is None and all(scales):
        given = default_attention_factor(factor, scales[0]) / default_attention_factor(
            factor, scales[1]
        )
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise fields.error("truncate", truncate, "true or false")
    return _yarn(
        number,
        factor,
        number.original("original_max_position_embeddings", context),
        theta,
        attention_factor=default_attention_factor(factor) if given is None else given,
        names=("beta_fast", "beta_slow"),
        truncate=truncate,
    )


def from_gguf(fields: Any, theta: float, context: int) -> RopeScaling | None:
    """The same from the metadata of a GGUF, as llama.cpp reads it."""
    values = {
        name: fields.plain(f"rope.scaling.{name}", None)
        for name in (
            "type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast",
            "yarn_beta_slow",
        )
    }  # fmt: skip
    if values["factor"] is None:
        values["factor"] = fields.plain("rope.scale_linear", None)
    kind = values["type"]
    if kind is not None and kind not in (TYPES[0], *TYPES[2:]):
        raise fields.error("rope.scaling.type", kind, "this version supports none, linear, yarn")
    if kind == "none" or (kind != "yarn" and values["factor"] is None):
        return None
    number = _Numbers(values, fields, "rope.scaling.")
    factor = number("factor", 1.0, MAX_FACTOR)
    if kind != "yarn":
        return _linear(factor)
    own = number.optional("attn_factor", 1e-3, 1e3) or 1.0
    return _yarn(
        number,
        factor,
        number.original("original_context_length", context),
        theta,
        attention_factor=own * default_attention_factor(factor),
        names=("yarn_beta_fast", "yarn_beta_slow"),
    )


def to_gguf(scaling: RopeScaling) -> dict[str, Any]:
    """{key behind the architecture's name: value} that says it in a GGUF."""
    values: dict[str, Any] = {"type": scaling.type, "factor": scaling.factor}
    if scaling.type == "yarn":
        own = scaling.attention_factor / default_attention_factor(scaling.factor)
        values["original_context_length"] = scaling.original_context
        values |= {"attn_factor": own} if abs(own - 1) > 1e-6 else {}
        for name in ("beta_fast", "beta_slow"):
            if getattr(scaling, name) != getattr(RopeScaling, name):
                values[f"yarn_{name}"] = getattr(scaling, name)
    return {f"rope.scaling.{key}": value for key, value in values.items()}


def to_hf(scaling: RopeScaling) -> dict[str, Any]:
    """The rope_scaling of a config.json that says it."""
    values: dict[str, Any] = {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type == "yarn":
        values |= {
            "original_max_position_embeddings": scaling.original_context,
            "attention_factor": scaling.attention_factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    return values


def _linear(factor: float) -> RopeScaling | None:
    return None if factor == 1 else RopeScaling("linear", factor)


def _yarn(
    number: _Numbers,
    factor: float,
    original: int,
    theta: float,
    *,
    attention_factor: float,
    names: tuple[str, str],
    truncate: bool = True,
) -> RopeScaling:
    if theta <= 1:
        raise number.fields.error("rope_theta", theta, "more than 1, for YaRN")
    fast, slow = (
        number.optional(name, 1e-3, 1e6) or default
        for name, default in zip(names, (BETA_FAST, BETA_SLOW), strict=True)
    )
    return RopeScaling("yarn", factor, original, attention_factor, fast, slow, truncate)


class _Numbers:
    """Numbers of a mapping that comes from a file. prefix: of their names in errors."""

    def __init__(self, values: dict[str, Any], fields: Any, prefix: str) -> None:
        self.values, self.fields, self.prefix = values, fields, prefix

    def __call__(self, name: str, low: float, high: float) -> float:
        """A number from low to high, which must be there."""
        value = self.values.get(name)
        if value is None:
            raise self._error(name, "missing", f"a number from {low:g} to {high:g}")
        return self._checked(name, value, low, high)

    def optional(self, name: str, low: float, high: float) -> float | None:
        """The same; None where it is missing, or 0."""
        value = self.values.get(name)
        return None if value is None or value == 0 else self._checked(name, value, low, high)

    def original(self, name: str, context: int) -> int:
        """The original context, in tokens: the model's, with a warning, where it is missing."""
        value = self.values.get(name)
        if value is None:
            key = self.fields.key(self.prefix + name)
            log.warning("%s: no %s: the context, %d, is taken", self.fields.path, key, context)
            return context
        if type(value) is not int or not 1 <= value <= 1 << 24:
            raise self._error(name, value, f"a whole number from 1 to {1 << 24}")
        return value

    def _checked(self, name: str, value: object, low: float, high: float) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # type: ignore[operator]
            raise self._error(name, value, f"a number from {low:g} to {high:g}")
        return float(value)  # type: ignore[arg-type]

    def _error(self, name: str, value: object, limit: str) -> Exception:
        error: Exception = self.fields.error(self.prefix + name, value, limit)
        return error
