"""A decode step takes no memory: not from the pool, not from malloc, and Python's objects stay."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from support.paths import ROOT

import bitnet
from bitnet.compute import ops

HOOK = ROOT / "tests" / "support" / "malloc_hook.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
STEPS = 64
STREAMS = {
    "greedy": {"temperature": 0},
    "top_k": {"temperature": 0.8, "top_k": 40, "top_p": 1.0},
    "all": {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.01},
    "penalties": {"temperature": 0, "repetition_penalty": 1.1, "frequency_penalty": 0.1},
}

COUNTS = f"""
import ctypes, gc, json, sys
import numpy as np
import bitnet
from bitnet.compute import ops
from bitnet.models import lm_head_screen
if sys.argv[1] == "screened":
    lm_head_screen.MIN_WEIGHTS = 1
hook, counts = ctypes.CDLL(None), {{}}
never = {{i: -100.0 for i in (2046, 2047)}}           # the bundled model's end tokens

def count(name, step):
    for _ in range(8):
        step()
    gc.collect()
    hook.count_from_now()
    for _ in range({STEPS}):
        step()
    counts[name] = hook.count_until_now()

with bitnet.load(threads=2, prefix_cache=False) as model:
    assert (model.scheduler.transformer.screen is not None) == (sys.argv[1] == "screened")
    with model.session() as session:
        session.feed([1] * 130)                     # so that no page begins in what is counted
        def decode():
            session.decode(ops.argmax(session.decode(1)))
            session.trim(130)
        count("session", decode)
    for name, options in {STREAMS}.items():
        pieces = model.stream([1] * 130, max_tokens=250, seed=1, logit_bias=never, **options)
        count(name, lambda: next(pieces))
        pieces.close()
    count("a copy", lambda: np.zeros(4096, np.uint8))
print(json.dumps(counts))
"""


@pytest.fixture(scope="module", params=["screened", "full"])
def counts(request, tmp_path_factory):
    """{what was done: calls for 4 KiB or more in STEPS steps} of a process under the hook."""
    if sys.platform != "linux" or COMPILER is None or os.environ.get("LD_PRELOAD"):
        pytest.skip("needs Linux, a C compiler, and nothing preloaded")
    library = tmp_path_factory.mktemp("hook") / "hook.so"
    subprocess.run([COMPILER, "-O1", "-shared", "-fPIC", HOOK, "-o", library, "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, request.param],
        capture_output=True,
        text=True,
        env=os.environ | {"LD_PRELOAD": str(library)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_hook_counts(counts):
    assert counts["a copy"] >= STEPS


@pytest.mark.parametrize("what", ["session", *STREAMS])
def test_nothing_of_4_kib_is_taken_from_malloc(counts, what):
    assert counts[what] == 0


@pytest.fixture(scope="module")
def model():
    with bitnet.load(threads=1, prefix_cache=False) as model:
        yield model


def test_nothing_is_taken_from_the_pool(model):
    with model.session() as session:
        session.feed([1] * 130)
        made = model.memory().pool.n_made
        for i in range(STEPS):
            session.decode(i)
        assert model.memory().pool.n_made == made


def test_python_does_not_grow(model):
    """A step leaves nothing behind; a session remembers its tokens, a generation its text too."""
    with model.session() as session:
        session.feed([1] * 130)

        def decode():
            session.decode(1)
            session.trim(130)

        assert grown(decode, 8) < 16 * STEPS  # less than the smallest object a step
    pieces = model.stream(
        [1] * 130, max_tokens=250, temperature=0, logit_bias={2046: -100.0, 2047: -100.0}
    )
    assert grown(lambda: next(pieces), 3) < 250 * STEPS


def grown(step, times):
    """Bytes of Python's objects that STEPS steps leave behind: the least of several times, since
    objects made before they were traced are replaced by traced ones at first."""
    for _ in range(8):
        step()
    tracemalloc.start()
    try:
        return min(grown_once(step) for _ in range(times))
    finally:
        tracemalloc.stop()


def grown_once(step):
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(STEPS):
        step()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def test_argmax():
    for values in ([1.0], [2.0, 5.0, 5.0, -np.inf], [-np.inf] * 3, list(range(100))):
        logits = np.array(values, np.float32)
        logits.flags.writeable = False
        assert ops.argmax(logits) == logits.argmax()
    with pytest.raises(ValueError, match="argmax of nothing"):
        ops.argmax(np.zeros(0, np.float32))


def test_exp_in_place():
    x = np.linspace(-3, 3, 100, dtype=np.float32)
    wanted = ops.exp(x)
    assert ops.exp(x, x) is x and (x == wanted).all()
    with pytest.raises(ValueError, match="out has 3 items, not 100"):
        ops.exp(x, np.zeros(3, np.float32))
