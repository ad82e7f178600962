"""convert: a model of any container and ternary type to a GGUF or a Hugging Face folder."""

import argparse
import signal
import sys

from ..api.choices import GROUP_TYPES, HEAD_TYPES
from ..checks import format_bytes
from . import options
from .terminal import Status, printable

USAGE = "SRC DST"
N_ARGS = (2, 2)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "SRC is a .gguf file, a Hugging Face folder, or ORG/NAME of the Hugging Face hub.\n"
        "DST is a GGUF of I2_S or a packed folder; of a model whose groups of columns have scales "
        "it\nis a GGUF of --type or a folder for MLX. It gets its name once every tensor was "
        "read back and\nis right."
    )
    parser.add_argument(
        "--to",
        choices=["gguf", "hf"],
        help="what DST is (default: gguf where its name ends in .gguf, else hf)",
    )
    parser.add_argument(
        "--head",
        choices=HEAD_TYPES,
        help="type of embedding and head in a GGUF (default: as in SRC, f16 for wider ones)",
    )
    parser.add_argument(
        "--type",
        choices=GROUP_TYPES,
        help="type of the ternary tensors of a model whose groups of columns have scales, in a "
        "GGUF (default: pq2_0, q2_0 where a group is of 64)",
    )
    parser.add_argument(
        "--masters",
        action="store_true",
        help="the floats of SRC are BitNet's master weights, to be made ternary, "
        "though its config.json does not say so",
    )
    options.add_layout(
        parser,
        "how the I2_S tensors of SRC lie, which the file does not say; "
        "`bitnet verify --layout auto` finds out",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace DST, once the new one is whole"
    )
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not read every tensor back"
    )


def main(args: argparse.Namespace) -> int:
    from ..checkpoints import hub
    from ..checkpoints.convert import convert

    src, dst = args.positionals
    names = ("to", "head", "type", "masters", "layout", "force", "verify")
    status, before = Status(), signal.signal(signal.SIGTERM, _interrupt)
    try:
        done = convert(
            hub.find(src, options.load_meter(status)),
            dst,
            **{name: getattr(args, name) for name in names},
            progress=status.meter("bytes"),
        )
    finally:
        status.clear()
        signal.signal(signal.SIGTERM, before)
    for note in done.notes:
        print(printable(f"bitnet: note: {note}", keep=""), file=sys.stderr)
    sizes = f"{format_bytes(done.bytes_in)} -> {format_bytes(done.bytes_out)}"
    print(
        printable(
            f"{done.path}: {sizes} in {done.seconds:.1f} s, "
            f"peak memory {format_bytes(done.peak_rss)}",
            keep="",
        )
    )
    return 0


def _interrupt(*_):
    """So that `kill` leaves nothing behind either."""
    raise KeyboardInterrupt
