"""embed: embeddings of texts, a line of JSON each."""

import argparse
import json
import sys
from itertools import islice

from . import options
from .terminal import Status

USAGE = "MODEL [TEXT ...]"
N_ARGS = (1, 10_000)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Without a TEXT every line of standard input is one."
    options.add_load(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="put TEXT in front of each, as models want for queries",
    )
    prompt.add_argument(
        "--prompt-name", metavar="NAME", help="the same by its name in the model, such as query"
    )
    options.add_slots(parser, 8, "texts that share a forward pass")


def main(args: argparse.Namespace) -> int:
    path, *texts = args.positionals
    status = Status()
    with options.load(args, status, path, slots=args.slots) as model:
        status.clear()
        texts, n_done = iter(texts or _lines()), 0
        while group := list(islice(texts, args.slots)):
            rows = model.embed(group, prompt_name=args.prompt_name, prompt=args.prompt)
            for row in rows.tolist():
                print(json.dumps(row))
            n_done += len(group)
            if not sys.stdout.isatty():  # else the lines themselves show it
                status.show(f"{n_done} texts")
        status.clear()
    return 0


def _lines():
    """The lines of stdin as text, one at a time."""
    for i, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input: line {i}, byte {error.start}: not UTF-8") from None
