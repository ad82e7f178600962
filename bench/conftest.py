"""What the benchmarks share: the file of 2B-4T's shape, paired timing, the table of figures."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from support.large_files import LargeFiles

import bitnet

FIGURES = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption(
        "--synthetic",
        metavar="PATH",
        type=Path,
        help="the 2B-4T-shaped file of 1.2 GB: used if it exists, else written and "
        "kept (default: written to a temporary folder and deleted)",
    )

    parser.addoption(
        "--bonsai-files",
        metavar="FOLDER",
        type=Path,
        help="of files of 8B and 1.7B shapes, 6.6 GB: used if they exist, else written and "
        "kept (default: after a question each written to a temporary folder)",
    )

    parser.addoption(
        "--write-large",
        action="store_true",
        help="write large files to a temporary folder without a question; where nobody can be "
        "asked, benchmarks that need one are skipped without it",
    )

    parser.addoption(
        "--largest",
        metavar="N",
        type=int,
        default=1024,
        help="leave out model benchmarks of more than N tokens (default: 1024)",
    )

    parser.addoption(
        "--bonsai",
        choices=("1.7b", "4b", "8b"),
        default="1.7b",
        help="the size of Ternary Bonsai in bench_peers.py (default: 1.7b)",
    )


@pytest.fixture
def fits(request):
    """Skip what is larger than --largest."""

    def check(n_tokens):
        if n_tokens > request.config.getoption("--largest"):
            pytest.skip(f"{n_tokens} tokens: more than --largest")

    return check


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if not config.pluginmanager.has_plugin("benchmark"):
        raise pytest.UsageError("bench needs pytest-benchmark: pip install 'bitnet-engine[test]'")
    config.stash[FIGURES] = []
    if not set("sAa") & set(config.option.reportchars):
        config.option.reportchars += "s"  # a benchmark that does not run says why
    config.option.benchmark_group_by, config.option.benchmark_columns = "func", ["median"]


@pytest.hookimpl(optionalhook=True)  # without the plugin pytest_configure says what is missing
def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["bitnet"] = bitnet.info()


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[FIGURES]:
        terminalreporter.section("figures")
        terminalreporter.write_line(json.dumps(bitnet.info(), default=str))
        for name, figures in config.stash[FIGURES]:
            cells = "".join(
                f"  {key} {value if isinstance(value, str) else format(value, '.4g')}"
                for key, value in figures.items()
            )
            terminalreporter.write_line(f"{name:64}{cells}")


@pytest.fixture(scope="session")
def large_files(request):
    """What writes large files, if it may."""
    return LargeFiles(request.config)


@pytest.fixture(scope="session")
def synthetic_path(request, tmp_path_factory, large_files):
    """A GGUF of 2B-4T's exact shape."""
    kept = request.config.getoption("--synthetic")
    path = kept or tmp_path_factory.mktemp("synthetic") / "synthetic.gguf"
    if not path.exists():
        large_files.write(path, option="--synthetic PATH", named=kept is not None)
    yield path
    if not kept:
        path.unlink()


@pytest.fixture
def figures(request, benchmark):
    """Record figures (name to number or text) beside the times: in the table, in the JSON."""

    def record(**values):
        benchmark.extra_info.update(values)
        request.config.stash[FIGURES].append((request.node.name, values))

    return record


@pytest.fixture
def timed(benchmark):
    """Median seconds of ``target`` over rounds, or (of target, of reference) where one is given.

    A round runs the reference, which returns its own seconds, right before the target: the clock
    of a shared machine drifts by half within minutes, so only neighbours may be compared. clock:
    time.thread_time for what runs on one thread; another program on its core then counts nothing.
    """

    def run(target, reference=None, rounds=5, clock=time.perf_counter):
        own, others = [], []

        def timed_target():
            begin = clock()
            target()
            own.append(clock() - begin)

        setup = reference and (lambda: others.append(reference()))
        benchmark.pedantic(timed_target, setup=setup, rounds=rounds, warmup_rounds=1)
        # the first was warming up; a reference may be several numbers
        medians = [np.median(s[1:] or s, axis=0) for s in (own, others) if s]
        return tuple(medians) if reference else medians[0]

    return run
