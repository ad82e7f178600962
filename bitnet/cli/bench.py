"""bench: tokens a second of prefill and decode, and their share of the memory bandwidth."""

import argparse
import itertools
import json
import time

from ..api.choices import DEFAULT_CONTEXT, MAX_THREADS
from . import bench_report, options, plots
from .terminal import Status

USAGE = "[MODEL]"
N_ARGS = (0, 1)
FORMATS = {
    "text": bench_report.as_table,
    "markdown": bench_report.as_markdown,
    "csv": bench_report.as_csv,
    "json": None,
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "LIST is numbers with commas between; every combination is measured. Medians of rounds: a "
        "round is\na plain read of the weights, a prefill and a decode, so that a machine whose "
        "clock drifts is\ncompared with itself. The bound is what that read allows.\n\n"
        "  bitnet bench FILE -p 128,512,2048 -d 0,4096 -t 1,2 -b 1,8\n"
        "  bitnet bench FILE --json > old.json; bitnet bench FILE --compare old.json"
    )
    options.add_load(parser)
    parser.add_argument(
        "-t",
        dest="thread_list",
        type=numbers(1, MAX_THREADS),
        metavar="LIST",
        help="numbers of threads, in place of --threads",
    )
    parser.add_argument(
        "-p",
        "--prompt-tokens",
        type=numbers(1),
        default=[128],
        metavar="LIST",
        help="tokens to prefill (default: 128)",
    )
    parser.add_argument(
        "-d",
        "--depth",
        type=numbers(0),
        default=[0],
        metavar="LIST",
        help="tokens in the context before them (default: 0)",
    )
    parser.add_argument(
        "-b",
        "--batch",
        type=numbers(1, options.MAX_SLOTS),
        default=[1],
        metavar="LIST",
        help="sequences side by side (default: 1)",
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
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="of what is printed (default: text)"
    )
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="one JSON object"
    )
    parser.add_argument(
        "--compare", metavar="OLD.json", help="ratios to what an earlier --json gave"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw tokens/s against context, with the bound (needs the extra `plot`)",
    )


def numbers(lower, upper=float("inf")):
    """An argparse type: a list of ints from lower to upper, commas between."""
    one = options.number(int, lower, upper)
    return lambda text: list(dict.fromkeys(map(one, text.split(","))))


def main(args: argparse.Namespace) -> int:
    from ..runtime import cpu

    if args.plot is not None:
        plots.check(args.plot)
    old = None if args.compare is None else bench_report.read_rows(args.compare)
    needed = max(args.depth) + max(args.prompt_tokens) + args.tokens
    if args.context is None and needed > DEFAULT_CONTEXT:
        args.context = needed
    if args.thread_list:
        args.threads = max(args.thread_list)
    status = Status()
    begin = time.perf_counter()
    with options.load(args, status, *args.positionals, slots=max(args.batch)) as model:
        load_s = time.perf_counter() - begin
        rows = _measure(model, args, status)
    status.clear()
    if old is not None:
        bench_report.add_ratios(rows, old, args.compare)
    if args.plot is not None:
        plots.plot_bench(rows, args.plot)
    sentence = bench_report.limit(rows, cpu.threads(None)[0])
    if args.format == "json":
        print(json.dumps({"load_s": load_s, "rows": rows, "limit": sentence}))
        return 0
    if args.format != "csv":
        print("\n".join(_head(rows[0], load_s)), end="\n\n" if args.format == "markdown" else "\n")
    print("\n".join(FORMATS[args.format](rows)))
    if args.format != "csv":
        print("\n" * (args.format == "markdown") + sentence)
    return 0


def _measure(model, args, status):
    """The figures of every combination, threads in the outer loop."""
    from ..api.measure import measure

    lists = args.thread_list or [model.threads], args.batch, args.depth, args.prompt_tokens
    rows, every = [], list(itertools.product(*lists))
    for i, (threads, batch, depth, n_prompt) in enumerate(every):
        where = f"{i + 1} of {len(every)}, " if len(every) > 1 else ""
        model.threads = threads
        found = measure(
            model,
            n_prompt,
            args.tokens,
            args.rounds,
            lambda text, where=where: status.show(where + text),
            depth=depth,
            batch=batch,
        )
        rows.append(found)
    return rows


def _head(row, load_s):
    yield (
        f"{row['model']}: {row['bytes_per_token'] / 1e6:,.1f} MB of weights a token, "
        f"loaded in {load_s:.2f} s"
    )
    yield (
        f"{row['isa']}, medians of {row['rounds']} rounds, {row['tokens']} tokens decoded, "
        f"a plain read of the weights: {row['read_gb_s']:,.1f} GB/s"
    )
