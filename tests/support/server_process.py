"""A `bitnet serve` in a process of its own on a free port, and plain HTTP to it.

Importing this skips the tests of a module where the server's extra is not installed.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from types import SimpleNamespace

from support.paths import TINY_MODEL

if "pytest" in sys.modules:  # bench/bench_server.py does without, and without skipping
    import pytest

    for needed in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
        pytest.importorskip(needed)

USER = [{"role": "user", "content": "Who goes there?"}]
NO_END = {"2046": -100, "2047": -100}  # forbids bitnet-tiny's end tokens


class ServerProcess:
    """Context manager. options: of the command line; without a model in front it is bitnet-tiny,
    named "bundled". environment: added to this process's."""

    def __init__(self, *options, environment=None):
        if not options or str(options[0]).startswith("-"):
            name = () if "--model-name" in options else ("--model-name", "bundled")
            options = (TINY_MODEL, *name, *options)
        command = [sys.executable, "-m", "bitnet", "serve", "--port", "0", "--threads", "1"]
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115  # until __exit__
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stderr=self._log,
            env=os.environ | (environment or {}),
        )
        while not (found := re.search(r'https?://(\S*):(\d+)["\n]', self.log())):
            if self.process.poll() is not None:
                raise RuntimeError(self.log())
            time.sleep(0.02)
        self.host, self.port = found[1].strip("[]"), int(found[2])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self._log.close()

    def log(self):
        """What the server has logged so far."""
        with open(self._log.name) as file:
            return file.read()

    def stop(self, number=signal.SIGTERM):
        """Send a signal; the exit status, and all of the log."""
        self.process.send_signal(number)
        return self.process.wait(30), self.log()

    @contextlib.contextmanager
    def connection(self, source=None):
        """source: the address it comes from, as 127.0.0.2; None for any."""
        address = source and (source, 0)
        one = http.client.HTTPConnection(self.host, self.port, 60, source_address=address)
        with contextlib.closing(one):
            yield one

    def request(self, method, path, content=None, headers=None):
        """(status, headers, what the body's JSON says, or the body). content: bytes, or for JSON"""
        if content is not None and not isinstance(content, bytes):
            content = json.dumps(content).encode()
        with self.connection() as one:
            one.request(method, path, content, headers or {})
            response = one.getresponse()
            body = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        found = SimpleNamespace(status=response.status, headers=response.headers, body=body)
        found.json = json.loads(body) if is_json else None
        return found

    def post(self, path, content, **headers):
        return self.request("POST", path, content, headers)

    def get(self, path, **headers):
        return self.request("GET", path, None, headers)

    def chat(self, **fields):
        """The answer to a chat request of 8 tokens, or as ``fields`` say."""
        return self.post("/v1/chat/completions", {"messages": USER, "max_tokens": 8} | fields)

    def chunks(self, path="/v1/chat/completions", **fields):
        """The chunks of a stream, which must end as it should."""
        answer = self.post(path, {"max_tokens": 8, "stream": True} | fields)
        assert answer.status == 200, answer.body
        assert answer.headers.get_content_type() == "text/event-stream"
        events = answer.body.decode().split("\n\n")
        assert events.pop() == "" and events.pop() == "data: [DONE]"
        return [json.loads(e.removeprefix("data: ")) for e in events if not e.startswith(":")]

    def send(self, data):
        """A socket to the server that has sent these bytes."""
        one = socket.create_connection((self.host, self.port), 30)
        one.sendall(data)
        return one

    def open_stream(self, **fields):
        """A socket to which the answer to a chat's stream comes, and its status."""
        content = {"messages": USER, "stream": True, "logit_bias": NO_END} | fields
        body = json.dumps(content).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        )
        one = self.send(head.encode() + b"\r\n\r\n" + body)
        return one, int(one.recv(12).removeprefix(b"HTTP/1.1 "))

    def start_stream(self, **fields):
        """A socket on which a chat's stream has begun."""
        one, status = self.open_stream(**fields)
        assert status == 200
        return one

    def metrics(self):
        """{name with labels but the model's: number, of all models together}."""
        found = Counter()
        for line in self.get("/metrics").body.decode().splitlines():
            if line[0] != "#":
                name, _, value = line.rpartition(" ")
                name = re.sub(r'(?<=[{,])model="[^"]*",?|,model="[^"]*"(?=})', "", name)
                found[name.replace("{}", "")] += float(value)
        return found

    def wait_until_idle(self, seconds=10):
        """The metrics once no sequence runs or waits."""
        end = time.monotonic() + seconds
        while (found := self.metrics())["bitnet_sequences"]:
            assert time.monotonic() < end, "sequences go on"
            time.sleep(0.02)
        return found

    def peak(self):
        """The most bytes the process had resident."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) << 10

    def rss(self):
        """Resident bytes of the process."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def openai_client(server):
    """OpenAI's own client of a server; skips where it is not installed."""
    openai = pytest.importorskip("openai")
    url = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def anthropic_client(server, **options):
    """Anthropic's own client of a server; skips where it is not installed."""
    anthropic = pytest.importorskip("anthropic")
    options = {"api_key": "none", "max_retries": 0} | options
    return anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.port}", **options)


@contextlib.contextmanager
def server_with_template(folder, template):
    """A server of two slots whose chat template is this text, kept in folder."""
    path = folder / "template.jinja"
    path.write_text(template)
    with ServerProcess("--slots", 2, "--chat-template", path) as server:
        yield server
