"""The experiments of bench/support/mapping.py on the bundled model: one copy in memory, none, a
part."""

import shutil
import sys

import pytest
from support.benches import bench

import bitnet
from bitnet.api.load import BUNDLED_MODEL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux where pages are")
mapping = bench("mapping")


@pytest.fixture
def copy(tmp_path):
    """A model's file that nobody else maps, and that can be evicted from memory."""
    path = tmp_path / "m.gguf"
    shutil.copy(BUNDLED_MODEL, path)
    try:
        mapping.evict(path)
    except OSError as error:
        pytest.skip(str(error))  # a file system that is memory itself
    return path


def test_two_processes_hold_one_copy(copy):
    one, two = mapping.shared(copy, (1, 2))
    assert one["file_rss"] == pytest.approx(one["file_pss"], rel=0.02)
    assert two["file_rss"] == pytest.approx(2 * one["file_rss"], rel=0.02)
    assert two["file_pss"] == pytest.approx(one["file_pss"], rel=0.02)
    assert one["file_rss"] > 0.9 * copy.stat().st_size


def test_an_evicted_file_is_not_in_memory_and_a_read_one_is(copy):
    assert mapping.cached(copy) == 0
    assert mapping.read_cold([copy]) > 0
    assert mapping.cached(copy) >= copy.stat().st_size
    mapping.evict(copy)
    assert mapping.cached(copy) == 0


def test_a_file_in_use_cannot_be_evicted(copy):
    with bitnet.load(copy) as model:
        model.generate([1], max_tokens=1)
        with pytest.raises(OSError, match="stay in memory"):
            mapping.evict(copy)


def test_cold_starts(copy):
    rows = list(mapping.cold(copy, ("prefetch",), rounds=1))
    assert [(row["mapping"], row["file"]) for row in rows] == [
        ("prefetch", "cold"), ("prefetch", "warm"), ("plain read", "cold"),
    ]  # fmt: skip
    cold = rows[0]
    assert cold["major_faults"] >= 1
    assert 0 < cold["load_s"] < cold["first_token_s"]


def test_weights_that_were_paged_out_are_read_again(copy):
    with bitnet.load(copy, threads=1, prefix_cache=False) as model:
        layers = [data for layer in model.scheduler.transformer._mapped for data in layer]
        wanted = model.logits([1, 2, 3]).tobytes()
        for data in layers:
            mapping.page_out(data)
        held = sum(mapping.cached_of(data) for data in layers)
        assert held < 0.2 * sum(data.nbytes for data in layers)  # pages at the ends
        assert model.logits([1, 2, 3]).tobytes() == wanted


def test_a_model_decodes_in_less_memory_than_its_weights(copy):
    whole, part = mapping.less(copy, shares=(1.0, 0.0), n_tokens=3, rounds=1)
    assert whole["memory"] == whole["weights"] == part["weights"]
    assert part["memory"] < 0.6 * part["weights"]
    assert part["tokens_s"] > 0 and whole["slowdown"] == 1


def test_speed_by_policy(copy):
    rows = list(mapping.speed(copy, n_tokens=2, rounds=1))
    assert [row["mapping"] for row in rows] == ["map", "copy", "lock"]
    assert all(row["tokens_s"] > 0 and row["ratio"] > 0 for row in rows)
