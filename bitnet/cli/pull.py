"""pull: fetch a model from the Hugging Face hub, of one commit and checked; print its path."""

import argparse

from ..checkpoints.hub_names import SYNTAX
from . import options
from .terminal import Status, printable

USAGE = SYNTAX
N_ARGS = (1, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The address of a model's page, or of a file's, does as well.\n"
        "Files go to the hub's own cache (HF_HOME, HF_HUB_CACHE); HF_TOKEN opens "
        "private repositories.\nOther commands take the same name for a MODEL: what "
        "was pulled is used without network, at\nits commit, until the next pull."
    )


def main(args: argparse.Namespace) -> int:
    from ..checkpoints import hub

    (name,) = args.positionals
    status = Status()
    snapshot = hub.fetch(name, progress=options.load_meter(status))
    status.say(f"[{snapshot.repo}@{snapshot.commit}: {snapshot.n_bytes:,} bytes, checksums right]")
    print(printable(str(snapshot.path), keep=""))
    return 0
