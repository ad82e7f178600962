"""Whether a grammar can be compiled within time and memory: tried where it may be killed."""

from collections.abc import Mapping
from typing import Any

from ..errors import GrammarError
from ..runtime.limited_process import LimitedProcess, LimitExceeded
from . import grammar_compiler

SECONDS = 2.0  # of a compilation in a process of its own
MAX_BYTES = 256 << 20  # of memory that it may take


class GrammarCheck:
    """Used in one thread; only close may be called from others."""

    def __init__(self) -> None:
        self._process = LimitedProcess(grammar_compiler.__file__, SECONDS, MAX_BYTES)

    def check(self, maker: str, text: str, options: Mapping[str, Any], field: str) -> None:
        """GrammarError for a grammar that the library refuses, or that takes too much.

        OSError where the process cannot be started. field: of the request, which errors name.
        Others: see grammar_compiler.compiled.
        """
        try:
            refusal = self._process.call(maker, text, dict(options))
        except LimitExceeded as limit:
            raise GrammarError(field, f"takes {limit} to compile") from None
        except OSError as error:
            reason = error.strerror or error
            message = f"no process can be started in which a schema is tried ({reason})"
            raise OSError(message) from None
        if refusal:
            raise GrammarError(field, one_line(refusal))

    def close(self) -> None:
        """End the process, whatever it is at; no other is started."""
        self._process.close()


def one_line(error: object) -> str:
    """The library's message without the grammar in it."""
    first, *rest = str(error).splitlines()
    reasons = [line for line in rest if line.startswith("error: ")]
    return f"{first} {reasons[0].removeprefix('error: ')}" if reasons else first
