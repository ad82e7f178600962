"""What a caller's program does with the rounding mode and denormals: no bit of ours depends on it,
and it is as before when a call returns."""

import platform
import subprocess
import sys
import threading

import pytest
from support.paths import DATA

import bitnet
from bitnet.checkpoints.convert import convert
from bitnet.runtime import float_mode

if platform.machine() in ("x86_64", "AMD64"):  # bits of MXCSR
    MODES = {
        "down": 0x3F80,
        "up": 0x5F80,
        "to zero": 0x7F80,
        "flush to zero": 0x9F80,
        "denormals are zero": 0x1FC0,
        "all": 0xFFC0,  # of the above but the traps
        "traps": 0x1900,  # of invalid operations, divisions by zero, overflow
    }
elif platform.machine() in ("aarch64", "arm64"):  # of FPCR
    MODES = {"up": 1 << 22, "down": 2 << 22, "to zero": 3 << 22, "flush to zero": 1 << 24}
else:
    MODES = {}
pytestmark = pytest.mark.skipif(not MODES, reason="no mode is known of this processor")
PROMPT = "A ternary weight has"
FLAGS = 0x3F  # of MXCSR: what has happened so far


def texts(model):
    sampled = model.generate(PROMPT, seed=3, temperature=1.5, top_p=0.9, max_tokens=24).text
    context, continuation = [1, 2, 3, 4], [5, 6, 7]
    with model.session() as session:
        return (
            sampled,
            model.logits(list(range(3, 90))).tobytes(),
            model.loglikelihood(context, continuation),
            session.feed([1, 2, 3]).tobytes(),
        )


def in_mode(name, function):
    """function() in a mode; the mode must be the same afterwards."""
    before = float_mode.swap(MODES[name])
    try:
        result = function()
    finally:
        after = float_mode.swap(before)
    assert after & ~FLAGS == MODES[name]
    return result


def in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", MODES)
def test_no_bit_depends_on_the_mode(name, n_threads):
    with bitnet.load(threads=n_threads, prefix_cache=False) as model:
        expected = texts(model)
        assert in_mode(name, lambda: texts(model)) == expected  # set after the team was made
        assert in_thread(lambda: in_mode(name, lambda: texts(model))) == expected  # and before
    with in_mode(name, lambda: bitnet.load(threads=n_threads, prefix_cache=False)) as model:
        assert in_mode(name, lambda: texts(model)) == expected


TEAM = f"""
import sys
import numpy as np
import bitnet
from bitnet.compute import ops
from bitnet.runtime import float_mode
data = np.ones(1 << 22, np.uint8)
mode = float_mode.swap({MODES.get("all", 0)})
ops.read_bandwidth(data, 2)  # a team that is made in this mode, outside of any step
assert float_mode.swap(mode) & ~{FLAGS} == {MODES.get("all", 0)}
with bitnet.load(threads=2, prefix_cache=False) as model:
    sys.stdout.buffer.write(model.logits(list(range(3, 90))).tobytes())
"""


def test_a_team_that_was_made_in_another_mode():
    done = subprocess.run([sys.executable, "-c", TEAM], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with bitnet.load(threads=1) as model:
        assert done.stdout == model.logits(list(range(3, 90))).tobytes()


@pytest.mark.parametrize("name", MODES)
def test_embeddings(name):
    with bitnet.load(DATA / "hf_embedding_qwen3", threads=2) as model:
        expected = model.embed(PROMPT).tobytes()
        assert in_mode(name, lambda: model.embed(PROMPT)).tobytes() == expected


@pytest.mark.parametrize("name", MODES)
def test_what_is_written_to_disk(tmp_path, monkeypatch, name):
    """Repacked weights and converted files."""
    written = {}
    for mode in (None, name):
        monkeypatch.setenv("BITNET_CACHE", str(tmp_path / str(mode)))

        def write(mode=mode):
            bitnet.load(DATA / "hf_bitnet_offline").close()
            convert(DATA / "hf_bitnet_offline", tmp_path / f"{mode}.gguf")

        in_mode(mode, write) if mode else write()
        (repacked,) = (tmp_path / str(mode)).glob("*.gguf")
        written[mode] = repacked.read_bytes(), (tmp_path / f"{mode}.gguf").read_bytes()
    assert written[name] == written[None]
