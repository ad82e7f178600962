"""The shape of the source: imports point one way, kernels stay plain, no file is run as code."""

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bitnet"

# Each room may import those before it. Those that are no folders are files of the top folder.
ROOMS = [
    "version", "progress", "checks", "errors", "kernels", "runtime", "formats", "compute",
    "extensions", "models", "text", "checkpoints", "generation", "api", "public", "__init__",
    "lm_eval", "verify", "server", "cli", "__main__",
]  # fmt: skip

SUFFIXES = {".py", ".pyx", ".pxd", ".pxi"}  # of what is a module, or text in one
SOURCES = sorted(
    p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".pyx", ".pxd", ".pxi", ".h", ".pyi"}
)
CODE = [p for p in SOURCES if p.suffix not in {".h", ".pyi"}]
HEADERS = [p for p in SOURCES if p.suffix == ".h"]
IN_KERNELS = [p for p in CODE + HEADERS if p.relative_to(PACKAGE).parts[0] == "kernels"]
CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<base>[\w.]+)\s+c?import\s+(?:\((?P<many>[^)]*)\)|(?P<names>[^#\n]+))"
    r"|c?import\s+(?P<whole>[\w., ]+)|include\s+[\"'](?P<file>[^\"']+)[\"'])",
    re.M,
)
PRIVATE = re.compile(r"_[a-z]\w*")
PRIVATE_USE = re.compile(r"([\w\])]+)\.(_[a-z]\w*)")
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public, whatever their underscore says
# Private members of objects that are of the file's own class, though their name does not say so.
OWN = {("api/model.py", "model._after_fork"), ("generation/session.py", "twin._token_ids")}
# names of tokenizer.ggml.pre, some of which are a family's as well
PRE_TOKENIZERS = {("text/vocabulary/byte_level.py", "qwen35")}
C_INCLUDE = re.compile(
    r"^\s*(?:#\s*include|cdef\s+extern\s+from)\s+(?:\"(?P<file>[^\"]+)\"|(?P<macro>BITNET_SIMD))",
    re.M,
)
ISA_LINE = re.compile(r"\"(?P<isa>\w+)\": \(\s*\"(?P<header>\w+\.h)\"")  # of setup.py


def module_of(path):
    """The dotted name of a source file within the package; a folder's is that of its __init__.

    A header keeps its suffix: lookup.h and lookup.pxi are two files.
    """
    inside = path.relative_to(PACKAGE)
    parts = inside.parts if path.suffix == ".h" else inside.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


def python_imports(path):
    """Yield (dots before the base, base, names) of every import statement, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)


def cython_imports(path):
    """The same for a Cython file, by its text; what it includes counts as imported."""
    for found in CYTHON_IMPORT.finditer(path.read_text()):
        if found["file"]:
            yield 1, "", [found["file"].rsplit(".", 1)[0].replace("/", ".")]
        elif found["whole"]:
            yield from ((0, name.split()[0], []) for name in found["whole"].split(","))
        else:
            base = found["base"]
            names = (found["many"] or found["names"]).split(",")
            names = [name.split()[0] for name in names if name.strip()]
            yield len(base) - len(base.lstrip(".")), base.lstrip("."), names


def headers_of(path):
    """The headers of this package that a C or Cython file includes or declares names of.

    As the compiler finds them: beside the file, else in kernels/ (setup.py). simd.h includes the
    one that setup.py names for the instruction set.
    """
    for found in C_INCLUDE.finditer(path.read_text()):
        names = [found["file"]] if found["file"] else [m["header"] for m in isa_lines()]
        for name in names:
            for folder in (path.parent, PACKAGE / "kernels"):
                if (folder / name).is_file():
                    yield module_of((folder / name).resolve())
                    break


def isa_lines():
    return list(ISA_LINE.finditer((ROOT / "setup.py").read_text()))


@functools.cache
def modules(package):
    return {module_of(path) for path in package.rglob("*") if path.suffix in SUFFIXES}


def imported(path):
    """The modules of this package that a file imports, as tuples of names; headers count too."""
    if path.suffix != ".py":
        yield from headers_of(path)
    if path.suffix == ".h":
        return
    known, read = modules(PACKAGE), python_imports if path.suffix == ".py" else cython_imports
    for level, base, names in read(path):
        parts = tuple(base.split(".")) if base else ()
        if level:
            folder = path.relative_to(PACKAGE).parts[:-1]
            parts = folder[: len(folder) - level + 1] + parts
        elif parts[:1] == ("bitnet",):
            parts = parts[1:]
        else:
            continue
        for name in names or [""]:
            name = tuple(filter(None, name.split(".")))
            while parts + name not in known and name:
                name = name[:-1]
            yield parts + name or ("__init__",)


def test_every_room_has_its_place():
    found = {module_of(path)[0] for path in CODE}
    assert found == set(ROOMS)


@pytest.mark.parametrize("path", CODE + HEADERS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = module_of(path)[0]
    for other in imported(path):
        assert ROOMS.index(other[0]) <= ROOMS.index(own), f"{own} imports {'.'.join(other)}"
        if other[-1].endswith(".h"):
            assert other[0] in {own, "kernels"}, f"{own} includes {'/'.join(other)}"


def test_no_module_is_imported_by_what_it_imports():
    graph = {}
    for path in CODE + HEADERS:
        own = module_of(path)
        graph.setdefault(own, set()).update(m for m in imported(path) if m != own)
    for room in ROOMS:  # the face of a room may import what is in it, which may not ask the face
        for module, needs in graph.items():
            if module[0] == room and len(module) > 1:
                assert (room,) not in needs, f"{'.'.join(module)} imports its own face"
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names those in a circle


def test_text_is_included_only_where_it_is_one_thing():
    """Kernels are compiled once an instruction set; the pool's two files are one struct."""
    including = {
        str(path.relative_to(PACKAGE))
        for path in CODE
        if path.suffix in {".pyx", ".pxi", ".pxd"}
        and re.search(r"^\s*include\s", path.read_text(), re.M)
    }
    rest = {name for name in including if not name.startswith("kernels/")}
    assert rest <= {"runtime/pool.pyx", "runtime/heap.pxi"}


@pytest.mark.parametrize(
    "path",
    [p for p in PACKAGE.rglob("__init__.py") if p.parent != PACKAGE],  # which imports late
    ids=lambda p: p.parent.name,
)
def test_an_init_is_a_face(path):
    for node in ast.parse(path.read_text()).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_list = isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        assert is_text or is_list or isinstance(node, ast.ImportFrom), ast.unparse(node)


def test_the_check_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr("test_layout.PACKAGE", tmp_path)
    for name in ("a/one.py", "a/two.pyx", "a/part.pxi", "b/three.pxd", "b/deep/four.py", "c.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        (path.parent / "__init__.py").touch()
    (tmp_path / "a" / "two.pyx").write_text(
        "from ..b.three cimport Pool\nfrom bitnet.a.one import x\ncimport bitnet.c\n"
        'from .. import (c,\n    b as z)\ninclude "part.pxi"\n'
    )
    (tmp_path / "b" / "deep" / "four.py").write_text(
        "from ...a import one\nfrom ..three import b\nfrom ... import load\n"
        "def f():\n    import bitnet.a.two\n    from bitnet import Model\n"
    )
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "page.h").write_text('#include "../a/own.h"\n#include <string.h>\n')
    (tmp_path / "a" / "own.h").write_text('#pragma once\n#  include "page.h"\n')
    (tmp_path / "a" / "part.pxi").write_text(
        'cdef extern from "page.h" nogil:\n    int f()\ncdef extern from *:\n    """\n'
        '    #include "own.h"\n    """\n'
    )
    assert list(imported(tmp_path / "a" / "own.h")) == [("kernels", "page.h")]
    assert list(imported(tmp_path / "kernels" / "page.h")) == [("a", "own.h")]
    assert list(imported(tmp_path / "a" / "part.pxi")) == [("kernels", "page.h"), ("a", "own.h")]
    assert sorted(imported(tmp_path / "a" / "two.pyx")) == [
        ("a", "one"), ("a", "part"), ("b",), ("b", "three"), ("c",), ("c",)]  # fmt: skip
    assert sorted(imported(tmp_path / "b" / "deep" / "four.py")) == [
        ("__init__",), ("__init__",), ("a", "one"), ("a", "two"), ("b", "three")]  # fmt: skip


def private_uses(path):
    """Yield "object._member" and "import _name" of what a file uses and does not own.

    Its own are members of self and cls, of classes and of a call of cls() in the file itself.
    """
    text = path.read_text()
    owners = {"self", "cls", "cls()", *re.findall(r"^\s*(?:cdef )?class (\w+)", text, re.M)}
    for _, _, names in (python_imports if path.suffix == ".py" else cython_imports)(path):
        yield from (f"import {name}" for name in names if PRIVATE.match(name))
    if path.suffix == ".py":
        uses = [
            (f"{n.value.func.id}()", n.attr)
            if isinstance(n.value, ast.Call) and isinstance(n.value.func, ast.Name)
            else (ast.unparse(n.value), n.attr)
            for n in ast.walk(ast.parse(text))
            if isinstance(n, ast.Attribute)
        ]
    else:
        uses = PRIVATE_USE.findall(re.sub(r"#.*", "", text))
    for owner, member in uses:
        if PRIVATE.fullmatch(member) and owner not in owners and member not in NAMED_TUPLE:
            yield f"{owner}.{member}"


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_members_stay_in_their_file(path):
    name = str(path.relative_to(PACKAGE))
    assert {use for use in private_uses(path) if (name, use) not in OWN} == set()


def test_the_check_sees_private_members(tmp_path):
    (tmp_path / "one.py").write_text(
        "import sys\nfrom .two import _three, four\nclass Own:\n    def make(cls, other):\n"
        "        cls(1)._mine = Own._mine = cls._mine\n        self.four._far = other._a.b\n"
        "        return other._replace(x=sys._getframe().__name__), four()._call, f[0]._item\n"
    )
    (tmp_path / "two.pyx").write_text(
        "from .three cimport _four\ncdef class Own:\n    x = self._a + Own._b + other._c  # y._d\n"
    )
    assert set(private_uses(tmp_path / "one.py")) == {
        "import _three", "self.four._far", "other._a", "sys._getframe", "four()._call",
        "f[0]._item",
    }  # fmt: skip
    assert set(private_uses(tmp_path / "two.pyx")) == {"import _four", "other._c"}


@pytest.mark.parametrize("path", IN_KERNELS, ids=lambda p: p.name)
def test_kernels_know_pointers_and_lengths_only(path):
    text = path.read_text()
    for word in ("numpy", "prange", "malloc", "omp_", "np."):
        assert not re.search(rf"^(?!\s*#).*\b{re.escape(word)}", text, re.M), word
    assert {module[0] for module in imported(path)} <= {"kernels"}


def test_an_instruction_set_is_a_header_a_module_and_a_line():
    """Which one a module is compiled for stands in setup.py; no other header asks the compiler."""
    simd = PACKAGE / "kernels" / "simd"
    lines = {m["isa"]: m["header"] for m in isa_lines()}
    assert set(lines) == {path.stem for path in (PACKAGE / "kernels").glob("*.pyx")}
    shared, parts = {"simd.h", "common.h", "x86.h"}, {"avx2_group.h", "avx512_group.h"}
    assert set(lines.values()) | shared | parts == {path.name for path in simd.glob("*.h")}
    own = {simd / header for header in {*lines.values(), *parts}}
    for path in set(HEADERS) - own:
        assert not re.search(r"__(AVX|ARM|SSE|FMA|F16C|x86|aarch64)", path.read_text()), path.name


def test_threads_are_in_compute_alone():
    users = {p.parent.name for p in CODE if re.search(r"cimport[^\n#]*\bprange\b", p.read_text())}
    assert users == {"compute"}


def test_nothing_in_the_package_runs_what_a_file_says():
    banned = (
        r"\bpickle\b|\bmarshal\b|\btorch\.load\b|\beval\(|\bexec\("
        r"|allow_pickle\s*=\s*True|\btrust_remote_code\b"
    )
    for path in CODE:
        assert not re.search(banned, path.read_text()), path.name
        for call in re.findall(r"np\.load\([^\n]*", path.read_text()):
            assert "allow_pickle=False" in call, f"{path.name}: {call}"


def asked_literals(path):
    """Yield (line, text) of every string that a file compares something with, or uses as a key."""
    tree = ast.parse(path.read_text())
    asked = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            asked += [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            asked += filter(None, node.keys)
        elif isinstance(node, ast.Subscript):
            asked.append(node.slice)
        elif isinstance(node, ast.MatchValue):
            asked.append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked += node.args if node.func.attr in ("get", "startswith", "endswith") else []
    for expression in asked:
        for node in ast.walk(expression):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value


@functools.cache
def families():
    """What families, and their models in files, are called: by the Architectures in the source."""
    fields = {"name", "model_types", "hf_architectures", "gguf_architectures"}
    return {
        constant.value
        for path in sorted((PACKAGE / "models").glob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "Architecture"
        for keyword in call.keywords
        if keyword.arg in fields
        for constant in ast.walk(keyword.value)
        if isinstance(constant, ast.Constant)
    }


@pytest.mark.parametrize(
    "path", [p for p in CODE if p.suffix == ".py"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_families_are_asked_by_name_in_models_alone(path):
    """What they differ in is a field or a method of their Architecture."""
    own = str(path.relative_to(PACKAGE))
    if module_of(path)[0] != "models":
        asked = [(line, text) for line, text in asked_literals(path) if text in families()]
        assert not [(line, text) for line, text in asked if (own, text) not in PRE_TOKENIZERS]


def test_the_check_sees_every_way_to_ask_for_a_family(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        'a = {"llama": 1}["qwen3"]\nb = x == "gemma3" or x in ("bitnet", y)\n'
        'x.startswith("bitnet-25")\nlog("bitnet", kind="llama")\n'
        'match x:\n    case "qwen3" | "gemma3":\n        pass\n'
    )
    assert sorted(asked_literals(path)) == [
        (1, "llama"), (1, "qwen3"), (2, "bitnet"), (2, "gemma3"), (3, "bitnet-25"), (6, "gemma3"),
        (6, "qwen3")]  # fmt: skip
    assert {text for _, text in asked_literals(path)} <= families()
    assert families() >= {"llama", "bitnet", "bitnet_b1_58", "bitnet-25", "gemma3_text"}


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
    if len(lines) > 4:  # shorter ones speak for themselves
        assert lines[0].startswith(('"""', "#", "/*")), "the first line says what the file is"


def test_files_outside_of_the_package_are_no_longer():
    for room in ("tests", "bench", "train", "examples"):
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 500, path
