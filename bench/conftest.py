"""What the benchmarks share: the file of 2B-4T's shape, paired timing, the table of figures."""
import json
import statistics
import time
from pathlib import Path

import pytest
import synthetic

import bitnet

FIGURES = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--synthetic", metavar="PATH", type=Path,
                     help="the 2B-4T-shaped file of 1.2 GB: used if it exists, else written and "
                          "kept (default: written to a temporary folder and deleted)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.stash[FIGURES] = []
    config.option.benchmark_group_by, config.option.benchmark_columns = "func", ["median"]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["bitnet"] = bitnet.info()


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[FIGURES]:
        terminalreporter.section("figures")
        terminalreporter.write_line(json.dumps(bitnet.info(), default=str))
        for name, figures in config.stash[FIGURES]:
            cells = "".join(f"  {key} {value:.4g}" for key, value in figures.items())
            terminalreporter.write_line(f"{name:64}{cells}")


@pytest.fixture(scope="session")
def synthetic_path(request, tmp_path_factory):
    """A GGUF of 2B-4T's exact shape."""
    kept = request.config.getoption("--synthetic")
    path = kept or tmp_path_factory.mktemp("synthetic") / "synthetic.gguf"
    if not path.exists():
        synthetic.write(path)
    yield path
    if not kept:
        path.unlink()


@pytest.fixture
def figures(request, benchmark):
    """Record figures (name to number) beside the times, in the table at the end and in the JSON."""
    def record(**values):
        benchmark.extra_info.update(values)
        request.config.stash[FIGURES].append((request.node.name, values))
    return record


@pytest.fixture
def timed(benchmark):
    """Median seconds of ``target`` over rounds, or (of target, of reference) where one is given.

    A round runs the reference, which returns its own seconds, right before the target: the clock
    of a shared machine drifts by half within minutes, so only neighbours may be compared.
    """
    def run(target, reference=None, rounds=5):
        own, others = [], []

        def timed_target():
            begin = time.perf_counter()
            target()
            own.append(time.perf_counter() - begin)

        setup = reference and (lambda: others.append(reference()))
        benchmark.pedantic(timed_target, setup=setup, rounds=rounds, warmup_rounds=1)
        medians = [statistics.median(s[1:] or s) for s in (own, others) if s]       # 0: warming up
        return tuple(medians) if reference else medians[0]
    return run
