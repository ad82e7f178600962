"""What goes to stdout and stderr: text as it comes; for a person at a terminal a status line."""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Self

from ..errors import MemoryLimitExceeded
from ..progress import Progress
from ..text.reasoning import ReasoningSplitter

# C0, DEL and C1: with these a model or a file could send escape sequences to a terminal.
CONTROLS = dict.fromkeys((*range(32), *range(0x7F, 0xA0)), "\N{REPLACEMENT CHARACTER}")


def printable(text: str, keep: str = "\n\t") -> str:
    """``text`` with every control character not in ``keep`` replaced by U+FFFD."""
    return text.translate({code: char for code, char in CONTROLS.items() if chr(code) not in keep})


def one_line(error: BaseException) -> str:
    """What an error says to a person, on a line of its own."""
    if isinstance(error, MemoryLimitExceeded):  # a table
        return printable(str(error))
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}", keep="")
    return printable(str(error) or type(error).__name__, keep="")


def write(text: str) -> None:
    """Write model text to stdout now: as it is into a file or pipe, without controls on a tty."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


_quiet = False  # whether -q was given


@contextlib.contextmanager
def verbosity(quiet: bool, verbose: bool) -> Iterator[None]:
    """What -q and -v ask for, while a command runs: quiet has no status and no warnings, verbose
    writes what the package logs to stderr, a line each."""
    global _quiet
    log, handlers = logging.getLogger("bitnet"), list[logging.Handler]()
    before = log.level, log.propagate, _quiet
    _quiet = quiet
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of the hub's library
        log.setLevel(logging.ERROR)
    elif verbose:
        handlers.append(logging.StreamHandler())
        handlers[0].setFormatter(logging.Formatter("bitnet: %(message)s"))
        log.setLevel(logging.DEBUG)
        log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
        level, log.propagate, _quiet = before
        log.setLevel(level)


class Status:
    """A line on stderr that replaces itself. Says nothing unless stderr is a terminal."""

    def __init__(self) -> None:
        self.on = sys.stderr.isatty() and not _quiet
        self.width = 0

    def show(self, text: str) -> None:
        """Show ``text`` in place of what was shown before."""
        if self.on:
            text = printable(text, keep="")[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write("\r" + text.ljust(self.width) + "\r" * (not text))
            sys.stderr.flush()
            self.width = len(text)

    def clear(self) -> None:
        """Take the line away, before text is written."""
        if self.width:
            self.show("")

    def meter(self, unit: str = "") -> Progress:
        """A function that shows how far work is: see bitnet/progress.py. unit: "bytes" shows how
        many a second."""
        started, before = time.monotonic(), -1

        def show(what: str, done: int, total: int) -> None:
            nonlocal started, before
            now = time.monotonic()
            if done < before:  # another piece of work
                started = now
            before = done
            parts = []
            if total:
                parts.append(f"{done / total:4.0%}")
            if total and done and now - started > 1:
                seconds = (total - done) * (now - started) / done
                parts += [f"{done / (now - started) / 1e6:.0f} MB/s"] * (unit == "bytes")
                parts.append(f"{seconds:,.0f} s left")
            self.show("  ".join([*parts, what]))

        return show

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show what is being done, until it is."""
        self.show(what)
        try:
            yield
        finally:
            self.clear()

    @contextlib.contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """Show that a model is being loaded, and what the engine says meanwhile: the first load of
        a model may write weights for as long as its size takes."""
        self.show(f"loading {what}")
        log = logging.getLogger("bitnet")
        if not self.on:
            yield
            return
        handler, level = _LogLine(self), log.level
        log.addHandler(handler)
        log.setLevel(min(level or logging.INFO, logging.INFO))
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        if self.on:
            print(printable(text), file=sys.stderr, flush=True)


class Said:
    """A reply as it comes: the answer to stdout, what is thought before it, in grey, to stderr if
    that is a terminal. A context manager, which writes at its end what was held back.

    splitter: None where all is answer. shown: whether anything is written at all. sink: what writes
    the answer, None for `write`. text, reasoning: what has come of both.
    """

    def __init__(
        self, status: Status, shown: bool = True, sink: Callable[[str], None] | None = None
    ) -> None:
        self._sink = sink
        self.splitter: ReasoningSplitter | None = None
        self.text = self.reasoning = ""
        self._status, self._shown = status, shown

    def push(self, delta: str, is_last: bool = False) -> None:
        """More of the text."""
        self._status.clear()
        reasoning = ""
        if self.splitter is not None:
            reasoning, delta = self.splitter.push(delta, is_last)
        if reasoning and self._shown and self._status.on:
            sys.stderr.write(f"\x1b[90m{printable(reasoning)}\x1b[39m")
            sys.stderr.flush()
        self.reasoning += reasoning
        is_first = not self.text
        self.text += delta
        if delta and self._shown:
            if is_first and self.reasoning and self._status.on:
                sys.stderr.write("\n\n")
                sys.stderr.flush()
            (self._sink or write)(delta)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._status.clear()
        self.push("", is_last=True)


class _LogLine(logging.Handler):
    """Shows what is logged as a status, warnings as lines that stay."""

    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self.status = status

    def emit(self, record: logging.LogRecord) -> None:
        show = self.status.say if record.levelno >= logging.WARNING else self.status.show
        show(record.getMessage())
