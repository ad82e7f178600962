"""chat: a conversation; the keys and values of what was said before are kept between turns."""

import argparse
import contextlib
import sys
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import bitnet

from ..generation.stopping import CONTEXT_ENDS
from . import options
from .chat_commands import COMMANDS, Commands
from .chat_input import lines, typing_ahead
from .markdown import markdown_writer
from .terminal import Said, Status, write

if TYPE_CHECKING:
    from .conversation import Conversation

USAGE = "[MODEL]"
N_ARGS = (0, 1)
KEYS_HELP = "/help lists the commands, ctrl-D ends, ctrl-C stops a reply"
MIN_WINDOW = 257  # tokens of a context that can go on when it is full: see Model.generate


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        f"{KEYS_HELP}; alt-Enter or ctrl-J begins a new line.\n{' '.join(COMMANDS)}\n"
        "Editing, history and completion need prompt_toolkit, Markdown needs rich (pip install\n"
        "'bitnet-engine[chat]'). A model without a chat template continues the text of both."
    )
    options.add_load(parser)
    options.add_speculative(parser)
    options.add_chat_template(parser)
    options.add_thinking(parser)
    options.add_generation(parser, max_tokens=512)
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    parser.add_argument(
        "--context-end",
        choices=CONTEXT_ENDS,
        help="when the context is full: stop, fail, or go on in the same memory, seeing the first "
        f"tokens and the latest (default: window, stop where the context is below {MIN_WINDOW})",
    )


def main(args: argparse.Namespace) -> int:
    from .conversation import Conversation

    keywords = options.generation_keywords(args)
    status = Status()
    template = options.chat_template(args)
    more = {"chat_template": template, "speculative": args.speculative}
    with typing_ahead(), options.load(args, status, *args.positionals, **more) as model:
        keywords["context_end"] = args.context_end or (
            "window" if model.context >= MIN_WINDOW and not model.config.delta_net else "stop"
        )
        model.request([0], **keywords)  # an embedding model says at once that it does not talk
        if model.tokenizer.chat_template is None:
            if args.system is not None:
                raise ValueError("--system: the model has no chat template")
            status.say("[the model has no chat template: it continues what you write]")
        values = options.template_values(args, model.tokenizer)
        status.say(f"[{KEYS_HELP}]")
        new_splitter = partial(options.splitter, args, model.tokenizer)
        conversation = Conversation(model, keywords, args.system, values, new_splitter)
        commands = Commands(conversation, status)
        talk(conversation, lines(commands), status, commands)
    return 0


def talk(
    conversation: "Conversation", said: Iterable[str], status: Status, commands: Commands
) -> None:
    """Answer every line until /exit or the end of input."""
    is_full = False  # whether a person knows that the context is
    for line in said:
        sent: str | None = line
        if line.startswith("//"):
            sent = line[1:]
        elif line.startswith("/"):
            sent = commands.run(line)
        if commands.left:
            return
        if sent is None or not sent.strip():
            continue
        _answer(conversation, sent, status)
        if not is_full and _is_full(conversation):
            is_full = True
            status.say(
                f"[the context of {conversation.model.context} tokens is full: the oldest "
                "messages are no longer seen]"
            )


def _answer(conversation: "Conversation", line: str, status: Status) -> None:
    status.show("reading")
    drawn = markdown_writer()
    try:
        with Said(status, sink=drawn) as said, contextlib.closing(conversation.reply(line)) as text:
            for delta in text:
                said.splitter = conversation.splitter
                said.push(delta)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    except bitnet.ContextFull as error:
        status.clear()
        print(f"bitnet: {error}", file=sys.stderr)
        return
    finally:
        if drawn is not None:
            drawn.close()
    if drawn is None:
        write("\n")
    status.say(conversation.summary())


def _is_full(conversation: "Conversation") -> bool:
    return conversation.n_dropped > 0 or conversation.n_tokens() > conversation.model.context
