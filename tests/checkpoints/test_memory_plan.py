"""The plan: what it foretells is what a model takes, what fits a limit runs, what does not says so.

The pool's figures of every fixture are held against the plan in test_inspect.py.
"""

import itertools
import json
import re
from dataclasses import replace

import pytest
from support.paths import DATA, TINY_MODEL

import bitnet
from bitnet.api import load as loading
from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints.memory_plan import Need, Planner, Settings, plan, table
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.checks import format_bytes
from bitnet.cli import main
from bitnet.text import vocabulary

FOLDER = DATA / "hf_bitnet_offline"
SETTINGS = Settings(context=512, kv_dtype="f32", slots=2, threads=2, mapping="copy")
MIB = 1 << 20


@pytest.fixture(scope="module")
def planner():
    return Planner(open_checkpoint(BUNDLED_MODEL))


def load(memory_limit, settings, path=None, **changes):
    limits = {"memory_limit": memory_limit, "prefix_cache": False}
    return bitnet.load(path, **vars(settings) | limits | changes)


def fill(model):
    """A whole context of tokens in one slot."""
    prompt = [0] * (model.context - 4)
    assert len(model.generate(prompt, max_tokens=4, temperature=0).token_ids) >= 1


@pytest.mark.parametrize("settings", [
    Settings(512), Settings(130, "f32"), Settings(512, "f16", 3), Settings(512, mapping="copy"),
], ids=str)  # fmt: skip
def test_the_minimum_runs_and_less_is_refused(planner, settings):
    minimum = planner.minimum(settings)
    with load(minimum, settings) as model:
        fill(model)
        assert model.memory().pool.reserved <= model.memory().pool.limit
    with pytest.raises(bitnet.MemoryLimitExceeded) as caught:
        load(minimum - 1, settings)
    assert (caught.value.needed, caught.value.limit) == (minimum, minimum - 1)


def test_repacked_weights_without_a_cache_folder(monkeypatch):
    with_cache = Planner(open_checkpoint(FOLDER)).private(Settings(256))
    monkeypatch.setenv("BITNET_CACHE", "off")
    planner = Planner(open_checkpoint(FOLDER))
    for mapping in ("map", "copy"):
        settings = Settings(256, mapping=mapping)
        minimum = planner.minimum(settings)
        assert minimum > with_cache + 100_000
        with load(minimum, settings, FOLDER) as model:
            fill(model)
            assert model.memory().planned["weights"] == model.memory().pool.by_purpose["weights"][0]


def test_every_remedy_is_one(planner):
    """Loads with each change that the error offers."""
    for below in (1, MIB, 3 * MIB):
        with pytest.raises(bitnet.MemoryLimitExceeded) as caught:
            load(planner.minimum(SETTINGS) - below, SETTINGS)
        assert len(caught.value.remedies) >= 2
        for changes, n_bytes in caught.value.remedies:
            limit = {"memory_limit": caught.value.limit} | changes
            with load(**limit, settings=SETTINGS) as model:
                fill(model)
            if "memory_limit" not in changes:
                assert (
                    planner.minimum(replace(SETTINGS, **changes)) == n_bytes <= caught.value.limit
                )


def test_what_is_offered_is_the_most_that_fits(planner):
    limit = planner.minimum(SETTINGS) - MIB
    remedies = [changes for changes, _ in planner.remedies(SETTINGS, limit)]
    names = [name for changes in remedies for name in changes]
    assert names == ["context", "kv_dtype", "mapping", "memory_limit"]
    context = remedies[0]["context"]
    assert context % 128 == 0
    assert planner.minimum(replace(SETTINGS, context=context + 128)) > limit


def test_several_changes_where_one_is_not_enough(planner):
    smallest = Settings(128, min(loading.KV_DTYPES, key=lambda d: kv_of(planner, d)))
    changes, n_bytes = planner.remedies(SETTINGS, planner.minimum(smallest))[0]
    assert replace(SETTINGS, **changes) == smallest and n_bytes == planner.minimum(smallest)
    (only,) = planner.remedies(SETTINGS, planner.minimum(smallest) - 1)
    assert only[0].keys() == {"memory_limit"}  # nothing else helps


def kv_of(planner, dtype):
    return plan(planner.config, context=128, kv_dtype=dtype)[0].nbytes


def test_nothing_is_allocated_for_what_does_not_fit(monkeypatch):
    def refuse(*_):
        raise AssertionError("something was allocated")

    monkeypatch.setattr(loading, "Pool", refuse)
    monkeypatch.setattr(vocabulary, "from_source", refuse)
    with pytest.raises(bitnet.MemoryLimitExceeded):
        bitnet.load(memory_limit="10MiB")


def test_the_error_is_a_table(planner):
    with pytest.raises(bitnet.MemoryLimitExceeded, match="memory_limit: 10485760 bytes") as caught:
        bitnet.load(memory_limit="10MiB", threads=1, context=512)
    text = " ".join(str(caught.value).split())
    for need in planner.needs(Settings(512)):
        assert f"{need.purpose} {need.what}" in text
    minimum = planner.minimum(Settings(512))
    limit = f"{-(-minimum // MIB)}MiB"
    assert (
        f"each of these would be enough: memory_limit='{limit}' ({format_bytes(minimum)})" in text
    )
    assert isinstance(caught.value, MemoryError)


def test_growth_beyond_the_limit_after_loading_is_an_error(monkeypatch):
    monkeypatch.setattr(Planner, "check", lambda *_: 1 << 30)
    with pytest.raises(bitnet.MemoryLimitExceeded, match=r"memory_limit: 4096 bytes .* needed"):
        bitnet.load(memory_limit=4096)


def test_how_many_slots_may_be_full(planner):
    settings = Settings(512, slots=4)
    one = planner.needs(Settings(512))[0].nbytes
    for spare, n_full in ((0, 1), (one - 1, 1), (one, 2), (10 * one, 4)):
        assert planner.full_slots(settings, planner.minimum(settings) + spare) == n_full
    assert planner.private(settings) == planner.minimum(settings) + 3 * one


def test_a_table_adds_up_what_is_private():
    lines = table([Need("kv", MIB, "pages"), Need("engine", MIB, "objects", "heap"),
                   Need("files", 9 * MIB, "mapped", "files")])  # fmt: skip
    assert lines == [
        "1.0 MiB  kv      pages",
        "1.0 MiB  engine  objects (estimate)",
        "2.0 MiB  sum     private to the process",
        "9.0 MiB  files   mapped",
    ]


# ------------------------------------------------------------------------------------ the command
@pytest.fixture
def command(capsys):
    """Run `bitnet memory` in this process: (exit code, stdout, stderr)."""

    def call(*argv):
        return main(["memory", *map(str, argv)]), *capsys.readouterr()

    return call


def test_the_plan_is_made_without_loading(command, monkeypatch, planner):
    monkeypatch.setattr(loading, "Pool", None)
    code, out, err = command("--context", 300, "--kv-dtype", "f32", "--slots", 2, "--threads", 3)
    assert (code, err) == (0, "")
    settings = Settings(300, "f32", 2, 3)
    assert out.splitlines()[1:] == list(table(planner.needs(settings)))
    assert "context=300 kv_dtype=f32 slots=2 threads=3 mapping=map" in out.splitlines()[0]
    found = json.loads(command("--context", 300, "--threads", 3, "--json")[1])
    assert found["settings"] == vars(Settings(300, threads=3)) and found["measured"] is None
    assert found["private_bytes"] == planner.private(Settings(300, threads=3))


def test_a_limit_that_is_too_small_or_not(command, planner, monkeypatch):
    code, out, err = command("--memory-limit", "12M")
    assert (code, out) == (1, "") and re.search(r"--memory-limit 1[789]MiB ", err)
    _, out, _ = command("--memory-limit", "18M", "--slots", 4, "--threads", 1)
    assert re.search("it fits, with [12] of 4 slots full; others wait until there is room", out)
    monkeypatch.setenv("BITNET_MEMORY_LIMIT", "1G")
    assert "memory_limit 1.0 GiB: it fits\n" in command()[1]


@pytest.mark.parametrize(("path", "slots"), [
    (BUNDLED_MODEL, 3), (DATA / "gguf_i2_s_embedding_qwen3" / "model.gguf", 2),
], ids=["generates", "embeds"])  # fmt: skip
def test_measured_with_every_slot_full(command, path, slots):
    options = ["--measure", "--slots", slots, "--threads", 1]
    found = json.loads(command(path, *options, "--json")[1])
    planned = {need["purpose"]: need["nbytes"] for need in found["plan"] if need["where"] == "pool"}
    assert planned.pop("free")
    measured = found["measured"]
    in_use = {name: counts["in_use"] for name, counts in measured["pool"]["by_purpose"].items()}
    assert (
        in_use
        == planned
        == {part["name"]: part["nbytes"] for part in measured["purposes"] if part["name"] != "free"}
    )
    assert measured["planned"].keys() >= planned.keys()


def test_filled_as_far_as_asked(command):
    code, out, _ = command(TINY_MODEL, "--measure", "-n", 20)
    rows = {" ".join(line.split()[:1]): line.split() for line in out.splitlines()}
    assert code == 0
    assert rows["kv"][1:5] == ["1.0", "MiB", "256.0", "KiB"]
    assert float(rows["kv"][5]) > 240  # an OS page at its edge may not have been touched
    assert "the parts explain all but" in out and "of the growth; the plan is" in out


def test_settings_that_take_more_need_more(planner):
    """Remedies are found by halving: that needs figures that only grow."""
    grid = itertools.product((128, 256, 500), ("f16", "f32"), (1, 2), (1, 4), ("map", "copy"))
    for settings in itertools.starmap(Settings, grid):
        more = replace(settings, context=settings.context + 1)
        for other in (more, replace(settings, slots=3), replace(settings, threads=5)):
            assert planner.minimum(other) >= planner.minimum(settings)
