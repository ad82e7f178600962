"""The prefix cache in files: the same text after a restart, bounded, and no file is needed."""

import errno
import os
import stat
import sys
import time
from pathlib import Path

import pytest

import bitnet
from bitnet.generation.prefix_cache_disk import (
    ABANDONED_AFTER,
    MIN_TOKENS_ON_DISK,
    PREFIX_SUFFIX,
)
from bitnet.generation.session_file import common

PROMPT = [i % 100 + 1 for i in range(300)]
OPTIONS = {"max_tokens": 6, "temperature": 0}


def load(folder, **keywords):
    return bitnet.load(threads=1, prefix_folder=folder, **keywords)


def files(folder):
    return sorted(folder.glob("*" + PREFIX_SUFFIX))


@pytest.fixture
def wanted():
    with bitnet.load(threads=1) as model:
        return model.generate([*PROMPT, 7, 8], **OPTIONS).token_ids


@pytest.fixture
def folder(tmp_path):
    """One in which a process that is over has left PROMPT."""
    with load(tmp_path / "kept") as model:
        model.generate(PROMPT, **OPTIONS)
    assert len(files(tmp_path / "kept")) == 1
    return tmp_path / "kept"


@pytest.mark.parametrize("kv_dtype", ["f16", "int8"])
def test_after_a_restart_the_rest_only_is_read(tmp_path, kv_dtype):
    with bitnet.load(threads=1, kv_dtype=kv_dtype) as plain:
        expected = plain.generate([*PROMPT, 7, 8], **OPTIONS).token_ids
    with load(tmp_path, kv_dtype=kv_dtype) as model:
        model.generate(PROMPT, **OPTIONS)
    with load(tmp_path, kv_dtype=kv_dtype) as model:
        again = model.generate([*PROMPT, 7, 8], **OPTIONS)
    assert again.cached_tokens == len(PROMPT) and again.token_ids == expected


def test_files_are_the_owners_alone(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files(folder)] == [0o600]


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_folder_that_others_may_write_is_refused(folder, caplog):
    folder.chmod(0o770)
    with pytest.raises(PermissionError, match=rf"others may write it \(mode 770\).*{folder}"):
        load(folder)
    folder.chmod(0o755)
    (path,) = files(folder)
    path.chmod(0o666)  # one that was put there before
    with load(folder) as model:
        assert model.generate([*PROMPT, 7], max_tokens=1).cached_tokens == 0


def test_what_a_killed_writer_leaves_counts_and_is_deleted_at_last(folder):
    (path,) = files(folder)
    size = path.stat().st_size
    young, old = (folder / f".{name}{PREFIX_SUFFIX}.0123abcd.tmp" for name in "ab")
    strangers = [folder / ".c.tmp", folder / "d.tmp"]
    for other in (young, old, *strangers):
        other.write_bytes(bytes(size))
    long_ago = time.time() - ABANDONED_AFTER - 1
    for other in (old, *strangers):
        os.utime(other, (long_ago, long_ago))
    with load(folder, prefix_folder_limit=2 * size):
        assert not old.exists() and young.exists() and files(folder) == [path]
    with load(folder, prefix_folder_limit=2 * size - 1):
        assert young.exists() and files(folder) == []  # it may be being written
    assert all(other.exists() for other in strangers)


def read_only(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("damage", [False, True])
def test_a_folder_that_can_be_read_alone_is_used(folder, wanted, monkeypatch, caplog, damage):
    (path,) = files(folder)
    with load(folder) as model:
        if damage:
            path.write_bytes(path.read_bytes()[:-40])
        monkeypatch.setattr(os, "utime", read_only)
        monkeypatch.setattr(Path, "unlink", read_only)
        monkeypatch.setattr("bitnet.generation.session_file.save", read_only)
        for _ in range(2):
            found = model.generate([*PROMPT, 7, 8], **OPTIONS)
            assert found.token_ids == wanted
        model.scheduler.prefix_cache.clear()
    monkeypatch.undo()
    assert files(folder) == [path]
    assert caplog.text.count("a saved prefix is not used") == damage


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_moment_without_file_handles_costs_no_file(folder, wanted, caplog):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (path,) = files(folder)
    with load(folder) as model, open(path) as last:
        model.generate([5, 6], max_tokens=1)  # whatever opens files at first has them
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 1, hard))
        try:
            found = model.generate([*PROMPT, 7, 8], **OPTIONS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert found.cached_tokens == 0 and found.token_ids == wanted
        assert "Too many open files" in caplog.text and files(folder) == [path]
    with load(folder) as model:
        assert model.generate([*PROMPT, 7, 8], **OPTIONS).cached_tokens >= len(PROMPT)


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
def test_a_fifo_in_the_folder_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / f"a{PREFIX_SUFFIX}")
    with load(tmp_path) as model:
        assert model.generate([5, 6], max_tokens=1).token_ids


def test_a_longer_sequence_takes_the_place_of_its_beginning(folder):
    with load(folder) as model:
        first = model.generate(PROMPT, **OPTIONS).token_ids
        model.generate([*PROMPT, *first, 5, 6], **OPTIONS)
    assert len(files(folder)) == 1


def test_what_memory_drops_is_in_a_file(tmp_path, wanted):
    with load(tmp_path) as model:  # one slot: its memory holds one long sequence
        model.generate(PROMPT, **OPTIONS)
        for begin in (50, 60):
            model.generate([begin] * 400, **OPTIONS)
        assert len(files(tmp_path)) >= 1
        again = model.generate([*PROMPT, 7, 8], **OPTIONS)
        assert again.cached_tokens == len(PROMPT) and again.token_ids == wanted


def test_short_sequences_are_not_written(tmp_path):
    with load(tmp_path) as model:
        model.generate([1] * (MIN_TOKENS_ON_DISK - 20), **OPTIONS)
    assert files(tmp_path) == []


def test_the_folder_keeps_its_limit(tmp_path):
    with load(tmp_path) as model:
        model.generate(PROMPT, **OPTIONS)
    (first,) = files(tmp_path)
    limit = int(2.5 * first.stat().st_size)
    os.utime(first, (1, 1))  # used long ago
    for begin in (50, 60, 70):
        with load(tmp_path, prefix_folder_limit=limit) as model:
            model.generate([begin] * 300, **OPTIONS)
    kept = files(tmp_path)
    assert len(kept) == 2 and first not in kept
    assert sum(path.stat().st_size for path in kept) <= limit


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "foreign"])
def test_a_damaged_file_is_not_used(folder, wanted, damage):
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    with load(folder) as model:
        if damage == "gone":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif damage == "flipped":
            data[-1] ^= 1
            path.write_bytes(data)
        else:
            path.write_bytes(b"something else")
        found = model.generate([*PROMPT, 7, 8], **OPTIONS)
        assert found.cached_tokens == 0 and found.token_ids == wanted
        assert not path.exists()


def test_of_another_type_or_context_nothing_is_used(folder, wanted):
    for keywords in ({"kv_dtype": "f32"}, {"context": 302}):
        with load(folder, **keywords) as model:
            found = model.generate([*PROMPT, 7], max_tokens=1, temperature=0)
            assert found.cached_tokens == 0
    assert len(files(folder)) >= 1


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="prefix_folder: nothing is kept without prefix_cache"):
        load(tmp_path, prefix_cache=False)
    with pytest.raises(ValueError, match="prefix_folder_limit: 'much'"):
        load(tmp_path, prefix_folder_limit="much")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        load(tmp_path / "file")


def test_a_folder_that_cannot_be_written_is_no_error(folder, wanted, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bitnet.generation.session_file.save", refuse)
    with load(folder) as model:
        assert model.generate([*PROMPT, 7, 8], **OPTIONS).token_ids == wanted
    assert "a prefix was not saved" in caplog.text


def test_common():
    assert [common([1, 2, 3], b) for b in ([], [1], [1, 2, 3, 4], [1, 5, 3], [9])] == [
        0, 1, 3, 1, 0]  # fmt: skip
