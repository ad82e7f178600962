"""cache: list or clear the folder of weights that could not be used in place."""

import argparse

from ..checkpoints import repack_cache
from .terminal import printable

USAGE = "list|clear"
N_ARGS = (1, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The folder is BITNET_CACHE, else bitnet in XDG_CACHE_HOME, else in ~/.cache; "
        "BITNET_CACHE=off: none.\n"
        "With BITNET_CHECK_CACHE=1 a load compares every checksum in a file."
    )


def main(args: argparse.Namespace) -> int:
    (action,) = args.positionals
    if action not in ("list", "clear"):
        args.parser.error(f"{action!r} is neither list nor clear")
    if action == "list":
        for path, n_bytes, source in repack_cache.cache_list():
            print(printable(f"{n_bytes:>15,}  {path}  from {source}", keep=""))
    else:
        print(f"{repack_cache.cache_clear():,} bytes freed")
    return 0
