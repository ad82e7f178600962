"""run: generate text from one prompt, and write it as it comes."""

import argparse
import dataclasses
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import bitnet

from ..api.load import BUNDLED_MODEL
from ..formats.text_files import read_text
from ..generation.stopping import CONTEXT_ENDS, StopConditions
from . import options
from .terminal import Said, Status, write

USAGE = "[MODEL] [PROMPT]"
HINT = (
    "This is the small demonstration model. A real one: "
    'bitnet run microsoft/bitnet-b1.58-2B-4T-gguf "..."'
)
N_ARGS = (0, 2)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "One word is the prompt; with two the first is MODEL. Without a prompt, and for PROMPT -, "
        "it is\nwhat a pipe brings. Text goes to stdout as it comes; progress, timing and what the "
        "model thinks\nbefore it answers go to stderr if that is a terminal."
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt; a lone word is MODEL")
    given.add_argument("-f", "--file", metavar="FILE", help="the same from a file; - reads stdin")
    parser.add_argument("--system", metavar="TEXT", help="a system message in front of the prompt")
    options.add_load(parser)
    options.add_speculative(parser)
    options.add_chat_template(parser)
    options.add_thinking(parser)
    options.add_generation(parser, StopConditions.max_tokens)
    parser.add_argument(
        "--context-end",
        choices=CONTEXT_ENDS,
        default=StopConditions.context_end,
        help="when the context is full: stop, fail, or go on in the same memory, "
        f"seeing the first tokens and the latest (default: {StopConditions.context_end})",
    )
    parser.add_argument(
        "--json-schema",
        metavar="FILE",
        help="write JSON that follows the JSON schema in FILE (needs llguidance)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--chat",
        action="store_const",
        const=True,
        default=None,
        help="the prompt is a message: use the model's chat template",
    )
    form.add_argument(
        "--raw",
        action="store_const",
        const=False,
        dest="chat",
        help="the prompt is the beginning of a text "
        "(default: --chat where the model has a template)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object at the end: the text and all figures"
    )


def main(args: argparse.Namespace) -> int:
    model_path, prompt = _words(args)
    keywords = options.generation_keywords(args) | {"context_end": args.context_end}
    if args.json_schema is not None:
        keywords["json_schema"] = _schema(Path(args.json_schema))
    status = Status()
    template = options.chat_template(args)
    more = {"chat_template": template, "speculative": args.speculative}
    with options.load(args, status, *model_path, **more) as model:
        chat = args.chat
        if chat is None:
            chat = model.tokenizer.chat_template is not None
        if args.no_thinking and not chat:
            raise ValueError("--no-thinking: the prompt is no message")
        if args.system is not None and not chat:
            raise ValueError("--system: the prompt is no message")
        status.show("reading the prompt")
        said = Said(status, not args.json)
        if chat:
            values = options.template_values(args, model.tokenizer)
            messages = [{"role": "system", "content": args.system}] * (args.system is not None)
            messages.append({"role": "user", "content": prompt})
            ids = model.encode_chat(messages, values, may_think=args.json_schema is None)
            said.splitter = options.splitter(args, model.tokenizer, ids)
            stream = model.stream(ids, **keywords)
        else:
            stream = model.stream(prompt, **keywords)
        try:
            with stream, said:
                for delta in stream:
                    said.push(delta)
        finally:  # interrupted too: what is there stays, the line is ended
            if not args.json and said.text and not said.text.endswith("\n"):
                write("\n")
        completion: Any = stream.completion
    if args.json:
        about = dataclasses.asdict(completion)
        if said.splitter is not None:
            about |= {"text": said.text, "reasoning_content": said.reasoning}
        print(json.dumps(about))
    status.say(summary(completion))
    if model.path == BUNDLED_MODEL and sys.stdout.isatty():
        status.say(HINT)
    return 0


def _words(args: argparse.Namespace) -> tuple[list[str], str]:
    """The model, as a list of one word or none, and the prompt."""
    n_models = int(args.model is not None)
    models, words = args.positionals[:n_models], args.positionals[n_models:]
    if args.prompt is not None or args.file is not None:
        if len(models) + len(words) > 1:
            args.parser.error(f"{words[-1]!r}: the prompt is given twice")
        if args.prompt is not None:
            return models + words, args.prompt
        is_stdin = args.file == "-"
        text = _standard_input() if is_stdin else read_text(Path(args.file)).removesuffix("\n")
        return models + words, text
    if len(words) == 2 and models:
        args.parser.error(f"{words[0]!r}: the model is given twice, by --model too")
    if len(words) == 1 and not models and options.looks_like_model(words[0]):
        models, words = words, []
    if not words and not _is_piped():
        what = f"{models[0]} is a model: " if models else ""
        args.parser.error(f"{what}the prompt is missing (a word, --prompt, --file, or a pipe)")
    if not words or words[-1] == "-":
        return models + words[:-1], _standard_input()
    return models + words[:-1], words[-1]


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file: what somebody means to be read."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or none at all
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def summary(completion: bitnet.Completion) -> str:
    """One line of figures for a person."""
    return (
        f"[{completion.prompt_tokens} tokens read at {completion.prompt_tps:,.1f} a second, "
        f"{completion.completion_tokens} written at {completion.generation_tps:,.1f}; "
        f"ended by {completion.finish_reason}, seed {completion.seed}]"
    )


def _schema(path: Path) -> Any:
    """The JSON of a file, which Model.generate checks."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error})") from None


def _standard_input() -> str:
    """All of stdin as text, without the line end that `echo` adds."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: byte {error.start} is not UTF-8") from None
