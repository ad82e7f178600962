"""Markdown on a terminal while it comes: whole blocks stay, the one being written is drawn anew."""

import sys
from collections.abc import Callable
from typing import Any

from .terminal import printable


class MarkdownWriter:
    """Writes text by rich. A block ends with an empty line outside of a code fence."""

    def __init__(self, console: Any, live: Any, markdown: Callable[[str], Any]) -> None:
        self._console, self._live, self._markdown = console, live, markdown
        self._text = ""
        self._shown: Any = None  # the Live of the block that is not complete

    def __call__(self, text: str) -> None:
        """More text."""
        self._text += printable(text)
        whole, self._text = split_blocks(self._text)
        if whole:
            self._stop()
            self._console.print(self._markdown(whole))
        if self._text.strip():
            if self._shown is None:
                self._shown = self._live(console=self._console, transient=True, auto_refresh=False)
                self._shown.start()
            self._shown.update(self._markdown(self._text), refresh=True)

    def close(self) -> None:
        """The text has ended."""
        self._stop()
        if self._text.strip():
            self._console.print(self._markdown(self._text))
        self._text = ""

    def _stop(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None


def split_blocks(text: str) -> tuple[str, str]:
    """What is certain not to change by more text, and the rest."""
    end, begin, fenced = 0, 0, False
    for line in text.splitlines(keepends=True):
        begin += len(line)
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        if not line.strip() and line.endswith("\n") and not fenced:
            end = begin
    return text[:end], text[end:]


def markdown_writer() -> MarkdownWriter | None:
    """None where stdout is no terminal that can be drawn on, or rich is not installed."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.markdown import Markdown
    except ImportError:
        return None
    console = Console()
    return None if console.is_dumb_terminal else MarkdownWriter(console, Live, Markdown)
