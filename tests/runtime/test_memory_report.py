"""The memory report: its arithmetic, its table, and the figures of a process of known contents."""

import json
import mmap
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bitnet
from bitnet.runtime import memory_report
from bitnet.runtime.pool import Pool

OS_PAGE = mmap.PAGESIZE
MIB = 1 << 20
NOW = memory_report.Usage(
    rss=100 * MIB,
    anonymous=60 * MIB,
    file=40 * MIB,
    pss=90 * MIB,
    peak_rss=120 * MIB,
    minor_faults=5000,
    major_faults=3,
)
BEFORE = memory_report.Usage(
    rss=30 * MIB,
    anonymous=20 * MIB,
    file=10 * MIB,
    pss=25 * MIB,
    peak_rss=30 * MIB,
    minor_faults=1000,
    major_faults=3,
)
needs_pagemap = pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="no pagemap")


def report_of(**changes):
    with Pool(64 * MIB) as pool:
        kv = pool.allocate(12 * MIB, "kv")
        kv.free()
        kv = pool.allocate(10 * MIB, "kv")
        scratch = pool.allocate(1000, "scratch")
        stats = pool.stats()
        assert kv.nbytes and scratch.nbytes
    parts = {
        "files": [memory_report.Entry("model.gguf", 50 * MIB, 29 * MIB)],
        "pool": stats,
        "pool_resident": 11 * MIB,
        "purposes": [
            memory_report.Entry("kv", 10 * MIB, 10 * MIB),
            memory_report.Entry("free", MIB, MIB),
        ],
        "stacks": [memory_report.Entry("thread 1", 8 * MIB, MIB)],
        "heap": [memory_report.Entry("tokenizer", 20 * MIB, 20 * MIB)],
        "libraries": 0,
        "now": NOW,
        "baseline": BEFORE,
        "planned": {"kv": 12 * MIB, "free": MIB, "tokenizer": 22 * MIB, "files": 30 * MIB},
    }
    return memory_report.MemoryReport(**{**parts, **changes})


def test_what_is_unexplained():
    found = report_of()
    assert [found.growth(kind) // MIB for kind in ("rss", "anonymous", "file")] == [70, 40, 30]
    assert [found.explained(kind) // MIB for kind in ("rss", "anonymous", "file")] == [61, 32, 29]
    assert [found.unexplained(kind) // MIB for kind in ("rss", "anonymous", "file")] == [9, 8, 1]
    without = report_of(pool=None, pool_resident=None, stacks=[], heap=[])
    assert without.unexplained() == (70 - 29) * MIB
    shrunk = report_of(now=BEFORE)
    assert shrunk.unexplained() == -61 * MIB


def test_what_is_unknown_stays_unknown():
    unknown = report_of(files=[memory_report.Entry("model.gguf", 50 * MIB, None)])
    assert unknown.explained() is unknown.unexplained() is unknown.unexplained("file") is None
    assert unknown.unexplained("anonymous") == 8 * MIB


def test_table():
    lines = str(report_of()).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    for row in (
        "planned reserved in use resident",
        "mapped files 30.0 MiB 50.0 MiB 29.0 MiB",
        "pool (limit 64.0 MiB) 13.0 MiB 12.0 MiB 10.0 MiB 11.0 MiB",
        "kv 12.0 MiB 10.0 MiB 10.0 MiB",
        "free 1.0 MiB 1.0 MiB",
        "thread stacks (1) 8.0 MiB 1.0 MiB",
        "tokenizer 22.0 MiB 20.0 MiB",
        "libraries 0 bytes",
        "all of these 65.0 MiB 61.0 MiB",
        "process now since import",
        "resident (RSS) 100.0 MiB 70.0 MiB",
        "anonymous 60.0 MiB 40.0 MiB",
        "file-backed 40.0 MiB 30.0 MiB",
        "not explained by the parts above 9.0 MiB",
        "anonymous 8.0 MiB",
        "file-backed 1.0 MiB",
        "peak RSS 120.0 MiB",
        "page faults, minor 5,000 4,000",
        "page faults, major 3 0",
    ):
        assert row in text, row
    begins = lines[0].index("resident")
    assert all(len(line) <= begins + len("resident") for line in lines if "since" not in line)


def test_files_have_a_row_each():
    files = [memory_report.Entry(name, MIB, MIB) for name in ("one.safetensors", "two.safetensors")]
    assert "  two.safetensors" in str(report_of(files=files))


def test_dict_is_json():
    figures = json.loads(json.dumps(report_of().as_dict()))
    assert figures["files"] == [{"name": "model.gguf", "nbytes": 50 * MIB, "resident": 29 * MIB}]
    assert figures["pool"]["by_purpose"]["kv"] == {"in_use": 10 * MIB, "peak": 12 * MIB, "count": 1}
    assert figures["now"]["rss"] == 100 * MIB and figures["baseline"]["rss"] == 30 * MIB
    assert figures["growth"] == {"rss": 70 * MIB, "anonymous": 40 * MIB, "file": 30 * MIB}
    assert figures["unexplained"] == {"rss": 9 * MIB, "anonymous": 8 * MIB, "file": MIB}


SMAPS = """\
55b882f26000-55b882f29000 r--p 00000000 fe:00 260850                     /usr/bin/sed
Size:                 12 kB
Rss:                1000 kB
Pss:                 100 kB
Pss_Dirty:             0 kB
Anonymous:            12 kB
VmFlags: rd mr mw me
7fbc5fd58000-7fbc5fd5a000 rw-p 00000000 00:00 0
Size:                  8 kB
Rss:                 768 kB
Pss:                 248 kB
Anonymous:           768 kB
7ffe00000000-7ffe00400000 r--s 00000000 fe:00 7                          /data/model.gguf
Size:               4096 kB
Rss:                2048 kB
Pss:                1024 kB
Anonymous:             0 kB
"""


def test_usage_from_smaps(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_report, "PROC", str(tmp_path))
    (tmp_path / "smaps").write_text(SMAPS)
    found = memory_report.usage()
    assert found.rss == 3816 << 10 and found.pss == 1372 << 10
    assert found.anonymous == 780 << 10 and found.file == 3036 << 10
    assert found.libraries() == 3036 << 10
    assert found.libraries([("model.gguf", 0x7FFE00000000, 4 * MIB)]) == 988 << 10
    assert [r.name for r in found.ranges] == ["/usr/bin/sed", "", "/data/model.gguf"]


def test_a_mapping_of_several_ranges_is_no_library(tmp_path, monkeypatch):
    """Advice to use huge pages cuts the range of a file; what lies beside it is another's."""
    monkeypatch.setattr(memory_report, "PROC", str(tmp_path))
    head, _, model = SMAPS.partition("7ffe00000000-7ffe00400000")
    model = model.replace("4096 kB", "1024 kB").replace("2048 kB", "512 kB")
    parts = [0x7FFE00000000 + i * MIB for i in range(6)]
    smaps = head + "".join(f"{at:x}-{at + MIB:x}{model}" for at in parts)
    (tmp_path / "smaps").write_text(smaps)
    ours = [("model.gguf", parts[3], 2 * MIB - 100), ("a", parts[1], MIB), ("b", parts[0], 5)]
    found = memory_report.usage()
    assert found.libraries() == (988 + 6 * 512) << 10
    assert found.libraries(ours) == (988 + 2 * 512) << 10  # parts 2 and 5


def test_usage_from_statm(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_report, "PROC", str(tmp_path))
    (tmp_path / "statm").write_text("765 407 378 5 0 123 0\n")
    found = memory_report.usage()
    assert (found.rss, found.anonymous, found.file) == (407 * OS_PAGE, 29 * OS_PAGE, 378 * OS_PAGE)
    assert found.pss is found.libraries() is None


def test_stacks_of_threads():
    known = memory_report.threads()
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not (found := memory_report.thread_stacks(memory_report.usage().ranges, known)):
            if not memory_report.threads():
                pytest.skip("no /proc")
            assert time.monotonic() < deadline
        ((name, address, n_bytes),) = found
        assert name == f"thread {thread.native_id}" and n_bytes >= MIB
        assert 0 < memory_report.resident_bytes(address, n_bytes, is_file=False) < n_bytes
        assert memory_report.thread_stacks((), known) == []
    finally:
        go.set()
        thread.join()


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("64", [64 << 10]),
        ("512k", [512 << 10]),
        (" 3 M ", [3 * MIB]),
        ("1G", [1 << 30]),
        ("9000B", [9000]),
        ("", []),
        ("much", []),
    ],
)
def test_stack_sizes(monkeypatch, text, n_bytes):
    monkeypatch.setenv("OMP_STACKSIZE", text)
    assert memory_report.stack_sizes()[1:] == n_bytes


def test_a_stack_ends_where_its_size_says(tmp_path, monkeypatch):
    """What lies above it is one range with it in smaps."""
    monkeypatch.setattr(memory_report, "PROC", str(tmp_path))
    monkeypatch.setenv("OMP_STACKSIZE", "1M")
    (tmp_path / "task" / "7").mkdir(parents=True)
    (tmp_path / "task" / "7" / "syscall").write_text("202 0x1 0x2 0x1000ff000 0x7f0000000000")
    (tmp_path / "task" / "8").mkdir()
    (tmp_path / "task" / "8" / "syscall").write_text("running")
    above = memory_report.Range(0x100000000, 0x100000000 + 3 * MIB, "", 0, 0, 0)
    assert memory_report.thread_stacks([above], {"6"}) == [("thread 7", 0x100000000, MIB)]
    alone = above._replace(end=0x100000000 + MIB)
    assert memory_report.thread_stacks([alone]) == [("thread 7", 0x100000000, MIB)]


def test_resident_bytes_of_each_purpose():
    with Pool(64 * MIB) as pool:
        kv = pool.array(OS_PAGE, np.uint8, "kv")
        half = pool.array(OS_PAGE // 2, np.uint8, "half a page")
        rest = pool.array(OS_PAGE // 2, np.uint8, "the other half")
        idle = pool.array(20 * MIB, np.uint8, "idle")
        kv[:] = half[:] = rest[:] = 1
        pool_resident, parts = memory_report._pool_entries(pool)
        sizes = {part.name: (part.nbytes, part.resident) for part in parts}
        assert sum(part.resident for part in parts) == pool_resident
        for part, name in ((kv, "kv"), (half, "half a page"), (rest, "the other half")):
            assert sizes[name] == (part.nbytes, part.nbytes)
        assert sizes["idle"] == (20 * MIB, 0) and sizes["free"][1] == pool_resident - 2 * OS_PAGE
        del kv, half, rest, idle, part


def test_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_report, "PROC", str(tmp_path / "none"))
    with Pool(16 * MIB) as pool:
        kv = pool.allocate(8 * MIB, "kv")
        np.frombuffer(kv, np.uint8)[: 4 * MIB] = 1
        found = memory_report.measure(pool=pool)
        assert 4 * MIB <= found.pool_resident <= 8 * MIB  # by mincore
    assert found.now.rss is found.growth() is found.unexplained() is None
    assert found.now.peak_rss > MIB and found.now.minor_faults > 0
    assert [part.name for part in found.purposes] == ["kv"]
    assert "not available" in str(found)
    json.dumps(found.as_dict())


def test_addresses_that_are_not_mapped(tmp_path, monkeypatch):
    gone = mmap.mmap(-1, MIB)
    address = np.frombuffer(gone, np.uint8).ctypes.data
    gone.close()
    assert memory_report.resident_bytes(address, MIB, is_file=False) in (0, None)
    monkeypatch.setattr(memory_report, "PROC", str(tmp_path))
    assert memory_report.resident_bytes(0, 16 * MIB, is_file=False) is None


@needs_pagemap
def test_resident_bytes_of_our_own_memory():
    with Pool(64 * MIB) as pool:
        small = pool.allocate(64 * OS_PAGE, "kv")  # the start of a huge page
        address, n_bytes = pool.arenas()[0]
        assert memory_report.resident_bytes(address, n_bytes, is_file=False) == 0
        small = np.frombuffer(small, np.uint8)
        small[0] = 1
        first = memory_report.resident_bytes(address, n_bytes, is_file=False)
        assert OS_PAGE <= first <= n_bytes  # one page, or one huge page
        large = np.frombuffer(pool.allocate(20 * MIB, "kv"), np.uint8)
        large[:] = 1
        address = large.ctypes.data
        assert memory_report.resident_bytes(address, large.nbytes, is_file=False) == large.nbytes
        assert memory_report.resident_bytes(address + 1, 1, is_file=False) == OS_PAGE
        assert memory_report.resident_bytes(address + OS_PAGE - 1, 2, is_file=False) == 2 * OS_PAGE
        assert memory_report.resident_bytes(address, large.nbytes, is_file=True) == 0
        del small, large


@needs_pagemap
def test_resident_bytes_of_a_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (16 * OS_PAGE))
    data = np.memmap(path, mode="r")
    whole = data.ctypes.data, data.nbytes
    assert memory_report.resident_bytes(*whole, is_file=True) == 0
    assert data[0] == 0
    assert OS_PAGE <= memory_report.resident_bytes(*whole, is_file=True) < data.nbytes
    assert data.sum(dtype=np.int64) > 0
    assert memory_report.resident_bytes(*whole, is_file=True) == data.nbytes
    assert memory_report.resident_bytes(*whole, is_file=False) == 0


KNOWN_CONTENTS = """
import sys
import numpy as np
from bitnet.runtime import memory_report, mmap
from bitnet.runtime.pool import Pool
path = sys.argv[1]
data = np.memmap(path, mode="r")
mmap.huge_pages([(data.ctypes.data + (16 << 20), 16 << 20)])  # three ranges in smaps
data[:48 << 20].sum(dtype=np.int64)
pool = Pool(200 << 20)
kv = pool.array(64 << 20, "u1", "kv")
kv[:] = 1
heap = np.ones(20 << 20, np.uint8)
found = memory_report.measure([(path, data.ctypes.data, data.nbytes)], pool,
                       [("tokenizer", heap.nbytes)])
import json
print(json.dumps(found.as_dict()))
"""


@needs_pagemap
def test_a_process_of_known_contents_is_explained(tmp_path):
    path = tmp_path / "weights"
    with open(path, "wb") as file:
        file.truncate(80 * MIB)
    done = subprocess.run(
        [sys.executable, "-c", KNOWN_CONTENTS, str(path)],
        text=True,
        capture_output=True,
        cwd=Path(bitnet.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (mapped,), pool = found["files"], found["pool"]
    assert (mapped["name"], mapped["nbytes"]) == ("weights", 80 * MIB)
    assert 48 * MIB <= mapped["resident"] <= 50 * MIB  # the kernel maps some pages ahead
    assert pool["in_use"] == pool["by_purpose"]["kv"]["in_use"] == 64 * MIB
    assert 64 * MIB <= found["pool_resident"] <= pool["reserved"] <= 66 * MIB
    (part,) = [part for part in found["purposes"] if part["name"] == "kv"]
    assert part["nbytes"] == part["resident"] == 64 * MIB
    parts = mapped["resident"] + found["pool_resident"] + found["code"] + 20 * MIB
    assert found["explained"]["rss"] == parts
    for kind in ("rss", "anonymous", "file"):
        assert abs(found["unexplained"][kind]) < 0.05 * found["growth"]["rss"], found
