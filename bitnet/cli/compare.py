"""compare: how far one model's probabilities are from another's, on one text."""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bitnet

from ..api.choices import DEFAULT_WINDOW, KV_DTYPES
from . import options, plots
from .perplexity import add_windows, read_text
from .terminal import Status

USAGE = "A B [FILE]"
N_ARGS = (2, 3)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "A is the reference. A and B are models, or logits that `bitnet perplexity --save-logits` "
        "or\nllama-perplexity --kl-divergence-base has saved; FILE is the text, which saved logits "
        "bring along.\nFor two settings of one file give it twice, with an option that holds for B "
        "alone."
    )
    add_windows(parser)
    options.add_layout(parser, "the layout of B", "--b-layout")
    parser.add_argument(
        "--b-kv-dtype", choices=KV_DTYPES, help="type of B's cached keys and values (as A's)"
    )
    options.add_activations(parser, "--b-activations", "how B's activations are rounded (as A's)")
    parser.add_argument(
        "--positions", action="store_true", help="with --json: every position of the text as well"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw how many positions diverge by how much, and b's probabilities against a's "
        "(needs the extra `plot`)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def main(args: argparse.Namespace) -> int:
    status, (a, b, *file) = Status(), args.positionals
    if args.plot is not None:
        plots.check(args.plot)
    text = read_text(file[0]) if file else None
    context = args.context = args.context or DEFAULT_WINDOW
    of_b = {"layout": args.b_layout}
    if args.b_kv_dtype is not None:
        of_b["kv_dtype"] = args.b_kv_dtype
    if args.b_activations is not None:
        of_b["activations"] = args.b_activations
    with ExitStack() as stack:
        sides: list[Any] = []
        for path, given in ((a, {}), (b, of_b)):
            if not _is_saved(path):
                sides.append(stack.enter_context(options.load(args, status, path, **given)))
            else:
                sides.append(path)
        result = bitnet.compare(
            *sides,
            text,
            context=context,
            chunks=args.chunks,
            progress=status.meter(),
        )
        status.clear()
    if args.plot is not None:
        plots.plot_comparison(result, args.plot)
    print(json.dumps(result.as_dict(args.positions)) if args.json else result)
    return 0


def _is_saved(path: str) -> bool:
    """Whether this is a file of saved logits."""
    from ..generation.saved_logits import MAGIC

    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
