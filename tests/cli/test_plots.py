"""memory --plot and compare --plot: what is drawn, as pictures and as bars of text."""

import json
import sys

import pytest
from support.paths import DATA

from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints.memory_plan import Planner, Settings
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import plots

MODEL = str(BUNDLED_MODEL)
TEXT = DATA / "heldout.txt"


def test_bars_have_one_scale():
    rows = [("a", 100, "100 B"), ("long", 50, "50 B"), ("none", 0, "0")]
    assert plots.bars(rows) == [
        "a     100 B  " + 40 * "#",
        "long   50 B  " + 20 * "#",
        "none      0",
    ]
    assert plots.bars([]) == [] and plots.bars([("x", 0, "0")]) == ["x  0"]


@pytest.mark.parametrize("spare", [-1, 0, 100_000, 1 << 40])
@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_the_longest_context_is_one_that_fits_and_the_next_does_not(dtype, spare):
    planner = Planner(open_checkpoint(MODEL))
    settings, longest = Settings(512, dtype), planner.config.max_position_embeddings
    smallest = Settings(128, dtype)
    limit = planner.minimum(smallest) + spare
    found = planner.longest_context(settings, limit)
    assert found == {-1: 0, 0: 128, 1 << 40: longest}.get(spare, found)
    if found:
        assert planner.minimum(Settings(found, dtype)) <= limit
    if found < longest:
        assert planner.minimum(Settings(min(found + 128, longest), dtype)) > limit


def test_memory_in_bars(command):
    code, out, _ = command("memory", "--plot", "-", "--memory-limit", "40M")
    plan = json.loads(command("memory", "--json", "--memory-limit", "40M")[1])
    purposes, contexts = out.split("\n\n")
    names = {line.split()[0] for line in purposes.splitlines()[1:]}
    assert code == 0 and names == {need["purpose"] for need in plan["plan"]}
    assert {line.split()[0]: int(line.split()[1].replace(",", ""))
            for line in contexts.splitlines()[1:]} == plan["longest_context"]  # fmt: skip
    for other in ("--json", "--measure"):
        code, out, err = command("memory", "--plot", "-", other)
        assert (code, out) == (2, "") and "--plot -: not with" in err
    assert set(plan["longest_context"]) == {"f16", "f32", "int8"}


def test_pictures(command, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "memory.svg"
    assert command("memory", "--plot", path)[0] == 0
    assert path.read_text().rstrip().endswith("</svg>")
    path, saved = tmp_path / "compare.svg", tmp_path / "saved"
    options = ["--context", 64, "--chunks", 1, "--threads", 1]
    assert command("perplexity", MODEL, TEXT, *options, "--save-logits", saved)[0] == 0
    for other in ([MODEL, TEXT, "--b-kv-dtype", "int8", *options], [saved]):  # and no difference
        code, out, _ = command("compare", saved, *other, "--plot", path)
        assert code == 0 and "same top token" in out
        assert path.read_text().rstrip().endswith("</svg>")
        path.unlink()


def test_without_matplotlib_nothing_is_read(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for words in (["memory", "nowhere"], ["compare", "nowhere", "either"]):
        code, out, err = command(*words, "--plot", tmp_path / "x.png")
        assert (code, out) == (1, "") and "pip install 'bitnet-engine[plot]'" in err
    assert command("memory", "--plot", "-")[0] == 0
