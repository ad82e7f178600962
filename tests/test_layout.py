"""The shape of the source: imports point one way, kernels stay plain, no file is run as code."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bitnet"

ORDER = ["cpu", "mapping", "blocks", "memory", "cache", "kernels", "dispatch", "arrays", "team",
         "linear", "gumbel", "screen_bounds", "screen", "ops", "waiting", "report", "formats",
         "families", "config", "head", "sidecar", "hub", "source", "weights", "chat",
         "vocabulary", "tokenizer", "tokenizer_files", "targets", "convert", "rope", "model",
         "memory_plan", "sampling", "generation", "state", "prefix_files", "prefixes", "pace",
         "speculation", "engine", "scoring", "embedding", "verify", "session", "api", "loading",
         "__init__", "server", "cli", "__main__"]

SOURCES = sorted(p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".pyx", ".pxd", ".pxi"})
IN_KERNELS = [p for p in SOURCES if p.parent.name == "kernels"]
CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<base>[\w.]+)\s+c?import\s+(?:\((?P<many>[^)]*)\)|(?P<names>[^#\n]+))"
    r"|c?import\s+(?P<whole>[\w., ]+))", re.M)


def module_of(path):
    """The dotted name of a source file, `__init__` included: ("bitnet", "formats", "gguf")."""
    return ("bitnet", *path.relative_to(PACKAGE).with_suffix("").parts)


def python_imports(path):
    """Yield (dots before the base, base, names) of every import statement, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)


def cython_imports(path):
    """The same for a Cython file, by its text."""
    for found in CYTHON_IMPORT.finditer(path.read_text()):
        if found["whole"]:
            yield from ((0, name.split()[0], []) for name in found["whole"].split(","))
        else:
            base = found["base"]
            names = (found["many"] or found["names"]).split(",")
            names = [name.split()[0] for name in names if name.strip()]
            yield len(base) - len(base.lstrip(".")), base.lstrip("."), names


def imported(path):
    """The modules of this package that a file imports, as ORDER names them."""
    read = python_imports if path.suffix == ".py" else cython_imports
    for level, base, names in read(path):
        parts = tuple(base.split(".")) if base else ()
        if level:
            parts = module_of(path)[:-level] + parts
        if parts[:1] != ("bitnet",):
            continue
        if len(parts) > 1:
            yield parts[1]
        else:
            yield from (name if name in ORDER else "__init__" for name in names or [""])


def test_order_lists_every_module():
    found = {module_of(path)[1] for path in SOURCES}
    assert found <= set(ORDER), "a new module takes its place in ORDER"
    assert set(ORDER) <= found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = module_of(path)[1]
    for other in imported(path):
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{own} imports {other}"


def test_the_check_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr("test_layout.PACKAGE", tmp_path)
    sub = tmp_path / "formats"
    sub.mkdir()
    (tmp_path / "ops.pyx").write_text(
        "from .memory cimport Pool\nfrom bitnet.cache import KVCache\ncimport bitnet.model\n"
        "from . import (api,\n    config as c)\n")
    (sub / "gguf.py").write_text(
        "from ..weights import a\nfrom .packing import b\nfrom .. import engine, load\n"
        "def f():\n    import bitnet.cli\n    from bitnet import Model\n")
    assert list(imported(tmp_path / "ops.pyx")) == ["memory", "cache", "model", "api", "config"]
    assert sorted(imported(sub / "gguf.py")) == [
        "__init__", "__init__", "cli", "engine", "formats", "weights"]


@pytest.mark.parametrize("path", IN_KERNELS, ids=lambda p: p.name)
def test_kernels_know_pointers_and_lengths_only(path):
    text = path.read_text()
    for word in ("numpy", "prange", "malloc", "omp_", "np."):
        assert not re.search(rf"^(?!\s*#).*\b{re.escape(word)}", text, re.M), word
    assert set(imported(path)) <= {"kernels"}


def test_threads_are_in_ops_alone():
    users = {p.name for p in SOURCES if re.search(r"cimport[^\n#]*\bprange\b", p.read_text())}
    assert users == {"ops.pyx"}


def test_nothing_in_the_package_runs_what_a_file_says():
    banned = (r"\bpickle\b|\bmarshal\b|\btorch\.load\b|\beval\(|\bexec\("
              r"|allow_pickle\s*=\s*True|\btrust_remote_code\b")
    for path in SOURCES:
        assert not re.search(banned, path.read_text()), path.name
        for call in re.findall(r"np\.load\([^\n]*", path.read_text()):
            assert "allow_pickle=False" in call, f"{path.name}: {call}"


def test_the_readme_names_every_environment_variable():
    source = "".join(path.read_text() for path in SOURCES)
    read = set(re.findall(r"environ[^\n]*\"(BITNET_\w+)\"", source))
    assert {"BITNET_ISA", "BITNET_CACHE"} <= read
    assert read <= set(re.findall(r"BITNET_\w+", (ROOT / "README.md").read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_what_it_is_and_fits_a_reader(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 500
    assert max(map(len, lines), default=0) <= 100
    if len(lines) > 4:                  # shorter ones speak for themselves
        assert lines[0].startswith(('"""', "#")), "the first line says what the file is"
