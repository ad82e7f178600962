"""chat: a conversation; the keys and values of what was said before are kept between turns."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import bitnet

from ..generation.sampling import draw_seed
from ..text.reasoning import ReasoningSplitter
from . import options
from .terminal import Said, Status, write

USAGE = "[MODEL]"
N_ARGS = (0, 1)
COMMANDS_HELP = "/reset forgets the conversation, /exit or ctrl-D ends it, ctrl-C stops a reply"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = COMMANDS_HELP + (
        ".\nA model without a chat template continues the text of both."
    )
    options.add_load(parser)
    options.add_speculative(parser)
    options.add_chat_template(parser)
    options.add_thinking(parser)
    options.add_generation(parser, max_tokens=512)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")


def main(args: argparse.Namespace) -> int:
    keywords = options.generation_keywords(args)
    status = Status()
    template = options.chat_template(args)
    more = {"chat_template": template, "speculative": args.speculative}
    with options.load(args, status, *args.positionals, **more) as model:
        model.request([0], **keywords)  # an embedding model says at once that it does not talk
        if model.tokenizer.chat_template is None:
            if args.system is not None:
                raise ValueError("--system: the model has no chat template")
            status.say("[the model has no chat template: it continues what you write]")
        values = options.template_values(args, model.tokenizer)
        status.say(f"[{COMMANDS_HELP}]")
        new_splitter = partial(options.splitter, args, model.tokenizer)
        talk(Conversation(model, keywords, args.system, values, new_splitter), _lines(), status)
    return 0


def talk(conversation: "Conversation", lines: Iterable[str], status: Status) -> None:
    """Answer every line until /exit or the end of input."""
    for line in lines:
        if line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
            continue
        if not line.strip():
            continue
        status.show("reading")
        try:
            with Said(status) as said, contextlib.closing(conversation.reply(line)) as deltas:
                for delta in deltas:
                    said.splitter = conversation.splitter
                    said.push(delta)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        except bitnet.ContextFull as error:
            status.clear()
            print(f"bitnet: {error}; /reset begins anew", file=sys.stderr)
            continue
        write("\n")
        status.say(conversation.summary())


def _lines() -> Iterator[str]:
    """Lines from a person, with editing and history where readline is there, or from a file."""
    if not sys.stdin.isatty():
        yield from (line.removesuffix("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it once it is imported
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")
    print()


class Conversation:
    """What was said so far; each reply is one generation of the model.

    The model's prefix cache holds the keys and values of what was said, so that a turn reads only
    what is new. keywords: of Model.generate; the seed, drawn here if it is not among them, is that
    of every reply. With the model's template each line is a message; without one the lines and
    replies are one text that goes on. values: for the template, which also decides what of earlier
    turns' reasoning is read again. new_splitter: makes what splits the reply to a prompt.
    completion: of the latest reply, None if it was interrupted. splitter: of that reply.
    """

    def __init__(
        self,
        model: bitnet.Model,
        keywords: dict[str, Any],
        system: str | None = None,
        values: Mapping[str, Any] | None = None,
        new_splitter: Callable[[list[int]], ReasoningSplitter | None] = lambda ids: None,
    ) -> None:
        self.model, self.values, self._new_splitter = model, values, new_splitter
        self.splitter: ReasoningSplitter | None = None
        self.keywords = {"seed": draw_seed()} | keywords
        self.system = [{"role": "system", "content": system}] if system is not None else []
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.messages, self.text = list(self.system), ""
        self.completion: bitnet.Completion | None = None

    def reply(self, line: str) -> Generator[str, None, None]:
        """Yield the reply to ``line`` as it comes. What came before an interrupt is remembered.

        ContextFull: the line itself has no room, and is forgotten.
        """
        said: list[str] = []
        self.completion = None
        with self._stream(line) as stream:
            try:
                for delta in stream:
                    said.append(delta)
                    yield delta
            finally:
                self.completion = stream.completion
                if said or self.completion:
                    self._remember(line, "".join(said))

    def summary(self) -> str:
        """Figures of the latest reply, one line."""
        if self.completion is None:
            return "[stopped]"
        c = self.completion
        n_used = c.prompt_tokens + c.completion_tokens - 1  # nothing was computed from the last one
        return (
            f"[{c.prompt_tokens - c.cached_tokens} tokens read at {c.prompt_tps:,.1f} a second, "
            f"{c.completion_tokens} written at {c.generation_tps:,.1f}; "
            f"{n_used} of {self.model.context} in use]"
        )

    def _stream(self, line: str) -> bitnet.Stream:
        if self.model.tokenizer.chat_template is None:
            return self.model.stream(self.text + line, **self.keywords)
        messages = [*self.messages, {"role": "user", "content": line}]
        prompt = self.model.encode_chat(messages, self.values)
        self.splitter = self._new_splitter(prompt)
        return self.model.stream(prompt, **self.keywords)

    def _remember(self, line: str, said: str) -> None:
        self.text += f"{line}{said}\n"
        self.messages += [{"role": "user", "content": line}, {"role": "assistant", "content": said}]
