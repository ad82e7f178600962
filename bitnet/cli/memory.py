"""memory: every byte after a short generation: mapped, pool by purpose, what the OS says."""
import json

import bitnet

from . import options
from .terminal import Status

USAGE = "[MODEL]"
WORDS = (0, 1)


def configure(parser):
    options.add_load(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("-n", "--max-tokens", type=options.number(int, 1), default=32, metavar="N",
                        help="tokens to generate before looking (default: 32)")


def main(args):
    status = Status()
    status.show("loading")
    with bitnet.load(*args.words, **options.load_keywords(args)) as model:
        status.show("generating")
        model.generate([0] * 16, max_tokens=args.max_tokens, temperature=0)
        report = model.memory()
        status.clear()
        print(json.dumps(report.as_dict()) if args.json else report)
    return 0
