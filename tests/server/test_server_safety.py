"""What the server refuses, and what bad clients can and cannot do to it; on a real process."""

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.server_process import NO_END, USER, ServerProcess

from bitnet.cli import main

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KEY = "a secret of ours"
SECRET = "xyzzyplugh"  # a word of prompts, to be found nowhere


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 4, "--read-seconds", 1, "--write-seconds", 1) as one:
        yield one


@pytest.fixture(scope="module")
def locked():
    options = ("--allow-host", "Models.example", "--cors-origin", "https://page.example")
    with ServerProcess(*options, environment={"BITNET_API_KEY": KEY}) as one:
        yield one


def ask(**fields):
    return {"messages": USER, "max_tokens": 4} | fields


# -------------------------------------------------------------------------------- refused requests
@pytest.mark.parametrize(("fields", "param"), [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
     "messages[0].tool_calls[0]"),
    ({"messages": [{"role": "user", "content": "word " * 2000}]}, None),
    ({"max_tokens": -2}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": True}, "n"),
    ({"best_of": 5}, "best_of"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x" * 257]}, "stop[0]"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 101}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, None),
    ({"logit_bias": {"5": 101}}, None),
    ({"logit_bias": {"2048": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"messages": [USER[0] | {"images": ["x"]}]}, "messages[0].images"),
    ({"messages": [USER[0] | {"audio": {"id": "x"}}]}, "messages[0].audio"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}, "schema": {}}},
     "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}},
     "response_format.json_schema"),
    ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs.a"),
])  # fmt: skip
def test_bad_fields(server, fields, param):
    answer = server.post(CHAT, ask(**fields))
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(("prompt", "status"), [
    ([], 400), ([[]], 400), (["x", 5], 400), ([5, "x"], 400), ([2048], 400), ([-1], 400),
    ([[1], "x"], 400), (["x"] * 17, 400), (5, 400), (None, 400), ([1] * 513, 400),
    ("", 200), ([1, 2], 200), ([[1], [2, 3]], 200), (["x", ""], 200),
])  # fmt: skip
def test_prompts(server, prompt, status):
    answer = server.post(TEXT, {"prompt": prompt, "max_tokens": 2})
    assert answer.status == status, answer.body


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": NaN}', b'{"temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'{"temperature": 1e999}',
    b'{"seed": ' + b"9" * 100_000 + b"}",
    b"[" * 100_000, b'{"messages":' * 50_000, b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
])  # fmt: skip
def test_bodies_that_are_not_what_they_should_be(server, body):
    answer = server.post(CHAT, body)
    assert answer.status == 400 and answer.json["error"]["message"]


@pytest.mark.parametrize("data", [
    b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01" + b"\0" * 100,
    b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
])  # fmt: skip
def test_what_is_not_http(server, data):
    with server.send(data) as one:
        answer = one.recv(12)
        assert answer in (b"", b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 404", b"HTTP/1.1 405")
    assert server.get("/health").status == 200
    assert "Traceback" not in server.log()


def test_headers_that_are_too_large(server):
    before = server.rss()
    with server.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n") as one:
        try:
            for _ in range(200):
                one.sendall(b"x: " + b"y" * 50_000 + b"\r\n")
            answer = one.recv(100)
        except ConnectionError:
            answer = b""
    assert answer[:12] in (b"", b"HTTP/1.1 400")
    assert server.rss() - before < 8 << 20


def test_headers_that_are_too_large_at_once(server):
    assert server.get("/health", x="y" * 16_000).status == 200
    assert server.get("/health", x="y" * 17_000).status == 431
    assert server.get("/" + "a" * 17_000).status == 431
    assert server.get("/health?" + "a" * 17_000).status == 431


def test_no_client_writes_the_log(server):
    assert server.request("X" * 10_000, "/health").status == 405
    end = time.monotonic() + 10
    while " other /health 405 " not in server.log():  # it is written behind the answer
        assert time.monotonic() < end and "X" * 20 not in server.log()
    assert "X" * 20 not in server.log()


def test_no_files_pulls_or_loads(server):
    for path in (
        "/../../etc/passwd",
        "/static/x",
        "/api/pull",
        "/v1/load",
        "/redoc",
        "/docs/x",
    ):
        assert server.get(path).status == 404
    for name in ("/etc/passwd", "microsoft/bitnet-b1.58-2B-4T", "../x.gguf"):
        assert server.chat(model=name).json["model"] == "bundled"  # a name, and no more
    assert server.request("TRACE", "/").status == 405


# ------------------------------------------------------------------------------------- slow clients
def is_closed(one, seconds=5):
    """Whether the server closes a connection, whatever it sends before."""
    one.settimeout(seconds)
    try:
        while one.recv(65536):
            pass
        return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_slow_headers(server):
    with server.send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n") as one:
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            for _ in range(50):
                one.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - start < 4
    with server.send(b"") as one:
        assert is_closed(one)


def test_slow_body(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with server.send(head) as one:
        assert one.recv(12) == b"HTTP/1.1 408" and is_closed(one)


def test_a_client_that_does_not_read(server):
    before, start = server.rss(), time.monotonic()
    fields = {"n": 16, "logprobs": True, "top_logprobs": 20, "max_tokens": 450}  # 17 MB of chunks
    with server.start_stream(**fields):
        server.wait_until_idle()
        while not server.metrics()["bitnet_cancelled_total"]:
            assert time.monotonic() - start < 10
            time.sleep(0.02)
    assert server.rss() - before < 40 << 20
    assert server.chat().status == 200


# ------------------------------------------------------------------------------------- who may call
@pytest.mark.parametrize(("host", "status"), [
    ("localhost", 200), ("LOCALHOST:8080", 200), ("127.0.0.1:1", 200), ("[::1]:80", 200),
    ("192.168.1.7", 200), ("evil.example", 403), ("localhost.evil.example", 403),
    ("127.0.0.1.evil.example:80", 403), ("", 400), ("a:b:c", 400), ("models.example", 403),
])  # fmt: skip
def test_host(server, host, status):
    assert server.get("/health", Host=host).status == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "x"])
def test_origin(server, origin):
    answer = server.post(CHAT, ask(), Origin=origin)
    assert answer.status == 403 and "access-control-allow-origin" not in answer.headers


def test_own_origin(server):
    host = f"127.0.0.1:{server.port}"
    assert server.post(CHAT, ask(), Host=host, Origin=f"http://{host}").status == 200


def test_no_cors_by_default(server):
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = server.request("OPTIONS", CHAT, None, headers)
    assert answer.status == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_cors_for_a_listed_origin(locked):
    origin = {"Origin": "https://page.example"}
    answer = locked.request(
        "OPTIONS", CHAT, None, origin | {
            "Access-Control-Request-Method": "POST",
            # as OpenAI's client and Anthropic's send it from a page
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,"
            "anthropic-dangerous-direct-browser-access",
        }
    )  # fmt: skip
    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == (
        "authorization, content-type, x-stainless-lang, anthropic-dangerous-direct-browser-access"
    )
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    answer = locked.request("POST", CHAT, ask(), origin | {"Authorization": f"Bearer {KEY}"})
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert answer.headers["access-control-expose-headers"] == "x-request-id, retry-after"
    assert locked.get("/health", Host="models.example:443").status == 200


@pytest.mark.parametrize("given", [
    None, "Bearer", "Bearer ", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
    f"Basic {KEY}", KEY, "Bearer \xe9\xff",
])  # fmt: skip
def test_wrong_keys(locked, given):
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"),
                         ("POST", "/tokenize"), ("GET", "/v1/nothing")):  # fmt: skip
        answer = locked.request(method, path, None, headers)
        assert answer.status == 401 and answer.json["error"]["code"] == "invalid_api_key"
    assert locked.get("/health").status == 200


def test_an_open_address_needs_a_key(capsys, monkeypatch):
    monkeypatch.delenv("BITNET_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        assert main(["serve", "--host", host]) == 1
        assert "an API key is needed" in capsys.readouterr().err
    assert main(["serve", "--api-key", "short"]) == 1
    assert main(["serve", "--cors-origin", "*"]) == 1


def test_an_address_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_without_the_extra():
    code = (
        "import sys; sys.modules['starlette'] = None\n"
        "from bitnet.cli import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'bitnet-engine[server]'" in done.stderr


# --------------------------------------------------------------------------------- full, and silent
def test_a_full_queue():
    with ServerProcess("--slots", 1, "--queue", 1) as server:

        def ask_one(i):
            return server.chat(seed=i, max_tokens=400, logit_bias=NO_END)

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask_one, range(24)))
        statuses = {a.status for a in answers}
        assert statuses == {200, 429}
        refused = next(a for a in answers if a.status == 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert server.chat(n=3).json["error"]["param"] == "n"
        assert server.wait_until_idle()["bitnet_sequences"] == 0


@pytest.fixture(scope="module")
def least_memory():
    """A memory limit that leaves nothing for keys and values; a full sequence takes 2 MiB."""
    with ServerProcess("--slots", 16, "--memory-limit", "200MiB", "--kv-dtype", "f32") as one:
        found = one.metrics()
        in_use = sum(n for name, n in found.items() if name.startswith("bitnet_pool_bytes"))
        return (200 << 20) - int(found["bitnet_pool_limit_bytes"] - in_use)


def test_memory_for_a_few_of_them(least_memory):
    """The pool holds two sequences of full length, not sixteen: the others wait."""
    options = ("--memory-limit", least_memory + (5 << 20), "--kv-dtype", "f32")
    with ServerProcess("--slots", 16, *options) as server:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda i: ask_for_all(server, i), range(16)))
        assert [a.status for a in answers] == [200] * 16


def test_memory_for_none_of_them(least_memory):
    """A server that could not hold one sequence of full length does not begin to serve."""
    options = ("--memory-limit", least_memory + (1 << 20), "--kv-dtype", "f32")
    with pytest.raises(RuntimeError, match=r"--memory-limit: \d+ bytes .* are needed\n.* kv "):
        ServerProcess("--slots", 16, *options)


def ask_for_all(server, i, **fields):
    """A request for the whole context, with a prompt of its own."""
    prompt = [(7 * i + j * (i + 1)) % 2000 for j in range(300)]
    return server.post(TEXT, {"prompt": prompt, "max_tokens": 210, "logit_bias": NO_END} | fields)


def test_logs_and_metrics_hold_no_prompt():
    with ServerProcess("--read-seconds", 1) as server:
        message = [{"role": "user", "content": SECRET}]
        assert server.chat(messages=message).status == 200
        server.chat(messages=message, stop=SECRET, n=-1)
        server.chat(messages=[{"role": SECRET, "content": SECRET}])
        server.chat(messages=message, **{f"a {SECRET}": 1})  # a field's name has no spaces
        server.post(TEXT, {"prompt": SECRET * 10_000})
        server.get(f"/{SECRET}?prompt={SECRET}")
        server.post(CHAT, json.dumps({"messages": SECRET})[:-1].encode())
        server.start_stream(messages=message, stream=True).close()
        metrics = server.get("/metrics").body.decode()
        _, log = server.stop()
    assert SECRET not in metrics and SECRET not in log
    assert log.count("POST") >= 6
