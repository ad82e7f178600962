"""The examples run as they stand, and print what the API gives."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from support.paths import DATA, ROOT

import bitnet

GGUF = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
EMBEDDER = DATA / "hf_embedding_qwen3"
FOLDER = ROOT / "examples"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")  # a model this small gains nothing from two


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested_and_listed():
    tests = Path(__file__).read_text("utf-8")
    table = re.findall(r"^\| \[([\w./]+)\]\(", (FOLDER / "README.md").read_text("utf-8"), re.M)
    names = {path.name for path in FOLDER.glob("*.py")}
    assert names | {"lm_eval/"} == set(table)  # the task is run by tests/test_lm_eval.py
    assert {name for name in names if f'"{name}"' not in tests} == set()


@pytest.mark.parametrize("path", [(), (GGUF,)], ids=["bundled", "file"])
def test_generate(run, path):
    with bitnet.load(*path) as loaded:
        text = loaded.generate("In the beginning", max_tokens=40, temperature=0.8, seed=1).text
    assert run("generate.py", *path).startswith(text + "\n-- ")


def test_stream(run, model):
    text = model.generate("It was", max_tokens=200, temperature=0.8, seed=1).text
    shown = run("stream.py").removesuffix("\n")
    assert shown and text.startswith(shown)
    assert len(shown) < len(text) or "." not in text


def test_chat(run, model):
    question = {"role": "user", "content": "What is a lighthouse?"}
    reply = model.chat([question], max_tokens=40, temperature=0.7, seed=1).text
    shown = run("chat.py")
    assert shown.startswith(f"> {question['content']}\n{reply}\n> And what is a harbour?\n")


def test_batch(run, model):
    *lines, error, rate = run("batch.py").splitlines()
    text = model.generate("The sea was", max_tokens=24, seed=1).text.replace("\n", " ")
    assert len(lines) == 10 and lines[0] == "The sea was" + text
    assert error == f"not done: the prompt has more tokens than the context, {model.context}"
    assert re.fullmatch(r"-- 10 texts, \d+ tokens a second", rate)


def test_search(run, tmp_path):
    paragraphs = ["A ternary weight has three values.", "Bread is made\nof flour.", "Stones."]
    (tmp_path / "one.txt").write_text("\n\n".join(paragraphs[:2]) + "\n\n\n\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "two.txt").write_text(paragraphs[2])
    with bitnet.load(EMBEDDER) as model:
        scores = model.embed(paragraphs) @ model.embed("Stones.")
    shown = run("search.py", tmp_path, "Stones.", EMBEDDER).splitlines()
    assert shown[0] == "1.000  deep/two.txt: Stones."
    expected = {
        "one.txt: Bread is made of flour.": scores[1],
        f"one.txt: {paragraphs[0]}": scores[0],
    }
    assert {line[7:]: float(line[:5]) for line in shown[1:]} == pytest.approx(expected, abs=6e-4)
    assert float(shown[1][:5]) >= float(shown[2][:5])


def test_extract_json(run):
    pytest.importorskip("llguidance")
    found = json.loads(run("extract_json.py"))
    assert list(found) == ["name", "year", "kind"]
    assert 1000 <= found["year"] <= 2100 and found["kind"] in ("lighthouse", "bridge", "castle")


def test_tool_call(run):
    for needed in ("openai", "llguidance"):
        pytest.importorskip(needed)
    from support.server_process import ServerProcess

    with ServerProcess() as server:
        called, answer = run("tool_call.py", f"http://127.0.0.1:{server.port}/v1").split("\n", 1)
    known = {"London": 8_900_000, "Paris": 2_100_000}
    assert called in [
        f'it calls population({{"city": "{city}"}}), which is {n}' for city, n in known.items()
    ]
    assert answer.strip()


def test_resume(run, tmp_path):
    file = tmp_path / "session"
    first = run("resume.py", file).splitlines()
    saved = file.stat().st_mtime_ns
    again = run("resume.py", file).splitlines()
    assert first[0].split(",")[0] == again[0].split(",")[0] and first[1:] == again[1:]
    assert len(first[1]) > len("Then ") and file.stat().st_mtime_ns == saved
    with pytest.raises(bitnet.FormatError):
        run("resume.py", file, GGUF)  # the session of another model


def test_small_memory(run):
    with bitnet.load(kv_dtype="int8") as loaded:
        text = loaded.generate("It was", max_tokens=60, temperature=0.8, seed=1).text
    shown = run("small_memory.py")
    assert shown.startswith(text + "\n")
    planned = re.search(r"^all of these +([\d.]+) MiB", shown, re.M)
    assert float(planned[1]) < 64
    with pytest.raises(SystemExit, match=r"(?s)memory_limit: 1048576 bytes.*would be enough"):
        run("small_memory.py", GGUF, "1MiB")


def test_choose(run):
    scores = [float(line.split()[0]) for line in run("choose.py").splitlines()]
    assert len(scores) == 3 and max(scores) == scores[0] < 0


def test_perplexity(run, model, tmp_path):
    text = (DATA / "heldout.txt").read_text("utf-8")[:2500]
    (tmp_path / "text").write_text(text, "utf-8")
    f16, int8 = run("perplexity.py", tmp_path / "text").splitlines()
    expected = bitnet.perplexity(model, text, context=256)
    assert f16.startswith(f"f16   perplexity {expected.perplexity:.3f} ± ")
    assert f16.endswith(f"{expected.bits_per_byte:.4f} bits per byte, {expected.n_tokens} tokens")
    assert abs(float(int8.split()[2]) / expected.perplexity - 1) < 0.01


def test_fastapi_app(model):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    found = runpy.run_path(str(FOLDER / "fastapi_app.py"))
    question = [{"role": "user", "content": "What is a harbour?"}]
    body = {"model": "ours", "messages": question, "max_tokens": 8, "temperature": 0}
    with found["model"], TestClient(found["app"], base_url="http://localhost") as client:
        reply = client.post("/llm/v1/chat/completions", json=body).json()
        expected = model.chat(question, max_tokens=8, temperature=0).text
        assert reply["choices"][0]["message"]["content"] == expected
        assert client.get("/llm/").headers["content-type"].startswith("text/html")
        assert client.get("/define", params={"word": "harbour"}).text.strip()
