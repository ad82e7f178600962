"""verify: whether a model file is sound, and the same model as another file."""

import argparse
import json

from ..api.choices import AUTO_LAYOUT
from . import options
from .terminal import Status, printable

USAGE = "[MODEL]"
N_ARGS = (0, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Each line is ok, warning or FAILED. Exit code 0 if nothing failed, else 1. "
        "Weights are read a chunk\nat a time; a 2B model takes about half a minute."
    )
    parser.add_argument(
        "--against",
        metavar="SRC",
        help="another file of the same model, such as what MODEL was made of: "
        "compare every weight, token ids and hidden states",
    )
    options.add_layout(
        parser,
        "how the I2_S tensors of a GGUF lie, which the file does not say; "
        "auto: score a text under all and name the likely one",
        others=(AUTO_LAYOUT,),
    )
    options.add_layout(parser, "the same of SRC", "--against-layout")
    parser.add_argument(
        "--masters",
        action="store_true",
        help="float weights are BitNet's master weights, though the config.json "
        "beside them does not say so",
    )
    options.add_chat_template(parser)
    options.add_threads(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, with all figures")


def main(args: argparse.Namespace) -> int:
    from ..api.load import BUNDLED_MODEL
    from ..checkpoints import hub
    from ..verify import verify

    status = Status()
    pulling = options.load_meter(status)
    path = hub.find(args.positionals[0], pulling) if args.positionals else BUNDLED_MODEL
    against = hub.find(args.against, pulling) if args.against else None
    template = options.chat_template(args)
    try:
        with status.loading(str(path)):
            report = verify(
                path,
                against,
                layout=args.layout,
                against_layout=args.against_layout,
                masters=args.masters,
                chat_template=template,
                threads=args.threads,
                progress=status.meter(),
            )
    finally:
        status.clear()
    print(json.dumps(report.as_dict()) if args.json else printable(str(report)))
    return 0 if report.passed else 1
