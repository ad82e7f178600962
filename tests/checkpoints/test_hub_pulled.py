"""Addresses of the hub's pages, and what was pulled: list, show, rm."""

import json
import os

import pytest
from support.fake_hub import FIRST, FOLDER, GGUF, SECOND, WANTED, model_files

from bitnet.checkpoints import hub, hub_pulled
from bitnet.checkpoints.hub_names import of_address, parse
from bitnet.cli import main

pytest.importorskip("huggingface_hub")
MODEL_BYTES = sum((FOLDER / name).stat().st_size for name in WANTED)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://huggingface.co/org/model", "org/model"),
        ("https://huggingface.co/org/model/", "org/model"),
        ("http://www.huggingface.co/org/model?library=x#use", "org/model"),
        ("hf.co/org/model", "org/model"),
        ("huggingface.co/org/model/tree/main", "org/model"),
        ("https://huggingface.co/org/model/tree/v1.0", "org/model@v1.0"),
        ("https://huggingface.co/org/model/tree/refs%2Fpr%2F1", "org/model@refs/pr/1"),
        ("https://huggingface.co/org/model/blob/main/config.json", "org/model"),
        ("https://huggingface.co/org/model/blob/main/a.gguf", "org/model:a.gguf"),
        ("https://huggingface.co/org/model/resolve/v1/b/a.gguf?download=true",
         "org/model@v1:b/a.gguf"),
        ("https://huggingface.co/org/model?show_file_info=a.gguf", "org/model:a.gguf"),
        ("org/model", "org/model"),
        ("https://example.org/org/model", "https://example.org/org/model"),
    ],
)  # fmt: skip
def test_an_address_is_a_name(address, name):
    assert of_address(address) == name
    if "example.org" not in address:
        assert parse(address) == parse(name)


@pytest.mark.parametrize(
    "address", ["https://huggingface.co/datasets/org/model", "https://huggingface.co/org",
                "https://huggingface.co/org/model/blob/main/../../a.gguf"],
)  # fmt: skip
def test_other_addresses_are_no_models(address):
    with pytest.raises(ValueError):
        parse(address)


def test_a_pasted_address_is_pulled_and_found(server, no_network):
    address = "https://huggingface.co/org/model/tree/main"
    path = hub.pull(address)
    no_network()
    assert path.name == FIRST
    assert hub.find(address) == hub.find("org/model") == path


def run(capsys, *words):
    return main(list(words)), capsys.readouterr().out


def test_list_and_show_tell_what_was_pulled(server, no_network, capsys):
    assert run(capsys, "list") == (0, "")
    server.add("org/other", {"a.gguf": GGUF.read_bytes()}, SECOND)
    hub.pull("org/model")
    hub.pull("org/other")
    no_network()
    code, out = run(capsys, "list")
    total = MODEL_BYTES + GGUF.stat().st_size
    assert code == 0 and out.splitlines() == [
        f"{MODEL_BYTES:>15,}  {FIRST[:12]}  org/model",
        f"{GGUF.stat().st_size:>15,}  {SECOND[:12]}  org/other:a.gguf",
        f"{total:>15,}  bytes of 2 models",
    ]
    found = json.loads(run(capsys, "list", "--json")[1])
    assert found["bytes"] == total and found["models"][0]["path"] == str(hub.find("org/model"))
    code, out = run(capsys, "show", "org/other")
    assert code == 0 and str(hub.find("org/other")) in out and SECOND in out
    assert (
        json.loads(run(capsys, "show", "--json", "org/other")[1])["models"] == found["models"][1:]
    )
    for verb in ("show", "rm"):
        assert main([verb, "org/none"]) == 1
        assert "org/none: not pulled" in capsys.readouterr().err


def test_rm_deletes_files_and_notes_and_nothing_of_others(server, no_network, capsys):
    changed = model_files() | {"config.json": (FOLDER / "config.json").read_bytes() + b"\n"}
    path = hub.pull("org/model")
    server.add("org/model", changed, SECOND)
    later = hub.pull("org/model")
    (later / "mine.txt").write_text("of another program")
    no_network()
    code, out = run(capsys, "rm", f"org/model@{FIRST}")
    size = (FOLDER / "config.json").stat().st_size
    assert (code, out) == (0, f"org/model@{FIRST}: {size:,} bytes freed\n")
    assert not path.exists() and hub.find("org/model") == later
    assert hub.cached(f"org/model@{FIRST}") is None
    for name in WANTED:
        assert (later / name).read_bytes() == changed[name]
    code, out = run(capsys, "rm", "org/model")
    assert out == f"org/model: {MODEL_BYTES + 1:,} bytes freed\n"
    assert os.listdir(later) == ["mine.txt"] and hub_pulled.pulled() == []
    assert hub.note_paths() == [] and hub.cached("org/model") is None
    blobs = later.parents[1] / "blobs"
    assert not blobs.exists() or not os.listdir(blobs)


def test_rm_of_one_file_leaves_the_others(server, no_network, capsys):
    server.add("org/two", {"a.gguf": GGUF.read_bytes(), "b.gguf": GGUF.read_bytes() + b"\0" * 32})
    for file in ("a.gguf", "b.gguf"):
        hub.pull(f"org/two:{file}")
    no_network()
    assert run(capsys, "rm", "org/two:b.gguf")[0] == 0
    assert [entry.name for entry in hub_pulled.pulled()] == ["org/two:a.gguf"]
    assert hub.find("org/two:a.gguf").read_bytes() == GGUF.read_bytes()
