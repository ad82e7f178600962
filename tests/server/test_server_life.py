"""The server over time: it drains, survives clients that leave, and stays as large as it was."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from support.mock_model import MockTransformer
from support.paths import DATA
from support.requests import plain, request
from support.server_load import soak
from support.server_process import NO_END, USER, ServerProcess

from bitnet import Cancelled
from bitnet.api.load import BUNDLED_MODEL
from bitnet.server.errors import ApiError
from bitnet.server.worker import Worker


# -------------------------------------------------------------------- the worker, on a mock model
class Steps:
    """A mock model whose steps a test lets happen one by one."""

    def __init__(self):
        self.permits, self.taken = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, sequences):
        self.taken.release()
        self.permits.acquire()


def worker_of(transformer, slots=2):
    worker = Worker(SimpleNamespace(scheduler=plain(transformer, slots=slots, fair=True)), 2)
    worker.begin()
    return worker


async def events_of(generation):
    found = []
    while (events := await generation.take()) is not None:
        found += events
    return found


@pytest.mark.parametrize("n_steps", [1, 2, 5, 9])
def test_cancelling_in_prefill_and_decode_frees_the_slot_within_a_step(n_steps):
    steps = Steps()
    model = MockTransformer(max_batch=8, on_forward=steps)

    async def run():
        worker = worker_of(model)
        worker.reserve(1)
        generation = worker.start([request("y" * 29, max_tokens=100)])  # 4 steps of prefill
        for _ in range(n_steps - 1):
            steps.permits.release()
        for _ in range(n_steps):
            await asyncio.to_thread(steps.taken.acquire)
        assert len(model.open_parts) == 1  # within step n_steps
        generation.cancel()
        steps.permits.release()
        last = (await events_of(generation))[-1]
        assert isinstance(last.error, Cancelled)
        assert not model.open_parts and len(model.steps) == n_steps and worker.n_open == 0
        worker.stop()

    asyncio.run(run())


def test_what_nobody_takes_is_bounded(monkeypatch):
    monkeypatch.setattr("bitnet.server.worker.MAX_UNREAD", 20)

    async def run():
        loop = asyncio.get_running_loop()

        def after_the_loop(sequences):  # else the model may be done before it looks at an event
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()

        model = MockTransformer(on_forward=after_the_loop)
        worker = worker_of(model)
        worker.reserve(1)
        generation = worker.start([request(max_tokens=400)])
        while worker.n_open:
            await asyncio.sleep(0.01)
        events = await events_of(generation)
        assert 20 < len(events) <= 23 and isinstance(events[-1].error, Cancelled)
        assert not model.open_parts
        worker.stop()

    asyncio.run(run())


def test_a_step_that_fails_ends_what_runs_and_no_more():
    model = MockTransformer()

    async def run():
        worker = worker_of(model)
        engine, plan = worker._scheduler, worker._scheduler._plan
        engine._plan = lambda: 1 / 0
        worker.reserve(1)
        events = await events_of(worker.start([request()]))
        assert events[-1].error is not None and not model.open_parts
        engine._plan = plan
        worker.reserve(1)
        events = await events_of(worker.start([request()]))
        assert events[-1].completion.completion_tokens == 20
        worker.stop()

    asyncio.run(run())


def test_without_its_thread_nothing_is_taken(monkeypatch):
    async def run():
        worker = worker_of(MockTransformer())
        monkeypatch.setattr(worker, "_step", lambda: 1 / 0)
        worker.reserve(1)
        events = await events_of(worker.start([request()]))
        assert events[-1].error is not None and worker.n_open == 0
        await asyncio.to_thread(worker._thread.join)
        with pytest.raises(ApiError, match="shutting down"):
            worker.reserve(1)

    asyncio.run(run())


# ------------------------------------------------------------------------------------- a process
@pytest.mark.parametrize("name", ["engine", "prompts", "grammars"])
def test_threads_that_cannot_be_started_are_an_error_at_the_start(name):
    code = f"""
import sys, threading
from bitnet.cli.command import main

start = threading.Thread.start

def refused(thread):
    if thread.name == "bitnet-{name}":
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = refused
sys.exit(main(["serve", "--port", "0", "--threads", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "serving" not in done.stderr
    assert "threads cannot be started: can't start new thread" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_it_is_ready_before_the_weights_are_read(tmp_path):
    """They are mapped, and come with the first request."""
    path = tmp_path / "m.gguf"
    path.write_bytes(BUNDLED_MODEL.read_bytes())
    os.sync()
    with open(path) as file:  # out of the page cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with ServerProcess(path) as server:
        assert server.get("/ready").status == 200
        before = resident(server, path)
        assert server.chat().status == 200
        assert before < 0.7 * path.stat().st_size < resident(server, path)


def resident(server, path):
    """Bytes of a file that are mapped into a server and in memory."""
    with open(f"/proc/{server.process.pid}/smaps") as file:
        parts = re.split(r"^(?=[0-9a-f]+-)", file.read(), flags=re.M)
    own = [part for part in parts if str(path) in part]
    return sum(1024 * int(re.search(r"^Rss: +(\d+)", part, re.M)[1]) for part in own)


@pytest.mark.parametrize("fields", [
    {"prompt": [[3 + i, *range(500)] for i in range(16)], "max_tokens": 5},  # in the prompts
    {"prompt": "x", "n": 16, "max_tokens": 500, "logit_bias": NO_END},  # in the text
])  # fmt: skip
def test_a_client_that_leaves_gives_its_memory_back(fields):
    body = json.dumps(fields)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    kv = 'bitnet_pool_bytes{purpose="kv"}'
    with ServerProcess("--slots", 16) as server:
        assert server.metrics().get(kv, 0) == 0
        with server.send(f"{head}\r\n{body}".encode()):
            while not (found := server.metrics()).get(kv, 0):
                assert found['bitnet_tokens_total{kind="generated"}'] == 0
        idle = server.wait_until_idle()
        assert idle.get(kv, 0) == 0 and idle["bitnet_cancelled_total"] == 1


def test_sigterm_drains():
    with ServerProcess("--slots", 4) as server:
        stream = server.start_stream(n=8, max_tokens=480)
        server.process.send_signal(signal.SIGTERM)
        data = b""
        while part := stream.recv(1 << 16):
            data += part
        assert data.count(b'"finish_reason":"length"') == 8 and b"data: [DONE]" in data
        with pytest.raises(ConnectionError):
            server.get("/ready")
        status, log = server.process.wait(30), server.log()
        assert status == 0 and "draining" in log and "ended" in log


def test_the_log_tells_what_a_first_load_writes(tmp_path):
    folder = DATA / "hf_bitnet_offline"
    with ServerProcess(folder, environment={"BITNET_CACHE": str(tmp_path)}) as server:
        assert re.search(r"INFO writing .* of repacked weights, once: .*\n.* serving", server.log())


def test_draining_has_a_deadline():
    with ServerProcess("--slots", 1, "--drain-seconds", 0.3) as server:
        stream = server.start_stream(n=16, max_tokens=490, logprobs=True, top_logprobs=20)
        start = time.monotonic()
        status, _ = server.stop()
        assert status == 0 and time.monotonic() - start < 3
        stream.close()


def test_an_interrupt_of_an_idle_server():
    with ServerProcess() as server, server.connection() as one:  # kept alive, idle
        one.request("GET", "/ready")
        assert one.getresponse().read()
        assert server.stop(signal.SIGINT)[0] == 0


def test_a_hundred_clients_that_leave():
    with ServerProcess("--slots", 4) as server:
        body = json.dumps({"messages": USER, "n": 4, "max_tokens": 450, "logit_bias": NO_END})
        whole = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        )

        def leave(i):
            if i % 2:
                server.start_stream(n=4, max_tokens=450).close()
            else:  # without a stream: in the queue, in the prompt or later
                with server.send((whole.replace("Host: a", "Host: localhost") + body).encode()):
                    time.sleep(0.002 * (i % 10))

        for i in range(20):
            leave(i)
        before = server.wait_until_idle()
        rss = server.rss()
        for i in range(100):
            leave(i)
        after = server.wait_until_idle()
        kv = 'bitnet_pool_bytes{purpose="kv"}'
        assert after.get(kv, 0) <= before.get(kv, 0)
        assert after["bitnet_pool_reserved_bytes"] == before["bitnet_pool_reserved_bytes"]
        assert after["bitnet_cancelled_total"] - before["bitnet_cancelled_total"] >= 90
        assert server.rss() - rss < 4 << 20
        assert server.chat().status == 200


def test_more_load_than_it_can_take():
    """Twenty seconds of everything at twice the capacity: 200, 429, 503, and no growth."""
    with ServerProcess("--slots", 4, "--queue", 8) as server:
        found = soak(server, 20)
        assert found.outcomes.keys() <= {200, 429, 503, "left"}
        assert found.outcomes[200] > 50 and found.outcomes["left"] > 10
        assert found.rss(0.5) - found.rss(0, 0.5) < 4 << 20
        assert "ERROR" not in server.log()
