"""run: generate text from one prompt, and write it as it comes."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import bitnet

from ..formats.text_files import read_text
from ..generation.stopping import CONTEXT_ENDS, StopConditions
from . import options
from .terminal import Said, Status, write

USAGE = "[MODEL] PROMPT"
N_ARGS = (1, 2)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "One word is the prompt; with two the first is MODEL. PROMPT - reads standard "
        "input.\nText goes to stdout as it comes; progress, timing and what the model thinks "
        "before it answers go to stderr if that is a terminal."
    )
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
    *model_path, prompt = args.positionals
    if not model_path and options.looks_like_model(prompt):
        args.parser.error(f"{prompt} is a model: the prompt is missing")
    keywords = options.generation_keywords(args) | {"context_end": args.context_end}
    if args.json_schema is not None:
        keywords["json_schema"] = _schema(Path(args.json_schema))
    if prompt == "-":
        prompt = _standard_input()
    status = Status()
    template = options.chat_template(args)
    more = {"chat_template": template, "speculative": args.speculative}
    with options.load(args, status, *model_path, **more) as model:
        chat = args.chat
        if chat is None:
            chat = model.tokenizer.chat_template is not None
        if args.no_thinking and not chat:
            raise ValueError("--no-thinking: the prompt is no message")
        status.show("reading the prompt")
        said = Said(status, not args.json)
        if chat:
            values = options.template_values(args, model.tokenizer)
            message = {"role": "user", "content": prompt}
            ids = model.encode_chat([message], values, may_think=args.json_schema is None)
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
    return 0


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
