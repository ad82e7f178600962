"""The .pyi files say what the compiled modules have, by mypy's stubtest, where it is installed."""

import ast
import importlib
import subprocess
import sys

import pytest
from support.paths import ROOT

import bitnet

PACKAGE = ROOT / "bitnet"
FACE = PACKAGE / "__init__.pyi"  # stubtest would follow it into every module of the package
STUBS = sorted(set(PACKAGE.rglob("*.pyi")) - {FACE})
# What Cython makes of a module beside what is written in it; a cdef class takes its arguments in
# __cinit__, which no signature shows.
MADE_BY_CYTHON = r"""
.*\.__test__
.*\.__pyx_capi__
.*\.__reduce_cython__
.*\.__setstate_cython__
.*\.__init__
.*\.__buffer__
"""


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_compiled_module_but_the_kernels_has_one():
    compiled = {p.with_suffix(".pyi") for p in PACKAGE.rglob("*.pyx") if p.parent.name != "kernels"}
    assert {p for p in STUBS if p.with_suffix(".pyx").exists()} == compiled


def test_the_face_of_the_package_has_what_its_stub_says():
    tree = ast.parse(FACE.read_text())
    listed = ast.literal_eval(next(n.value for n in tree.body if isinstance(n, ast.Assign)))
    assert listed == bitnet.__all__
    declared = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            home = importlib.import_module("." * node.level + node.module, "bitnet")
            declared |= {alias.asname: getattr(home, alias.name) for alias in node.names}
    assert declared == {name: getattr(bitnet, name) for name in bitnet.__all__}


def test_stubs_and_modules_agree(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "allowed").write_text(MADE_BY_CYTHON)
    (tmp_path / "config").write_text("[mypy]\nfollow_imports = silent\n")
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-unused-allowlist"]
    command += ["--ignore-disjoint-bases"]
    command += ["--allowlist", tmp_path / "allowed", "--mypy-config-file", tmp_path / "config"]
    result = subprocess.run(
        [*command, *map(module, STUBS)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
