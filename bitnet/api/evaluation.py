"""Measures of accuracy: perplexity of a text, and two models beside each other on one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from ..checks import check_number
from ..errors import ContextFull, FormatError
from ..generation.comparison import Comparison, Position, compare_rows, comparison
from ..generation.perplexity import (
    DEFAULT_CONTEXT,
    LogProbabilities,
    Perplexity,
    PerplexitySum,
    Window,
    log_probabilities_of,
    window_ids,
    windows,
)
from ..generation.saved_logits import LogitsWriter, SavedLogits
from ..generation.token_ids import token_array
from ..progress import Progress, silent
from ..runtime.float_mode import in_ieee_mode
from ..text.tokenizer import Tokenizer
from .model import Model
from .scores import Prompt


@in_ieee_mode
def perplexity(
    model: Model,
    text: Prompt,
    *,
    context: int = DEFAULT_CONTEXT,
    stride: int | None = None,
    recipe: str = "llama.cpp",
    chunks: int | None = None,
    save_logits: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """The Perplexity of a text, or of token ids as they are.

    context, stride: tokens of a window, and from one to the next. recipe: "llama.cpp", whose
    llama-perplexity gives the same number with the same settings (-c context, -b the same), or
    "huggingface", transformers' "Perplexity of fixed-length models": see generation.perplexity.
    chunks: windows at most. save_logits: a file for compare, or for llama-perplexity
    --kl-divergence-base; without a stride, llama.cpp's recipe only. progress: is told windows,
    and in words the estimate so far, see bitnet/progress.py.

    ValueError for a text too short for two windows, ContextFull for windows longer than the model's
    context, NotFinite for logits that are NaN.
    """
    if save_logits is not None and (stride is not None or recipe != "llama.cpp"):
        raise ValueError("save_logits: only windows of llama.cpp without a stride are saved")
    ids = _ids(model, text)
    chosen = _chosen(windows(len(ids), context, stride, recipe), chunks)
    _check_context(model, chosen)
    reader = _ModelReader(model, ids)
    total = PerplexitySum()
    with ExitStack() as stack:
        writer = None
        if save_logits is not None:
            vocab_size = model.config.vocab_size
            writer = LogitsWriter(save_logits, context, vocab_size, ids, len(chosen))
            stack.enter_context(writer)
        for i, window in enumerate(chosen):
            scored = ids[window.first : window.end]
            scores = []
            for token_id, row in zip(scored, reader.rows(i, window), strict=True):
                scores.append(float(row[token_id]))
                if writer is not None:
                    writer.add(row)
            total.add(window, scores, reader.n_bytes(scored))
            _tell(progress, i + 1, len(chosen), f"perplexity {total.perplexity:.4f}")
    return total.result(context, stride, recipe)


@in_ieee_mode
def compare(
    a: Model | str | os.PathLike[str],
    b: Model | str | os.PathLike[str],
    text: Prompt | None = None,
    *,
    context: int = DEFAULT_CONTEXT,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """The Comparison of two models with one vocabulary; a is the reference.

    a, b: a Model, or the path of saved logits (of perplexity(..., save_logits=...), or of
    llama-perplexity --kl-divergence-base). text: what both read, or token ids as they are; None
    where one of them is saved, which says itself. Windows as perplexity's without a stride.
    progress: as perplexity's; the estimate is the mean divergence.

    ValueError where both are the same Model, their vocabularies differ in size, or saved logits are
    of another text or context.
    """
    if a is b and isinstance(a, Model):
        raise ValueError("a, b: one model (two settings of one file are two models)")
    sides = [one if isinstance(one, Model) else SavedLogits(one) for one in (a, b)]
    saved = [one for one in sides if isinstance(one, SavedLogits)]
    models = [one for one in sides if isinstance(one, Model)]
    if text is not None and models:
        ids = _ids(models[0], text)
    elif saved:
        ids, context = saved[0].token_ids, saved[0].context
    else:
        raise ValueError("text: missing (models have none; saved logits do)")
    readers = [
        _ModelReader(one, ids)
        if isinstance(one, Model)
        else _SavedReader(one, ids, context, one is sides[0])
        for one in sides
    ]
    sizes = [reader.vocab_size for reader in readers]
    if sizes[0] != sizes[1]:
        raise ValueError(f"vocab_size: {sizes[0]} of a, {sizes[1]} of b (the same)")
    chosen = _chosen(saved[0].windows() if saved else windows(len(ids), context), chunks)
    chosen = chosen[: min((one.n_windows for one in saved), default=None)]
    for model in models:
        _check_context(model, chosen)
    positions: list[Position] = []
    sums = PerplexitySum(), PerplexitySum()
    divergence = 0.0
    for i, window in enumerate(chosen):
        scored = ids[window.first : window.end]
        rows = zip(scored, *(reader.rows(i, window) for reader in readers), strict=True)
        added = [
            compare_rows(window.first + j, token_id, row_a, row_b)
            for j, (token_id, row_a, row_b) in enumerate(rows)
        ]
        positions += added
        n_bytes = max(reader.n_bytes(scored) for reader in readers)
        sums[0].add(window, [position.log_p_a for position in added], n_bytes)
        sums[1].add(window, [position.log_p_b for position in added], n_bytes)
        divergence += sum(position.kl for position in added)
        _tell(progress, i + 1, len(chosen), f"divergence {divergence / len(positions):.3e}")
    of_a, of_b = (one.result(context, None, "llama.cpp") for one in sums)
    return comparison(positions, of_a, of_b)


def _tell(progress: Progress | None, done: int, n: int, estimate: str) -> None:
    (progress or silent)(f"window {done} of {n}, {estimate}", done, n)


class _ModelReader:
    def __init__(self, model: Model, ids: Sequence[int]) -> None:
        self._model, self._ids = model, ids
        self.vocab_size = model.config.vocab_size
        try:
            self._tokenizer: Tokenizer | None = model.tokenizer
        except FormatError:  # it came without one
            self._tokenizer = None
        prefix = self._tokenizer.encode("") if self._tokenizer else []
        self._bos_id = prefix[0] if prefix else None

    def rows(self, index: int, window: Window) -> Iterator[LogProbabilities]:
        part = window_ids(self._ids, window, self._bos_id)
        return log_probabilities_of(self._model.scheduler, part, window.end - window.first)

    def n_bytes(self, token_ids: Sequence[int]) -> int:
        """Of the text of these tokens; 0 where there is no tokenizer."""
        if self._tokenizer is None:
            return 0
        return sum(len(self._tokenizer.token_bytes(i)) for i in token_ids)


class _SavedReader:
    def __init__(
        self, saved: SavedLogits, ids: Sequence[int], context: int, is_reference: bool
    ) -> None:
        self._saved, self._is_reference = saved, is_reference
        self.vocab_size = saved.vocab_size
        if saved.context != context:
            raise FormatError(saved.path, "context", saved.context, f"{context}, of the other side")
        if list(ids[: len(saved.token_ids)]) != saved.token_ids:
            limit = "those of this text by the model's tokenizer"
            raise FormatError(saved.path, "token ids", "others", limit)

    def rows(self, index: int, window: Window) -> Iterator[LogProbabilities]:
        return self._saved.rows(index, is_reference=self._is_reference)

    def n_bytes(self, token_ids: Sequence[int]) -> int:
        return 0


def _ids(model: Model, text: Prompt) -> list[int]:
    if isinstance(text, str):
        return model.tokenizer.encode(text)
    ids: list[int] = token_array(text, model.config.vocab_size).tolist()
    return ids


def _chosen(found: list[Window], chunks: int | None) -> list[Window]:
    if chunks is not None:
        check_number("chunks", chunks, int, 1)
    return found[:chunks]


def _check_context(model: Model, chosen: list[Window]) -> None:
    size = max(window.end - window.begin for window in chosen)
    if size - 1 > model.context:  # the last one is not fed
        raise ContextFull(0, size, model.context)
