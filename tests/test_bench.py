"""Scripts of bench/ where an extra is missing: a line says which, no traceback."""

import os
import subprocess
import sys

import pytest
from support.paths import ROOT

SCRIPT = """
import runpy, sys
sys.modules.update(dict.fromkeys({absent!r}))
sys.argv = {argv!r}
sys.path.insert(0, {folder!r})
runpy.run_path({path!r}, run_name="__main__")
"""


def run_without(absent, path, *argv):
    """A script in a Python that has no such modules: what it wrote to stderr, its status."""
    path = ROOT / "bench" / path
    script = SCRIPT.format(
        absent=absent, argv=[str(path), *argv], folder=str(path.parent), path=str(path)
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.stderr, done.returncode


def test_a_plot_without_matplotlib(tmp_path):
    run = tmp_path / "run.json"
    run.write_text('{"benchmarks": [], "machine_info": {"cpu": {}, "bitnet": {"isa": ""}}}')
    argv = str(run), str(tmp_path / "out.png")
    err, code = run_without(["matplotlib"], "support/plot.py", *argv)
    assert code == 1 and err.count("\n") == 1
    assert err.endswith("needs matplotlib: pip install 'bitnet-engine[plot]'\n")


def test_the_server_without_its_extra(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uvicorn'] = None\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "bench_server.py"), "--clients", "1"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])},
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "the server needs uvicorn: pip install 'bitnet-engine[server]'" in done.stderr


def test_benchmarks_without_their_plugin():
    command = [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "bench/bench_load.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "Traceback" not in done.stderr
    assert "ERROR: bench needs pytest-benchmark: pip install 'bitnet-engine[test]'" in done.stderr
