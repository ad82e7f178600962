"""Lines of a chat: from a person, with prompt_toolkit where it is installed, or from a file."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .chat_commands import COMMANDS, Commands

PROMPT = "> "
PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"  # whether a terminal marks what is pasted


def lines(commands: Commands) -> Iterator[str]:
    """Messages, which may have several lines where a person pastes or writes them with alt-Enter.

    At a terminal ctrl-C clears the line, and a second one behind it leaves, as ctrl-D does.
    """
    if not sys.stdin.isatty():
        yield from (line.removesuffix("\n") for line in sys.stdin)
        return
    ask, was_interrupted = _asker(), False
    with contextlib.suppress(EOFError):
        while True:
            draft, commands.draft = commands.draft, ""
            try:
                line = ask(draft)
            except KeyboardInterrupt:
                print()
                if was_interrupted:
                    return
                was_interrupted = True
                print("[ctrl-C again leaves]", file=sys.stderr)
                continue
            was_interrupted = False
            yield line
    print()


@contextlib.contextmanager
def typing_ahead() -> Iterator[None]:
    """What is typed while there is no prompt waits for the next one as it is: it is not shown in
    the middle of a reply, Enter stays Enter, and a paste one text. Ctrl-C interrupts as before.

    Does nothing without prompt_toolkit, which reads it, or at no terminal.
    """
    if not sys.stdin.isatty() or importlib.util.find_spec("prompt_toolkit") is None:
        yield
        return
    import termios

    number = sys.stdin.fileno()
    before, ahead = termios.tcgetattr(number), termios.tcgetattr(number)
    ahead[0] &= ~termios.ICRNL
    ahead[3] &= ~(termios.ECHO | termios.ICANON)
    _mark_pastes(PASTE_ON)
    termios.tcsetattr(number, termios.TCSANOW, ahead)  # prompts go back to it when they end
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSANOW, before)
        _mark_pastes(PASTE_OFF)


def _mark_pastes(sequence: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(sequence)
        sys.stdout.flush()


def history_file() -> Path:
    """Where lines are kept between runs: bitnet in XDG_STATE_HOME, else in ~/.local/state."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "bitnet" / "chat_history"


def _asker() -> Any:
    """A function of a text to begin with, which returns what a person has made of it."""
    try:
        import prompt_toolkit
    except ImportError:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() uses it once it is imported
        return _plain
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    keys.add("c-j")(lambda event: event.current_buffer.insert_text("\n"))
    history: Any = InMemoryHistory()
    path = history_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        history = FileHistory(str(path))
    completer = WordCompleter(list(COMMANDS), meta_dict=dict(COMMANDS), sentence=True)
    session: Any = prompt_toolkit.PromptSession(
        history=history,
        completer=completer,
        key_bindings=keys,
        multiline=True,
        complete_while_typing=True,
        prompt_continuation="  ",
    )

    def ask(draft: str) -> str:
        try:
            text: str = session.prompt(PROMPT, default=draft)
            return text
        finally:
            _mark_pastes(PASTE_ON)  # which each prompt ends: see typing_ahead

    return ask


def _plain(draft: str) -> str:
    if draft:
        print(f"[the line was: {draft}]", file=sys.stderr)
    return input(PROMPT)
