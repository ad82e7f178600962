"""rm: delete what was pulled of a model."""

import argparse

from ..checkpoints.hub_names import SYNTAX
from .terminal import Status, printable

USAGE = SYNTAX
N_ARGS = (1, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "ORG/NAME deletes every commit and file of it that was pulled. Files that another program "
        "put into\nthe hub's cache stay. Weights that were repacked are in another folder: "
        "`bitnet cache`."
    )


def main(args: argparse.Namespace) -> int:
    from ..checkpoints.hub_pulled import find, remove

    status = Status()
    for entry in find(args.positionals[0]):
        with status.doing(f"deleting {entry.name}"):
            freed = remove(entry)
        print(printable(f"{entry.name}: {freed:,} bytes freed", keep=""))
    return 0
