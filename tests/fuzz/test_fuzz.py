"""The fuzzer finds what is planted; its corpus opens; a short run of it finds nothing."""

import random
import struct
import sys

import pytest
from fuzz import cases, make_corpus, mutate, planted, run, targets
from support import small_models

NO_MODELS = {"values.gguf"}

pytest.importorskip("msgspec")  # of the server, whose requests are fuzzed as well
if sys.platform != "linux":
    pytest.skip("the limits on a case are those of Linux", allow_module_level=True)


def fuzzer(names, tmp_path, module):
    return run.Fuzzer(names, seed=1, keep=tmp_path, module=module)


@pytest.mark.parametrize("name", [name for name in planted.TARGETS if "traced" not in name])
def test_it_finds_what_is_planted(tmp_path, name):
    found = fuzzer([name], tmp_path, "fuzz.planted")
    found.run(seconds=60, most=1)
    (failure,) = found.failures
    assert f"in {name}" in failure.text
    expected = {
        "raises": "Panic",
        "eats": "MemoryError",
        "hangs": "more CPU time",
        "crashes": "SIGSEGV",
    }
    assert expected[name] in failure.text
    assert run.replay(failure.files / "files", [name], "fuzz.planted")  # what it kept fails too
    assert failure.about["steps"] == [cases.corpus("gguf")[0].steps[0]]


def test_what_only_the_tracer_makes_slow_is_no_failure(tmp_path):
    found = fuzzer(["is_slow_when_traced"], tmp_path, "fuzz.planted")
    found.run(seconds=60, most=1)
    assert found.failures == [] and list(tmp_path.iterdir()) == []


def test_a_short_run(tmp_path):
    readers = [name for name in targets.TARGETS if "tools" not in name]  # those are slower
    found = fuzzer(readers, tmp_path, "fuzz.targets")
    found.run(seconds=60, most=1000)
    assert found.failures == []
    (totals,) = found.totals
    assert totals["executions"] >= 1000 and min(totals["counts"].values()) > 10
    groups = {group for _, group in targets.TARGETS.values()}
    assert totals["kept"] > sum(len(cases.corpus(group)) for group in groups)  # mutants, too


@pytest.mark.parametrize(
    ("target", "case"),
    [
        pytest.param(target, case, id=f"{target} {case.steps[0]}")
        for target in (
            *("gguf model", "hf model", "sentencepiece", "session", "responses", "messages"),
        )
        for case in cases.corpus(targets.TARGETS[target][1])
        if case.steps[0] not in NO_MODELS and not case.steps[0].startswith("found-")
    ],
)
def test_the_corpus_opens(tmp_path, target, case):
    case.write(tmp_path)
    targets.TARGETS[target][0](tmp_path)


def test_the_corpus_is_what_make_corpus_writes():
    stored = {
        path.relative_to(cases.CORPUS).as_posix(): path.read_bytes()
        for path in cases.CORPUS.rglob("*")
        if path.is_file() and "/found-" not in path.as_posix()
    }
    assert stored == make_corpus.corpus_files()
    assert max(map(len, stored.values())) < 16_000 and sum(map(len, stored.values())) < 275_000


def test_every_number_of_a_header_is_found():
    model = small_models.gguf_model("gemma3")
    raw = model.bytes()
    places = {
        what: int.from_bytes(raw[at : at + n], "little") for what, at, n in mutate.gguf_places(raw)
    }
    assert places["version"] == 3 and places["n_tensors"] == len(model.tensors)
    assert places["gemma3.attention.sliding_window"] == 4
    assert places["output_norm.weight type"] == 0
    assert places["tokenizer.ggml.tokens count"] == 8
    last = mutate.gguf_places(raw)[-1]
    assert last[0] == "output_norm.weight offset" and last[1] > len(raw) - 6000


def test_mutants_differ_and_stay_small():
    rng, corpus = random.Random(1), cases.corpus("hf")
    donors, n_different = [case.files for case in corpus], 0
    for _ in range(300):
        case = rng.choice(corpus)
        files, steps = mutate.mutate(rng, case.files, donors)
        n_different += files != case.files
        assert steps and max(map(len, files.values()), default=0) <= mutate.MOST_BYTES
    assert n_different > 270


@pytest.mark.parametrize("raw", [b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63)])
def test_mutations_of_nearly_nothing(raw):
    rng = random.Random(2)
    for name in ("model.gguf", "model.safetensors", "config.json"):
        for _ in range(50):
            mutate.mutate(rng, {name: raw}, [{name: b"other"}])
