"""The options that commands share, and the reading of a command line."""

import argparse
import contextlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitnet

from ..api.choices import (
    ACTIVATIONS,
    DEFAULT_CONTEXT,
    DEFAULT_KV_DTYPE,
    DEFAULT_LAYOUT,
    KV_DTYPES,
    LAYOUTS,
    MAPPINGS,
    MAX_SLOTS,
    MAX_THREADS,
)
from ..checks import check_number, parse_bytes
from ..generation.sampling_fields import SAMPLING_FIELDS, Sampling
from ..generation.stopping import StopConditions
from ..progress import Progress
from ..text.reasoning import FORMATS, ReasoningSplitter
from .terminal import Status

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


def number(
    kind: type[int] | type[float], lower: float, upper: float = math.inf
) -> Callable[[str], Any]:
    """An argparse type: an int or float from ``lower`` to ``upper``."""

    def convert(text: str) -> Any:
        value: Any = text
        with contextlib.suppress(ValueError):  # what is no number stays a text, which is refused
            value = kind(text)
        try:
            check_number("value", value, kind, lower, upper)
        except ValueError as error:
            raise _argument_error(error) from None
        return value

    return convert


def size(text: str) -> int | None:
    """An argparse type: bytes, as `bitnet.load` reads them."""
    try:
        return parse_bytes("memory_limit", text)
    except ValueError as error:
        raise _argument_error(error) from None


def bias(text: str) -> tuple[int, float]:
    """An argparse type: (token id, what is added to its logit), of ID=X."""
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} (a token id, =, a number or -inf)") from None


def _argument_error(error: ValueError) -> argparse.ArgumentTypeError:
    """What a check said, without the name in front: argparse puts the option's there."""
    return argparse.ArgumentTypeError(str(error).partition(": ")[2])


def add_load(
    parser: argparse.ArgumentParser,
    context_help: str = "tokens a sequence may hold "
    f"(default: the model's, {DEFAULT_CONTEXT} at most)",
) -> None:
    """The options of `bitnet.load`."""
    group = parser.add_argument_group("model")
    add_threads(group)
    group.add_argument(
        "--context",
        type=number(int, 1),
        metavar="N",
        help=context_help,
    )
    add_kv_dtype(group)
    add_activations(
        group,
        "--activations",
        "inputs of linear layers whose weights have scales of "
        "groups: 16 bits, as good as float, or 8 (default: int16)",
    )
    group.add_argument(
        "--mapping",
        choices=MAPPINGS,
        default=MAPPINGS[0],
        help="leave weights in the mapped file, the same with pages asked for "
        f"ahead, locked in memory, or copied into memory (default: {MAPPINGS[0]})",
    )
    add_layout(
        group,
        "how the I2_S tensors of a GGUF lie, which the file does not say; "
        "`bitnet verify --layout auto` finds out",
    )
    group.add_argument(
        "--memory-limit",
        type=size,
        metavar="SIZE",
        help="refuse to grow beyond SIZE, such as 900M (default: "
        "BITNET_MEMORY_LIMIT, else what the cgroup leaves, or the machine has)",
    )


def add_speculative(parser: Any) -> None:
    """``--speculative``, as of `bitnet.load`."""
    parser.add_argument(
        "--speculative",
        metavar="MODEL",
        help="draft tokens, which come sooner and are the same: with a small model that has the "
        "same vocabulary, or `ngram`, from what the text repeats (default: do not)",
    )


def add_chat_template(parser: Any) -> None:
    """``--chat-template``, which `chat_template` reads."""
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="a Jinja template, in place of the model's own",
    )


def chat_template(args: argparse.Namespace) -> str | None:
    """The text of ``--chat-template``, None where it is not given."""
    from ..formats.text_files import read_text

    return None if args.chat_template is None else read_text(Path(args.chat_template))


def add_thinking(parser: Any) -> None:
    """``--no-thinking`` and ``--reasoning-format``, for `template_values` and `splitter`."""
    parser.add_argument(
        "--no-thinking",
        action="store_true",
        help="have the chat template ask for an answer at once (enable_thinking=false)",
    )
    add_reasoning_format(parser, "what a model thinks stays in its text", "shows it apart")


def add_reasoning_format(parser: Any, none: str, auto: str) -> None:
    """``--reasoning-format``; what its values do."""
    parser.add_argument(
        "--reasoning-format",
        choices=FORMATS,
        default=FORMATS[0],
        help=f"none: {none}, as <think>...</think>; auto, or deepseek: {auto} "
        f"(default: {FORMATS[0]})",
    )


def template_values(args: argparse.Namespace, tokenizer: "Tokenizer") -> dict[str, bool]:
    """The chat_template_kwargs for ``--no-thinking``; ValueError where no template reads them."""
    if not args.no_thinking:
        return {}
    template = tokenizer.chat_template
    if template is None or "enable_thinking" not in template.names:
        raise ValueError("--no-thinking: the chat template does not read enable_thinking")
    return {"enable_thinking": False}


def splitter(
    args: argparse.Namespace, tokenizer: "Tokenizer", prompt: Sequence[int]
) -> ReasoningSplitter | None:
    """What takes reasoning out of the reply to a chat's prompt; None if it stays, or none comes."""
    template = tokenizer.chat_template
    if template is None or not template.thinks or args.reasoning_format == "none":
        return None
    return ReasoningSplitter(tokenizer.opens_reasoning(prompt))


def add_threads(parser: Any) -> None:
    """``--threads`` for a parser or a group of it; None where it is not given."""
    parser.add_argument(
        "--threads",
        type=number(int, 1, MAX_THREADS),
        metavar="N",
        help="threads (default: the physical cores that are ours)",
    )


def add_kv_dtype(parser: Any) -> None:
    """``--kv-dtype``, as of `bitnet.load`."""
    parser.add_argument(
        "--kv-dtype",
        choices=KV_DTYPES,
        default=DEFAULT_KV_DTYPE,
        help="type of cached keys and values (default: f16)",
    )


def add_activations(parser: Any, name: str, about: str) -> None:
    """``--activations``, or an option of another name that takes the same values; None where it is
    not given."""
    parser.add_argument(name, choices=ACTIVATIONS, help=about)


def add_layout(parser: Any, about: str, name: str = "--layout", others: Sequence[str] = ()) -> None:
    """``--layout``, or an option of another name that takes the same values, and ``others``."""
    parser.add_argument(
        name,
        choices=[*others, *LAYOUTS],
        default=DEFAULT_LAYOUT,
        help=f"{about} (default: {DEFAULT_LAYOUT})",
    )


def add_slots(parser: Any, default: int, about: str) -> None:
    """``--slots``: sequences, or texts, of one forward pass."""
    parser.add_argument(
        "--slots",
        type=number(int, 1, MAX_SLOTS),
        default=default,
        metavar="N",
        help=f"{about} (default: {default})",
    )


def add_generation(parser: argparse.ArgumentParser, max_tokens: int) -> None:
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
        "--logit-bias",
        action="append",
        type=bias,
        metavar="ID=X",
        help="add X to the logit of token ID, -inf to forbid it; may be given several times",
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before TEXT; may be given several times",
    )


def load_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `bitnet.load` among ``args``."""
    return {
        "threads": args.threads,
        "context": args.context,
        "kv_dtype": args.kv_dtype,
        "activations": args.activations,
        "mapping": args.mapping,
        "layout": args.layout,
        "memory_limit": args.memory_limit,
    }


def load(args: argparse.Namespace, status: Status, *path: str, **more: Any) -> "bitnet.Model":
    """The model of a path, or the bundled one, as ``args`` and more keywords say."""
    with status.loading(path[0] if path else "the bundled model"):
        return bitnet.load(*path, **(load_keywords(args) | more), progress=load_meter(status))


def load_meter(status: Status) -> Progress:
    """Shows what a load tells of repacking, copying or pulling."""
    from ..checkpoints.hub import DOWNLOADING

    meter = status.meter("bytes")

    def show(what: str, done: int, total: int) -> None:
        if what.startswith(DOWNLOADING):  # the library of the hub shows bars itself
            status.clear()
        else:
            meter(what, done, total)

    return show


def generation_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Model.generate` that were given, checked before anything is loaded."""
    names = [field.name for field in SAMPLING_FIELDS if field.help is not None]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.logit_bias:
        given["logit_bias"] = dict(args.logit_bias)
    limits = {"max_tokens": args.max_tokens, "stop": tuple(args.stop or ())}
    try:
        Sampling(**given)
        StopConditions(**limits)
    except ValueError as error:
        args.parser.error(args.parser.in_options(str(error)))
    return given | limits


def looks_like_model(word: str) -> bool:
    """Whether a lone argument is a model that is here: then the prompt was forgotten.

    Of the hub's models those that were pulled: `either/or` is a prompt, and nobody is asked.
    """
    from ..checkpoints import hub
    from ..checkpoints.choose_file import ggufs
    from ..checkpoints.model_files import CONFIG

    with contextlib.suppress(OSError, ValueError):  # a prompt may be no path at all
        if os.path.isdir(word) and ggufs(os.listdir(word)):
            return True
    return (
        os.path.isfile(os.path.join(word, CONFIG))
        or (word.endswith(".gguf") and os.path.isfile(word))
        or hub.cached(word) is not None
    )
