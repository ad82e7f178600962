"""Perplexity: how well a model foretells a text, window by window.

Windows are cut as llama.cpp's llama-perplexity does (tools/perplexity/perplexity.cpp), or as in
Hugging Face's recipe (transformers, "Perplexity of fixed-length models").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice, check_number
from .sampling import check_finite, log_mass
from .scheduler import Scheduler
from .scoring import logits_from

RECIPES = ("llama.cpp", "huggingface")
DEFAULT_CONTEXT, DEFAULT_STRIDE = 512, 512  # tokens, the defaults of the two tools
MIN_CONTEXT = 4  # tokens: half of a window less its first one is at least a token

LogProbabilities = NDArray[np.float64]  # (vocab,)


class Window(NamedTuple):
    """Tokens begin to end of a text, read together; those from ``first`` on are scored.

    has_bos: the begin token stands in the place of the first. weight: of the mean of a window's
    scores, in tokens.
    """

    begin: int
    end: int
    first: int
    has_bos: bool
    weight: int


def windows(
    n_tokens: int, context: int, stride: int | None = None, recipe: str = "llama.cpp"
) -> list[Window]:
    """The windows of a text of n_tokens.

    llama.cpp without a stride: neighbours of ``context`` tokens, of each the second half is scored;
    the begin token replaces the first token. With one: windows of context + stride / 2 tokens,
    ``stride`` apart, the last ``stride`` tokens of each are scored, no begin token is put in.
    huggingface: windows of ``context`` tokens, ``stride`` (512) apart; what the ones before had not
    is scored. A window counts for one token less than it scores, as in the recipe.

    ValueError for a text that is too short (llama.cpp: less than two windows), or has no windows.
    """
    check_choice("recipe", recipe, RECIPES)
    check_number("context", context, int, MIN_CONTEXT)
    if stride is not None:
        check_number("stride", stride, int, 1, context)
    if recipe == "huggingface":
        return _sliding(n_tokens, context, stride or min(DEFAULT_STRIDE, context))
    size = context + (stride or 0) // 2
    if n_tokens < 2 * size:
        raise ValueError(f"text: {n_tokens} tokens (at least {2 * size}, two windows)")
    if stride is None:
        half = size // 2
        starts = range(0, n_tokens - size + 1, size)
        return [Window(b, b + size, b + half + 1, True, size - half - 1) for b in starts]
    n = -(-(n_tokens - size) // stride)
    return [
        Window(i * stride, i * stride + size, i * stride + size - stride, False, stride)
        for i in range(n)
    ]


def _sliding(n_tokens: int, context: int, stride: int) -> list[Window]:
    found: list[Window] = []
    before = 0
    for begin in range(0, n_tokens, stride):
        end = min(begin + context, n_tokens)
        if end - before > 1:
            found.append(Window(begin, end, max(before, begin + 1), False, end - before - 1))
        before = end
        if end == n_tokens:
            break
    if not found:
        raise ValueError(f"text: {n_tokens} tokens (at least 2)")
    return found


def window_ids(ids: Sequence[int], window: Window, bos_id: int | None) -> list[int]:
    """The token ids of a window as they are read."""
    part = list(ids[window.begin : window.end])
    if window.has_bos and bos_id is not None:
        part[0] = bos_id
    return part


def log_probabilities_of(
    scheduler: Scheduler, part: Sequence[int], n_scored: int
) -> Iterator[LogProbabilities]:
    """Yield the log probabilities, float64 (vocab,), of all tokens at the place of each of the last
    n_scored of these token ids."""
    for position, logits in logits_from(scheduler, part[:-1], len(part) - 1 - n_scored):
        for at, row in enumerate(logits, position + 1):
            check_finite(row, at)
            top, mass = log_mass(row)
            yield row.astype(np.float64) - top - mass


@dataclass(frozen=True)
class Perplexity:
    """Of a text. perplexity: exp of nll. error: its standard error. nll: the mean of -log p of the
    scored tokens, nats. bits_per_byte: of the text of the scored tokens; None where no tokenizer
    says which that is. n_tokens: that are scored.
    context, stride: in tokens; stride None for windows beside each other. recipe: of RECIPES.
    """

    perplexity: float
    error: float
    nll: float
    bits_per_byte: float | None
    n_tokens: int
    n_windows: int
    context: int
    stride: int | None
    recipe: str

    def as_dict(self) -> dict[str, Any]:
        """As a JSON-ready dict."""
        return asdict(self)

    def __str__(self) -> str:
        bits = "" if self.bits_per_byte is None else f"{self.bits_per_byte:.4f} bits per byte, "
        return (
            f"perplexity {self.perplexity:.4f} +/- {self.error:.5f} "
            f"({bits}{self.n_tokens:,} tokens scored in {self.n_windows} windows)"
        )


class PerplexitySum:
    """Scores of windows, added up as they come."""

    def __init__(self) -> None:
        self.n_windows = self.n_tokens = self.n_bytes = self._weight = 0
        self._weighted = self._total = self._squares = 0.0

    def add(self, window: Window, scores: Sequence[float], n_bytes: int) -> None:
        """scores: log probabilities of the window's scored tokens. n_bytes: of their text."""
        total = sum(scores)
        self._weighted -= total / len(scores) * window.weight
        self._weight += window.weight
        self._total -= total
        self._squares += sum(score * score for score in scores)
        self.n_tokens += len(scores)
        self.n_bytes += n_bytes
        self.n_windows += 1

    @property
    def nll(self) -> float:
        """Nats a token."""
        return self._weighted / self._weight

    @property
    def perplexity(self) -> float:
        """The estimate so far; infinite where exp overflows."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf

    def result(self, context: int, stride: int | None, recipe: str) -> Perplexity:
        """The Perplexity of what was added."""
        mean = self._total / self.n_tokens
        variance = max(0.0, self._squares / self.n_tokens - mean * mean)
        error = math.sqrt(variance / max(1, self.n_tokens - 1)) * self.perplexity
        bits = self._total / math.log(2) / self.n_bytes if self.n_bytes else None
        return Perplexity(
            perplexity=self.perplexity,
            error=error,
            nll=self.nll,
            bits_per_byte=bits,
            n_tokens=self.n_tokens,
            n_windows=self.n_windows,
            context=context,
            stride=stride,
            recipe=recipe,
        )
