"""bench: tokens a second of prefill and decode, and their share of the memory bandwidth."""

import argparse
import json
import time

from ..api.measure import measure
from . import options
from .terminal import Status

USAGE = "[MODEL]"
N_ARGS = (0, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Medians of rounds. A round is a plain read of the weights, a prefill and a "
        "decode: a machine\nwhose clock drifts is compared with itself. The bound is "
        "what that read allows."
    )
    options.add_load(parser)
    parser.add_argument(
        "--prompt-tokens",
        type=options.number(int, 1),
        default=128,
        metavar="N",
        help="tokens to prefill (default: 128)",
    )
    parser.add_argument(
        "-n",
        "--tokens",
        type=options.number(int, 1),
        default=64,
        metavar="N",
        help="tokens to decode (default: 64)",
    )
    parser.add_argument(
        "--rounds",
        type=options.number(int, 1),
        default=5,
        metavar="N",
        help="rounds to take medians of (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def main(args: argparse.Namespace) -> int:
    status = Status()
    begin = time.perf_counter()
    with options.load(args, status, *args.positionals) as model:
        load_s = time.perf_counter() - begin
        figures = measure(model, args.prompt_tokens, args.tokens, args.rounds, status.show)
    status.clear()
    figures = {"load_s": load_s, **figures}
    print(json.dumps(figures) if args.json else _table(figures))
    return 0


def _table(figures):
    return (
        f"{figures['model']}: {figures['bytes_per_token'] / 1e6:,.1f} MB of weights a token, "
        f"loaded in {figures['load_s']:.2f} s\n"
        f"{figures['isa']}, {figures['threads']} threads, medians of {figures['rounds']} rounds\n"
        f"prefill  {figures['prefill_tps']:10,.1f} tokens/s  ({figures['prompt_tokens']} tokens)\n"
        f"decode   {figures['decode_tps']:10,.1f} tokens/s  ({figures['tokens']} tokens)\n"
        f"read     {figures['read_gb_s']:10,.1f} GB/s      of the same weights\n"
        f"bound    {figures['bound_tps']:10,.1f} tokens/s  decode reaches {figures['share']:.0%}"
    )
