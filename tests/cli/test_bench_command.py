"""bench: every combination of its lists, its tables, what it compares with, says and draws."""

import csv
import json
import sys

import numpy as np
import pytest
from support.paths import DATA

import bitnet
from bitnet.api import measure
from bitnet.api.measure import Sequences
from bitnet.cli import bench_report

GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
FOLDER = DATA / "hf_bitnet_offline"
SIZES = ["-p", 5, "-n", 3, "--rounds", 1]
ROW = {
    "model": "m.gguf", "isa": "avx2", "threads": 2, "rounds": 5, "batch": 1, "depth": 0,
    "prompt_tokens": 128, "tokens": 64, "prefill_tps": 1500.0, "decode_tps": 50.0,
    "bytes_per_token": 900, "kv_dtype": "f16", "kv_bytes": 100, "read_gb_s": 12.5,
    "bound_tps": 55.0, "share": 50 / 55,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, own_cache):
    monkeypatch.setenv("BITNET_CACHE", "off")


@pytest.mark.parametrize("path", [GGUF, FOLDER], ids=["mapped", "repacked"])
def test_what_is_counted_as_read(command, path):
    (row,) = json.loads(command("bench", path, "--json", *SIZES)[1])["rows"]
    inspected = json.loads(command("inspect", path, "--json")[1])["tensors"]
    n_weights = sum(t["weights"] for t in inspected if t["ternary"])
    (head,) = [t["bytes"] for t in inspected if "embd" in t["name"] or "embed" in t["name"]]
    assert row["bytes_per_token"] == n_weights // 4 + head
    read_bytes = row["bytes_per_token"] + row["batch"] * row["kv_bytes"]
    assert row["bound_tps"] == pytest.approx(row["read_gb_s"] * 1e9 / read_bytes)
    assert row["share"] == pytest.approx(row["decode_tps"] / row["bound_tps"])


def test_every_combination_is_measured(command):
    lists = ["-p", "4,7", "-d", "0,130", "-t", "1,2", "-b", "1,3"]
    found = json.loads(command("bench", GGUF, "--json", "-n", 3, "--rounds", 1, *lists)[1])
    assert [[row[name] for name in ("threads", "batch", "depth", "prompt_tokens")]
            for row in found["rows"]] == [
        [t, b, d, p] for t in (1, 2) for b in (1, 3) for d in (0, 130) for p in (4, 7)
    ]  # fmt: skip
    for row in found["rows"]:
        read_bytes = row["bytes_per_token"] + row["batch"] * row["kv_bytes"]
        assert row["bound_tps"] == pytest.approx(row["batch"] * row["read_gb_s"] * 1e9 / read_bytes)
    assert found["rows"][0]["kv_bytes"] < found["rows"][2]["kv_bytes"]  # with the depth
    assert found["limit"].endswith(".") and found["load_s"] > 0


def test_the_sequences_of_a_measurement_see_their_own_tokens():
    """What is timed is decoding: the tokens of each are those of a session of its own."""
    rng = np.random.default_rng(2)
    before, prompts = rng.integers(0, 300, 140, np.int32), rng.integers(0, 300, (3, 40), np.int32)
    with bitnet.load(GGUF, threads=1, slots=3) as model:
        expected = []
        for prompt in prompts:
            with model.session() as session:
                tokens = [session.best([*before, *prompt])]
                while len(tokens) < 5:
                    tokens.append(session.best([tokens[-1]]))
            expected.append(tokens)
        with Sequences(model.scheduler, 200, 3, before) as sequences:
            for _ in range(2):
                sequences.rewind()
                tokens = [sequences.prefill(prompts)]
                while len(tokens) < 5:
                    tokens.append(sequences.decode(tokens[-1]))
                assert np.array(tokens).T.tolist() == expected
        with pytest.raises(ValueError, match="batch: 4"):
            measure.measure(model, 4, 2, 1, batch=4)


def test_the_weights_are_measured_as_they_were_loaded(command, monkeypatch):
    counts, plain = [], measure.weight_runs

    def counted(weights):
        runs = plain(weights)
        counts.append(len(runs))
        return runs

    monkeypatch.setattr(measure, "weight_runs", counted)
    for layout in ("128x32", "4row"):  # read in place; repacked into memory, a run for each tensor
        assert command("bench", GGUF, "--layout", layout, *SIZES)[0] == 0
    assert counts[0] < counts[1]


def test_it_needs_room_for_its_tokens(command):
    code, _, err = command("bench", GGUF, "--context", 8, "--prompt-tokens", 8, "-n", 1)
    assert code == 1 and "9" in err


@pytest.mark.parametrize("words", [["-b", "0"], ["-d", "1,-1"], ["-p", "1;2"], ["-t", ""]])
def test_lists_that_are_none(command, words):
    code, out, err = command("bench", GGUF, *words)
    assert (code, out) == (2, "") and f"argument {words[0]}" in err


def test_tables(command):
    _, text, _ = command("bench", GGUF, *SIZES, "-b", "1,2")
    assert text.count("\n") == 2 + 3 + 1 and "share" in text.splitlines()[2]
    _, text, _ = command("bench", GGUF, *SIZES, "-b", "1,2", "--format", "markdown")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4 and {line.count("|") for line in table} == {9}
    _, text, _ = command("bench", GGUF, *SIZES, "-b", "1,2", "--format", "csv")
    one, two = csv.DictReader(text.splitlines())
    assert (one["batch"], two["batch"], two["prompt_tokens"]) == ("1", "2", "5")
    assert float(two["decode_tps"]) > 0


def test_what_the_tables_write():
    head, line = bench_report.as_table([ROW])
    assert head.split() == (
        [
            "threads",
            "batch",
            "depth",
            "prompt",
            "prefill",
            "t/s",
            "decode",
            "t/s",
            "bound",
            "t/s",
            "share",
        ]
    )
    assert line.split() == ["2", "1", "0", "128", "1,500.0", "50.0", "55.0", "91%"]
    assert len(head) == len(line)


def test_a_comparison_with_an_earlier_run(command, tmp_path):
    old = {**ROW, "prefill_tps": 1000.0, "decode_tps": 100.0}
    (tmp_path / "old.json").write_text(json.dumps({"rows": [old, {**old, "batch": 8}]}))
    rows = [dict(ROW), {**ROW, "depth": 9}]
    read = bench_report.read_rows(tmp_path / "old.json")
    bench_report.add_ratios(rows, read, tmp_path / "old.json")
    assert (rows[0]["prefill_ratio"], rows[0]["decode_ratio"]) == (1.5, 0.5)
    assert "decode_ratio" not in rows[1]
    assert bench_report.as_markdown(rows)[2].endswith("| 91% | 1.50 | 0.50 |")
    assert bench_report.as_markdown(rows)[3].endswith("| 91% |  |  |")
    (tmp_path / "new.json").write_text(command("bench", GGUF, *SIZES, "--json")[1])
    _, text, _ = command("bench", GGUF, *SIZES, "--compare", tmp_path / "new.json")
    assert "decode x" in text
    code, out, err = command("bench", GGUF, *SIZES, "--compare", tmp_path / "old.json")
    assert (code, out) == (1, "") and "a row with the same threads, batch" in err
    for broken in ("{", "[]", '{"rows": [{}]}', '{"rows": 3}'):
        (tmp_path / "old.json").write_text(broken)
        code, out, err = command("bench", GGUF, "--compare", tmp_path / "old.json")
        assert (code, out) == (1, "") and "bitnet bench --json" in err


@pytest.mark.parametrize(
    "changes, cores, said",
    [
        ({}, 2, "reading memory (91% of what a plain read of its bytes allows): sequences"),
        ({"kv_bytes": 500}, 2, "a plain read of its bytes allows): --kv-dtype int8"),
        ({"kv_bytes": 500, "kv_dtype": "int8"}, 2, "sequences side by side (-b)"),
        ({}, 4, "use more threads, -t 4"),
        ({"share": 0.5}, 4, "computing (50% of what a plain read of its bytes allows): use more"),
        ({"share": 0.5}, 2, "all 2 granted cores are in use with avx2"),
        ({"share": 2.0}, 2, "disturbed the plain read (200%"),
    ],
)  # fmt: skip
def test_the_sentence_on_what_limits_it(changes, cores, said):
    others = [{**ROW, "threads": 1, "share": 0.1}, {**ROW, "batch": 8, "share": 0.2}]
    assert said in bench_report.limit([*others, {**ROW, **changes}], cores)


def test_a_picture(command, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.svg"
    assert command("bench", GGUF, *SIZES, "-d", "0,20", "-t", "1,2", "--plot", path)[0] == 0
    assert path.read_text().rstrip().endswith("</svg>")


def test_what_stands_in_the_way_of_a_picture_is_said_at_once(command, monkeypatch, tmp_path):
    monkeypatch.setattr("bitnet.api.measure.measure", None)  # nothing is measured
    for path, said in [
        ("x.doc", "--plot: x.doc (.png"),
        (tmp_path / "no" / "x.png", "No such fol"),
    ]:
        code, out, err = command("bench", GGUF, "--plot", path)
        assert (code, out) == (1, "") and said in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = command("bench", GGUF, "--plot", tmp_path / "x.png")
    assert (code, out) == (1, "") and "pip install 'bitnet-engine[plot]'" in err
