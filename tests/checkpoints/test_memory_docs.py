"""docs/memory.md says what the planner says."""

import pytest
from support.benches import bench
from support.paths import TINY_MODEL

import bitnet

made = bench("memory_table")
TEXT = made.DOCUMENT.read_text("utf-8")


def test_the_table_is_what_the_planner_says():
    _, inside, _ = made.parts(TEXT)
    assert inside == "".join(made.table()), "python bench/support/memory_table.py --write"


@pytest.mark.parametrize("kv_dtype", made.DTYPES)
def test_a_session_takes_what_the_table_says(kv_dtype):
    """Of bitnet-tiny: the bytes that its pool has handed out."""
    options = {"kv_dtype": kv_dtype, "threads": 1, "prefix_cache": False}
    with bitnet.load(TINY_MODEL, **options) as model:
        c = model.config
        shape = c.num_hidden_layers, c.num_key_value_heads, c.head_dim
        assert shape == made.SHAPES["bitnet-tiny"]
        with model.session() as session:
            session.feed([1] * 512)
            assert model.memory().pool.by_purpose["kv"][0] == made.state_bytes(c, 512, kv_dtype)


def test_what_bench_measures_of_sessions(tmp_path):
    sessions = bench("sessions")
    found = sessions.prefix(None, 200, rounds=2)
    assert found["reused_s"] > 0 and found["tokens"] == 200
    assert sessions.restart(None, 200, rounds=1)["from_file_s"] > 0
    saved = sessions.saved(None, 200, "int8", rounds=1)
    assert saved["file_bytes"] > 2 * made.state_bytes(bitnet.load().config, 128, "int8")
