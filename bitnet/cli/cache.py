"""cache: list or clear the folder of weights that could not be used in place."""

import argparse
import json

from .terminal import Status, printable

USAGE = "list|clear"
N_ARGS = (1, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The folder is BITNET_CACHE, else bitnet in XDG_CACHE_HOME, else in ~/.cache; "
        "BITNET_CACHE=off: none.\n"
        "With BITNET_CHECK_CACHE=1 a load compares every checksum in a file."
    )
    parser.add_argument("--json", action="store_true", help="of list, one JSON object")


def main(args: argparse.Namespace) -> int:
    from ..checkpoints import repack_cache

    (action,) = args.positionals
    if action not in ("list", "clear"):
        args.parser.error(f"{action!r} is neither list nor clear")
    if action == "clear":
        if args.json:
            args.parser.error("--json: of list, not of clear")
        with Status().doing("deleting repacked weights"):
            freed = repack_cache.cache_clear()
        print(f"{freed:,} bytes freed")
        return 0
    found = repack_cache.cache_list()
    total = sum(n_bytes for _, n_bytes, _ in found)
    if args.json:
        files = [
            {"path": str(path), "bytes": n_bytes, "source": source}
            for path, n_bytes, source in found
        ]
        print(json.dumps({"files": files, "bytes": total}))
        return 0
    for path, n_bytes, source in found:
        print(printable(f"{n_bytes:>15,}  {path}  from {source}", keep=""))
    if found:
        print(f"{total:>15,}  bytes of {len(found)} files")
    else:
        Status().say("[no weights were repacked yet]")
    return 0
