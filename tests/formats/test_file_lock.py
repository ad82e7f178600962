"""The lock of whoever repacks weights, and cache folders on disks that have none."""

import errno
import logging
import os
from types import SimpleNamespace

import pytest
from support.paths import DATA

from bitnet.checkpoints import weights
from bitnet.formats import file_lock


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def repacked_file():
    """The path of a model's repacked file, once it is open."""
    with weights.open(DATA / "hf_bitnet_offline") as opened:
        return opened.mappings()[1][0]


@pytest.mark.skipif(file_lock.fcntl is None, reason="the system has no flock")
def test_one_holds_it_at_a_time(tmp_path):
    with open(tmp_path / "lock", "ab") as first, open(tmp_path / "lock", "ab") as second:
        assert file_lock.wait_for(first)
        with pytest.raises(BlockingIOError):
            file_lock.fcntl.flock(second, file_lock.fcntl.LOCK_EX | file_lock.fcntl.LOCK_NB)
        first.close()
        assert file_lock.wait_for(second)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_disk_without_locks_has_a_repacked_file(cache, monkeypatch, caplog, number):
    """As some disks of networks and user space are. Nobody's unfinished file is removed there."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file_lock, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=2))
    with caplog.at_level(logging.INFO, "bitnet"):
        path = repacked_file()
    assert os.strerror(number) in caplog.text and "go to memory" not in caplog.text
    of_another = path.with_name(f".{path.name}.0123abcd.tmp")
    of_another.write_bytes(b"half")
    path.unlink()
    assert repacked_file() == path and of_another.exists()
    monkeypatch.setattr(file_lock, "fcntl", None)  # Windows
    path.unlink()
    assert repacked_file() == path
