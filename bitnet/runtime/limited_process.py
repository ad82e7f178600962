"""Work that may take any time, memory or stack, in a process that may die of it.

The process stays for the next work; after one that ended it another is started. This file is also
the program that it runs. It needs nothing of the package but the file that does the work: without
NumPy it starts in 0.1 s and has some 15 MB.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any


class LimitExceeded(Exception):
    """Says which limit ended the work: "longer than 2 s"."""


class LimitedProcess:
    """A process for the work of one file, used in one thread; only close may be called from others.

    worker: the path of a Python file with a function begin(), which returns the function that does
    the work: of values that JSON has, it makes one. seconds, max_bytes: what each call may take,
    and memory beyond what the process has when it is ready.
    """

    def __init__(self, worker: str, seconds: float, max_bytes: int) -> None:
        self._worker, self._seconds, self._max_bytes = worker, seconds, max_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def call(self, *arguments: Any) -> Any:
        """What the work makes of them.

        LimitExceeded if it takes too much; OSError where no process can be started, or somebody
        else ends it. TypeError or ValueError for arguments that JSON does not have.
        """
        request = _line(arguments)
        for _ in range(2):  # somebody else may have ended it, also just before
            process = self._running()
            try:
                assert process.stdin is not None
                process.stdin.write(request)
                process.stdin.flush()
                return _answer(process)
            except BaseException as error:  # also Ctrl-C, behind which an answer would wait
                is_ended = isinstance(error, (OSError, ValueError))
                self._end(1 if is_ended else 0)
                if not is_ended:
                    raise
                if limit := self._limit(process.returncode):
                    raise LimitExceeded(limit) from None
        raise OSError("it was ended")

    def close(self) -> None:
        """End the process, whatever it is at; no other is started."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """End the process, which is at nothing."""
        self._end(1)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end(1)
        if self._is_closed:
            raise OSError("it is closed")
        # -P: no module of this folder is taken for one of the library's; what this process imports
        # from comes last. It needs no key.
        limits = (repr(self._seconds), str(self._max_bytes))
        folders = [os.path.abspath(folder) for folder in sys.path if folder]
        try:
            self._process = subprocess.Popen(
                [sys.executable or "python3", "-P", __file__, self._worker, *limits, *folders],
                env={k: v for k, v in os.environ.items() if not k.startswith("BITNET_")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            _answer(self._process)
        except BaseException as error:
            self._end(1 if isinstance(error, (OSError, ValueError)) else 0)
            if isinstance(error, ValueError):  # no answer
                raise OSError("it ends at once") from None
            raise
        return self._process

    def _end(self, patience: float) -> None:
        """patience: seconds in which it may end by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what could not be written
                pipe.close() if pipe is not None else None
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _limit(self, status: int | None) -> str | None:
        """The limit behind an exit status; None where it was something else."""
        if status == -signal.SIGALRM:
            return f"longer than {self._seconds:g} s"
        if status in (-signal.SIGABRT, -signal.SIGSEGV, 1):
            return f"more than {self._max_bytes >> 20} MiB of memory, or too deep a nesting,"
        return None


def _line(value: Any) -> bytes:
    """As JSON without escapes, which would triple a text; half a surrogate pair gets through."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _answer(process: "subprocess.Popen[bytes]") -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())  # ValueError of nothing at all


def main(worker: str, seconds: str, max_bytes: str, *folders: str) -> None:
    """For each line of stdin, JSON of a call's arguments, write what it returns, as JSON.

    A call that takes longer or more memory than it may ends the process: by SIGALRM, or as a
    library does without memory, by SIGABRT; one that recurses too deep by SIGSEGV.
    """
    # A terminal and a service manager send these to all processes; the other one ends first, and
    # without it stdin ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    sys.path += folders
    spec = importlib.util.spec_from_file_location("worker", worker)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    work = module.begin()
    _bound_memory(int(max_bytes))
    sys.stdout.buffer.write(_line(""))  # it is ready
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_REAL, float(seconds))
        answer = _line(work(*json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()


def _bound_memory(max_bytes: int) -> None:
    import resource  # not on Windows, where this program does not run

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is on nothing, and there is no /proc
        with open("/proc/self/statm") as file:
            limit = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE") + max_bytes
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(*sys.argv[1:])
