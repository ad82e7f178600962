"""What a line that begins with / does in a chat; it is never sent to the model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import bitnet

from .commands import did_you_mean
from .terminal import Status, one_line, printable

if TYPE_CHECKING:
    from .conversation import Conversation

COMMANDS = {
    "/help": "this list",
    "/system": "[TEXT]: another system message; without TEXT none",
    "/set": "[NAME VALUE]: such as temperature 0.7; alone shows all",
    "/regen": "another reply to the latest line, with the next seed",
    "/undo": "forget the latest line and its reply",
    "/edit": "[TEXT]: write the latest line anew",
    "/save": "FILE: the conversation, its keys and values beside it in FILE.kv",
    "/load": "FILE: go on with what was saved",
    "/export": "FILE: the conversation as Markdown",
    "/stats": "figures of the latest reply",
    "/memory": "where the memory is",
    "/context": "how much of the context is in use",
    "/reset": "forget the conversation",
    "/exit": "leave, as ctrl-D does",
}


class Commands:
    """Runs commands. say: how a person is answered. left: whether /exit came. draft: a line that is
    to be edited, for the next prompt."""

    def __init__(self, conversation: "Conversation", status: Status) -> None:
        self.conversation, self._status = conversation, status
        self.left, self.draft = False, ""

    def run(self, line: str) -> str | None:
        """Carry out a command; what is to be sent to the model after it, or None."""
        name, _, rest = line.strip().partition(" ")
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS)
            print(
                printable(f"bitnet: {name} is no command{hint} (/help; // sends a text with /)"),
                file=sys.stderr,
            )
            return None
        does: Callable[[str], str | None] = getattr(self, name[1:])
        try:
            return does(rest.strip())
        except (OSError, ValueError, bitnet.ContextFull) as error:
            print(f"bitnet: {name}: {one_line(error)}", file=sys.stderr)
            return None

    def help(self, rest: str) -> None:
        width = max(map(len, COMMANDS))
        self._answer("\n".join(f"{name:{width}}  {about}" for name, about in COMMANDS.items()))

    def system(self, rest: str) -> None:
        if not self.conversation.is_chat:
            raise ValueError("the model has no chat template")
        self.conversation.set_system(rest)

    def set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name:
            self.conversation.set(name.replace("-", "_"), value.strip())
        else:
            shown = self.conversation.settings().items()
            self._answer("\n".join(f"{k} {'the model' if v is None else v}" for k, v in shown))

    def regen(self, rest: str) -> str | None:
        line = self._latest()
        self.conversation.keywords["seed"] = (self.conversation.keywords["seed"] + 1) % (1 << 64)
        return line

    def undo(self, rest: str) -> None:
        self._latest()

    def edit(self, rest: str) -> str | None:
        line = self._latest()
        if rest:
            return rest
        self.draft = line
        return None

    def save(self, rest: str) -> None:
        path = _path(rest)
        with self._status.doing(f"saving {path}"):
            n = self.conversation.save(path)
        self._answer(f"[saved, with keys and values of {n} tokens]")

    def load(self, rest: str) -> None:
        path = _path(rest)
        with self._status.doing(f"loading {path}"):
            n = self.conversation.load(path)
        n_messages = len(self.conversation.messages)
        self._answer(f"[{n_messages} messages; {n} tokens need not be read again]")

    def export(self, rest: str) -> None:
        _path(rest).write_text(self.conversation.markdown(), "utf-8")

    def stats(self, rest: str) -> None:
        self._answer(self.conversation.summary())

    def memory(self, rest: str) -> None:
        self._answer(str(self.conversation.model.memory()))

    def context(self, rest: str) -> None:
        talk = self.conversation
        dropped = f"; the oldest {talk.n_dropped} messages are not seen" if talk.n_dropped else ""
        n_used = min(talk.n_tokens(), talk.model.context)
        self._answer(f"[{n_used} of {talk.model.context} tokens in use{dropped}]")

    def reset(self, rest: str) -> None:
        self.conversation.reset()

    def exit(self, rest: str) -> None:
        self.left = True

    def _latest(self) -> str:
        line = self.conversation.undo()
        if line is None:
            raise ValueError("nothing was said yet")
        return line

    def _answer(self, text: str) -> None:
        self._status.clear()
        print(printable(text), file=sys.stderr, flush=True)


def _path(text: str) -> Path:
    if not text:
        raise ValueError("FILE is missing")
    return Path(text).expanduser()
