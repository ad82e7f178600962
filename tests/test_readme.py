"""README.md says what the program does: its blocks run, its figures and pictures are there."""

import re
import shlex
import subprocess
import sys

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "docs" / "scripts"))
import readme

TEXT = (ROOT / "README.md").read_text("utf-8")
MAX_LINES, MAX_PICTURES = 120, 400_000  # lines; bytes of all pictures


def test_it_fits_a_reader():
    assert len(TEXT.splitlines()) <= MAX_LINES
    pictures = [ROOT / path for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", TEXT)]
    assert [path.name for path in pictures] == ["page.png", "terminal.svg"]
    assert sum(path.stat().st_size for path in pictures) <= MAX_PICTURES


def test_the_program_runs(capsys):
    """The block marked python, as a reader would paste it."""
    (program,) = [part.split("```")[0] for part in TEXT.split("```python\n")[1:]]
    exec(compile(program, "README.md", "exec"), {})
    assert "mapped files" in capsys.readouterr().out


def test_what_comes_out(tmp_path):
    """`python docs/scripts/readme.py text` puts it there."""
    (block,) = readme.CONSOLE.findall(TEXT)
    assert block.count("$ bitnet ") == 3
    assert block == readme.console_outputs(block, readme.environment(tmp_path))


COMMANDS = re.findall(r"^bitnet (.*\b[\w-]+/[\w.-]+.*)$", TEXT, re.M)  # with a name of the hub


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_for_a_real_model_lack_only_the_hub(line, tmp_path):
    """They stop where the model would be pulled, not at one of their words."""
    words = shlex.split(line, comments=True)
    if words[0] == "serve":
        pytest.importorskip("uvicorn")
    result = subprocess.run(
        [sys.executable, "-m", "bitnet", *words],
        env=readme.environment(tmp_path) | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    (name,) = [word for word in words if re.fullmatch(r"[\w-]+/[\w.-]+", word)]
    assert result.returncode == 1 and result.stderr.startswith(f"bitnet: error: {name}: neither")


def test_every_kind_of_command_is_there():
    assert [line.split()[0] for line in COMMANDS] == ["run", "chat", "serve", "memory"]


def test_figures_beside_others_are_those_of_docs():
    """Both numbers of a cell stand in one line of docs/performance.md, and the ratio is theirs."""
    lines = (ROOT / "docs" / "performance.md").read_text("utf-8").splitlines()
    cells = re.findall(r"([\d.]+) / ([\d.]+) = ([\d.]+)", TEXT)
    rows = [line for line in TEXT.splitlines() if " / " in line and " = " in line]
    assert 2 * len(rows) == len(cells) <= 12
    for ours, theirs, ratio in cells:
        found = [
            line
            for line in lines
            if all(
                re.search(rf"(?<![\d.]){re.escape(n)}(?![\d]|\.\d)", line) for n in (ours, theirs)
            )
        ]
        assert found, (ours, theirs)
        assert float(ours) / float(theirs) == pytest.approx(float(ratio), rel=0.02)


def test_the_recording_shows_what_was_seen():
    """Two screens of a made-up session: every line once, one place for each moment."""
    terminal = pytest.importorskip("terminal", reason="needs pyte", exc_type=ImportError)
    plain, grey = ("default", False, False), ("brightblack", True, False)
    line, reply = ((0, "$ a<b", plain),), ((0, "yes", plain), (4, "no", grey))
    first, second = (line, (), ()), (line, reply, ())
    frames = [terminal.Frame(0.0, first, (5, 0)), terminal.Frame(1.0, first, (5, 0)),
              terminal.Frame(2.0, second, None)]  # fmt: skip
    text = terminal.svg(frames, 20, "a session")
    height = terminal.TITLE_HEIGHT + 2 * terminal.LINE_HEIGHT + terminal.MARGIN
    assert f'height="{height}" viewBox' in text  # the third row is always blank
    assert text.count("$ a&lt;b") == 1 and text.count('href="#r0"') == 2
    assert text.count("<g transform=") == 2
    total = 2.0 + terminal.LAST_SECONDS
    assert re.findall(r"([\d.]+)%{transform", text) == ["0.00", f"{100 * 2.0 / total:.2f}"]
    assert text.count('href="#c"') == 1 and "font-weight: bold" in text


def test_the_terminal_sees_what_a_person_would(tmp_path):
    terminal = pytest.importorskip("terminal", reason="needs pyte", exc_type=ImportError)
    with terminal.Terminal(40, 5, readme.environment(tmp_path)) as one:
        one.wait_for("$ ")
        one.keys("printf 'a\\tb\\033[31mred\\n'", seconds=0)
        one.enter()
        one.wait_for("$ ")
    rows = one.frames[-1].rows
    assert rows[0][0][1].startswith("$ printf")
    assert rows[1] == (
        (0, "a       b", ("default", False, False)),
        (9, "red", ("red", False, False)),
    )
