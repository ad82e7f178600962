"""Clients of one server: who they are, what of the queue each may have, whose turn it is."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from support.mock_model import MockTransformer
from support.requests import plain
from support.server_process import NO_END, ServerProcess

from bitnet.server.clients import CLIENT, Turns, address_of
from bitnet.server.errors import ApiError
from bitnet.server.job_thread import JobThread
from bitnet.server.options import Options
from bitnet.server.worker import Worker

KEYS = ("the first of our keys", "the second of our keys")


def worker_of(slots, n_waiting):
    worker = Worker(SimpleNamespace(scheduler=plain(MockTransformer(), slots=slots)), n_waiting)
    worker.begin()
    return worker


def places(worker, client):
    """How many places a client gets who takes them one by one."""
    n = 0
    with contextlib.suppress(ApiError):
        while n < 10_000:
            worker.reserve(1, client)
            n += 1
    return n


def in_a_loop(check):
    async def run():
        check()

    asyncio.run(run())


def test_nobody_takes_the_last_places():
    def check():
        worker = worker_of(4, 48)
        assert places(worker, "a") == 39  # three quarters of 52
        with pytest.raises(ApiError, match="39 of them yours: the free ones are for others") as got:
            worker.reserve(1, "a")
        assert got.value.status == 429 and int(got.value.headers["retry-after"]) >= 1
        assert [places(worker, name) for name in "bcd"] == [10, 3, 0]
        assert worker.n_open == 52
        worker.release(10, client="a")
        assert [places(worker, name) for name in "ad"] == [1, 7]  # others may have what he had
        worker.stop()

    in_a_loop(check)


@pytest.mark.parametrize(("slots", "n_waiting", "expected"), [(4, 0, 4), (1, 1, 2), (8, 4, 9)])
def test_slots_that_nobody_else_wants_are_anybodys(slots, n_waiting, expected):
    def check():
        worker = worker_of(slots, n_waiting)
        assert places(worker, "a") == expected
        worker.release(expected, client="a")
        worker.reserve(slots + n_waiting, "a")  # at once, as a request for many choices does
        worker.stop()

    in_a_loop(check)


def test_what_is_given_back_leaves_no_trace():
    def check():
        worker = worker_of(2, 2)
        for i in range(100):
            worker.reserve(2, i)
            worker.release(1, 0.1, i)
            worker.release(1, client=i)
        assert worker.n_open == 0 and not worker._held
        worker.stop()

    in_a_loop(check)


def test_clients_take_turns():
    turns = Turns()
    for client, n in (("a", 5), ("b", 1), ("c", 2)):
        for i in range(n):
            turns.put(client, f"{client}{i}")
    assert turns
    assert [turns.get() for _ in range(8)] == ["a0", "b0", "c0", "a1", "c1", "a2", "a3", "a4"]
    assert not turns and turns.get_now() is None


def test_jobs_and_calls_go_round_among_clients():
    async def run():
        thread, worker = JobThread("test"), worker_of(1, 1)
        for queue in (thread.run, worker.call):
            order, begun, may_go = [], threading.Event(), threading.Event()

            def first(begun=begun, may_go=may_go):
                begun.set()
                may_go.wait()

            async def ask(client, function, *arguments, queue=queue):
                CLIENT.set(client)
                await queue(function, *arguments)

            tasks = [asyncio.create_task(ask("a", first))]
            await asyncio.sleep(0)
            if queue == thread.run:
                thread.begin()
            await asyncio.to_thread(begun.wait)
            for client in "aaaabbc":
                tasks.append(asyncio.create_task(ask(client, order.append, client)))
                await asyncio.sleep(0)
            may_go.set()
            await asyncio.gather(*tasks)
            assert order == list("abcabaa")
        worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("host", "expected"), [
    ("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8::1", "2001:db8::/64"),
    ("2001:db8::ffff:1", "2001:db8::/64"), ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
    ("unix", "unix"),
])  # fmt: skip
def test_an_address_is_a_client(host, expected):
    assert address_of({"client": (host, 1234)}) == expected
    assert address_of({"client": None}) == address_of({}) == ""


# ------------------------------------------------------------------------------------- a process
def crowded(server, ours, others):
    """Statuses of a client's two requests behind another's, who asks for more than there is.

    ours, others: source address and headers of the two.
    """
    body = {"prompt": "x", "max_tokens": 480, "n": 2, "logit_bias": NO_END, "stream": True}

    def ask(client, **fields):
        source, headers = client
        one = http.client.HTTPConnection(server.host, server.port, 60, source_address=(source, 0))
        one.request("POST", "/v1/completions", json.dumps(body | fields), headers)
        return one

    first = [ask(ours) for _ in range(24)]
    end = time.monotonic() + 60
    while server.metrics()['bitnet_requests_total{route="/v1/completions",status="429"}'] == 0:
        assert time.monotonic() < end, "there was room for all"
    second = [ask(others, max_tokens=2, n=1) for _ in range(2)]
    found = Counter(one.getresponse().status for one in second)
    for one in (*first, *second):
        one.close()
    return found


OTHER, SAME = ("127.0.0.2", {}), ("127.0.0.1", {})


@pytest.mark.parametrize(("others", "is_fair"), [(OTHER, True), (SAME, False)])
def test_who_fills_the_queue_does_not_shut_others_out(others, is_fair):
    with ServerProcess("--slots", 2, "--queue", 10) as server:
        assert crowded(server, SAME, others) == {200 if is_fair else 429: 2}


def test_keys_are_clients_where_there_are_several(tmp_path):
    (tmp_path / "keys").write_text("\n".join(("", *KEYS, "")))
    options = ("--slots", 2, "--queue", 10, "--api-key", "a key of the operator")
    with ServerProcess(*options, "--api-key-file", tmp_path / "keys") as server:
        assert server.get("/v1/models").status == 401
        for key in (*KEYS, "a key of the operator"):
            assert server.get("/v1/models", authorization=f"Bearer {key}").status == 200
        assert server.get("/v1/models", **{"x-api-key": KEYS[0] + "x"}).status == 401
        log = server.log()
        assert not any(key in log for key in KEYS)


def test_addresses_that_a_proxy_tells_count_only_where_it_is_trusted():
    told = [("127.0.0.1", {"x-forwarded-for": f"10.0.0.{i}"}) for i in (1, 2)]
    for options, is_fair in ((("--trusted-proxy", "127.0.0.0/8"), True), ((), False)):
        with ServerProcess("--slots", 2, "--queue", 10, *options) as server:
            assert crowded(server, *told) == {200 if is_fair else 429: 2}


def test_what_is_no_key_and_no_proxy(tmp_path):
    for options, message in (
        ({"api_key": "long enough", "more_keys": ("short",)}, "too short"),
        ({"more_keys": ("white space behind ",)}, "not printable"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, r"trusted proxy: 10.0.0.1/8 has host bits set"),
        ({"trusted_proxies": ("proxy",)}, r"trusted proxy: 'proxy' .* \(like 127.0.0.1"),
        ({"log_format": "xml"}, "log format: 'xml'"),
    ):
        with pytest.raises(ValueError, match=message):
            Options(**options)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(RuntimeError, match=r"--api-key-file: .*empty: no key in it"):
        ServerProcess("--api-key-file", tmp_path / "empty")
