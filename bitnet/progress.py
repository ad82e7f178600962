"""How far work is that takes its time: what load, convert, verify, pull and evaluation tell.

A function with `progress=` calls it as progress(what, done, total): what is being done, in words,
and how much of it is done, in a unit that the function names (bytes, windows, pairs, tensors);
total is 0 where nobody knows. It is called in the thread that works, between two pieces of work.
What it raises ends the work and reaches the caller: nothing half written is left behind.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[str, int, int], object]
# Work in pieces: yields (done, total) between two of them, and returns what came of all.
Steps = Generator[tuple[int, int], None, T]

REPORT_EVERY = 0.1  # seconds between two calls


def silent(what: str, done: int, total: int) -> None:
    """Progress that tells nobody."""


class Meter:
    """Bytes of work, told about ten times a second. error: what the caller's function raised."""

    def __init__(self, progress: Progress, total: int = 0) -> None:
        self._progress, self._done, self._total = progress, 0, total
        self._told = 0.0
        self.error: BaseException | None = None

    def begin(self, total: int) -> None:
        """Count from 0 to another total."""
        self._done, self._total = 0, total

    def add(self, what: str, n_bytes: int) -> None:
        """So many bytes more are done."""
        self._done += n_bytes
        now = time.monotonic()
        if now - self._told < REPORT_EVERY and self._done < self._total:
            return
        self._told = now
        try:
            self._progress(what, self._done, self._total)
        except BaseException as error:
            self.error = error
            raise


def finish(steps: Steps[T], what: str = "", progress: Progress = silent) -> T:
    """Do all of the steps, here and now: what they return."""
    with closing(steps):
        while True:
            try:
                done, total = next(steps)
            except StopIteration as end:
                value: T = end.value
                return value
            progress(what, done, total)
