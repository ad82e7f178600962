"""Models of the hub, from a server of our own: what is fetched, checked, refused and remembered."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_hub import (
    FIRST,
    FOLDER,
    GGUF,
    SECOND,
    WANTED,
    Handler,
    git_id,
    is_large,
    model_files,
    sha256,
)

import bitnet
from bitnet.checkpoints import hub, weights
from bitnet.checkpoints.hub_pulled import pulled
from bitnet.cli import main
from bitnet.errors import FormatError
from bitnet.formats.atomic_write import FREE_MARGIN

huggingface_hub = pytest.importorskip("huggingface_hub")


# pulling ------------------------------------------------------------------------------------------


def test_pull_fetches_what_a_model_needs_and_nothing_else(server, tmp_path):
    path = hub.pull("org/model")
    assert path == tmp_path / "hf/hub/models--org--model/snapshots" / FIRST
    assert {url.split("/")[4] for _, url in server.asked if "/resolve/" in url} == {FIRST}
    assert sorted(os.listdir(path)) == server.fetched() == sorted(WANTED)
    for name in WANTED:
        assert (path / name).read_bytes() == (FOLDER / name).read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"hf", "cache"}
    with weights.open(path) as ours, weights.open(FOLDER) as theirs:
        name = "layers.0.self_attn.q_proj"
        assert (ours.ternary(name).codes == theirs.ternary(name).codes).all()


def test_a_pull_tells_bytes(server):
    told = []

    def stops(what, done, total):
        told.append(what)
        if what.startswith("checking"):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        hub.pull("org/model", progress=stops)
    assert sum(what.startswith("downloading") for what in told) == len(WANTED)
    assert pulled() == []  # files are there, and no model
    told.clear()
    hub.pull("org/model", progress=lambda *arguments: told.append(arguments))
    total = sum(len(model_files()[name]) for name in WANTED)
    assert told[0] == ("asking for org/model", 0, 0) and told[-1][1:] == (total, total)
    assert [entry.name for entry in pulled()] == ["org/model"]


def test_what_was_pulled_is_used_without_network(server, no_network):
    with bitnet.load(FOLDER) as model:
        expected = model.generate("The king", max_tokens=4, temperature=0).token_ids
    for forbid in (lambda: None, no_network):
        forbid()
        with bitnet.load("org/model") as model:
            assert model.path.name == FIRST
            assert model.generate("The king", max_tokens=4, temperature=0).token_ids == expected
    assert hub.find(f"org/model@{FIRST}") == hub.find("org/model@main") == hub.find("org/model")


def test_a_revision_is_pinned_to_a_commit(server, no_network):
    server.add("org/model", {name: model_files()[name] for name in WANTED}, SECOND, "v2")
    assert hub.pull("org/model").name == FIRST
    assert server.fetched() == sorted(WANTED)
    assert hub.pull("org/model@v2").name == hub.pull("org/model", SECOND).name == SECOND
    assert server.fetched() == []  # other commit, same contents
    server.add("org/model", model_files(), SECOND, "main")
    assert hub.find("org/model").name == FIRST
    assert hub.pull("org/model").name == hub.find("org/model").name == SECOND
    no_network()
    assert hub.find(f"org/model@{FIRST}").name == FIRST
    with pytest.raises(AssertionError):
        hub.find("org/model@v3")


def test_a_commit_is_the_one_asked_for(server):
    server.repos["org/model"][SECOND] = FIRST
    with pytest.raises(FormatError, match=f"{FIRST} .{SECOND} was asked for"):
        hub.pull(f"org/model@{SECOND}")


def test_a_snapshot_that_is_no_longer_whole(server):
    path = hub.pull("org/model")
    file = path / "generation_config.json"
    server.fetched()
    for lost, fetched in ((file, []), (file.resolve(), [file.name])):
        lost.unlink()
        assert hub.cached("org/model") is None
        assert hub.find("org/model") == path and hub.cached("org/model").path == path
        assert server.fetched() == fetched
    file.resolve().write_bytes(b"{")
    assert hub.cached("org/model") is None
    with pytest.raises(FormatError, match="pull again"):
        hub.find("org/model")
    assert hub.find("org/model") == path and hub.cached("org/model").path == path


def test_a_damaged_note_is_none(server, tmp_path):
    hub.pull("org/model")
    notes = list((tmp_path / "cache").glob("*.hub.json"))
    assert len(notes) == 2
    whole = json.loads(notes[0].read_text())
    changes = [{"commit": "../../.."}, {"commit": 3}, {"version": 0}]
    changes += [{"files": files} for files in ({}, [], {"a": [1]}, {"../a": [1, "git", "0"]})]
    for change in changes:
        for note in notes:
            note.write_text(json.dumps(whole | change))
        assert hub.cached("org/model") is None
    for note in notes:
        note.write_text("{")
    assert hub.cached("org/model") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such permissions or pipes")
def test_a_note_that_others_may_have_written_is_none_and_a_pipe_stops_nothing(
    server, tmp_path, caplog
):
    hub.pull("org/model")
    cache = tmp_path / "cache"
    cache.chmod(0o777)
    assert hub.cached("org/model") is None
    hub.pull("org/model")
    assert "no note of what was pulled" in caplog.text
    cache.chmod(0o755)
    assert hub.cached("org/model") is not None
    for note in cache.glob("*.hub.json"):
        note.unlink()
        os.mkfifo(note)
    assert hub.cached("org/model") is None


def test_without_a_cache_folder_the_hub_is_asked_each_time(server, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", "off")
    assert hub.find("org/model") == hub.find("org/model")
    assert [path for _, path in server.asked if path.startswith("/api")] == [
        "/api/models/org/model/revision/main"
    ] * 2
    assert server.fetched() == sorted(WANTED)


def test_shards_are_fetched_with_their_index(server):
    files = model_files()
    del files["model.safetensors"]
    shards = [f"model-{i}-of-2.safetensors" for i in (1, 2)]
    files |= {name: name.encode() for name in (*shards, "model.safetensors.index.json")}
    server.add("org/shards", files)
    path = hub.pull("org/shards")
    assert sorted(os.listdir(path)) == sorted(
        [*WANTED[:-1], "model.safetensors.index.json", *shards]
    )


def test_files_of_an_embedding_model(server):
    files = model_files() | {"1_Pooling/config.json": b"{}", "2_Dense/config.json": b"{}"}
    server.add("org/embedding", files)
    path = hub.pull("org/embedding")
    assert (path / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert not (path / "2_Dense").exists()


# GGUF ---------------------------------------------------------------------------------------------


def test_one_gguf(server, no_network):
    server.add("org/model-gguf", {"README.md": b"#", "m.gguf": GGUF.read_bytes()})
    path = hub.pull("org/model-gguf")
    assert path.name == "m.gguf" and path.read_bytes() == GGUF.read_bytes()
    assert server.fetched() == ["m.gguf"]
    no_network()
    with bitnet.load("org/model-gguf") as model:
        assert model.generate("The king", max_tokens=1).token_ids


def test_of_several_ggufs_the_one_of_i2_s_or_the_one_named(server, no_network):
    names = ["m-F16.gguf", "m-TQ1_0.gguf", "sub/m-I2_S.gguf"]
    server.add("org/many", {name: name.encode() for name in names})
    assert hub.pull("org/many").read_bytes() == b"sub/m-I2_S.gguf"
    named = hub.pull("org/many:m-TQ1_0.gguf")
    assert named.read_bytes() == b"m-TQ1_0.gguf"
    assert server.fetched() == ["m-TQ1_0.gguf", "sub/m-I2_S.gguf"]
    server.add("org/two", {name: name.encode() for name in names[:2]})
    with pytest.raises(ValueError, match=r"m-F16.gguf, m-TQ1_0.gguf.*org/two:m-F16.gguf"):
        hub.pull("org/two")
    with pytest.raises(FileNotFoundError, match=r"no x.gguf on the hub; it has m-F16.gguf, m-TQ1"):
        hub.pull("org/two:x.gguf")
    assert hub.pull("org/model:model-f16.gguf").read_bytes() == b"the content of model-f16.gguf"
    no_network()
    assert hub.find("org/many:m-TQ1_0.gguf") == named


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_repository_without_a_model(server, missing):
    files = model_files()
    del files[missing], files["model-f16.gguf"]
    server.add("org/other", files)
    with pytest.raises(FormatError, match=r"org/other: files: .*no other weights are fetched"):
        hub.pull("org/other")
    assert server.fetched() == []


# attacks and accidents ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_another_content_is_deleted(server, name):
    content = model_files()[name]
    other = content[:-1] + b" "
    server.swapped[content] = other
    right, wrong = ((sha256 if is_large(name) else git_id)(data) for data in (content, other))
    with pytest.raises(FormatError, match=rf"{name}: .*{wrong}.*{right}"):
        hub.pull("org/model")
    assert hub.cached("org/model") is None
    server.swapped.clear()
    server.fetched()
    path = hub.pull("org/model")
    assert (path / name).read_bytes() == content and server.fetched() == [name]


def test_a_blob_damaged_on_disk_is_found_by_the_next_pull(server):
    file = hub.pull("org/model") / "model.safetensors"
    content = file.read_bytes()
    file.resolve().write_bytes(content[:-1] + b"x")
    with pytest.raises(FormatError, match="pull again"):
        hub.pull("org/model")
    assert hub.find("org/model") / "model.safetensors" == file
    assert file.read_bytes() == content


def test_only_the_cache_is_deleted_from(server, tmp_path):
    """A blob may itself be a link: into a store of the cache's own, or put there by somebody."""
    file = hub.pull("org/model") / "config.json"
    for target, survives in ((tmp_path / "hf/hub/blobs/ab/cd", False), (tmp_path / "mine", True)):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"other")
        blob = file.parent / os.readlink(file)
        blob.unlink()
        blob.symlink_to(target)
        with pytest.raises(FormatError, match="pull again"):
            hub.pull("org/model")
        assert not file.is_symlink() and not blob.is_symlink() and target.exists() == survives
        hub.pull("org/model")


@pytest.mark.parametrize("name", ["../x.gguf", "/etc/x.gguf", "a//x.gguf", "a\\x.gguf", "a/../x.py",
                                  "x\n.gguf", "./x.gguf", "..", "", None])  # fmt: skip
def test_a_list_of_files_that_leads_out_of_the_folder(server, name):
    server.add("org/evil", {**model_files(), name: b"evil"})
    with pytest.raises(FormatError, match=r"org/evil: file name: .*a path inside the repository"):
        hub.pull("org/evil")
    assert server.fetched() == []


@pytest.mark.parametrize("field", ["lfs", "blobId", "size", "sha"])
def test_a_hub_that_says_no_checksum(server, monkeypatch, field):
    send = Handler.send

    def without(self, data, *more):
        if data.startswith(b'{"id"'):
            facts = json.loads(data)
            for entry in [facts, *facts["siblings"]]:
                entry.pop(field, None)
                if field == "lfs":
                    entry.pop("blobId", None)
            data = json.dumps(facts).encode()
        return send(self, data, *more)

    monkeypatch.setattr(Handler, "send", without)
    with pytest.raises(FormatError, match="org/model: "):
        hub.pull("org/model")
    assert server.fetched() == []


def test_a_disk_that_is_too_small(server, monkeypatch):
    usage = shutil.disk_usage
    full = usage("/")._replace(free=FREE_MARGIN)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"\d+ bytes needed, \d+ free"):
        hub.pull("org/model")
    assert server.fetched() == []


def test_an_interrupt_leaves_no_half_model(server, monkeypatch):
    api = hub.library_api("org/model")
    download = api.hf_hub_download

    def interrupted(repo, name, **keywords):
        if name == "model.safetensors":
            raise KeyboardInterrupt
        return download(repo, name, **keywords)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(api, "hf_hub_download", interrupted)
        hub.pull("org/model")
    assert hub.cached("org/model") is None
    assert server.fetched() == sorted(WANTED[:-1])
    assert hub.find("org/model").name == FIRST and server.fetched() == ["model.safetensors"]


# what cannot be reached ---------------------------------------------------------------------------


def test_missing_private_and_gated(server):
    with pytest.raises(FileNotFoundError, match=r"HF_TOKEN.*'org/absent'"):
        hub.find("org/absent")
    with pytest.raises(FileNotFoundError, match=r"no revision v9.*'org/model'"):
        hub.find("org/model@v9")
    server.gated.add("org/model")
    with pytest.raises(PermissionError, match=r"gated.*HF_TOKEN.*'org/model'"):
        hub.find("org/model")


def test_a_hub_that_fails_or_is_something_else(server, monkeypatch):
    monkeypatch.setattr(Handler, "model_info", lambda self, *_: self.send(b"busy", {}, 500))
    with pytest.raises(OSError, match="the hub answered 500"):
        hub.pull("org/model")
    monkeypatch.setattr(Handler, "model_info", lambda self, *_: self.send(b"<p>Log in</p>"))
    with pytest.raises(OSError, match="was not understood"):
        hub.pull("org/model")


def test_no_network(server, tmp_path):
    def expect(name, says):
        with pytest.raises(FileNotFoundError, match=says) as raised:
            hub.pull(name)
        assert "the hub cannot be reached (" in str(raised.value)

    hub.pull("org/model")
    server.add("org/other", model_files(), SECOND)
    server.add("org/model", model_files(), SECOND, "v2")
    for name in ("README.md", "config.json", "model.safetensors"):
        path = huggingface_hub.hf_hub_download(
            "org/other", name, endpoint=server.url, cache_dir=tmp_path / "hf/hub"
        )
    huggingface_hub.hf_hub_download(
        "org/model",
        "README.md",
        revision=SECOND,
        endpoint=server.url,
        cache_dir=tmp_path / "hf/hub",
    )
    server.shutdown()
    server.server_close()
    expect("org/absent", "neither a path here nor in the cache")
    expect("org/model", "the cache has a commit of it")
    expect(f"org/model@{SECOND}", "neither a path here nor in the cache")  # no model is there
    expect("org/other", f"another program's download is in {Path(path).parent}: give that path")
    with pytest.raises(FileNotFoundError, match="another program"):
        hub.find("org/other")  # nobody knows which files belong to a folder
    with weights.open(Path(path).parent) as opened:  # as the message says
        assert opened.config.family == "bitnet"
    assert hub.find("org/model").name == FIRST


def test_offline_by_choice(server):
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": server.url}
    command = [sys.executable, "-m", "bitnet", "pull", "org/model"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, server.asked) == (1, "", [])
    assert done.stderr.startswith("bitnet: error: org/model: neither a path here nor in the cache")
    assert "(HF_HUB_OFFLINE is set)" in done.stderr and done.stderr.count("\n") == 1


def test_without_the_library(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pip install 'bitnet-engine\[hub\]'"):
        bitnet.load("org/absent")
    assert main(["pull", "org/absent"]) == 1
    assert "pip install" in capsys.readouterr().err


# names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "", "model", "../model", "org/..", "org/mo..del", "org/mo--del", "org/model.git", "org/.model",
    "-org/model", "org/model-", "o g/model", "org/model@", "org/model@../x", "org/model@a b",
    "org/model:", "org/model:x.bin", "org/model:../x.gguf", "org/model:/x.gguf", "a/b/c", "/a/b",
    "https://host/org/model", "org/mod\u00e9l", "org/mod\nel", "org/" + "m" * 93, "m" * 10**6,
])  # fmt: skip
def test_names_that_are_none(no_network, name):
    no_network()
    with pytest.raises(ValueError):
        hub.pull(name)
    assert hub.cached(name) is None
    assert hub.find(name) == Path(name)


def test_a_revision_is_given_once(no_network):
    no_network()
    for name, revision in (("a/b@c", "d"), ("a/b", ""), ("a/b", "c d"), ("a/b", "../c")):
        with pytest.raises(ValueError, match="revision"):
            hub.pull(name, revision)
    assert hub.parse("a/b@refs/pr/1") == hub.parse("a/b", "refs/pr/1")


def test_what_looks_like_a_path_is_never_asked_for(no_network, tmp_path, monkeypatch):
    no_network()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for name in ("models/mine", "models/model.gguf", "a/model.safetensors", "a/b@refs/pr/1", "./a",
                 "models/mine/", "~/model", "model", Path("org/model")):  # fmt: skip
        assert hub.find(name) == Path(name)
        with pytest.raises((OSError, FormatError)):
            bitnet.load(name)
    for name in ("org/model", "org/model@v1", "org/model:a.gguf", "models/yours"):
        with pytest.raises(AssertionError):
            hub.find(name)


# the command --------------------------------------------------------------------------------------


def test_the_command(server, capsys):
    assert main(["pull", f"org/model@{FIRST}"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{hub.find(f'org/model@{FIRST}')}\n", "")
    assert main(["pull", "org/absent"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bitnet: error: org/absent: ") and err.count("\n") == 1


def test_the_command_tells_a_terminal(server, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["pull", "org/model"]) == 0
    shown = capsys.readouterr().err
    assert "checking model.safetensors" in shown
    size = sum(len(model_files()[name]) for name in WANTED)
    assert f"[org/model@{FIRST}: {size:,} bytes, checksums right]" in shown


def test_a_lone_word_is_a_prompt_until_it_is_a_model(server, no_network, capsys):
    """`run ORG/NAME PROMPT` may pull; a prompt that looks like a name asks nobody."""
    server.add("either/or", model_files())
    options = ["--raw", "-n", "2", "--temperature", "0"]
    assert main(["run", *options, "either/or"]) == 0
    assert server.asked == []
    assert main(["run", *options, str(FOLDER), "The king"]) == 0
    expected = capsys.readouterr().out.splitlines()[-1]
    assert main(["run", *options, "either/or", "The king"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == expected
    no_network()
    with pytest.raises(SystemExit) as leaving:
        main(["run", *options, "either/or"])
    assert leaving.value.code == 2
    assert "either/or is a model: the prompt is missing" in capsys.readouterr().err


def test_blobs_that_all_repositories_share_are_theirs_too(server, tmp_path):
    """As newer libraries keep them: the repository's blob is itself a link."""
    path = hub.pull("org/model")
    blob = (path / "model.safetensors").resolve()
    shared = hub.hub_cache() / "blobs" / "ab" / blob.name
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    with weights.open(path) as opened:
        assert opened.config.family == "bitnet"
    other = tmp_path / "elsewhere"
    shared.rename(other)
    blob.unlink()
    blob.symlink_to(other)
    with weights.open(path) as opened:  # weights may lie anywhere
        assert opened.config.family == "bitnet"
    config, elsewhere = path / "config.json", tmp_path / "config"
    elsewhere.write_bytes(config.read_bytes())
    config.unlink()
    config.symlink_to(elsewhere)
    with pytest.raises(FormatError, match="link"):
        weights.open(path)
