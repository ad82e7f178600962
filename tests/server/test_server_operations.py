"""What keeps a server running: TLS, the log as JSON, what systemd is told."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from support.server_process import USER, ServerProcess

from bitnet.server.options import Options
from bitnet.server.systemd import Notifier
from bitnet.server.tls import check_pair

SECRET, KEY = "xyzzy-plugh", "one of our keys, which nobody knows"
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


# --------------------------------------------------------------------------------------------- TLS
@pytest.fixture(scope="module")
def authority():
    return pytest.importorskip("trustme").CA()


@pytest.fixture(scope="module")
def pair(authority, tmp_path_factory):
    """Paths of a certificate for this machine and its key."""
    folder, cert = tmp_path_factory.mktemp("tls"), authority.issue_cert("127.0.0.1", "localhost")
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    cert.private_key_pem.write_to_path(paths[1])
    return paths


def test_https(authority, pair):
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with ServerProcess("--tls-cert", pair[0], "--tls-key", pair[1]) as server:
        assert "serving bundled on https://127.0.0.1:" in server.log()

        def ask(host, context):
            one = http.client.HTTPSConnection(host, server.port, timeout=30, context=context)
            with contextlib.closing(one):
                body = {"messages": USER, "max_tokens": 8, "stream": True}
                one.request("POST", CHAT, json.dumps(body))
                answer = one.getresponse()
                return answer.status, answer.read(), one

        status, body, _ = ask("127.0.0.1", trusting)
        assert status == 200 and body.endswith(b"data: [DONE]\n\n")
        assert ask("localhost", trusting)[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask("127.0.0.1", ssl.create_default_context())
        with pytest.raises((http.client.BadStatusLine, ConnectionError)):
            server.get("/health")  # HTTP on a port of HTTPS
        assert ask("127.0.0.1", trusting)[0] == 200
        assert "ERROR" not in server.log()


def test_a_pair_that_is_none(authority, pair, tmp_path):
    cert, key = map(str, pair)
    (tmp_path / "empty").touch()
    empty, missing = str(tmp_path / "empty"), str(tmp_path / "missing")
    other = tmp_path / "other.pem"
    authority.issue_cert("localhost").private_key_pem.write_to_path(other)
    secret = tmp_path / "secret.pem"
    command = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(secret)]
    for files, error, message in (
        ((missing, key), FileNotFoundError, f"'{missing}'"),
        ((cert, missing), FileNotFoundError, f"'{missing}'"),
        ((empty, key), ValueError, f"tls cert: {empty}: holds no certificate"),
        ((key, cert), ValueError, f"tls cert: {key}: holds no certificate"),
        ((cert, empty), ValueError, f"tls key: {empty}: holds no private key"),
        ((cert, str(other)), ValueError, f"tls key: {other}: is not the key of {cert}"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            check_pair(*files)
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        return  # no openssl
    with pytest.raises(ValueError, match="is encrypted"):
        check_pair(cert, str(secret))


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_half_a_pair_is_refused(given, missing, pair):
    with pytest.raises(ValueError, match=f"tls {missing}: missing"):
        Options(**{f"tls_{given}": str(pair[0])})
    with pytest.raises(RuntimeError, match=rf"--tls-{missing}"):
        ServerProcess(f"--tls-{given}", pair[0])


def test_a_bad_pair_ends_before_a_model_is_loaded(tmp_path):
    with pytest.raises(RuntimeError, match=r"none\.pem") as caught:
        ServerProcess(tmp_path / "no-model", "--tls-cert", "none.pem", "--tls-key", "none.pem")
    assert "no-model" not in str(caught.value)


# --------------------------------------------------------------------------------------------- log
def test_the_log_as_json():
    options = ("--log-format", "json", "--api-key", KEY, "--speculative", "ngram")
    with ServerProcess(*options) as server:
        key = {"authorization": f"Bearer {KEY}"}
        body = {"prompt": f"{SECRET} " * 6, "max_tokens": 30, "temperature": 0}
        reply = server.request("POST", TEXT, body, {**key, "x-request-id": "mine-1"}).json
        chat = {"messages": [{"role": "user", "content": SECRET}], "stream": True, "max_tokens": 9}
        assert server.request("POST", CHAT, chat, key).status == 200
        server.request("POST", TEXT, body, {"authorization": f"Bearer {SECRET}"})
        server.get(f"/{SECRET}?x={SECRET}", **key)
        server.post(TEXT, {"prompt": SECRET, "unknown_field": 1}, **key)
        _, log = server.stop()
    assert SECRET not in log and KEY not in log
    lines = [json.loads(line) for line in log.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        age = datetime.now(UTC) - datetime.fromisoformat(line["time"])
        assert 0 <= age.total_seconds() < 600 and line["time"].endswith("Z")
    text, stream, refused, other, _ = (line for line in lines if "method" in line)
    usage, timings = reply["usage"], reply["timings"]
    assert (text["method"], text["path"], text["status"]) == ("POST", TEXT, 200)
    assert text["id"] == "mine-1" and text["model"] == "bundled"
    assert text["prompt_tokens"] == usage["prompt_tokens"]
    assert text["generated_tokens"] == usage["completion_tokens"]
    assert text["cached_tokens"] == 0
    assert text["draft_tokens"] == timings["draft_n"] > 0
    assert text["draft_accepted_tokens"] == timings["draft_n_accepted"]
    assert text["first_token_seconds"] == pytest.approx(timings["first_token_ms"] / 1e3, abs=1e-5)
    assert 0 < text["first_token_seconds"] < text["seconds"] and text["tokens_per_second"] > 0
    assert re.fullmatch("[0-9a-f]{12}", text["key"]) and stream["key"] == text["key"]
    assert stream["generated_tokens"] > 0 and stream["path"] == CHAT
    assert refused["status"] == 401 and not {"key", "prompt_tokens"} & refused.keys()
    assert (other["path"], other["status"]) == ("other", 404)
    assert any(line["message"].startswith("passed over: unknown field") for line in lines)
    assert lines[-1]["message"] == "ended"


# ----------------------------------------------------------------------------------------- systemd
@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """A socket as systemd has one, and its name in NOTIFY_SOCKET."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@bitnet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(name.replace("@", "\0") if request.param == "abstract" else name)
        one.settimeout(60)
        yield one, name


def test_systemd_is_told(systemd):
    heard, name = systemd
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"}
    with ServerProcess(environment=environment) as server:
        assert heard.recv(4096) == b"READY=1\nSTATUS=serving bundled"
        assert server.get("/ready").status == 200
        start = time.monotonic()
        for _ in range(4):
            assert heard.recv(4096) == b"WATCHDOG=1"
        assert time.monotonic() - start > 0.25  # one each tenth of a second, the first at once
        server.process.send_signal(signal.SIGTERM)
        while (message := heard.recv(4096)) == b"WATCHDOG=1":
            pass
        assert message == b"STOPPING=1\nSTATUS=draining"
        assert server.process.wait(30) == 0


def test_who_is_told_what(systemd):
    heard, name = systemd
    pid = str(os.getpid())
    for more, seconds in (
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": pid}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": pid + "1"}, None),  # of another process
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ):
        assert Notifier({"NOTIFY_SOCKET": name} | more).watchdog_seconds == seconds
    Notifier({"NOTIFY_SOCKET": name}).tell("READY=1", "STATUS=x")
    assert heard.recv(100) == b"READY=1\nSTATUS=x"


def test_without_systemd_nothing_is_told(caplog, tmp_path):
    one = Notifier({"WATCHDOG_USEC": "1000000"})
    one.tell("READY=1")
    assert one.watchdog_seconds is None and not caplog.records
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"})
    assert gone.watchdog_seconds == 0.5
    gone.tell("READY=1")
    gone.tell("STOPPING=1")
    assert "gone: No such file" in caplog.text and len(caplog.records) == 1
    assert gone.watchdog_seconds is None


def test_a_server_whose_thread_ended_is_no_longer_alive():
    """The watchdog is not told of a process that can compute nothing."""
    code = """
import asyncio, sys
from bitnet.server import run
from bitnet.server.worker import Worker

Worker._step = lambda self: 1 / 0  # ends the thread
sys.argv = ["bitnet", "serve", "--port", "0", "--threads", "1"]
from bitnet.cli import main
sys.exit(main())
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        name = f"@bitnet-test-dead-{os.getpid()}"
        heard.bind("\0" + name[1:])
        heard.settimeout(60)
        environment = os.environ | {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"}
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            log = ""
            while not (found := re.search(r"http://\S*:(\d+)\n", log)):
                log += process.stderr.readline()
            assert heard.recv(100).startswith(b"READY=1") and heard.recv(100) == b"WATCHDOG=1"
            one = http.client.HTTPConnection("127.0.0.1", int(found[1]), 30)
            with contextlib.closing(one), contextlib.suppress(http.client.RemoteDisconnected):
                one.request("POST", TEXT, json.dumps({"prompt": "x"}))
                one.getresponse()
            heard.settimeout(1)
            with pytest.raises(TimeoutError):
                for _ in range(1000):
                    heard.recv(100)
        finally:
            process.kill()
            process.communicate()
