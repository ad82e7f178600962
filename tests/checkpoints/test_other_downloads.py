"""Models as other programs leave them: in the hub's cache, in a folder, in several parts."""

import os
from pathlib import Path

import pytest
from support import small_models
from support.fake_hub import FIRST, GGUF

import bitnet
from bitnet.checkpoints import hub
from bitnet.checkpoints.model_files import model_at
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.cli import main
from bitnet.errors import FormatError

PARTS = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
SPLIT = {
    name: part.bytes()
    for name, part in small_models.split(small_models.gguf_model("llama"), 3, "m").items()
}


def left_in_the_cache(repo, files):
    """What another program's download of a repository leaves; the snapshot's folder."""
    repository = hub.hub_cache() / f"models--{repo.replace('/', '--')}"
    snapshot = repository / "snapshots" / FIRST
    small_models.write(repository, {f"blobs/{i}": raw for i, raw in enumerate(files.values())})
    for i, name in enumerate(files):
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(repository / "blobs" / str(i), path.parent), path)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(FIRST)
    return snapshot


def ids(path):
    with bitnet.load(path) as model:
        return model.generate("The king", max_tokens=3, temperature=0).token_ids


@pytest.fixture
def offline(server, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.library_api("org/model"), "model_info", unreachable)


# the hub's cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny.gguf", "I2_S/tiny.gguf"])
def test_a_gguf_that_another_program_left_is_used_offline(offline, caplog, name):
    snapshot = left_in_the_cache("org/tiny", {"README.md": b"#", name: GGUF.read_bytes()})
    assert ids("org/tiny") == ids(f"org/tiny:{name}") == ids(GGUF)
    assert f"{snapshot / name} is used as another program left it" in caplog.text
    with pytest.raises(FileNotFoundError, match=f"{snapshot / name}: give that path"):
        hub.pull("org/tiny")  # asked to compare it with the hub
    assert ids(snapshot / name) == ids(GGUF)


def test_it_is_used_without_the_library_too(offline, monkeypatch):
    left_in_the_cache("org/tiny", {"tiny.gguf": GGUF.read_bytes()})
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert hub.hub_cache()


def test_parts_of_which_one_was_not_downloaded_are_no_model(offline):
    left_in_the_cache("org/split", {name: SPLIT[name] for name in PARTS[:2]})
    with pytest.raises(FileNotFoundError, match="neither a path here nor in the cache"):
        hub.find("org/split")


# a folder -----------------------------------------------------------------------------------------


def test_the_only_gguf_of_a_folder(tmp_path, capsys):
    folder = small_models.write(tmp_path / "m", {"README.md": b"#", "tiny.gguf": GGUF.read_bytes()})
    assert model_at(folder) == folder / "tiny.gguf"
    assert ids(folder) == ids(GGUF)
    assert main(["inspect", str(folder)]) == 0
    with pytest.raises(SystemExit):
        main(["run", str(folder)])
    assert "is a model: the prompt is missing" in capsys.readouterr().err


def test_of_several_ggufs_of_a_folder_one_is_named(tmp_path):
    folder = small_models.write(tmp_path, dict.fromkeys(("a.gguf", "b.gguf", *PARTS), b"GGUF"))
    with pytest.raises(FormatError, match=r"files: a.gguf, b.gguf, m-00001-of-00003.gguf \(one"):
        open_checkpoint(folder)
    (folder / "b-i2_s.gguf").write_bytes(b"GGUF")
    assert model_at(folder) == folder / "b-i2_s.gguf"


def test_a_folder_with_both_is_the_one_of_safetensors(tmp_path):
    files = small_models.hf_files("bitnet") | {"a.gguf": GGUF.read_bytes()}
    folder = small_models.write(tmp_path, files)
    assert model_at(folder) == folder
    (folder / "model.safetensors").unlink()
    assert model_at(folder) == folder / "a.gguf"


# parts --------------------------------------------------------------------------------------------


def test_parts_are_pulled_together(server, no_network):
    server.add("org/split", SPLIT | {"README.md": b"#"})
    path = hub.pull("org/split")
    assert path.name == PARTS[0] and server.fetched() == PARTS
    assert hub.pull(f"org/split:{PARTS[2]}") == path and server.fetched() == []
    no_network()
    assert len(open_checkpoint(hub.find("org/split")).files) == 3
    Path(path.with_name(PARTS[1])).unlink()
    assert hub.cached("org/split") is None


def test_a_repository_that_lacks_a_part(server):
    server.add("org/split", {name: SPLIT[name] for name in PARTS[1:]})
    for name in ("org/split", f"org/split:{PARTS[1]}"):
        with pytest.raises(FormatError, match=f"{PARTS[0]}: missing"):
            hub.pull(name)
    assert server.fetched() == []
