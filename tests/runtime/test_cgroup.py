"""The memory that cgroups leave, and what a load does with it."""

import json

import pytest
from support.paths import DATA

import bitnet
from bitnet.api.load import limit_of
from bitnet.cli import main
from bitnet.errors import MemoryLimitExceeded, PoolExhausted
from bitnet.runtime import cgroup

MIB = 1 << 20
TALKER = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
V1_NONE = str((1 << 63) - 4096)


def write(folder, membership, files):
    """A tree of cgroup files; returns what memory_left takes."""
    for name, content in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    (folder / "self").write_text(membership)
    return str(folder / "fs"), str(folder / "self")


def test_the_smallest_of_all_levels_counts_less_what_is_used(tmp_path):
    files = {
        "a/memory.max": 900 * MIB,
        "a/memory.current": 850 * MIB,
        "a/memory.stat": f"anon 1\nactive_file {100 * MIB}\ninactive_file {200 * MIB}\n",
        "a/b/memory.max": 800 * MIB,
    }
    assert cgroup.memory_left(*write(tmp_path, "0::/a/b\n", files)) == 350 * MIB
    (tmp_path / "fs/a/memory.max").write_text("max\n")
    assert cgroup.memory_left(*write(tmp_path, "0::/a/b\n", {})) == 800 * MIB


def test_version_1(tmp_path):
    files = {
        "memory/box/memory.limit_in_bytes": 500 * MIB,
        "memory/box/memory.usage_in_bytes": 450 * MIB,
        "memory/box/memory.stat": f"active_file 7\ntotal_active_file {10 * MIB}\n"
        f"total_inactive_file {20 * MIB}\n",
        "memory/memory.limit_in_bytes": V1_NONE,
    }
    found = cgroup.memory_left(*write(tmp_path, "4:memory:/box\n2:cpu:/other\n", files))
    assert found == 80 * MIB


@pytest.mark.parametrize("text", ["max", V1_NONE, "", "-1", "what"])
def test_no_limit_and_nonsense(tmp_path, text):
    for name, membership in (
        ("memory.max", "0::/\n"),
        ("memory/memory.limit_in_bytes", "4:memory:/\n"),
    ):
        assert cgroup.memory_left(*write(tmp_path, membership, {name: text})) is None
    assert cgroup.memory_left("/nowhere", "/nowhere/self") is None


@pytest.mark.parametrize("used", ["200000000", "", "what"])
def test_more_used_than_granted_leaves_nothing(tmp_path, used):
    files = {"memory.max": 100 * MIB, "memory.current": used}
    files["memory.stat"] = "active_file 0\ninactive_file 0\n"
    left = cgroup.memory_left(*write(tmp_path, "0::/\n", files))
    assert left == (0 if used.isdigit() else 100 * MIB)


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A call that puts the process into a cgroup with so many bytes left, as far as it can see."""
    monkeypatch.delenv("BITNET_MEMORY_LIMIT", raising=False)
    left = cgroup.memory_left

    def enter(n_bytes):
        paths = write(tmp_path, "0::/\n", {"memory.max": n_bytes})
        monkeypatch.setattr(cgroup, "memory_left", lambda: left(*paths))

    return enter


def test_a_model_keeps_to_it(container):
    container(24 * MIB)
    with bitnet.load(TALKER, threads=1, slots=64, prefix_cache=False) as model:
        assert model.memory().pool.limit < 24 * MIB
        with pytest.raises(PoolExhausted):
            held = [model.session() for _ in range(64)]
            for session in held:
                session.feed([1] * 200)
        model.close()
    container(100 * MIB)
    with bitnet.load(TALKER, threads=1) as model:
        assert 24 * MIB < model.memory().pool.limit < 100 * MIB


def test_one_that_does_not_fit_is_refused_before_it_is_killed(container, capsys):
    container(10 * MIB)
    with pytest.raises(MemoryLimitExceeded, match=r"^cgroup memory left: 10485760 bytes") as caught:
        bitnet.load(TALKER)
    assert caught.value.setter == "cgroup memory left" and caught.value.table
    assert "memory_limit" not in str(caught.value)  # asking for more would not make it more
    assert main(["memory", str(TALKER)]) == 1
    assert "cgroup memory left: 10485760 bytes" in capsys.readouterr().err


def test_who_asks_for_a_limit_has_it(container, caplog):
    container(100 * MIB)
    assert limit_of("64MiB") == (64 * MIB, "memory_limit") and not caplog.text
    assert limit_of() == (100 * MIB, "cgroup memory left")
    assert limit_of("1GiB") == (1024 * MIB, "memory_limit")  # there may be swap
    assert "memory_limit 1.0 GiB is more than the 100.0 MiB that the cgroup leaves" in caplog.text


def test_commands_show_it(container, capsys):
    container(100 * MIB)
    assert main(["memory", str(TALKER)]) == 0
    assert "cgroup memory left 100.0 MiB: it fits" in capsys.readouterr().out
    assert main(["memory", str(TALKER), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory_limit"] == 100 * MIB
    assert bitnet.info()["cgroup_memory"] == 100 * MIB
