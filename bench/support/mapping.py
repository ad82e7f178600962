"""What the mapping of weight files costs and saves: four experiments on one model, as JSON lines.

`python bench/support/mapping.py shared FILE`: processes that use one model; what they hold at once.
`... cold FILE`: seconds to the first token from a file that is not in memory (mincore says so).
`... less FILE`: decode in less memory than the weights take. The limit stands in for a cgroup's:
layers beyond those that are kept are paged out (MADV_PAGEOUT) as soon as they were used, so every
token reads them from disk again, as under a strict least-recently-used limit.
`... speed FILE`: decode by mapping policy, in one process, in turns.

docs/memory.md has the results. Files that others map cannot be evicted: use a copy of your own.
"""

import argparse
import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

import bitnet
from bitnet.checkpoints import weights
from bitnet.models.lm_head_screen import LogitsQuery

MADV_PAGEOUT = 21
PAGE = mmap.PAGESIZE


# --------------------------------------------------------------------------------- where pages are
def cached(path):
    """Bytes of a file that are in memory, whoever brought them there (mincore)."""
    n_bytes = os.path.getsize(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), n_bytes, prot=mmap.PROT_READ) as data:
        return cached_of(np.frombuffer(data, np.uint8))


def cached_of(data):
    """The same of the pages of a mapped array."""
    begin = data.ctypes.data // PAGE * PAGE
    n_bytes = data.ctypes.data + data.nbytes - begin
    flags = np.empty(-(-n_bytes // PAGE), np.uint8)
    libc("mincore", begin, n_bytes, ctypes.c_void_p(flags.ctypes.data))
    return PAGE * int(np.count_nonzero(flags & 1))


def evict(path):
    """Drop a file from memory; OSError if more than a hundredth of it stays."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path) > os.path.getsize(path) // 100:
        raise OSError(f"{path}: {cached(path)} bytes stay in memory: is it in use?")


def page_out(data):
    """Let go of the whole pages of a mapped array, and of the system's copy of them."""
    begin = -(-data.ctypes.data // PAGE) * PAGE
    end = (data.ctypes.data + data.nbytes) // PAGE * PAGE
    if end > begin:
        libc("madvise", begin, end - begin, MADV_PAGEOUT)


def libc(name, address, n_bytes, last):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(
        ctypes.c_void_p(address), ctypes.c_size_t(n_bytes), last
    ):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def files_of(path):
    """The files that a loaded model maps, its repacked file included."""
    with weights.open(path) as files:
        return [Path(name) for name, _, _ in files.mappings()]


# -------------------------------------------------------------------------------------- experiments
SHARER = """
import json, sys, bitnet
from bitnet.runtime import memory_report
with bitnet.load(sys.argv[1], threads=1) as model:
    model.generate([1] * 16, max_tokens=8, temperature=0)
    print("ready", flush=True)
    sys.stdin.readline()
    now, names = memory_report.usage(), {str(name) for name, _, _ in model.weights.mappings()}
    ours = [r for r in now.ranges if r.name in names]
    print(json.dumps({"rss": now.rss, "pss": now.pss, "file_rss": sum(r.rss for r in ours),
                      "file_pss": sum(r.pss for r in ours)}), flush=True)
    sys.stdin.readline()
"""


def shared(path, n_processes=(1, 2, 4)):
    """For each number of processes the sums over them, bytes: all RSS and PSS, and the model's."""
    for n in n_processes:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", SHARER, str(path)]
        sharers = [subprocess.Popen(command, **pipes) for _ in range(n)]
        try:
            for sharer in sharers:
                if sharer.stdout.readline() != "ready\n":
                    raise RuntimeError("a process could not load the model")
            found = []
            for sharer in sharers:  # the others wait, everything mapped
                sharer.stdin.write("\n")
                sharer.stdin.flush()
                found.append(json.loads(sharer.stdout.readline()))
        finally:
            for sharer in sharers:
                sharer.communicate("\n")
        yield {"processes": n, **{key: sum(one[key] for one in found) for key in found[0]}}


STARTER = """
import json, resource, sys, time, bitnet
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_majflt
first, begin = faults(), time.perf_counter()
with bitnet.load(sys.argv[1], mapping=sys.argv[2]) as model:
    loaded = time.perf_counter()
    model.generate([1], max_tokens=1, temperature=0)
    print(json.dumps({"load_s": loaded - begin, "first_token_s": time.perf_counter() - begin,
                      "major_faults": faults() - first}))
"""


def cold(path, policies=("map", "prefetch", "lock", "copy"), rounds=3):
    """For each policy, cold and with the file in memory, medians; and a plain read of the file."""
    files, found = files_of(path), {}
    for _ in range(rounds):
        for policy in policies:
            for state in ("cold", "warm"):
                for file in files if state == "cold" else ():
                    evict(file)
                command = [sys.executable, "-c", STARTER, str(path), policy]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                found.setdefault((policy, state), []).append(json.loads(done.stdout))
        found.setdefault(("plain read", "cold"), []).append({"read_s": read_cold(files)})
    for (policy, state), runs in found.items():
        figures = {key: median(run[key] for run in runs) for key in runs[0]}
        yield {"mapping": policy, "file": state, **figures}


def read_cold(files):
    """Seconds that reading the files takes, a megabyte at a time, from the disk."""
    for file in files:
        evict(file)
    buffer, begin = bytearray(1 << 20), time.perf_counter()
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def less(path, shares=(1.0, 0.75, 0.5, 0.0), n_tokens=8, rounds=3):
    """Decode with a share of the layers kept in memory, the others read again for each token."""
    for file in files_of(path):
        evict(file)  # pages as they were written, in large pieces, cannot be paged out one by one
    with bitnet.load(path, prefix_cache=False) as model:
        yield from less_of(model.scheduler.transformer, shares, n_tokens, rounds)


def less_of(transformer, shares, n_tokens, rounds):
    """weights: bytes a token reads. memory: of them at most in memory at once. stayed: bytes let go
    of that are there all the same. Medians over rounds, in which the shares take turns."""
    layers = list(transformer._mapped)  # forgotten after the first pass; the last is the head
    sizes = [sum(data.nbytes for data in layer) for layer in layers]
    kept, seconds, stayed = [round(share * len(layers)) for share in shares], {}, {}
    for _ in range(rounds):
        for n in kept:
            seconds.setdefault(n, []).extend(decode_with(transformer, layers, n, n_tokens))
            stayed[n] = sum(cached_of(data) for layer in layers[n:] for data in layer)
    for n in kept:
        yield {
            "weights": sum(sizes),
            "memory": sum(sizes[:n]) + max(sizes[n:], default=0),
            "stayed": stayed[n],
            "tokens_s": 1 / median(seconds[n]),
            "slowdown": median(seconds[n]) / median(seconds[kept[0]]),
        }


def decode_with(transformer, layers, n_kept, n_tokens):
    """Seconds of each of n_tokens steps, after two to warm up."""
    cache, seconds = transformer.new_state(), []

    def let_go(i, _):
        for data in layers[i] if i >= n_kept else ():
            page_out(data)

    try:
        for i in range(2 + n_tokens):
            begin, ids = time.perf_counter(), np.full(1, i, np.int32)
            transformer.forward(ids, [(cache, 1)], queries=[LogitsQuery(1)], after_layer=let_go)
            let_go(len(layers) - 1, None)
            seconds.append(time.perf_counter() - begin)
    finally:
        cache.close()
    return seconds[2:]


def speed(path, policies=("map", "copy", "lock"), n_tokens=16, rounds=5):
    """Decode by policy, in turns: tokens a second, and the median ratio to the first policy."""
    models = {policy: bitnet.load(path, mapping=policy, prefix_cache=False) for policy in policies}
    seconds = {policy: [] for policy in policies}
    try:
        for i in range(1 + rounds):
            for policy, model in models.items():
                with model.session() as session:
                    session.best([1])
                    begin = time.perf_counter()
                    for token in range(n_tokens):
                        session.best([token])
                    if i:
                        seconds[policy].append((time.perf_counter() - begin) / n_tokens)
    finally:
        for model in models.values():
            model.close()
    first = seconds[policies[0]]
    for policy, times in seconds.items():
        ratio = median(a / b for a, b in zip(first, times, strict=True))
        yield {"mapping": policy, "tokens_s": 1 / median(times), "ratio": ratio}


EXPERIMENTS = {function.__name__: function for function in (shared, cold, less, speed)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("file", metavar="FILE")
    args = parser.parse_args()
    for row in EXPERIMENTS[args.experiment](args.file):
        print(json.dumps({"experiment": args.experiment, **row}), flush=True)


if __name__ == "__main__":
    main()
