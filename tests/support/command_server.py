"""`bitnet` for many commands in a row: a process that has imported it forks for each of them.

A command takes 20 ms in place of 300. `serve(path)` is the process, on a Unix socket; CLIENT is the
program that stands for `bitnet`: it hands over arguments, folder, environment and files 0 to 2,
passes SIGTERM and SIGINT on, and ends as the command does. What is decided at the import
(IMPORTED) has a process of its own.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager

IMPORTED = "BITNET_ISA"  # a variable that is read when bitnet is imported
MAX_MESSAGE = 1 << 20  # bytes of arguments and environment

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
if {variable!r} in os.environ:
    os.execv({python!r}, [{python!r}, "-m", "bitnet", *sys.argv[1:]])
s = socket.socket(socket.AF_UNIX)
s.connect({path!r})
message = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(s, [len(message).to_bytes(4, "big")], [0, 1, 2])
s.sendall(message)
answers = s.makefile()
pid = int(answers.readline())
for number in signal.SIGTERM, signal.SIGINT:
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


@contextmanager
def command_server(folder, environment):
    """`bitnet` in a folder, by a server that ends with the context and kills what still runs."""
    path = folder / "commands.socket"
    process = subprocess.Popen(
        [sys.executable, __file__, str(path)],
        env=environment,
        stdin=subprocess.PIPE,  # which ends with this process, however that ends
        start_new_session=True,
    )
    client = folder / "bitnet"
    text = CLIENT.format(python=sys.executable, path=str(path), variable=IMPORTED)
    client.write_text(text)
    client.chmod(0o755)
    try:
        while not path.exists():
            assert process.poll() is None, "the server of commands has ended"
            time.sleep(0.01)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def serve(path):
    """Run the commands that come, each in a child."""
    from bitnet.cli import command, commands

    for name in commands.COMMANDS:
        importlib.import_module(f"bitnet.cli.{name}")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os.killpg(0, signal.SIGKILL)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            handle(connection, command)
        connection.close()


def handle(connection, command):
    """Run one command in a child of this process, and tell its pid and its end; then exit."""
    length, fds, _, _ = socket.recv_fds(connection, 4, 3)
    message = b""
    while len(message) < int.from_bytes(length, "big"):
        message += connection.recv(MAX_MESSAGE)
    words, folder, environment = json.loads(message)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        # what the server's own files are, a folder's file perhaps, Python has looked at already
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", 1)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["bitnet", *words]
        code = 1
        try:
            code = command.main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    for fd in fds:
        os.close(fd)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
