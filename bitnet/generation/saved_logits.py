"""Log probabilities of a text in a file, in the format of llama.cpp's --kl-divergence-base.

"_logits_", then int32: context, vocabulary, windows; the windows' token ids; then of each scored
token a record of uint16: a float32 scale and a float32 minimum in the first four, and behind them
(log p - minimum) / scale of each token of the vocabulary. What is 16 nats or more below the
likeliest counts as that minimum. Windows are those of windows(n, context).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import FormatError
from ..formats.atomic_write import atomic, check_free_space
from ..formats.mapped_file import open_regular
from .perplexity import MIN_CONTEXT, LogProbabilities, Window, windows

MAGIC = b"_logits_"
HEADER_BYTES = len(MAGIC) + 3 * 4
RANGE = 16.0  # nats below the likeliest token


class SavedLogits:
    """A file of log probabilities, mapped. FormatError where it is none, or is cut."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open(open_regular(self.path), "rb") as file:
            header = file.read(HEADER_BYTES)
        if header[: len(MAGIC)] != MAGIC or len(header) < HEADER_BYTES:
            raise FormatError(path, "magic", header[: len(MAGIC)], "_logits_, of saved logits")
        self.context, self.vocab_size, self.n_windows = np.frombuffer(
            header, np.int32, offset=len(MAGIC)
        ).tolist()
        for name, lower in (("context", MIN_CONTEXT), ("vocab_size", 1), ("n_windows", 1)):
            if not lower <= getattr(self, name) <= 1 << 24:
                raise FormatError(path, name, getattr(self, name), f"{lower} to 16777216")
        n_tokens = self.n_windows * self.context
        self._n_scored = self.context - self.context // 2 - 1
        self._record = _record_length(self.vocab_size)
        ids_end = HEADER_BYTES + 4 * n_tokens
        expected = ids_end + 2 * self.n_windows * self._n_scored * self._record
        size = os.path.getsize(self.path)
        if size != expected:
            raise FormatError(path, "file size", size, f"{expected} bytes by its header")
        mapped = np.memmap(self.path, np.uint8, mode="r")
        self.token_ids: list[int] = mapped[HEADER_BYTES:ids_end].view(np.int32).tolist()
        for token_id in min(self.token_ids), max(self.token_ids):
            if not 0 <= token_id < self.vocab_size:
                limit = f"0 to {self.vocab_size - 1}, the vocabulary"
                raise FormatError(path, "token id", token_id, limit)
        self._records = mapped[ids_end:].view(np.uint16).reshape(-1, self._record)

    def windows(self) -> list[Window]:
        """The windows it is about."""
        return windows(max(len(self.token_ids), 2 * self.context), self.context)[: self.n_windows]

    def rows(self, index: int, *, is_reference: bool) -> Iterator[LogProbabilities]:
        """Yield the log probabilities of each scored token of a window, float64 (vocab,).

        is_reference: -inf, and not the minimum, for what the file says to be no more than that.
        """
        for record in self._records[index * self._n_scored :][: self._n_scored]:
            scale, minimum = record[:4].view(np.float32).astype(np.float64)
            if not (0 <= scale < np.inf and np.isfinite(minimum)):
                found = f"scale {scale}, minimum {minimum}"
                raise FormatError(self.path, f"window {index}", found, "finite, scale at least 0")
            codes = record[4 : 4 + self.vocab_size]
            row = codes * scale + minimum
            if is_reference and scale * 65535 > RANGE - 0.001:
                row[codes == 0] = -np.inf
            yield row


class LogitsWriter:
    """Writes such a file. Use as a context: the file appears under its name only when complete."""

    def __init__(
        self, path: str | os.PathLike[str], context: int, vocab_size: int, ids: list[int], n: int
    ) -> None:
        self._path, self._vocab_size = Path(path), vocab_size
        self._header = np.array([context, vocab_size, n], np.int32)
        self._ids = np.array(ids[: n * context], np.int32)
        n_scored = n * (context - context // 2 - 1)
        self._n_bytes = self._ids.nbytes + 2 * n_scored * _record_length(vocab_size)
        self._file: BinaryIO

    def __enter__(self) -> LogitsWriter:
        check_free_space(self._path.absolute().parent, self._n_bytes)
        self._context = atomic(self._path)
        self._file = self._context.__enter__()
        self._file.write(MAGIC + self._header.tobytes() + self._ids.tobytes())
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)  # type: ignore[arg-type]

    def add(self, row: LogProbabilities) -> None:
        """Write the log probabilities of the next scored token."""
        record = np.zeros(_record_length(self._vocab_size), np.uint16)
        top = row.max()
        low = max(row.min(), top - RANGE)
        scale = np.float32((top - low) / 65535)
        record[:4] = np.array([scale, low], np.float32).view(np.uint16)
        if scale:
            steps = np.rint(np.maximum(row - low, 0) / np.float64(scale))
            record[4 : 4 + self._vocab_size] = np.minimum(steps, 65535)
        self._file.write(record.tobytes())


def _record_length(vocab_size: int) -> int:
    """uint16 of a record: an even number for the vocabulary, and two float32."""
    return 2 * ((vocab_size + 1) // 2) + 4
