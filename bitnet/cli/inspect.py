"""inspect: what a model file holds, how it will be used and what memory it will need."""

import argparse
import json

from ..api.choices import DEFAULT_CONTEXT
from ..errors import FormatError
from . import options
from .terminal import Status, printable

USAGE = "[MODEL]"
N_ARGS = (0, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "From the headers alone: a file of any size takes a moment. A file that cannot "
        "be used is\nshown as far as it can be read, with the reason and exit code 1."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, with every tensor")
    parser.add_argument(
        "--report",
        action="store_true",
        help="what headers say and what a sample of the weights shows, without weights and paths, "
        "to paste into a report; also of a file that cannot be used",
    )
    parser.add_argument(
        "--tensors",
        action="store_true",
        help="every tensor with its place in the file, not one line a kind",
    )
    parser.add_argument(
        "--context",
        type=options.number(int, 1),
        metavar="N",
        help="tokens a sequence may hold, for the memory needed (default: the "
        f"model's, {DEFAULT_CONTEXT} at most)",
    )
    options.add_kv_dtype(parser)
    options.add_layout(parser, "how the I2_S tensors of a GGUF lie")


def main(args: argparse.Namespace) -> int:
    from ..api.load import BUNDLED_MODEL
    from ..checkpoints import hub
    from ..verify.file_report import file_report
    from . import inspect_facts, inspect_report, inspect_text

    status = Status()
    pulling = options.load_meter(status)
    path = hub.find(args.positionals[0], pulling) if args.positionals else BUNDLED_MODEL
    status.clear()
    if args.report:
        with status.doing("reading headers"):
            report = file_report(path, status.meter())
        rows = inspect_report.rows(report)
        print(json.dumps(report) if args.json else printable("\n".join(inspect_text.aligned(rows))))
        return 0
    refused = None
    try:
        facts = inspect_facts.describe(
            path, context=args.context, kv_dtype=args.kv_dtype, layout=args.layout
        )
    except FormatError as error:
        facts, refused = inspect_facts.describe_refused(path, error), error
    if args.json:
        print(json.dumps(facts))
    else:
        rows = inspect_text.refused_rows(facts) if refused else inspect_text.rows(facts)
        table = inspect_text.every_tensor(facts) if args.tensors else inspect_text.by_layer(facts)
        print(printable("\n".join([*inspect_text.aligned(rows), "", *table])))
    if refused:
        raise refused
    return 0
