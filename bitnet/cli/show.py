"""show: what was pulled of one model: its commit, its files and where they are."""

import argparse
import json

from ..checkpoints.hub_names import SYNTAX
from .list import facts
from .terminal import printable

USAGE = SYNTAX
N_ARGS = (1, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "`bitnet inspect` shows what is in the files."
    parser.add_argument("--json", action="store_true", help="one JSON object")


def main(args: argparse.Namespace) -> int:
    from ..checkpoints.hub_pulled import find

    found = find(args.positionals[0])
    if args.json:
        print(json.dumps({"models": [facts(entry) for entry in found]}))
        return 0
    for entry in found:
        snapshot = entry.snapshot
        lines = [
            entry.name,
            f"  commit     {snapshot.commit}",
            f"  asked for  {', '.join(entry.revisions) or 'this commit'}",
            f"  path       {snapshot.path}",
            f"  bytes      {snapshot.n_bytes:,}",
        ]
        for name, one in snapshot.files.items():
            lines.append(f"{one.n_bytes:>15,}  {one.algorithm} {one.digest[:16]}  {name}")
        for line in lines:
            print(printable(line, keep=""))
    return 0
