"""perplexity: how well a model foretells a text."""

import argparse
import json
import time
from pathlib import Path

import bitnet

from ..api.choices import DEFAULT_WINDOW, RECIPES
from . import options
from .terminal import Status

USAGE = "MODEL FILE"
N_ARGS = (2, 2)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "FILE is text in UTF-8. llama.cpp's llama-perplexity gives the same number for a model "
        "that both read,\nwith -c and -b the same (it leaves a last newline of the file out, as "
        "this does). `huggingface` is the\nrecipe of transformers: windows that overlap."
    )
    add_windows(parser)
    parser.add_argument(
        "--stride",
        type=options.number(int, 1),
        metavar="N",
        help="tokens from one window to the next (default: windows beside each other; 512 for "
        "huggingface)",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default=RECIPES[0],
        help=f"how windows are cut and counted (default: {RECIPES[0]})",
    )
    parser.add_argument(
        "--save-logits",
        metavar="PATH",
        help="also write the log probabilities, for `bitnet compare` or llama-perplexity "
        "--kl-divergence-base: 2 bytes for each token of the vocabulary and scored token",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def add_windows(parser: argparse.ArgumentParser) -> None:
    """The options that perplexity and compare have in common."""
    options.add_load(parser, context_help="tokens of a window (default: 512)")
    parser.add_argument(
        "--chunks", type=options.number(int, 1), metavar="N", help="windows at most (default: all)"
    )


def main(args: argparse.Namespace) -> int:
    status, (path, file) = Status(), args.positionals
    text = read_text(file)
    context = args.context = args.context or DEFAULT_WINDOW
    room = context + (args.stride or 0) // 2
    with options.load(args, status, path, context=room) as model:
        begin = time.perf_counter()
        result = bitnet.perplexity(
            model,
            text,
            context=context,
            stride=args.stride,
            recipe=args.recipe,
            chunks=args.chunks,
            save_logits=args.save_logits,
            progress=status.meter(),
        )
        seconds = time.perf_counter() - begin
    status.clear()
    if args.json:
        print(json.dumps({"model": str(model.path), **result.as_dict(), "seconds": seconds}))
    else:
        print(result)
    return 0


def read_text(path: str) -> str:
    """A text file, without a newline at its end. ValueError where it is not UTF-8."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None
    return text.removesuffix("\n")
