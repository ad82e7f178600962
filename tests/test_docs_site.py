"""The site: its pictures and tables are what the recorded files say, its made pages are complete,
and it builds without a warning where MkDocs is installed (the extra `docs`)."""

import json
import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "docs" / "scripts"))
import command_line
import memory_page
import pictures
import svg

from bitnet.cli.command import command
from bitnet.cli.commands import COMMANDS

PICTURES = ROOT / "docs" / "pictures"
ENVIRONMENT = ROOT / "docs" / "reference" / "environment.md"


@pytest.mark.parametrize("name", pictures.DRAWN)
def test_a_picture_is_what_its_file_says(name):
    drawn = (PICTURES / f"{name}.svg").read_text("utf-8")
    assert drawn == str(pictures.DRAWN[name]()), "python docs/scripts/pictures.py"
    assert len(drawn) < 10_000  # bytes: a page has three of them


def test_no_picture_is_left_over():
    of_readme = {"page", "terminal"}  # docs/scripts/readme.py makes them
    assert {path.stem for path in PICTURES.iterdir()} == set(pictures.DRAWN) | of_readme


def test_tables_are_what_their_files_say():
    found = []
    for page in pictures.PAGES:
        text = page.read_text("utf-8")
        assert pictures.with_tables(text) == text, "python docs/scripts/pictures.py"
        found += [name for _, name, _ in pictures.TABLE.findall(text)]
    assert sorted(found) == sorted(pictures.TABLES)


@pytest.mark.parametrize("path", sorted(pictures.RESULTS.iterdir()), ids=lambda path: path.stem)
def test_a_recorded_file_says_where_and_of_what(path):
    for run in json.loads(path.read_text("utf-8")):
        assert re.fullmatch(r"[0-9a-f]{40}\+?", run["commit"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])
        assert {"cpu", "isa", "threads"} <= run["machine"].keys()
        assert "/" not in run["command"].replace("bench/", ""), "a path of somebody's machine"
        assert run["result"]
    cpu = run["machine"]["cpu"]
    assert any(cpu in line for line in pictures.source_of(path.stem, "what"))


def test_figures_of_two_machines_are_not_compared(tmp_path, monkeypatch):
    runs = pictures.runs_of("memory-by-purpose")
    runs[0]["machine"]["cpu"] = "another"
    (tmp_path / "memory-by-purpose.json").write_text(json.dumps(runs))
    monkeypatch.setattr(pictures, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="several machines"):
        pictures.memory_picture()


def test_a_picture_changes_with_a_figure(tmp_path, monkeypatch):
    runs = pictures.runs_of("decode-by-context")
    runs[0]["result"]["rows"][0]["decode_tps"] *= 0.9
    (tmp_path / "decode-by-context.json").write_text(json.dumps(runs))
    table = pictures.context_table()
    monkeypatch.setattr(pictures, "RESULTS", tmp_path)
    assert pictures.context_table() != table


def luminance(colour):
    """WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colours", [svg.LIGHT, svg.DARK], ids=["light", "dark"])
def test_drawings_are_legible(colours):
    """Letters have a contrast of 4.5 with what they stand on, bars and lines 3 (WCAG 2.2)."""

    def contrast(a, b):
        low, high = sorted(luminance(colours[name]) for name in (a, b))
        return (high + 0.05) / (low + 0.05)

    for name in ("ink", "soft"):
        assert contrast(name, "paper") >= 4.5 and contrast(name, "pale") >= 4.5, name
    for name in "abcde":
        assert contrast(name, "paper") >= (3 if name == "e" else 4.5), name


def test_the_command_line_has_every_option():
    page = command_line.page()
    for name in COMMANDS:
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        _, parser = command(name)
        for option in parser.option_strings():
            assert f"`{option}" in section, (name, option)


def test_the_fields_of_every_request_are_listed():
    pytest.importorskip("msgspec")
    pytest.importorskip("starlette")
    import server_fields

    posts = {path for method, path, _ in server_fields.ENDPOINTS if method == "POST"}
    assert posts == set(server_fields.REQUESTS)
    page = server_fields.page()
    for path, struct in server_fields.REQUESTS.items():
        section = page.partition(f"\n## {path} ")[2].partition("\n## ")[0]
        for field in struct.__struct_encode_fields__:
            assert f"| `{field}` |" in section, (path, field)
    assert "| `top_p` | number, at least 0, at most 1 |" in page
    for target in re.findall(r"\]\(#([\w-]+)\)", page):
        assert f"{{ #{target} }}" in page, target


def test_every_environment_variable_has_a_line():
    sources = [p for p in (ROOT / "bitnet").rglob("*") if p.suffix in {".py", ".pyx"}]
    text = "".join(path.read_text("utf-8") for path in sources)
    read = set(re.findall(r"environ[^\n]*\"((?:BITNET|OMP|GOMP|HF|XDG)_\w+)\"", text))
    read -= {"HF_HUB_DISABLE_PROGRESS_BARS"}  # set, not read
    assert {"BITNET_ISA", "OMP_STACKSIZE", "HF_HOME"} <= read
    listed = ENVIRONMENT.read_text("utf-8")
    assert {name for name in read if f"`{name}`" not in listed} == set()
    named = set(re.findall(r"`(BITNET_\w+)", listed)) - {"BITNET_CHECK", "BITNET_SANITIZE"}
    assert named <= read


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = (tmp_path / "reference" / "python.html").read_text("utf-8")
    assert 'id="bitnet.Model.generate"' in made
    assert 'class="drawing"' in (tmp_path / "explanation" / "speed.html").read_text("utf-8")


def test_pictures_of_the_memory_page_read_its_tables():
    rows = memory_page.rows_of("shared")
    assert memory_page.numbers(rows[1][1]) == [1888] and len(rows) == 3
    assert memory_page.rows_of("cold")[0][0].startswith("`map`")
    assert "4.3 s" in str(memory_page.cold()) and "45.1" not in str(memory_page.cold())


def test_docstrings_become_lists():
    pytest.importorskip("griffe")
    from docstrings import as_markdown

    text = "Open [it].\n\npath: a\n    file. slots=1; n: two\n`a*b`: kept\n\nNone: of\nnobody"
    made = "- `path`: a file.\n- `slots=1`, `n`: two `a*b`: kept"
    assert as_markdown(text) == f"Open \\[it\\].\n\n{made}\n\nNone: of\nnobody"
