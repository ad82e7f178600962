"""The repacked file: made once, for one model alone, checked, repaired, shared, done without."""

import json
import logging
import multiprocessing
import os
import shutil
import stat
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from support import small_files
from support.paths import DATA

import bitnet
from bitnet.checkpoints import repack_cache, repacked_tensors, weights
from bitnet.errors import FormatError
from bitnet.formats import file_lock, gguf, pieces

DOWN = "layers.0.mlp.down_proj"
pytestmark = pytest.mark.usefixtures("cache")  # every test has an empty cache folder of its own
LINEARS = [f"layers.0.{name}" for name in small_files.HF_PROJECTIONS]


def repacked_file(folder, **options):
    return weights.open(folder, **options).mappings()[1][0]


def test_it_is_built_once(folder, cache):
    path = repacked_file(folder)
    before = path.stat()
    assert repacked_file(folder) == path and path.stat().st_ino == before.st_ino
    names = [path.name + end for end in ("", ".checked", ".lock")]
    assert sorted(p.name for p in cache.iterdir()) == names


def test_a_changed_source_makes_it_stale(folder):
    path = repacked_file(folder)
    inode = path.stat().st_ino
    source = folder / "model.safetensors"
    os.utime(source, ns=(1, source.stat().st_mtime_ns + 1))
    assert repacked_file(folder) == path and path.stat().st_ino != inode


def test_folders_of_one_name_do_not_share(tmp_path, cache):
    paths = set()
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        paths.add(repacked_file(small_files.hf_folder(tmp_path / parent / "model")))
    assert len(paths) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "scale", "magic", "folder"])
def test_a_damaged_one_is_rebuilt_or_done_without(folder, damage):
    expected = weights.open(folder).ternary(DOWN).codes.copy()
    path = repacked_file(folder)
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(raw[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "magic":
        path.write_bytes(b"XXXX" + raw[4:])
    elif damage == "scale":
        last = gguf.GGUFFile(path)
        end = last.tensors[DOWN].data
        at = end.ctypes.data - last.data.ctypes.data + len(end) - 32
        path.write_bytes(raw[:at] + struct.pack("<f", float("nan")) + raw[at + 4 :])
    else:
        path.unlink()
        path.mkdir()
    opened = weights.open(folder)
    assert (opened.ternary(DOWN).codes == expected).all() and opened.ternary(DOWN).scales == 0.25
    assert len(opened.mappings()) == (1 if damage == "folder" else 2)


def rewritten(path, at, data):
    """Write some bytes where they lie and put the file's time back, as decay of a disk would."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat()[:7] == before[:7] and path.stat().st_mtime_ns == before.st_mtime_ns


def offset_of(path, name):
    file = gguf.GGUFFile(path)
    return file.tensors[name].data.ctypes.data - file.data.ctypes.data


def flipped_models(folder, tmp_path):
    """The same model with other signs: every code of every layer is another, sizes are not."""
    other = small_files.hf_folder(tmp_path / "other")
    path = other / "model.safetensors"
    raw = path.read_bytes()
    n = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:n])
    data = bytearray(raw)
    for entry in header.values():
        if entry.get("dtype") == "U8":
            begin, end = (n + at for at in entry["data_offsets"])
            codes = np.frombuffer(raw[begin:end], np.uint8)
            data[begin:end] = (0xAA - codes).tobytes()  # 2 - code in each of four
    return bytes(data)


@pytest.mark.parametrize("way", ["in place", "another inode"])
def test_another_model_of_the_same_name_size_and_time_is_not_taken_for_it(folder, tmp_path, way):
    repacked_file(folder)
    source, data = folder / "model.safetensors", flipped_models(folder, tmp_path)
    if way == "in place":
        rewritten(source, 0, data)
    else:
        info = source.stat()
        source.rename(folder / "old")
        source.write_bytes(data)
        os.utime(source, ns=(info.st_atime_ns, info.st_mtime_ns))
        assert source.stat().st_size == info.st_size
    opened, expected = weights.open(folder), weights.open(folder, cache=False)
    assert (opened.ternary(DOWN).codes[:, :16] == expected.ternary(DOWN).codes[:, :16]).all()


def test_a_changed_configuration_of_the_same_size_and_time_is_seen(folder):
    """It says whether scales multiply or divide."""
    assert weights.open(folder).ternary(DOWN).scales == 0.25
    config = folder / "config.json"
    text = config.read_text()
    changed = text.replace('"autobitlinear"', '"bitlinear"    ')
    assert len(changed) == len(text) and changed != text
    rewritten(config, 0, changed.encode())
    assert weights.open(folder).ternary(DOWN).scales == 4


def test_a_repacked_file_of_another_model_under_its_name_is_not_used(folder, tmp_path):
    path = repacked_file(folder)
    other = small_files.hf_folder(tmp_path / "other")
    (other / "model.safetensors").write_bytes(flipped_models(folder, tmp_path))
    shutil.copy(repacked_file(other), path)
    opened, expected = weights.open(folder), weights.open(folder, cache=False)
    assert (opened.ternary(DOWN).codes == expected.ternary(DOWN).codes).all()


def test_no_flipped_bit_of_a_repacked_file_is_used(folder, caplog):
    expected = {name: weights.open(folder).ternary(name).codes.copy() for name in LINEARS}
    path = repacked_file(folder)
    good = path.read_bytes()
    unused = 0
    for bit in np.random.default_rng(3).integers(0, 8 * len(good), 150):
        raw = bytearray(good)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        caplog.clear()
        opened = weights.open(folder)
        for name, codes in expected.items():
            assert (opened.ternary(name).codes == codes).all(), bit
            assert opened.ternary(name).scales == 0.25
        repaired = path.read_bytes()
        unused += repaired != good  # padding, or the text that `cache list` shows
        assert repaired == good or "rebuilding" not in caplog.text
        path.write_bytes(good)
    assert unused < 50


@pytest.mark.parametrize("how", ["written", "decayed"])
def test_checksums_are_compared_when_it_is_not_what_was_noted_or_as_told(
    folder, monkeypatch, caplog, how
):
    path = repacked_file(folder)
    at = offset_of(path, DOWN)
    good = path.read_bytes()
    flipped = bytes([good[at] ^ 1])
    if how == "written":
        path.write_bytes(good[:at] + flipped + good[at + 1 :])
    else:
        rewritten(path, at, flipped)
        assert weights.open(folder).damage is None  # it was not read
        monkeypatch.setenv("BITNET_CHECK_CACHE", "1")
    with caplog.at_level(logging.WARNING, "bitnet"):
        opened = weights.open(folder)
    assert f"{path}: {DOWN} CRC-32:" in str(opened.damage)
    assert f"rebuilding a damaged repacked file: {path}: {DOWN} CRC-32:" in caplog.text
    assert path.read_bytes() == good and opened.repacked == path
    assert weights.open(folder).damage is None


def test_a_copied_cache_folder_is_checked_once_and_used(folder, cache, tmp_path, monkeypatch):
    path = repacked_file(folder)
    shutil.copytree(cache, tmp_path / "copy")
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "copy"))
    compared = []
    compare = repack_cache.compare_checksums
    monkeypatch.setattr(
        repack_cache, "compare_checksums", lambda *given: compared.append(compare(*given))
    )
    before = (tmp_path / "copy" / path.name).stat()
    for _ in range(3):
        assert repacked_file(folder).stat().st_ino == before.st_ino
    assert compared == [None]


def test_a_code_3_in_a_repacked_file_is_its_error_and_repaired(cache):
    with bitnet.load(DATA / "hf_bitnet_offline") as model:
        path = model.weights.repacked
        expected = model.logits([1, 2, 3]).tobytes()
    rewritten(path, offset_of(path, DOWN), b"\xff")
    with bitnet.load(DATA / "hf_bitnet_offline") as model:
        message = rf"^{path}: {DOWN}: row 0: code 3 .*the next load makes again"
        with pytest.raises(FormatError, match=message):
            model.logits([1, 2, 3])
    with bitnet.load(DATA / "hf_bitnet_offline") as model:
        assert model.logits([1, 2, 3]).tobytes() == expected


def test_a_fingerprint_reads_pieces_alone(tmp_path, monkeypatch):
    """64 pieces of 4 KiB of each tensor, by pread: a map would read ahead."""
    folder = small_files.hf_folder(tmp_path / "model")
    checkpoint = weights.open(folder, cache=False).checkpoint
    asked = []

    def pread(number, n, offset):
        asked.append(n)
        return bytes(n)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(pieces, "N_PIECES", 2)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 64)
    repack_cache.find(checkpoint, tmp_path)
    assert asked == []  # there is none to compare it with
    weights.of_checkpoint(checkpoint)
    small = [len(t.data) for f in checkpoint.files for t in f.tensors.values()]
    assert sum(asked) == sum(min(n, 128) for n in small) < sum(small)


@pytest.mark.parametrize("off", ["argument", "environment"])
def test_it_can_be_switched_off(folder, cache, monkeypatch, off):
    if off == "environment":
        monkeypatch.setenv("BITNET_CACHE", "off")
        assert repack_cache.cache_folder() is None and repack_cache.cache_list() == []
    opened = weights.open(folder, cache=False if off == "argument" else None)
    assert len(opened.mappings()) == 1 and not cache.exists()
    linear = opened.ternary(DOWN)
    assert (linear.path.name, linear.name) == ("model.safetensors", f"model.{DOWN}.weight")


def test_memory_comes_from_the_pool(folder):
    class Pool:
        def __init__(self):
            self.asked = []

        def array(self, shape, dtype, purpose):
            self.asked.append((shape, purpose))
            return np.empty(shape, dtype)

    pool = Pool()
    weights.open(folder, cache=False, pool=pool)
    assert ((64, 32), "weights") in pool.asked and len(pool.asked) == 7
    weights.open(folder, pool=pool)
    assert len(pool.asked) == 7  # a repacked file needs no memory


@pytest.mark.parametrize("trouble", ["full disk", "no folder"])
def test_without_a_usable_cache_memory_is_used_and_a_warning_logged(
    folder, cache, monkeypatch, caplog, trouble
):
    if trouble == "full disk":
        usage = shutil.disk_usage(folder)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:
        cache.write_bytes(b"a file where the folder should be")
    with caplog.at_level(logging.WARNING, "bitnet"):
        opened = weights.open(folder)
    assert len(opened.mappings()) == 1 and opened.ternary(DOWN).codes.shape == (64, 32)
    assert "go to memory" in caplog.text
    assert not list(cache.glob("*.gguf"))


def test_a_crash_midway_leaves_nothing(folder, cache, monkeypatch):
    def chunks(derived, row_scales):
        yield bytes(16)
        raise KeyboardInterrupt

    monkeypatch.setattr(repacked_tensors, "i2_s_chunks", chunks)
    with pytest.raises(KeyboardInterrupt):
        weights.open(folder)
    assert [p.suffix for p in cache.iterdir()] == [".lock"]
    monkeypatch.undo()
    monkeypatch.setenv("BITNET_CACHE", str(cache))
    path = repacked_file(folder)
    left = path.with_name(f".{path.name}.0123abcd.tmp")  # as if a loader had been killed
    left.write_bytes(b"half")
    path.unlink()
    assert repacked_file(folder) == path and not left.exists()


def load_and_report(folder, cache, results):
    opened = weights.open(folder, cache=cache)
    results.put((opened.mappings()[1][0].stat().st_ino, int(opened.ternary(DOWN).codes.sum())))


def test_two_loaders_at_once_build_one_repacked_file(folder, cache):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    loaders = [
        context.Process(target=load_and_report, args=(folder, cache, results)) for _ in range(2)
    ]
    for loader in loaders:
        loader.start()
    first, second = results.get(timeout=60), results.get(timeout=60)
    for loader in loaders:
        loader.join()
    assert first == second and first[1] > 0


@pytest.mark.skipif(file_lock.fcntl is None, reason="the system has no flock")
def test_a_loader_waits_for_the_one_that_builds(folder, cache):
    path = repacked_file(folder)
    inode = path.stat().st_ino
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    moved = path.with_suffix(".away")
    os.rename(path, moved)
    with repack_cache.locked(path):  # we are building, it thinks
        loader = context.Process(target=load_and_report, args=(folder, cache, results))
        loader.start()
        loader.join(timeout=1)
        assert loader.is_alive() and results.empty()
        os.rename(moved, path)
    assert results.get(timeout=60)[0] == inode  # it took ours
    loader.join()


# the cache folder ---------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="no such permissions, links or FIFOs")


def is_used(folder, caplog):
    """Whether a load has its repacked weights from a file; else it says why not."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "bitnet"):
        opened = weights.open(folder)
    assert opened.ternary(DOWN).scales == 0.25
    assert (opened.repacked is None) == ("no repacked file" in caplog.text)
    return opened.repacked is not None


@posix
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_is_not_used(folder, cache, caplog, mode):
    path = repacked_file(folder)
    cache.chmod(mode)
    assert not is_used(folder, caplog) and not repack_cache.has_folder()
    assert f"others may write it (mode {mode:o}), which chmod go-w ends: '{cache}'" in caplog.text
    assert repack_cache.find(weights.open(folder).checkpoint) is None
    cache.chmod(0o755)
    assert is_used(folder, caplog) and repack_cache.has_folder()
    path.chmod(0o664)  # as one that was put there before
    assert is_used(folder, caplog) and "rebuilding a damaged repacked file" in caplog.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@posix
def test_a_disk_that_lets_others_write_every_file_has_none(folder, monkeypatch, caplog):
    monkeypatch.setattr(repack_cache, "READABLE", 0o666)
    before = os.umask(0)
    try:
        assert not is_used(folder, caplog) and "a file that was just written" in caplog.text
    finally:
        os.umask(before)


@posix
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_of_another_user_is_not_used(folder, cache, tmp_path, monkeypatch, caplog, kind):
    """The other user is the one that runs the test, or by root's hand 12345."""
    repacked_file(folder)
    owned = cache
    if kind == "link":  # to a folder of ours
        owned = tmp_path / "link"
        owned.symlink_to(cache)
        monkeypatch.setenv("BITNET_CACHE", str(owned))
    if os.geteuid() == 0:
        os.chown(owned, 12345, -1, follow_symlinks=False)
        assert not is_used(folder, caplog)
        assert f"it belongs to user 12345, not to 0 or root: '{owned}'" in caplog.text
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert not is_used(folder, caplog) and "it belongs to user" in caplog.text


@posix
def test_a_lock_that_is_a_link_is_not_followed(folder, tmp_path, caplog):
    path = repacked_file(folder)
    lock = path.with_name(path.name + ".lock")
    path.unlink()
    lock.unlink()
    lock.symlink_to(tmp_path / "made by following")
    assert not is_used(folder, caplog)
    assert not (tmp_path / "made by following").exists() and str(lock) in caplog.text


@posix
@pytest.mark.parametrize("suffix", ["", ".lock", ".checked"])
def test_a_fifo_in_the_folder_stops_nothing(folder, caplog, suffix):
    path = repacked_file(folder)
    path.unlink()
    fifo = path.with_name(path.name + suffix)
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    used = []
    loader = threading.Thread(target=lambda: used.append(is_used(folder, caplog)), daemon=True)
    loader.start()
    loader.join(60)
    assert used == [suffix != ".lock"]  # others are replaced


@posix
def test_files_are_readable_and_nobody_elses_to_write_whatever_the_umask(folder, cache):
    before = os.umask(0)
    try:
        path = repacked_file(folder)
    finally:
        os.umask(before)
    modes = {p.name[len(path.name) :]: stat.S_IMODE(p.stat().st_mode) for p in cache.iterdir()}
    assert modes == {"": 0o644, ".checked": 0o644, ".lock": 0o600}
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_list_and_clear_touch_only_our_files(folder, cache):
    path = repacked_file(folder)
    stranger, link = cache / "model.gguf", cache / f"x-{'0' * 16}.sidecar.gguf"
    stranger.write_bytes(b"not ours")
    os.symlink(stranger, link)
    broken = cache / f"y-{'0' * 16}.sidecar.gguf"
    broken.write_bytes(b"GGUF")
    (cache / f".{path.name}.0123abcd.tmp").write_bytes(b"12345")
    listed = {path.name: (size, source) for path, size, source in repack_cache.cache_list()}
    assert listed == {
        path.name: (path.stat().st_size, str(folder)),
        broken.name: (4, "damaged"),
    }
    size = path.stat().st_size + path.with_name(path.name + ".checked").stat().st_size
    assert repack_cache.cache_clear() == size + 4 + 5
    assert sorted(cache.iterdir()) == sorted([stranger, link])
    assert repack_cache.cache_clear() == 0


def test_where_the_cache_folder_is(monkeypatch):
    monkeypatch.delenv("BITNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert repack_cache.cache_folder() == Path("/xdg/bitnet")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert repack_cache.cache_folder() == Path("/home/someone/.cache/bitnet")
    monkeypatch.setenv("BITNET_CACHE", "~/elsewhere")
    assert repack_cache.cache_folder() == Path("/home/someone/elsewhere")
