"""Time to first token and between tokens at 1, 4 and 16 clients of a real server process.

python bench/bench_server.py [MODEL] [--clients 1 4 16] [--prompt-tokens 64] [--max-tokens 64]
python bench/bench_server.py --soak 600: mixed load at twice the capacity, and what grew.
"""

import argparse
import http.client
import itertools
import json
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from server_process import ServerProcess


def stream(server, prompt, max_tokens):
    """(seconds to the first token, [seconds between tokens], tokens) of one request."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "temperature": 0.8,
            "seed": 1, "logprobs": 0}  # fmt: skip
    with server.connection() as one:
        start = time.perf_counter()
        one.request("POST", "/v1/completions", json.dumps(body))
        response = one.getresponse()
        assert response.status == 200, response.read()
        times, n = [], 0
        for line in response:
            if line.startswith(b"data: {"):
                probs = json.loads(line[6:])["choices"][0]["logprobs"]
                n += len(probs["tokens"]) if probs else 0
                times.append(time.perf_counter())
    return times[0] - start, [b - a for a, b in itertools.pairwise(times)], n


def prompts(vocab_size, n_tokens, n):
    """Prompts of random tokens, so that none begins like another."""
    draw = random.Random(1)
    return [[draw.randrange(300, vocab_size) for _ in range(n_tokens)] for _ in range(n)]


def quantiles(values):
    """Median and 95th percentile in milliseconds."""
    cuts = statistics.quantiles(values, n=20) if len(values) > 1 else values * 19
    return f"{1000 * statistics.median(values):9.2f} {1000 * cuts[18]:9.2f}"


def measure(server, n_clients, args):
    """Print the line of a table for n_clients that each send args.rounds requests in turn."""
    every = prompts(args.vocab_size, args.prompt_tokens, n_clients * args.rounds)

    def client(i):
        own = every[i * args.rounds : (i + 1) * args.rounds]
        return [stream(server, prompt, args.max_tokens) for prompt in own]

    start = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        results = [r for of_one in pool.map(client, range(n_clients)) for r in of_one]
    seconds = time.perf_counter() - start
    first = quantiles([r[0] for r in results])
    between = quantiles([gap for r in results for gap in r[1]])
    rate = sum(r[2] for r in results) / seconds
    print(f"{n_clients:7} {first}   {between} {rate:10.1f}", flush=True)


def soak(server, seconds):
    """Everything at twice the capacity; the statuses seen, and what grew after the first tenth."""
    end, statuses = time.monotonic() + seconds, {}

    def client(i):
        draw = random.Random(i)
        while time.monotonic() < end:
            prompt = "word " * draw.randrange(1, 300)
            fields = {"prompt": prompt, "max_tokens": draw.randrange(1, 100), "n": 1 + i % 2}
            if draw.random() < 0.2:
                try:
                    server.start_stream(max_tokens=200).close()
                    status = "left"
                except AssertionError:
                    status = "refused"
            else:
                try:
                    status = server.post("/v1/completions", fields).status
                except (OSError, http.client.HTTPException) as error:
                    status = type(error).__name__
            statuses[status] = statuses.get(status, 0) + 1
            time.sleep(0.05 * (status in (429, "refused")))

    with ThreadPoolExecutor(24) as pool:
        running = [pool.submit(client, i) for i in range(24)]
        time.sleep(seconds / 10)
        before = server.rss()
        for one in running:
            one.result()
    idle = server.wait_until_idle()
    grown = server.rss() - before
    pool = idle["bitnet_pool_reserved_bytes"]
    print(f"{seconds:g} s: {statuses}")
    print(f"RSS grew by {grown >> 10} KiB to {server.rss() >> 10}, the pool has {pool / 1024:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="*")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--vocab-size", type=int, default=2000, help="prompts are drawn from it")
    args = parser.parse_args()
    load = [*args.model, "--threads", args.threads]
    if args.soak:
        with ServerProcess(*load, "--slots", 4, "--queue", 8) as server:
            return soak(server, args.soak)
    with ServerProcess(*load, "--slots", 16) as server:
        stream(server, [301, 302], 2)  # pages of the file are read
        print("        first token, ms        between tokens, ms\n"
              "clients    median      95 %      median      95 %   tokens/s")  # fmt: skip
        for n_clients in args.clients:
            measure(server, n_clients, args)


if __name__ == "__main__":
    main()
