"""A checkout whose compiled modules were not built says how to build them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

import bitnet
from bitnet.extensions import COMPILED


def test_every_compiled_module_is_looked_for():
    """Of the kernels only those that no CPU does without."""
    sources = {p.relative_to(ROOT / "bitnet") for p in (ROOT / "bitnet").rglob("*.pyx")}
    looked_for = {Path(room, f"{name}.pyx") for room, names in COMPILED.items() for name in names}
    others = {p for p in sources - looked_for if p.parent != Path("kernels")}
    assert looked_for <= sources and others == set()


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory):
    """A copy of the package without its compiled modules and without the model."""
    folder = tmp_path_factory.mktemp("checkout")
    left_out = shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__", "*.gguf")
    shutil.copytree(ROOT / "bitnet", folder / "bitnet", ignore=left_out)
    shutil.copy(ROOT / "setup.py", folder)
    return folder


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import bitnet"),
        ("-c", "from bitnet.generation.sampling import Sampling"),
        ("-m", "bitnet", "info"),
    ],
    ids=["import", "part", "run"],
)
def test_a_line_says_which_command_builds(unbuilt, arguments):
    result = run(unbuilt, *arguments)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: bitnet.") and "is not built" in last
    assert f"`pip install -e .` in {unbuilt} " in last
    assert "circular" not in result.stderr and "During handling" not in result.stderr


def test_a_single_module_that_is_missing_is_named(tmp_path):
    """A checkout that was updated, and has a compiled module more than it had."""
    left_out = shutil.ignore_patterns("mmap.*.so", "mmap.*.pyd", "*.c", "*.gguf")
    shutil.copytree(Path(bitnet.__file__).parent, tmp_path / "bitnet", ignore=left_out)
    assert (
        "ImportError: bitnet.runtime.mmap is not built"
        in run(tmp_path, "-c", "import bitnet").stderr
    )


WITHOUT_NUMPY = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            raise ModuleNotFoundError("No module named 'numpy'", name=name)
sys.meta_path.insert(0, Finder())
import bitnet
bitnet.load
"""


def test_another_module_that_is_missing_is_its_own_error():
    result = run(Path(bitnet.__file__).parents[1], "-c", WITHOUT_NUMPY)
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'numpy'"


SCRIPTS = [
    path
    for folder in ("bench", "bench/support")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text("utf-8")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_of_bench_begins(script):
    if "matplotlib" in script.read_text("utf-8"):
        pytest.importorskip("matplotlib")
    result = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stdout.startswith("usage: "), result.stderr


def test_every_benchmark_is_found():
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert all(path.name in result.stdout for path in (ROOT / "bench").glob("bench_[!s]*.py"))
