"""Fuzzing of everything that reads a file from outside: python tests/fuzz/run.py --seconds 60

Mutates the cases of corpus/ and runs them in processes of their own. Each has to end in success or
FormatError within 1 s of CPU time and 64 MiB. Another exception, a crash or a hang is a failure:
its files are kept, and --replay runs them again; the same seed leads there too. Mutants that reach
new lines of the package are mutated further. Exit status 1 if anything failed.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.append(str(HERE.parents[1]))  # last, as in worker.py

from fuzz.targets import TARGETS  # noqa: E402

KEEP = HERE.parents[1] / "build" / "fuzz-failures"
# A disk makes 350 executions a second of 1400: every case is written to be mapped.
MEMORY_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
MORE_SECONDS = 60  # that a worker may take beyond its time before it is taken to be stuck
MOST_FAILURES = 20


@dataclass
class Failure:
    """files: the folder of the case, or where it is kept. about: target, seed, steps."""

    files: Path
    about: dict
    text: str

    @property
    def kind(self):
        """What two failures have in common if they are the same: target and where it went wrong.

        The last place of an exception's traceback, the first of faulthandler's.
        """
        places = re.findall(r'File "[^"]+", line \d+', self.text)
        is_exception = self.text.startswith("Traceback")
        return self.about["target"], places[-1 if is_exception else 0] if places else self.text


class Worker:
    """One worker.py and its folder, which is removed behind the block."""

    def __init__(self, **arguments):
        self.arguments = arguments

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY_FOLDER))
        return self

    def __exit__(self, *error):
        shutil.rmtree(self.folder)

    def run(self, seconds):
        """Until it ends: (the last totals it printed or None, failures)."""
        arguments = json.dumps(self.arguments | {"folder": str(self.folder), "seconds": seconds})
        command = [sys.executable, str(HERE / "worker.py"), arguments]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RUST_BACKTRACE": "0",  # one takes more memory than a case may
        }
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            watch = threading.Timer(seconds + MORE_SECONDS, process.kill)
            watch.start()
            out, trace = process.communicate()
            watch.cancel()
        if process.returncode > 0:
            raise RuntimeError(f"the fuzzer failed: {trace}")
        lines = [json.loads(line) for line in out.splitlines()]
        failures = [
            Failure(Path(line["files"]), line["case"], line["failure"])
            for line in lines
            if "failure" in line
        ]
        if process.returncode:
            failures.append(self._death(-process.returncode, trace))
        return next((line for line in reversed(lines) if "executions" in line), None), failures

    def _death(self, number, trace):
        """The failure of the case that ended it, which still lies in its folder."""
        text = {
            signal.SIGPROF: "more CPU time than a case may take",
            signal.SIGKILL: f"stuck for {MORE_SECONDS} s",
        }.get(number, f"died of {signal.Signals(number).name}")
        about = json.loads((self.folder / "case.json").read_text())
        return Failure(self.folder / "files", about, f"{trace[-3000:]}\n{text}")


def replay(path, targets, module="fuzz.targets"):
    """The failures of one case, each target in a process of its own and without the tracer."""
    found = []
    for target in targets:
        with Worker(module=module, targets=[target], path=str(path)) as worker:
            found += worker.run(seconds=0)[1]
    return found


class Fuzzer:
    """Workers side by side. keep: the folder for failures."""

    def __init__(self, targets, seed, keep, module="fuzz.targets"):
        self.targets, self.seed, self.keep, self.module = targets, seed, keep, module
        self.failures, self.totals = [], []
        self._lock = threading.Lock()

    def run(self, seconds, jobs=1, most=None):
        """For so many seconds, or until each worker has run `most` cases."""
        with ThreadPoolExecutor(jobs) as pool:
            seeds = range(self.seed, self.seed + jobs)
            list(pool.map(lambda seed: self._job(seed, time.monotonic() + seconds, most), seeds))

    def _job(self, seed, end, most):
        """One worker after the other: a case that ends one does not end the run."""
        done, skip_corpus = 0, False
        while (left := end - time.monotonic()) > 0 and (most is None or done < most):
            with Worker(
                module=self.module, targets=self.targets, seed=seed, most=most and most - done,
                skip_corpus=skip_corpus,
            ) as worker:  # fmt: skip
                totals, failures = worker.run(left)
                for failure in failures:
                    self._keep(failure)
            if totals:
                self.totals.append(totals)
            done += totals["executions"] if totals else 1
            if len(self.failures) >= MOST_FAILURES:
                return
            skip_corpus, seed = True, seed + 1000

    def _keep(self, failure):
        """Unless we have its like, or only the tracer made it slow."""
        with self._lock:
            if failure.kind in {known.kind for known in self.failures}:
                return
            recurs = replay(failure.files, [failure.about["target"]], self.module)
            if "CPU time" in failure.text and not recurs:
                return
            folder = self.keep / "{seed}-{execution}".format(**failure.about)
            shutil.copytree(failure.files, folder / "files", dirs_exist_ok=True)
            about = failure.about | {"recurs": bool(recurs), "error": failure.text}
            (folder / "case.json").write_text(json.dumps(about, indent=1))
            self.failures.append(Failure(folder, failure.about, failure.text))
            print(f"FAILURE {folder}: {json.dumps(failure.about)}\n{failure.text}", flush=True)

    def summary(self, seconds):
        """One line for people."""
        executions = sum(total["executions"] for total in self.totals)
        edges = max((total["edges"] for total in self.totals), default=0)
        counts = {t: sum(total["counts"][t] for total in self.totals) for t in self.targets}
        shares = ", ".join(f"{target} {n}" for target, n in counts.items())
        return (
            f"{executions} executions ({shares}), {executions / seconds:.0f}/s, "
            f"{edges} pairs of lines, {len(self.failures)} failures"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, default=KEEP, metavar="FOLDER")
    parser.add_argument("--replay", type=Path, metavar="CASE", help="run one case, not mutants")
    args = parser.parse_args()
    targets = args.target or list(TARGETS)
    if args.replay:
        path = args.replay / "files" if (args.replay / "files").is_dir() else args.replay
        failures = replay(path, targets)
        print("\n".join(failure.text for failure in failures) or "success or FormatError")
        return bool(failures)
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    fuzzer, begin = Fuzzer(targets, seed, args.keep), time.monotonic()
    print(f"seed {seed}, {args.jobs} workers, {args.seconds:g} s", flush=True)
    fuzzer.run(args.seconds, args.jobs)
    print(fuzzer.summary(time.monotonic() - begin))
    return bool(fuzzer.failures)


if __name__ == "__main__":
    sys.exit(main())
