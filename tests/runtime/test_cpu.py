"""How many threads are ours and why; a forked child computes instead of waiting forever."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bitnet.compute import ops
from bitnet.runtime import cpu


def test_the_request_comes_first_then_the_environment_then_the_machine(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert cpu.threads() == (3, "OMP_NUM_THREADS")
    monkeypatch.setenv("BITNET_NUM_THREADS", "2")
    assert cpu.threads() == (2, "BITNET_NUM_THREADS")
    assert cpu.threads(5) == (5, "threads")
    monkeypatch.delenv("BITNET_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= cpu.threads()[0] <= len(cpu.affinity())


@pytest.mark.parametrize("bad", [0, -1, 1025, "many", "", 2.5, True])
def test_bad_thread_counts_are_named(monkeypatch, bad):
    with pytest.raises(ValueError, match=r"threads: .* is not a number of threads"):
        cpu.threads(bad)
    monkeypatch.setenv("BITNET_NUM_THREADS", "zero")
    with pytest.raises(ValueError, match="BITNET_NUM_THREADS: 'zero'"):
        cpu.threads()


def cgroup(folder, membership, files):
    """A tree of cgroup files; returns what cpu.cgroup_quota takes."""
    for name, text in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "self").write_text(membership)
    return str(folder / "fs"), str(folder / "self")


def test_the_smallest_quota_of_all_levels_counts(tmp_path):
    files = {
        "cpu.max": "max 100000\n",
        "a/cpu.max": "150000 100000\n",
        "a/b/cpu.max": "400000 100000\n",
    }
    assert cpu.cgroup_quota(*cgroup(tmp_path, "0::/a/b\n", files)) == 1.5


def test_version_1_quota(tmp_path):
    files = {
        "cpu,cpuacct/box/cpu.cfs_quota_us": "250000",
        "cpu,cpuacct/box/cpu.cfs_period_us": "100000",
    }
    assert cpu.cgroup_quota(*cgroup(tmp_path, "4:cpu,cpuacct:/box\n2:memory:/box\n", files)) == 2.5


@pytest.mark.parametrize("text", ["max 100000", "-1", "", "1 0", "what"])
def test_no_quota_and_nonsense_are_no_limit(tmp_path, text):
    assert cpu.cgroup_quota(*cgroup(tmp_path, "0::/\n", {"cpu.max": text})) is None
    assert cpu.cgroup_quota("/nowhere", "/nowhere/self") is None


def test_the_quota_is_rounded_down(monkeypatch):
    """Three halves of a core are one thread: a second one would be throttled half of the time."""
    for name in ("BITNET_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    script = (
        "import bitnet.runtime.cpu as c\n"
        "c.cgroup_quota = lambda: 1.5\n"
        "c.physical_cores = lambda cpus: 8\n"
        "print(c.threads())\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    assert printed.strip() == "(1, 'cgroup quota of 1.5 CPUs, rounded down')"


FORK = """
import os, sys
import numpy as np
from bitnet.compute import operands, ops
q = np.full((4096, 1024), 0x66, np.uint8)
weights = operands.Linear([(q, np.ones((1, 1), np.float32))], 4096)
x = operands.Matrix(np.random.default_rng(1).standard_normal((8, 4096)).astype(np.float32))
codes = operands.QuantizedActivations(
    np.zeros((8, 4096), np.int8), np.zeros(8, np.float32), np.zeros(8, np.int32)
)
def run():
    out = operands.Matrix(np.zeros((8, 4096), np.float32))
    batch = operands.Batch(8, 1, 2).rows_only(8)
    ops.quantize(codes, x, batch)
    ops.linear(out, weights, codes, batch)
    return out.array().tobytes()
want = run()
child = os.fork()
if child == 0:
    os._exit(0 if run() == want else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_computes_on_one_thread():
    """libgomp's threads do not survive a fork: a region of two would hang (measured, gcc 12)."""
    assert subprocess.run([sys.executable, "-c", FORK], timeout=60).returncode == 0


def test_bandwidth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty"):
        ops.read_bandwidth(np.zeros(0, np.uint8))


def gomp_settings(**environment):
    """(GOMP_SPINCOUNT as libgomp saw it, as the process sees it after the import)"""
    script = "import bitnet, os; print('SPIN', os.environ.get('GOMP_SPINCOUNT'))"
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {"OMP_DISPLAY_ENV": "verbose", **environment}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    shown = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    return shown[0].split("'")[1] if shown else None, done.stdout.split()[1]


def test_idle_threads_wait_a_little_and_the_environment_is_left_alone():
    seen, after = gomp_settings()
    if seen is None:
        pytest.skip("the OpenMP library is not libgomp")
    assert (seen, after) == ("3000", "None")
    assert gomp_settings(GOMP_SPINCOUNT="7") == ("7", "7")
