"""The `bitnet` command: one module a subcommand, each with USAGE, N_ARGS, `configure` and `main`.

Exit codes: 0 done, 1 a file, value or limit stood in the way (a line on stderr says which),
2 wrong usage, 130 interrupted, 141 the reader of stdout went away. `python -X dev -m bitnet`
shows the traceback instead of the line.
"""

import importlib
import os
import sys
from types import ModuleType

from ..errors import ContextFull
from ..version import VERSION
from . import terminal
from .commands import COMMANDS, answer
from .examples import EXAMPLES
from .parser import Parser
from .terminal import one_line

INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE: what a shell would say


def main(argv: list[str] | None = None) -> int:
    """Run one command, return its exit code. argv: without the program's name; None: sys.argv."""
    # None where the shell has closed them (>&-)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character
    words = sys.argv[1:] if argv is None else argv
    shown: list[Parser] = []  # the command's own, once its words are read
    try:
        code = answer(words)
        if code is None:
            code = _command(words, shown)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _discard_stdout_if_broken()
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout_if_broken()
        return BROKEN_PIPE
    except (
        OSError,
        ValueError,
        MemoryError,
        FloatingPointError,
        ContextFull,
        ImportError,
    ) as error:
        if sys.flags.dev_mode:
            raise
        _discard_stdout_if_broken()
        text = one_line(error)
        print(f"bitnet: error: {shown[0].in_options(text) if shown else text}", file=sys.stderr)
        return 1


def _command(words: list[str], shown: list[Parser]) -> int:
    name, *rest = words
    if name == "--version":
        print(f"bitnet {VERSION}")
        return 0
    if name == "help":
        name, rest = rest[0], ["--help"]
    module, parser = command(name)
    args = parser.read(rest, module.N_ARGS)
    shown.append(parser)
    if name != "completion":  # which computes nothing
        from ..runtime import dispatch  # only now: numpy and the compiled modules take 0.2 s

        dispatch.check()
    with terminal.verbosity(args.quiet, args.verbose):
        code: int = module.main(args)
    return code


def command(name: str) -> tuple[ModuleType, Parser]:
    """The module of a command, imported now, and what reads its words."""
    module = importlib.import_module(f".{name}", __package__)
    parser = Parser(
        prog=f"bitnet {name}",
        description=COMMANDS[name],
        usage=f"bitnet {name} [options] {module.USAGE}",
    )
    module.configure(parser)
    if module.USAGE.startswith(("[MODEL]", "MODEL")):
        parser.add_argument("-m", "--model", metavar="MODEL", help="the same as the first word")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "-q", "--quiet", action="store_true", help="no progress, figures and warnings on stderr"
    )
    output.add_argument(
        "-v", "--verbose", action="store_true", help="what the engine logs, on stderr"
    )
    examples = "".join(f"\n  {line}" for line in EXAMPLES[name].strip().splitlines())
    parser.epilog = f"{parser.epilog or ''}\n\nexamples:{examples}".lstrip()
    return module, parser


def _discard_stdout_if_broken():
    """What is left in stdout's buffer goes nowhere if nobody can read it: no noise at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
