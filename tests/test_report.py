"""The memory report: its arithmetic, its table, and the figures of a process of known contents."""
import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bitnet.memory import Pool

import bitnet
from bitnet import report

OS_PAGE = mmap.PAGESIZE
MIB = 1 << 20
NOW = report.Usage(rss=100 * MIB, anonymous=60 * MIB, file=40 * MIB, pss=90 * MIB,
                   peak_rss=120 * MIB, minor_faults=5000, major_faults=3)
BEFORE = report.Usage(rss=30 * MIB, anonymous=20 * MIB, file=10 * MIB, pss=25 * MIB,
                      peak_rss=30 * MIB, minor_faults=1000, major_faults=3)
needs_pagemap = pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="no pagemap")


def report_of(**changes):
    with Pool(64 * MIB) as pool:
        kv = pool.allocate(12 * MIB, "kv")
        kv.free()
        kv = pool.allocate(10 * MIB, "kv")
        scratch = pool.allocate(1000, "scratch")
        stats = pool.stats()
        assert kv.nbytes and scratch.nbytes
    parts = {"files": [report.Part("model.gguf", 50 * MIB, 29 * MIB)],
             "pool": stats, "pool_resident": 11 * MIB,
             "stacks": [report.Part("thread 1", 8 * MIB, MIB)],
             "others": [report.Part("tokenizer", 20 * MIB, 20 * MIB)],
             "now": NOW, "baseline": BEFORE}
    return report.MemoryReport(**{**parts, **changes})


def test_what_is_unexplained():
    found = report_of()
    assert [found.growth(kind) // MIB for kind in ("rss", "anonymous", "file")] == [70, 40, 30]
    assert [found.explained(kind) // MIB for kind in ("rss", "anonymous", "file")] == [61, 32, 29]
    assert [found.unexplained(kind) // MIB for kind in ("rss", "anonymous", "file")] == [9, 8, 1]
    without = report_of(pool=None, pool_resident=None, stacks=[], others=[])
    assert without.unexplained() == (70 - 29) * MIB
    shrunk = report_of(now=BEFORE)
    assert shrunk.unexplained() == -61 * MIB


def test_what_is_unknown_stays_unknown():
    unknown = report_of(files=[report.Part("model.gguf", 50 * MIB, None)])
    assert unknown.explained() is unknown.unexplained() is unknown.unexplained("file") is None
    assert unknown.unexplained("anonymous") == 8 * MIB


def test_table():
    lines = str(report_of()).splitlines()
    assert len({len(line) for line in lines}) == 2      # the last column is right-aligned or empty
    text = "\n".join(" ".join(line.split()) for line in lines)
    for row in ("mapped files size resident", "model.gguf 50.0 MiB 29.0 MiB", "pool in use peak",
                "kv 10.0 MiB 12.0 MiB", "scratch 1.0 KiB 1.0 KiB",
                "all purposes 10.0 MiB 12.0 MiB", "pool (limit 64.0 MiB) reserved resident",
                "thread stacks size resident", "thread 1 8.0 MiB 1.0 MiB",
                "tokenizer 20.0 MiB 20.0 MiB", "resident (RSS) 100.0 MiB 70.0 MiB",
                "anonymous 60.0 MiB 40.0 MiB", "file-backed 40.0 MiB 30.0 MiB",
                "explained by the parts above 61.0 MiB", "unexplained 9.0 MiB", "anonymous 8.0 MiB",
                "file-backed 1.0 MiB", "peak RSS 120.0 MiB", "page faults, minor 5,000 4,000",
                "page faults, major 3 0"):
        assert row in text, row


def test_dict_is_json():
    figures = json.loads(json.dumps(report_of().as_dict()))
    assert figures["files"] == [{"name": "model.gguf", "nbytes": 50 * MIB, "resident": 29 * MIB}]
    assert figures["pool"]["by_purpose"]["kv"] == {
        "in_use": 10 * MIB, "peak": 12 * MIB, "count": 1}
    assert figures["now"]["rss"] == 100 * MIB and figures["baseline"]["rss"] == 30 * MIB
    assert figures["growth"] == {"rss": 70 * MIB, "anonymous": 40 * MIB, "file": 30 * MIB}
    assert figures["unexplained"] == {"rss": 9 * MIB, "anonymous": 8 * MIB, "file": MIB}


def test_usage_from_smaps_rollup(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PROC", str(tmp_path))
    (tmp_path / "smaps_rollup").write_text(
        "55d7dbe83000-7ffdc6b49000 ---p 00000000 00:00 0    [rollup]\n"
        "Rss:              1768 kB\nPss:               348 kB\nPss_Anon:          112 kB\n"
        "Anonymous:         112 kB\nAnonHugePages:       0 kB\n")
    found = report.usage()
    assert found.rss == 1768 << 10 and found.pss == 348 << 10
    assert found.anonymous == 112 << 10 and found.file == 1656 << 10


def test_usage_from_statm(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PROC", str(tmp_path))
    (tmp_path / "statm").write_text("765 407 378 5 0 123 0\n")
    found = report.usage()
    assert (found.rss, found.anonymous, found.file) == (407 * OS_PAGE, 29 * OS_PAGE, 378 * OS_PAGE)
    assert found.pss is None


def test_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "PROC", str(tmp_path / "none"))
    with Pool(16 * MIB) as pool:
        kv = pool.allocate(8 * MIB, "kv")
        np.frombuffer(kv, np.uint8)[:4 * MIB] = 1
        found = report.measure(pool=pool)
        assert 4 * MIB <= found.pool_resident <= 8 * MIB            # by mincore
    assert found.now.rss is found.growth() is found.unexplained() is None
    assert found.now.peak_rss > MIB and found.now.minor_faults > 0
    assert str(found).count("not available") == 9
    json.dumps(found.as_dict())


def test_addresses_that_are_not_mapped(tmp_path, monkeypatch):
    gone = mmap.mmap(-1, MIB)
    address = np.frombuffer(gone, np.uint8).ctypes.data
    gone.close()
    assert report.resident_bytes(address, MIB, is_file=False) in (0, None)
    monkeypatch.setattr(report, "PROC", str(tmp_path))
    assert report.resident_bytes(0, 16 * MIB, is_file=False) is None


@needs_pagemap
def test_resident_bytes_of_our_own_memory():
    with Pool(64 * MIB) as pool:
        small = pool.allocate(64 * OS_PAGE, "kv")           # the start of a 2 MiB block
        address, n_bytes = pool.ranges()[0]
        assert report.resident_bytes(address, n_bytes, is_file=False) == 0
        small = np.frombuffer(small, np.uint8)
        small[0] = 1
        first = report.resident_bytes(address, n_bytes, is_file=False)
        assert OS_PAGE <= first <= n_bytes                  # one page, or one huge page
        large = np.frombuffer(pool.allocate(20 * MIB, "kv"), np.uint8)
        large[:] = 1
        address = large.ctypes.data
        assert report.resident_bytes(address, large.nbytes, is_file=False) == large.nbytes
        assert report.resident_bytes(address + 1, 1, is_file=False) == OS_PAGE
        assert report.resident_bytes(address + OS_PAGE - 1, 2, is_file=False) == 2 * OS_PAGE
        assert report.resident_bytes(address, large.nbytes, is_file=True) == 0
        del small, large


@needs_pagemap
def test_resident_bytes_of_a_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (16 * OS_PAGE))
    data = np.memmap(path, mode="r")
    whole = data.ctypes.data, data.nbytes
    assert report.resident_bytes(*whole, is_file=True) == 0
    assert data[0] == 0
    assert OS_PAGE <= report.resident_bytes(*whole, is_file=True) < data.nbytes
    assert data.sum(dtype=np.int64) > 0
    assert report.resident_bytes(*whole, is_file=True) == data.nbytes
    assert report.resident_bytes(*whole, is_file=False) == 0


KNOWN_CONTENTS = """
import sys
import numpy as np
from bitnet import report
from bitnet.memory import Pool
path = sys.argv[1]
data = np.memmap(path, mode="r")
data[:48 << 20].sum(dtype=np.int64)
pool = Pool(200 << 20)
kv = pool.array(64 << 20, "u1", "kv")
kv[:] = 1
heap = np.ones(20 << 20, np.uint8)
found = report.measure([(path, data.ctypes.data, data.nbytes)], pool, [],
                       [("tokenizer", heap.nbytes)])
import json
print(json.dumps(found.as_dict()))
"""


@needs_pagemap
def test_a_process_of_known_contents_is_explained(tmp_path):
    path = tmp_path / "weights"
    with open(path, "wb") as file:
        file.truncate(80 * MIB)
    done = subprocess.run([sys.executable, "-c", KNOWN_CONTENTS, str(path)], text=True,
                          capture_output=True, cwd=Path(bitnet.__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (mapped,), pool = found["files"], found["pool"]
    assert (mapped["name"], mapped["nbytes"]) == ("weights", 80 * MIB)
    assert 48 * MIB <= mapped["resident"] <= 50 * MIB       # the kernel maps some pages ahead
    assert pool["in_use"] == pool["by_purpose"]["kv"]["in_use"] == 64 * MIB
    assert 64 * MIB <= found["pool_resident"] <= pool["reserved"] <= 66 * MIB
    assert found["explained"]["rss"] == mapped["resident"] + found["pool_resident"] + 20 * MIB
    for kind in ("rss", "anonymous", "file"):
        assert abs(found["unexplained"][kind]) < 0.05 * found["growth"]["rss"], found
