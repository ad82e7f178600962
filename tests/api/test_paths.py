"""Models in folders whose names are not UTF-8, which Linux allows: everything works there."""

import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from support.paths import DATA

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints.convert import convert
from bitnet.cli import main
from bitnet.verify import verify

FORMS = {"gguf": BUNDLED_MODEL, "packed": DATA / "hf_bitnet_offline",
         "shards": DATA / "hf_llama_bitlinear"}  # fmt: skip

if sys.platform != "linux":
    pytest.skip("other systems want names in Unicode", allow_module_level=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    monkeypatch.setenv("BITNET_CACHE", str(folder / "cache"))
    folder.mkdir()
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_path_that_is_not_utf8(folder, form, capsys):
    source = FORMS[form]
    path = folder / (os.fsdecode(b"\xe8") + source.suffix)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
    with bitnet.load(source) as model:
        expected = model.generate("The king", max_tokens=3, temperature=0).token_ids
    with bitnet.load(path, prefix_folder=folder / "prefixes") as model:
        assert model.generate("The king", max_tokens=3, temperature=0).token_ids == expected
        assert "mapped files" in str(model.memory())
        with model.session() as session:
            session.feed([1, 2, 3])
            session.save(folder / "session")
            session.restore(folder / "session")
    for target in ("out.gguf", "out"):
        convert(path, folder / target)
        assert verify(folder / target, against=path, threads=1).passed
    for command in (["inspect"], ["inspect", "--json"], ["memory", "--measure", "--tokens", "32"]):
        assert main([*command, str(path)]) == 0
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().err == ""


def test_the_name_that_clients_see(folder):
    service = pytest.importorskip("bitnet.server.service")
    options = pytest.importorskip("bitnet.server.options")
    path = shutil.copy(BUNDLED_MODEL, folder / os.fsdecode(b"m\xe8.gguf"))
    with bitnet.load(path) as model:
        worker = SimpleNamespace(load=lambda: (0, 0))
        name = service.Service(model, worker, options.Options()).model_name
    assert name.encode().decode() == "m\N{REPLACEMENT CHARACTER}"
