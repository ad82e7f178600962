"""What clients of a real server process meet: tokens a second, and the times until they come.

python bench/bench_server.py [MODEL] [--clients 1 4 16] [--prompt-tokens 64] [--max-tokens 64]
python bench/bench_server.py MODEL --peer 'COMMAND --port {port}': another OpenAI-compatible server
in turn with ours, part by part; --peer http://HOST:PORT for one that runs. Both get words of three
letters, each of them one token of the vocabulary of synthetic.py.
python bench/bench_server.py --soak 600: mixed load at twice the capacity, and what grew.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import random
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import bitnet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.server_load import soak
from support.server_process import ServerProcess

LETTERS = "etaoinshrdlcumwfgypbvkjxqz"


class Peer:
    """Another server; a context manager that ends what it started."""

    def __init__(self, command_or_url):
        self._process = None
        if command_or_url.startswith("http://"):
            address = urlsplit(command_or_url)
            self._host, self._port = address.hostname, address.port or 80
            return
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._host, self._port = free.getsockname()
        command = shlex.split(command_or_url.replace("{port}", str(self._port)))
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with status {self._process.returncode}")
            time.sleep(0.1)

    def _answers(self):
        try:
            with self.connection() as one:
                one.request("GET", "/v1/models")
                return one.getresponse().status == 200
        except OSError:
            return False

    @contextlib.contextmanager
    def connection(self, source=None):
        address = source and (source, 0)
        one = http.client.HTTPConnection(self._host, self._port, 600, source_address=address)
        with contextlib.closing(one):
            yield one

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def prompts(args, n_tokens, n, seed=1):
    """Prompts of random tokens, so that none begins like another; with a peer, of words."""
    draw = random.Random(seed)
    if args.peer:
        return [
            "".join(" " + "".join(draw.choices(LETTERS, k=3)) for _ in range(n_tokens))
            for _ in range(n)
        ]
    return [[draw.randrange(300, args.vocab_size) for _ in range(n_tokens)] for _ in range(n)]


def stream(server, prompt, max_tokens, on_token=None, source=None):
    """([seconds after the start at which chunks came], tokens) of one request.

    on_token: called with the tokens of each chunk; a stream to count has logprobs (not of a peer).
    source: the address it comes from.
    """
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "stream": True,
        "temperature": 0.8,
        "seed": 1,
        "stream_options": {"include_usage": True},
    }
    if on_token and not isinstance(server, Peer):
        body["logprobs"] = 0
    times, n = [], 0
    with server.connection(source) as one:
        start = time.perf_counter()
        one.request(
            "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
        )
        response = one.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(300)}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                n = chunk["usage"]["completion_tokens"]
            if chunk["choices"]:
                times.append(time.perf_counter() - start)
                probs = chunk["choices"][0].get("logprobs")
                if on_token:
                    on_token(len(probs["tokens"]) if probs else 1)
    return times, n or len(times)


def quantiles(values):
    """Median and 95th percentile in milliseconds."""
    cuts = statistics.quantiles(values, n=20) if len(values) > 1 else values * 19
    return f"{1000 * statistics.median(values):9.2f} {1000 * cuts[18]:9.2f}"


def table(server, args):
    """Times and tokens/s at every number of clients, who share args.requests, one each at least."""
    print("        first token, ms        between tokens, ms")
    print("clients    median      95 %      median      95 %   tokens/s   of one's")
    alone = None
    for n_clients in args.clients:
        n_each = max(1, args.requests // n_clients)
        every = prompts(args, args.prompt_tokens, n_clients * n_each, n_clients)

        def client(i, every=every, n=n_each):
            own = every[i * n : (i + 1) * n]
            return [stream(server, prompt, args.max_tokens) for prompt in own]

        start = time.perf_counter()
        with ThreadPoolExecutor(n_clients) as pool:
            results = [r for of_one in pool.map(client, range(n_clients)) for r in of_one]
        rate = sum(n for _, n in results) / (time.perf_counter() - start)
        alone = alone or rate
        first = quantiles([times[0] for times, _ in results])
        between = quantiles([b - a for times, _ in results for a, b in itertools.pairwise(times)])
        print(f"{n_clients:7} {first}   {between} {rate:10.1f}  {rate / alone:10.2f}", flush=True)


def overhead(server, args):
    """Microseconds a token costs over HTTP beyond what it costs in a process without a server."""
    (prompt,) = prompts(args, args.prompt_tokens, 1, 77)
    here, there = [], []
    with bitnet.load(*args.model, threads=args.threads) as model:
        for _ in range(1 + 5):
            found = model.generate(prompt, max_tokens=args.max_tokens, temperature=0.8, seed=1)
            here.append(1 / found.generation_tps)
            times, n = stream(server, prompt, args.max_tokens)
            there.append((times[-1] - times[0]) / (n - 1))
    here, there = (statistics.median(seconds[1:]) for seconds in (here, there))
    print(f"a token in this process {1e6 * here:.0f} us, over HTTP {1e6 * there:.0f} us")


def prefix(server, args):
    """Time to first token of a prompt, and of the same again with an end of its own."""
    first, again = [], []
    for prompt in prompts(args, args.long_tokens, 3, 55):
        first.append(stream(server, prompt, 1)[0][0])
        again.append(stream(server, prompt[:-8] + prompt[-4:], 1)[0][0])
    first, again = (1000 * statistics.median(times) for times in (first, again))
    print(
        f"first token of a prompt of {args.long_tokens}: {first:.1f} ms, "
        f"of one that begins like it {again:.1f}"
    )


def beside(server, args, n_streams=4):
    """What streams keep of their speed while a long prompt is read."""
    count, is_over, lock = 0, threading.Event(), threading.Lock()

    def add(n):
        nonlocal count
        if is_over.is_set():
            raise InterruptedError
        with lock:
            count += n

    def client(i):
        with contextlib.suppress(InterruptedError):
            for prompt in itertools.cycle(prompts(args, 8, 3, 900 + i)):
                stream(server, prompt, args.stream_tokens, add)

    def window(during):
        before, start = count, time.perf_counter()
        during()
        return (count - before) / (time.perf_counter() - start)

    long, waits, shares = iter(prompts(args, args.long_tokens, 2000, 33)), [], []

    def read():
        end = time.perf_counter() + args.window
        while time.perf_counter() < end:
            waits.append(stream(server, next(long), 1)[0][0])

    with ThreadPoolExecutor(n_streams) as pool:
        running = [pool.submit(client, i) for i in range(n_streams)]
        time.sleep(args.window)  # their prompts are read
        for _ in range(5):
            alone = window(lambda: time.sleep(args.window))
            shares.append(window(read) / alone)
        is_over.set()
        for one in running:
            one.result()
    print(
        f"{n_streams} streams: {alone:.1f} tokens/s, {100 * statistics.median(shares):.0f} % of it "
        f"({100 * min(shares):.0f}-{100 * max(shares):.0f}) while prompts of {args.long_tokens} "
        f"are read (each in {statistics.median(waits):.2f} s)"
    )


def fairness(server, args, n_many=60):
    """When a client's first tokens come who asks for one text after the other, alone and while
    another keeps many requests open: from its own address, and as one client with it."""
    draw, is_over, count, lock = random.Random(5), threading.Event(), 0, threading.Lock()
    lengths = [draw.randint(args.max_tokens // 2, 2 * args.max_tokens) for _ in range(n_many)]

    def many(i):
        nonlocal count
        for prompt in itertools.cycle(prompts(args, args.prompt_tokens, 8, 500 + i)):
            if is_over.is_set():
                return
            _, n = stream(server, prompt, lengths[i], source="127.0.0.1")
            with lock:
                count += n

    few = iter(prompts(args, args.prompt_tokens, 10_000, 900))

    def first_tokens(source):
        end, found = time.perf_counter() + 2 * args.window, []
        while time.perf_counter() < end or len(found) < 3:
            found.append(stream(server, next(few), args.max_tokens, source=source)[0][0])
        return found

    print(f"first token, ms: median, 95 %; {n_many} requests of another client are open")
    print(f"{'alone':24} {quantiles(first_tokens('127.0.0.2'))}")
    with ThreadPoolExecutor(n_many) as pool:
        running = [pool.submit(many, i) for i in range(n_many)]
        time.sleep(args.window)
        for name, source in (("as one client with it", "127.0.0.1"), ("beside it", "127.0.0.2")):
            before, start = count, time.perf_counter()
            found = first_tokens(source)
            rate = (count - before) / (time.perf_counter() - start)
            print(f"{name:24} {quantiles(found)}   {rate:.0f} tokens/s of the other", flush=True)
        is_over.set()
        for one in running:
            one.result()


def run_soak(server, seconds):
    found = soak(server, seconds, min(60, seconds / 10))
    print("outcomes:", ", ".join(f"{n} x {what}" for what, n in found.outcomes.most_common()))
    for second, rss, pool in found.marks:
        print(f"{second:6.0f} s  RSS {rss >> 10:7} KiB  pool {pool >> 10:7} KiB")
    print(f"idle      RSS {server.rss() >> 10:7} KiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="*")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--long-tokens", type=int, default=400, help="of a long prompt")
    parser.add_argument("--stream-tokens", type=int, default=400, help="of streams beside it")
    parser.add_argument("--window", type=float, default=2, help="seconds to watch them")
    parser.add_argument("--requests", type=int, default=32, help="of each line of the table")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", default=["table", "overhead", "prefix", "beside", "fairness"]
    )
    parser.add_argument("--peer", metavar="COMMAND|URL")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--vocab-size", type=int, default=2000, help="prompts are drawn from it")
    args = parser.parse_args()
    load = [*args.model, "--threads", args.threads]
    if args.soak:
        with ServerProcess(*load, "--slots", 4, "--queue", 8) as server:
            return run_soak(server, args.soak)
    parts = {
        "table": table,
        "overhead": overhead,
        "prefix": prefix,
        "beside": beside,
        "fairness": fairness,
    }
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ServerProcess(*load, "--slots", 16, "--queue", 128))]
        if args.peer:
            servers.append(stack.enter_context(Peer(args.peer)))
            del parts["overhead"]
        for server in servers:
            stream(server, *prompts(args, 2, 1), 2)  # pages of the file are read
        for name, part in parts.items():
            for server in servers if name in args.only else ():
                if args.peer:
                    print("peer:" if isinstance(server, Peer) else "bitnet:")
                part(server, args)
                sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:  # a server that has not begun, and what it said
        sys.exit(f"{sys.argv[0]}: {error}".rstrip())
