"""Targets that go wrong, each in its way: what the fuzzer has to find."""

import os
import signal
import sys

CPU_SECONDS = 0.2


class Panic(BaseException):
    """As a library in Rust raises it."""


def raises(folder):
    raise Panic((folder / "model.gguf").stat().st_size)


def eats(folder):
    bytearray(80 << 20)


def hangs(folder):
    while True:
        pass


def crashes(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def is_slow_when_traced(folder):
    while sys.gettrace():
        pass


TARGETS = {
    function.__name__: (function, "gguf")
    for function in (raises, eats, hangs, crashes, is_slow_when_traced)
}
