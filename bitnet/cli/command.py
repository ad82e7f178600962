"""The `bitnet` command: one module a subcommand, each with USAGE, N_ARGS, `configure` and `main`.

Exit codes: 0 done, 1 a file, value or limit stood in the way (a line on stderr says which),
2 wrong usage, 130 interrupted, 141 the reader of stdout went away. `python -X dev -m bitnet`
shows the traceback instead of the line.
"""

import argparse
import os
import sys

from .. import ContextFull, MemoryLimitExceeded, __version__
from ..runtime import dispatch
from . import (
    bench,
    cache,
    chat,
    compare,
    convert,
    embed,
    info,
    inspect,
    memory,
    perplexity,
    pull,
    run,
    serve,
    verify,
)
from .options import Parser
from .terminal import printable

COMMANDS = {
    "run": run,
    "chat": chat,
    "serve": serve,
    "embed": embed,
    "pull": pull,
    "convert": convert,
    "verify": verify,
    "inspect": inspect,
    "memory": memory,
    "info": info,
    "perplexity": perplexity,
    "compare": compare,
    "bench": bench,
    "cache": cache,
}
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT, 128 + SIGPIPE: what a shell would say


def main(argv: list[str] | None = None) -> int:
    """Run one command, return its exit code. argv: without the program's name; None: sys.argv."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character
    try:
        code = _command(sys.argv[1:] if argv is None else argv)
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
        print(f"bitnet: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _command(argv):
    parser = Parser(
        prog="bitnet",
        usage="bitnet COMMAND [options] [MODEL] ...",
        description="Run ternary (BitNet b1.58) language models on the CPU.",
        epilog="commands:\n"
        + "".join(f"  {name:10} {_about(module)}\n" for name, module in COMMANDS.items())
        + "\nMODEL is a .gguf file, a Hugging Face folder, or ORG/NAME of the Hugging Face hub, "
        "pulled\nwhere it is not here yet; without one the bundled model runs. A lone word of "
        "`run` is a prompt."
        "\n`bitnet COMMAND --help` lists a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"bitnet {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    module = COMMANDS[chosen.command]
    parser = Parser(
        prog=f"bitnet {chosen.command}",
        description=_about(module),
        usage=f"bitnet {chosen.command} [options] {module.USAGE}",
    )
    module.configure(parser)
    args = parser.read(chosen.rest, module.N_ARGS)
    dispatch.check()
    return module.main(args)


def _about(module):
    return module.__doc__.partition("\n")[0].partition(": ")[2]


def _one_line(error):
    if isinstance(error, MemoryLimitExceeded):  # a table
        return printable(str(error))
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return printable(f"{error.filename}: {error.strerror}", keep="")
    return printable(str(error) or type(error).__name__, keep="")


def _discard_stdout_if_broken():
    """What is left in stdout's buffer goes nowhere if nobody can read it: no noise at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
