"""Everything that clients do to a server, at once: whole replies, streams, JSON, leaving early."""

import http.client
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

N_CLIENTS = 24
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


@dataclass
class Soaked:
    """outcomes: {status, "left" or the name of an exception: how many}. marks: (s, RSS, pool)."""

    outcomes: Counter = field(default_factory=Counter)
    marks: list = field(default_factory=list)

    def rss(self, start, end=1.0):
        """The largest RSS, in bytes, between two parts of the time."""
        last = self.marks[-1][0]
        return max(rss for t, rss, _ in self.marks if start * last <= t <= end * last)


def soak(server, seconds, mark_seconds=1.0):
    """What 24 clients of one or two sequences each meet in so many seconds: a Soaked."""
    found, is_over, lock = Soaked(), threading.Event(), threading.Lock()

    def client(i):
        draw = random.Random(i)
        while not is_over.is_set():
            outcome = _one(server, draw)
            with lock:
                found.outcomes[outcome] += 1
            if outcome in (429, 503):
                time.sleep(0.05)

    def mark():
        pool = server.metrics()["bitnet_pool_reserved_bytes"]
        found.marks.append((time.monotonic() - start, server.rss(), int(pool)))

    start = time.monotonic()
    with ThreadPoolExecutor(N_CLIENTS) as threads:
        clients = [threads.submit(client, i) for i in range(N_CLIENTS)]
        try:
            for n in range(1, round(seconds / mark_seconds) + 1):
                time.sleep(max(0, start + n * mark_seconds - time.monotonic()))
                mark()
        finally:
            is_over.set()
        for one in clients:
            one.result()
    server.wait_until_idle()
    return found


def _one(server, draw):
    """What became of one request."""
    n, kind = draw.randint(1, 2), draw.random()
    prompt = "word " * draw.randrange(1, 300)
    fields = {"prompt": prompt, "n": n, "max_tokens": draw.randrange(1, 100)}
    try:
        if kind < 0.2:
            return _leave(server, n, draw)
        if kind < 0.3:
            return server.chat(response_format=AS_JSON, n=n, max_tokens=100).status
        return server.post("/v1/completions", fields | {"stream": kind < 0.6}).status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def _leave(server, n, draw):
    """Begin a stream and close the connection somewhere in it."""
    one, status = server.open_stream(n=n, max_tokens=200)
    with one:
        if status == 200:
            time.sleep(0.01 * draw.random())
            return "left"
        return status
