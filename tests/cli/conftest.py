"""A command run in the test's own process, or in one of its own; what a person at it would see."""

import contextlib
import os
import pty
import select
import subprocess
import sys

import pytest

import bitnet
from bitnet.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")


@pytest.fixture
def command(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def call(*argv):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as leaving:  # argparse: usage, --help, --version
            code = leaving.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def start(tmp_path):
    """Start a command in a process of its own."""
    with contextlib.ExitStack() as stack:

        def spawn(*argv, **keywords):
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | keywords
            process = subprocess.Popen(
                [sys.executable, "-m", "bitnet", *map(str, argv)], cwd=tmp_path, **pipes
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield spawn


class Screen:
    """What a person would see: a terminal whose end is given to a process."""

    def __init__(self):
        self.ours, self.end = pty.openpty()
        self.shown = b""

    def wait_for(self, text):
        while text not in self.shown:
            if not select.select([self.ours], [], [], 60)[0]:
                raise TimeoutError(f"{text!r} is not in {self.shown!r}")
            self.shown += os.read(self.ours, 4096)

    def all(self):
        """Everything shown, once the process has ended."""
        os.set_blocking(self.ours, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.shown += os.read(self.ours, 4096)
        return self.shown


@pytest.fixture
def screen():
    screen = Screen()
    yield screen
    os.close(screen.ours)
    os.close(screen.end)


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1) as model:
        yield model
