"""Bodies of requests: their size, what they become, and the answers to those that are refused."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from support.server_process import ServerProcess

from bitnet.server import body_limit
from bitnet.server.errors import ApiError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server():
    with ServerProcess("--slots", 4, "--read-seconds", 1, "--write-seconds", 1) as one:
        yield one


def test_a_body_that_is_too_large(server):
    prompt = {"prompt": "x" * (5 << 20)}
    answer = server.post(TEXT, prompt)
    assert answer.status == 413 and answer.json["error"]["code"] == "body_too_large"
    before = server.rss()
    with server.connection() as one:  # no length is announced
        chunks = (b"x" * 65536 for _ in range(320))
        one.request("POST", TEXT, chunks, encode_chunked=True)
        assert one.getresponse().status == 413
    assert server.rss() - before < 16 << 20
    assert server.post(TEXT, {"prompt": "word " * 400_000}).json["error"]["code"] == (
        "context_length_exceeded"
    )


PARTS = b'{"messages": [{"role": "user", "content": [%s]}]}'
PART = b'{"type": "text", "text": ","}'
FUNCTION = b'{"type": "function", "function": {"name": "f", "parameters": %s}}'
LISTS = b'{"messages": [], "tools": [' + FUNCTION + b"]}"


@pytest.mark.parametrize("body", [
    PARTS % b",".join([PART] * 90_000),
    LISTS % (b'{"x": [' + b",".join([b"[]"] * 900_000) + b"]}"),
    LISTS % (b"{" + b",".join(b'"%d": {}' % i for i in range(200_000)) + b"}"),
    b'{"prompt": [' + b",".join([b"[1]"] * 200_000) + b"]}",
    b'{"prompt": ["a"' + b', "\\"\\\\"' * 300_000 + b"]}",
    b"{" + b",".join(b'"%d": 1' % i for i in range(300_000)) + b"}",
    b'{"metadata": [' + b"1," * 300_000 + b"1]}",
    b"[" * 300_000,
])  # fmt: skip
def test_bodies_of_very_many_values(server, body):
    for path in (CHAT, "/tokenize"):
        answer = server.post(path, body)
        assert answer.status == 400 and answer.json["error"]["code"] == "body_too_large"
        assert "262144 values" in answer.json["error"]["message"]


def test_what_is_within_strings_is_no_value(server):
    for text in (",[{" * 600_000, '\\",' * 200_000, '",' * 400_000):
        answer = server.post(TEXT, {"prompt": text})
        assert answer.json["error"]["code"] == "context_length_exceeded"


def test_values_are_counted_in_pieces_of_any_size(monkeypatch):
    monkeypatch.setattr(body_limit, "MAX_VALUES", 0)
    text = json.dumps({'a"\\': [",", '"', "\\", '\\"[', {}], "b": [1, "{"]}).encode()
    for size in range(1, 40):
        monkeypatch.setattr(body_limit, "_CHUNK", size)
        for limit in range(10):  # 6 commas, 2 brackets, 2 braces
            monkeypatch.setattr(body_limit, "MAX_VALUES", limit)
            with pytest.raises(ApiError, match="values"):
                body_limit.n_values(text)
        monkeypatch.setattr(body_limit, "MAX_VALUES", 10)
        assert body_limit.n_values(text) == 10


def test_what_all_bodies_become_is_bounded():
    limit = body_limit.BodyLimit()
    with limit.one() as one:
        one._count(body_limit.MAX_BODIES)
        with limit.one() as other, pytest.raises(ApiError) as error:
            other._count(1)
        assert error.value.status == 503
    with limit.one() as one:
        one._count(body_limit.MAX_BODIES)


@pytest.mark.parametrize("body", [
    PARTS % b",".join([PART] * 80_000),
    b'{"messages": [{"role": "user", "content": "%s\\ud83d\\ude00"}]}' % (b"a " * 2_000_000),
])  # fmt: skip
def test_many_bodies_that_grow(body):
    with ServerProcess() as one:
        before = one.peak()
        with ThreadPoolExecutor(36) as pool:
            answers = list(pool.map(lambda _: one.post(CHAT, body), range(36)))
        assert {answer.status for answer in answers} <= {400, 503}
        assert one.peak() - before < body_limit.MAX_BODIES + (64 << 20)
        assert one.post(CHAT, body).status == 400  # what was counted has been given back


def test_tokenize_keeps_its_limit(server):
    answer = server.post("/tokenize", {"prompt": "12" * 2_000_000})
    error = answer.json["error"]
    assert answer.status == 400 and error["param"] == "prompt"
    assert error["message"].endswith("tokens or more (at most 131072)")
    messages = [{"role": "user", "content": "12" * 70_000}]
    answer = server.post("/tokenize", {"messages": messages})
    assert answer.status == 400 and answer.json["error"]["param"] == "messages"
    assert server.post("/tokenize", {"prompt": "12" * 60_000}).json["count"] > 100_000


@pytest.mark.parametrize(("path", "status"), [(TEXT, 413), ("/nowhere", 404), ("/v1/models", 405)])
def test_clients_that_still_write_see_the_answer(server, path, status):
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n\r\n"
    with server.send(head % path.encode()) as one:
        for _ in range(20):
            one.sendall(b"x" * 1_000_000)
        assert one.recv(12) == b"HTTP/1.1 %d" % status
        one.sendall(b"")


def test_clients_that_wait_for_the_answer_before_they_write(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n"
    with server.send(head + b"Expect: 100-continue\r\n\r\n") as one:
        assert one.recv(12) == b"HTTP/1.1 413"


def test_many_large_bodies_at_once(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n"
    before = server.rss()
    with ExitStack() as stack:
        for _ in range(24):  # 96 MB
            stack.enter_context(server.send(head + b"x" * 3_900_000))
        assert server.rss() - before < 100 << 20
        time.sleep(1.2)  # their time is up
    assert server.chat().status == 200
