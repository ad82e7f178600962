"""list: the models that were pulled, with their bytes."""

import argparse
import json
from typing import TYPE_CHECKING

from .terminal import Status, printable

if TYPE_CHECKING:
    from ..checkpoints.hub_pulled import Pulled

USAGE = ""
N_ARGS = (0, 0)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Those that `bitnet pull` or a load by name brought whole. A name may be given wherever a\n"
        "MODEL may; `bitnet show NAME` tells where the files are, `bitnet rm NAME` deletes them."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def main(args: argparse.Namespace) -> int:
    from ..checkpoints.hub_pulled import pulled

    found = pulled()
    total = sum(entry.snapshot.n_bytes for entry in found)
    if args.json:
        print(json.dumps({"models": [facts(entry) for entry in found], "bytes": total}))
        return 0
    for entry in found:
        size, commit = entry.snapshot.n_bytes, entry.snapshot.commit
        print(printable(f"{size:>15,}  {commit[:12]}  {entry.name}", keep=""))
    if found:
        print(f"{total:>15,}  bytes of {len(found)} models")
    else:
        Status().say("[nothing was pulled yet: `bitnet pull ORG/NAME`]")
    return 0


def facts(entry: "Pulled") -> dict[str, object]:
    """A model for JSON."""
    snapshot = entry.snapshot
    return {
        "name": entry.name,
        "repo": snapshot.repo,
        "commit": snapshot.commit,
        "revisions": list(entry.revisions),
        "path": str(snapshot.path),
        "bytes": snapshot.n_bytes,
        "files": {name: one._asdict() for name, one in snapshot.files.items()},
    }
