"""Keep what a measurement printed, with its machine, commit and command, for the pictures of docs.

`python bench/support/record.py bench/results/NAME.json -- python -m bitnet bench FILE --json` adds
a run to the file. Where RUN.json is among the words, as in `pytest bench/bench_peers.py
--benchmark-json RUN.json`, that file is read in place of what the command prints.
docs/scripts/pictures.py draws.
"""

import argparse
import json
import platform
import re
import subprocess
import tempfile
import time
from pathlib import Path

import bitnet

FILE = "RUN.json"  # the word of a command that stands for a file of pytest-benchmark
FACTS = ("isa", "threads", "physical_cores", "system", "machine")  # of bitnet.info()


def machine():
    """What the figures depend on, as text and numbers."""
    names = [platform.processor() or platform.machine()]
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    facts = bitnet.info()
    found = {name: facts[name] for name in FACTS}
    return {"cpu": names[0], "logical_cpus": len(names), "kernel": platform.release(), **found}


def commit():
    """The commit of the package that is measured; a + behind it where its files differ from it."""
    folder = Path(bitnet.__file__).parent

    def git(*words):
        return subprocess.run(
            ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")


def shown(words):
    """A command as a page may show it: of paths the last part, of a Python its name."""
    return " ".join("python" if "/bin/python" in w else re.sub(r"/\S*/", "", w) for w in words)


def of_benchmarks(found):
    """What pytest-benchmark wrote: {test: the figures that it recorded}."""
    return {entry["name"]: entry["extra_info"] for entry in found["benchmarks"]}


def run(words):
    """The result of a command, as data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        command = [str(path) if word == FILE else word for word in words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        if FILE in words:
            print(done.stdout)
            return of_benchmarks(json.loads(path.read_text("utf-8")))
        return without_folders(json.loads(done.stdout.splitlines()[-1]))


def without_folders(value):
    """The same data, of paths the last part."""
    if isinstance(value, dict):
        return {name: without_folders(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", metavar="OUT.json", type=Path)
    parser.add_argument("words", metavar="COMMAND", nargs="+")
    args = parser.parse_args()
    runs = json.loads(args.out.read_text("utf-8")) if args.out.exists() else []
    runs.append(
        {
            "command": shown(args.words),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine(),
            "result": run(args.words),
        }
    )
    args.out.write_text(json.dumps(runs, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
