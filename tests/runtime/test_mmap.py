"""Files that shrink under their map: an error, no crash; and a bus error elsewhere is still one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.paths import DATA

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.formats import mapped_file
from bitnet.runtime import mmap

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
locks = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="the address sanitizer makes mlock do nothing",
)


def test_a_model_whose_file_shrinks_raises_and_others_run_on(tmp_path):
    shutil.copy(BUNDLED_MODEL, tmp_path / "m.gguf")
    with bitnet.load() as other, bitnet.load(tmp_path / "m.gguf") as model:
        before = other.logits([1, 2, 3]).tobytes()
        assert model.logits([1, 2, 3]).tobytes() == before
        os.truncate(tmp_path / "m.gguf", 1_000_000)
        for _ in range(2):
            with pytest.raises(bitnet.FormatError, match=r"m\.gguf: file size: shrank"):
                model.logits([1, 2, 3])
    with bitnet.load() as fresh:
        assert fresh.logits([1, 2, 3]).tobytes() == before


def test_reads_of_a_lost_page_are_zeros(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"x" * 40_000)
    data = mapped_file.map_file(path)
    assert data.sum() == 40_000 * ord("x")
    mapped_file.check_map(data, path)
    before = mmap.n_truncated()
    os.truncate(path, 100)
    assert data[-1] == 0 and data[0] == ord("x") and mmap.n_truncated() > before
    with pytest.raises(mapped_file.FormatError, match="data: file size: shrank"):
        mapped_file.check_map(data, path)
    again = mapped_file.map_file(path)
    assert again.sum() == 100 * ord("x")
    mapped_file.check_map(again, path)


@pytest.mark.parametrize("handler", ["none", "faulthandler"])
def test_a_bus_error_elsewhere_ends_the_process_as_before(tmp_path, handler):
    code = f"""
import mmap, os, sys
if {handler!r} == "faulthandler":
    import faulthandler; faulthandler.enable()
from bitnet.formats import mapped_file
path = {str(tmp_path / "other")!r}
open(path, "wb").write(b"x" * 40000)
data = mapped_file.map_file(path)
with open(path, "rb") as file:
    mine = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(path, 100)
print(int(data[-1]), flush=True)
mine[39999]
"""
    environment = os.environ | {"PYTHONPATH": str(Path(bitnet.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout == "0\n" and done.returncode == -signal.SIGBUS
    assert ("Bus error" in done.stderr) == (handler == "faulthandler")


def test_ranges_are_numbered_again_once_free(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    before = len(mapped_file._maps)
    for _ in range(5000):  # more than there are ranges
        assert mapped_file.map_file(path)[0] == ord("a")
    assert len(mapped_file._maps) == before


@locks
def test_advice_and_locks():
    data = np.zeros(1 << 16, np.uint8)
    mmap.willneed(data.ctypes.data, data.nbytes)
    mmap.lock(data.ctypes.data, 4096)
    mmap.unlock(data.ctypes.data, 4096)
    with pytest.raises(MemoryError, match=r"locking 1152921504606846976 bytes.*ulimit"):
        mmap.lock(data.ctypes.data, 1 << 60)


@pytest.mark.parametrize("policy", ["map", "prefetch", "lock", "copy"])
@pytest.mark.parametrize("name", ["bundled", "hf_bitnet_offline"])
def test_policies_give_the_same_logits(policy, name):
    path = None if name == "bundled" else DATA / name
    with bitnet.load(path) as plain, bitnet.load(path, mapping=policy, threads=1) as model:
        assert model.logits([1, 2, 3]).tobytes() == plain.logits([1, 2, 3]).tobytes()
        purposes = model.memory().pool.by_purpose
        assert sum(n for *_, n in model.weights.mappings()) > 300_000
        if policy == "copy":
            assert purposes["weights"][0] > 300_000
        else:
            assert "weights" not in purposes


def locked_kib():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmLck:")[2].split()[0])


@locks
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_locked_files_are_unlocked_when_the_model_is_closed():
    before = locked_kib()
    with bitnet.load(mapping="lock"):
        assert locked_kib() - before >= BUNDLED_MODEL.stat().st_size // 1024
    assert locked_kib() == before


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_a_copied_file_is_not_kept_in_memory_as_well():
    with bitnet.load(mapping="copy") as model:
        model.logits([1, 2, 3])
        (file,) = model.memory().files
        assert file.resident < file.nbytes / 2


def test_a_copy_that_does_not_fit_is_refused():
    with pytest.raises(bitnet.MemoryLimitExceeded) as caught:
        bitnet.load(mapping="copy", memory_limit="18MiB", threads=1)
    assert "weights" in str(caught.value)
    assert {"mapping": "map"} in [changes for changes, _ in caught.value.remedies]


def test_a_copy_does_not_mind_what_happens_to_the_file(tmp_path):
    shutil.copy(BUNDLED_MODEL, tmp_path / "m.gguf")
    with bitnet.load(tmp_path / "m.gguf", mapping="copy") as model:
        before = model.logits([1, 2, 3]).tobytes()
        os.truncate(tmp_path / "m.gguf", 10)
        assert model.logits([1, 2, 3]).tobytes() == before


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="needs Linux's huge pages"
)
def test_huge_pages_are_asked_for_in_whole_ranges(tmp_path):
    """Ranges that a few bytes part are one, so that a map is cut into few pieces."""
    path, mega = tmp_path / "file", 1 << 20
    path.write_bytes(bytes(32 * mega))
    data = mapped_file.map_file(path)
    base = data.ctypes.data
    mmap.huge_pages([(base + 20 * mega, mega), (base + 5000, 4 * mega), (base + 6 * mega, 100)])
    mmap.huge_pages([])
    advised, begin = [], None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if str(path) in line:
            begin, end = (int(at, 16) for at in line.split()[0].split("-"))
        elif line.startswith("VmFlags") and begin is not None:
            advised += [(begin - base, end - base)] if " hg" in line else []
            begin = None
    page = os.sysconf("SC_PAGE_SIZE")
    assert advised == [
        (5000 // page * page, 6 * mega + page), (20 * mega, 21 * mega)
    ]  # fmt: skip


LATER = """
import faulthandler, mmap, os, shutil, signal, sys
import bitnet
from bitnet.api.load import BUNDLED_MODEL
shutil.copy(BUNDLED_MODEL, sys.argv[1])
with bitnet.load(sys.argv[1]) as model:
    model.logits([1, 2, 3])
    faulthandler.enable()  # takes the signal
    os.truncate(sys.argv[1], 1_000_000)
    try:
        model.logits([1, 2, 3])
    except bitnet.FormatError as error:
        print(error.value, flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGBUS)
elif sys.argv[2] == "bus error":
    faulthandler.disable()
    with open(sys.argv[1], "r+b") as file:
        mine = mmap.mmap(file.fileno(), 0)
        file.truncate(0)
        mine[0]
"""


@pytest.mark.parametrize("end", ["leave", "kill", "bus error"])
def test_who_takes_the_signal_later_is_put_behind(tmp_path, end):
    arguments = [sys.executable, "-c", LATER, str(tmp_path / "m.gguf"), end]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.stdout == "shrank while it was mapped\n"
    assert done.returncode == (0 if end == "leave" else -signal.SIGBUS)
    assert done.stderr.count("Bus error") == (end == "kill")
