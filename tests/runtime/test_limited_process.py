"""A process that may die of its work: limits of time, memory and stack, and what ends it else."""

import os
import signal
import sys
import threading
import time

import pytest

from bitnet.runtime.limited_process import LimitedProcess, LimitExceeded

WORKER = """
import time
def begin():
    return lambda name, *arguments: globals()[name](*arguments)
def echo(value): return value
def sleep(seconds): time.sleep(seconds)
def take(n): return len(b"x" * n)
def nest(n): return eval("[" * 90 + "]" * 90) if n == 0 else nest(n - 1)
def abort():
    import os
    os.abort()
def other():
    import beside_the_program
    return beside_the_program.NAME
"""


@pytest.fixture
def process(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    process = LimitedProcess(str(path), 1.0, 64 << 20)
    yield process
    process.close()
    process.end()


def pid(process):
    return process._process.pid


@pytest.mark.parametrize(
    "value", [None, True, 1 << 70, 0.1, "é\n\ud800\x00", ["a", {"b": [1]}], "x" * 2_000_000]
)
def test_values_go_there_and_back(process, value):
    assert process.call("echo", value) == value


def test_it_stays_for_the_next_call(process):
    process.call("echo", 1)
    first = pid(process)
    process.call("sleep", 0.6)
    process.call("sleep", 0.6)  # each call has its own time
    assert pid(process) == first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("sleep", 30), "longer than 1 s"),
        (("take", 1 << 30), "more than 64 MiB of memory"),
        (("abort",), "or too deep a nesting"),
        (("nest", 100_000), "or too deep a nesting"),
    ],
)
def test_what_ends_it_is_said_and_another_goes_on(process, call, message):
    for _ in range(2):
        with pytest.raises(LimitExceeded, match=message):
            process.call(*call)
        assert process.call("echo", 1) == 1


def test_values_that_json_lacks_do_not_end_it(process):
    process.call("echo", 1)
    first = pid(process)
    with pytest.raises(TypeError):
        process.call("echo", {1})
    assert process.call("echo", 2) == 2 and pid(process) == first


def test_somebody_ends_it_between_two_calls(process):
    process.call("echo", 1)
    os.kill(pid(process), signal.SIGKILL)
    assert process.call("echo", 2) == 2


def test_somebody_ends_it_again_and_again(process):
    process.call("echo", 1)
    is_over = threading.Event()

    def end():
        while not is_over.wait(0.02):
            if (running := process._process) is not None:
                running.kill()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        with pytest.raises(OSError):
            process.call("sleep", 0.9)
    finally:
        is_over.set()
        thread.join()
    assert process.call("echo", 2) == 2


def test_an_exception_while_it_is_waited_for(process, monkeypatch):
    """As of ctrl-C: the answer that comes later is of no other call."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    process.call("echo", 1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            process.call("sleep", 0.9)
        assert time.monotonic() - begin < 0.9
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert process.call("echo", 2) == 2


def test_once_closed_it_starts_no_more(process):
    process.call("echo", 1)
    process.close()
    with pytest.raises(OSError, match="closed"):
        process.call("echo", 1)


def test_modules_are_found_where_the_program_finds_them(process, tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "beside_the_program.py").write_text("NAME = 'found'")
    (folder / "json.py").write_text("raise SystemExit")  # never in the place of Python's own
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    assert process.call("other") == "found"
