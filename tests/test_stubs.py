"""The .pyi files say what the compiled modules have, by mypy's stubtest, where it is installed."""

import subprocess
import sys

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "bitnet"
STUBS = sorted(PACKAGE.rglob("*.pyi"))
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
