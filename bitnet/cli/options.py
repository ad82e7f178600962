"""The options that commands share, and the reading of a command line."""

import argparse
import math
import os

from ..api.load import MAPPINGS
from ..checkpoints import hub
from ..checkpoints.checkpoint import DEFAULT_LAYOUT, I2_S_LAYOUTS
from ..checks import parse_bytes
from ..generation import prompt_lookup
from ..generation.sampling import SAMPLING_FIELDS, Sampling
from ..generation.stopping import StopConditions


class Parser(argparse.ArgumentParser):
    """Options may stand before, between and after the words; what follows `--` is a word."""

    def __init__(self, **keywords):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **keywords
        )

    def read(self, argv, least, most):
        """Parse ``argv``; ``args.words`` are the least..most arguments that belong to no option."""
        self.add_argument("words", nargs="*", help=argparse.SUPPRESS)
        end = argv.index("--") if "--" in argv else len(argv)
        args = self.parse_intermixed_args(argv[:end])
        args.words += argv[end + 1 :]
        if not least <= len(args.words) <= most:
            wanted = str(most) if least == most else f"{least} to {most}"
            self.error(f"{len(args.words)} arguments given, {wanted} wanted")
        args.parser = self
        return args


def number(kind, low, high=math.inf):
    """An argparse type: an int or float from ``low`` to ``high``."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            limit = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {limit}")
        return value

    return convert


def size(text):
    """An argparse type: bytes, as `bitnet.load` reads them."""
    try:
        return parse_bytes("memory_limit", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None


def add_load(parser):
    """The options of `bitnet.load`."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        metavar="N",
        help="threads (default: the physical cores that are ours)",
    )
    group.add_argument(
        "--context",
        type=number(int, 1),
        metavar="N",
        help="tokens a sequence may hold (default: the model's, 4096 at most)",
    )
    group.add_argument(
        "--kv-dtype",
        choices=["f16", "f32", "int8"],
        default="f16",
        help="type of cached keys and values (default: f16)",
    )
    group.add_argument(
        "--mapping",
        choices=MAPPINGS,
        default="map",
        help="leave weights in the mapped file, the same with pages asked for "
        "ahead, locked in memory, or copied into memory (default: map)",
    )
    group.add_argument(
        "--layout",
        choices=list(I2_S_LAYOUTS),
        default=DEFAULT_LAYOUT,
        help="how the I2_S tensors of a GGUF lie, which the file does not say; "
        "`bitnet verify --layout auto` finds out (default: 128x32)",
    )
    group.add_argument(
        "--memory-limit",
        type=size,
        metavar="SIZE",
        help="refuse to grow beyond SIZE, such as 900M (default: "
        "BITNET_MEMORY_LIMIT, else what the machine has)",
    )


def add_generation(parser, max_tokens):
    """The options of `Model.generate`."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "-n",
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"tokens to generate at most (default: {max_tokens})",
    )
    for field in SAMPLING_FIELDS:
        if field.help is not None:
            option = "--" + field.name.replace("_", "-")
            group.add_argument(option, type=field.kind, metavar=field.metavar, help=field.help)
    group.add_argument(
        "--speculative",
        choices=prompt_lookup.METHODS,
        help="try what followed the last time the text went like this: the same "
        "text, sooner where it repeats itself (default: do not)",
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before TEXT; may be given several times",
    )


def load_keywords(args):
    """The keywords of `bitnet.load` among ``args``."""
    return {
        "threads": args.threads,
        "context": args.context,
        "kv_dtype": args.kv_dtype,
        "mapping": args.mapping,
        "layout": args.layout,
        "memory_limit": args.memory_limit,
    }


def generation_keywords(args):
    """The keywords of `Model.generate` that were given, checked before anything is loaded."""
    names = [field.name for field in SAMPLING_FIELDS if field.help is not None]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    limits = {"max_tokens": args.max_tokens, "stop": tuple(args.stop or ())}
    drafts = {"speculative": args.speculative} if args.speculative else {}
    try:
        Sampling(**given)
        StopConditions(**limits)
    except ValueError as error:
        args.parser.error(str(error))
    return given | limits | drafts


def looks_like_model(word):
    """Whether a lone argument is a model that is here: then the prompt was forgotten.

    Of the hub's models those that were pulled: `either/or` is a prompt, and nobody is asked.
    """
    return (
        os.path.isfile(os.path.join(word, "config.json"))
        or (word.endswith(".gguf") and os.path.isfile(word))
        or hub.cached(word) is not None
    )
