"""Whether a grammar can be compiled within time and memory: tried in a process that may die of it.

The process stays for the next grammar; after one that ended it another is started.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from . import grammar_compiler
from .errors import ApiError, unavailable
from .grammar_compiler import MAX_BYTES, SECONDS


class GrammarCheck:
    """Used in one thread; only close may be called from others."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def check(self, maker: str, text: str, options: Mapping[str, Any], field: str) -> None:
        """ApiError 400 for a grammar that the library refuses, or that takes too much.

        503 where the process cannot be started. field: of the request, which errors name. Others:
        see grammar_compiler.compiled.
        """
        for _ in range(2):  # somebody else may have ended it, also just before
            process = self._running()
            try:
                error = self._ask(process, maker, text, dict(options))
            except (OSError, ValueError):
                self._end()
                if limit := _limit_of(process):
                    message = f"{field}: takes {limit} to compile"
                    raise ApiError(400, message, param=field) from None
                continue
            if error:
                raise ApiError(400, f"{field}: {one_line(error)}", param=field)
            return
        raise unavailable("the process in which schemas are tried was ended; try again later")

    def close(self) -> None:
        """End the process, whatever it is at; no other is started."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if self._is_closed:
            raise unavailable("the server is shutting down")
        try:
            # -P: no module of this folder is taken for one of the library's. It needs no key.
            self._process = subprocess.Popen(
                [sys.executable or "python3", "-P", grammar_compiler.__file__],
                env={k: v for k, v in os.environ.items() if not k.startswith("BITNET_")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._answer(self._process)
        except (OSError, ValueError) as error:
            self._end()
            reason = error.strerror if isinstance(error, OSError) else "it ends at once"
            message = f"no process can be started in which a schema is tried ({reason})"
            raise unavailable(message) from None
        return self._process

    def _ask(
        self, process: subprocess.Popen[bytes], maker: str, text: str, options: dict[str, Any]
    ) -> str:
        assert process.stdin is not None
        process.stdin.write(json.dumps([maker, text, options]).encode() + b"\n")
        process.stdin.flush()
        return self._answer(process)

    @staticmethod
    def _answer(process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        answer: str = json.loads(process.stdout.readline())  # ValueError of nothing at all
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what could not be written
                pipe.close() if pipe is not None else None
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _limit_of(process: "subprocess.Popen[bytes]") -> str | None:
    """The limit that ended the process; None where it was something else."""
    if process.returncode == -signal.SIGALRM:
        return f"longer than {SECONDS:g} s"
    if process.returncode in (-signal.SIGABRT, -signal.SIGSEGV, 1):
        return f"more than {MAX_BYTES >> 20} MiB of memory, or too deep a nesting,"
    return None


def one_line(error: object) -> str:
    """The library's message without the grammar in it."""
    first, *rest = str(error).splitlines()
    reasons = [line for line in rest if line.startswith("error: ")]
    return f"{first} {reasons[0].removeprefix('error: ')}" if reasons else first
