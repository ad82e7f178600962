"""A hub on this machine, and none; a small model, and an empty cache folder for it."""

import pytest
from support import small_files
from support.fake_hub import FakeHub, model_files

from bitnet.checkpoints import hub


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITNET_NUM_THREADS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.chdir(tmp_path)
    huggingface_hub = pytest.importorskip("huggingface_hub")
    with FakeHub() as server:
        api = huggingface_hub.HfApi(endpoint=server.url, token=False)
        monkeypatch.setattr(hub, "library_api", lambda repo: api)
        server.add("org/model", model_files())
        yield server
        server.shutdown()


@pytest.fixture
def no_network(monkeypatch):
    """A call that makes every later request of the library an error of this test."""

    def forbid():
        def asked(repo):
            raise AssertionError(f"{repo} was asked for")

        monkeypatch.setattr(hub, "library_api", asked)

    return forbid


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, which is the one in use."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BITNET_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    return small_files.hf_folder(tmp_path / "model")
