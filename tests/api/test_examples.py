"""The examples run as they stand, and print what the API gives."""

import runpy
import sys

import pytest
from support.paths import ROOT

import bitnet

GGUF = ROOT / "tests" / "data" / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")  # a model this small gains nothing from two


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("model", [(), (GGUF,)], ids=["bundled", "file"])
def test_generate(run, model):
    with bitnet.load(*model) as loaded:
        text = loaded.generate("In the beginning", max_tokens=40, temperature=0.8, seed=1).text
    assert run("generate.py", *model).startswith(text + "\n-- ")


def test_stream_chat(run):
    shown = run("stream_chat.py")
    with bitnet.load() as model:
        question = {"role": "user", "content": "Who is there?"}
        reply = model.chat([question], max_tokens=40, temperature=0.7, seed=1).text
    assert shown.startswith(f"> Who is there?\n{reply}\n> And what news?\n")


def test_choose(run):
    scores = [float(line.split()[0]) for line in run("choose.py").splitlines()]
    assert len(scores) == 3 and max(scores) == scores[0] < 0


def test_every_example_is_tested():
    assert [path.name for path in EXAMPLES] == ["choose.py", "generate.py", "stream_chat.py"]


def test_the_readme_s_program_runs(capsys):
    """The block marked python in README.md, as a reader would paste it."""
    text = (ROOT / "README.md").read_text()
    (program,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    exec(compile(program, "README.md", "exec"), {})
    assert "mapped files" in capsys.readouterr().out
