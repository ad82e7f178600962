"""Scripts of bench/ where an extra is missing: a line says which, no traceback."""

import os
import subprocess
import sys

import pytest
from support.benches import bench
from support.paths import ROOT

from bitnet.formats import gguf

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


STUB = """
import pytest

def pytest_collection_finish(session):
    from support import synthetic
    synthetic.write = lambda path, *arguments: pytest.exit(f"WRITES {path.name}", 0)
"""


def benchmarks(tmp_path, *arguments, answer=None):
    """What `pytest bench` shows, on a terminal if there is an answer, where nothing large is ever
    written: a line tells of it."""
    (tmp_path / "no_writing.py").write_text(STUB)
    command = [sys.executable, "-m", "pytest", "-p", "no_writing", "-p", "no:cacheprovider"]
    command += ["bench/bench_model.py", "-k", "test_decode and 1t", *arguments]
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    options = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}}
    if answer is None:
        options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
        return subprocess.run(command, **options).stdout
    ours, theirs = os.openpty()
    with open(ours, "r+b", buffering=0) as terminal:
        done = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **options)
        os.close(theirs)
        shown = b""
        try:
            while piece := terminal.read(1 << 16):
                shown += piece
                if answer and b"[y/N]" in shown:
                    terminal.write(answer)
                    answer = b""
        except OSError:  # how a terminal says that nobody writes any more
            pass
        assert done.wait() == 0
    return shown.decode()


def test_benchmarks_say_why_they_skip_and_write_nothing_unasked(tmp_path):
    shown = benchmarks(tmp_path)
    assert "needs a file of 1.2 GB: --synthetic PATH or --write-large writes it" in shown
    assert "WRITES" not in shown and "[y/N]" not in shown
    assert "WRITES synthetic.gguf" in benchmarks(tmp_path, "--write-large")
    kept = tmp_path / "kept.gguf"
    assert "WRITES kept.gguf" in benchmarks(tmp_path, "--synthetic", str(kept))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals")
@pytest.mark.parametrize("answer", [b"y\n", b"\x04"])
def test_benchmarks_ask_on_a_terminal(tmp_path, answer):
    shown = benchmarks(tmp_path, answer=answer)
    assert shown.count("synthetic.gguf: write 1.2 GB? [y/N]") == 1
    assert ("WRITES synthetic.gguf" in shown) == (answer == b"y\n")
    assert ("needs a file of 1.2 GB" in shown) == (answer != b"y\n")


def test_the_size_of_a_synthetic_file_is_that_of_what_is_written(tmp_path):
    synthetic = bench("synthetic")
    shape = synthetic.Shape(256, 256, 1, 4, 2, 64, 2048, 128)
    for graph in ((), ("qwen3", "PQ2_0", True), ("qwen3", "Q2_0_G64", False), ("bitnet", "TQ2_0")):
        path = tmp_path / "m.gguf"
        synthetic.write(path, shape, 0, *graph)
        written = sum(tensor.data.nbytes for tensor in gguf.GGUFFile(path).tensors.values())
        assert abs(written - synthetic.n_bytes(shape, 0, *graph)) <= 32 * 8  # tails of I2_S
