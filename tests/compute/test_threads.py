"""Threads while a model is in use: more, fewer, limited from outside, and after a fork."""

import os
import subprocess
import sys
import threading

import pytest

import bitnet
from bitnet.compute import ops
from bitnet.runtime import cpu

PROMPT = [1] * 128  # a step of so many rows is worth waking a second thread for
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


@pytest.fixture
def free(monkeypatch):
    """No number of threads in the environment."""
    for name in cpu.ASKED[1:]:
        monkeypatch.delenv(name, raising=False)


def grants(monkeypatch, n):
    """Let the machine grant n threads to who asks for no number."""
    asked = cpu.threads
    answer = lambda m=None: asked(m) if m is not None else (n, "physical cores allowed")  # noqa: E731
    monkeypatch.setattr(cpu, "threads", answer)


def run(script, **environment):
    """What a script prints, which must end well within a minute."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_threads_can_be_set_at_any_time_and_text_is_the_same():
    with bitnet.load(threads=1, prefix_cache=False) as model:
        wanted = model.generate(PROMPT, max_tokens=8, temperature=0).token_ids
        for n in (3, 2, 1, 4):
            model.threads = n
            assert model.threads == n
            assert model.generate(PROMPT, max_tokens=8, temperature=0).token_ids == wanted
        with pytest.raises(ValueError, match="threads: 0 is not a number"):
            model.threads = 0
        assert model.threads == 4


def test_threads_may_change_between_the_pieces_of_a_stream():
    with bitnet.load(threads=1, prefix_cache=False) as model:
        wanted = model.generate(PROMPT, max_tokens=12, temperature=0).text
        pieces = []
        for piece in model.stream(PROMPT, max_tokens=12, temperature=0):
            pieces.append(piece)
            model.threads = len(pieces) % 3 + 1
        assert "".join(pieces) == wanted


def test_a_smaller_grant_is_noticed_and_a_larger_one_is_no_more_than_at_first(free, monkeypatch):
    grants(monkeypatch, 3)
    with bitnet.load() as model:
        seen = []
        for n in (2, 1, 3, 8):
            grants(monkeypatch, n)
            model._granted._looked_at = 0.0  # as after a second
            model.session().close()
            seen.append(model.threads)
        assert seen == [2, 1, 3, 3]
        model.threads = None
        assert model.threads == 8


def test_a_number_that_was_asked_for_stays(free, monkeypatch):
    with bitnet.load(threads=2) as model:
        grants(monkeypatch, 1)
        model._granted._looked_at = 0.0
        model.generate(PROMPT, max_tokens=1)
        assert model.threads == 2
        model.threads = None
        assert model.threads == 1


AFFINITY = """
import os, bitnet
from bitnet.runtime import cpu
cpus = cpu.affinity()
with bitnet.load() as model:
    at_load = model.threads
    os.sched_setaffinity(0, cpus[:1])
    model._granted._looked_at = 0.0
    model.generate([1], max_tokens=1)
    fewer = model.threads
    os.sched_setaffinity(0, cpus)
    model._granted._looked_at = 0.0
    model.generate([1], max_tokens=1)
    print(at_load, fewer, model.threads)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_affinity_is_followed(free):
    at_load, fewer, after = map(int, run(AFFINITY).split())
    assert fewer == 1 and at_load == after == cpu.threads()[0]


LIMITED = """
import os, sys, bitnet
import threadpoolctl
from bitnet.compute.threads import allowed
count = lambda: len(os.listdir("/proc/self/task"))
with bitnet.load(threads=3) as model:
    before = count()
    openmp = [p["prefix"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "openmp"]
    with threadpoolctl.threadpool_limits(1):
        model.generate([1] * 128, max_tokens=1)
        one = allowed(3)
        assert count() == before
    with threadpoolctl.threadpool_limits(2):
        two = allowed(3)
    print(*openmp, one, two, allowed(3))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("offered", "used"), [("4", "1 2 3"), ("2", "1 3 3")])
def test_threadpoolctl_sees_and_limits_us(offered, used):
    """A limit counts if it is less than what OpenMP offered at the import, whatever we use."""
    pytest.importorskip("threadpoolctl")
    assert run(LIMITED, OMP_NUM_THREADS=offered).split(maxsplit=1)[1].strip() == used


FORK = """
import os, sys, bitnet
with bitnet.load(threads=2, prefix_cache={prefix_cache}) as model:
    wanted = model.generate([1] * 128, max_tokens=8, temperature=0).token_ids
    session = model.session()
    session.feed([1] * 128)
    child = os.fork()
    if child == 0:
        same = model.generate([1] * 128, max_tokens=8, temperature=0).token_ids == wanted
        same &= session.best([5]) >= 0 and session.fork().length == 129
        model.threads = 2
        same &= model.generate([1] * 128, max_tokens=8, temperature=0).token_ids == wanted
        os._exit(0 if same else 3)
    assert model.generate([1] * 128, max_tokens=8, temperature=0).token_ids == wanted
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_fork
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_forked_child_generates_the_same_text(prefix_cache):
    run(FORK.format(prefix_cache=prefix_cache))


ASYNC = """
import asyncio, os, sys, bitnet
async def text(model):
    return "".join([piece async for piece in model.astream([1] * 128, max_tokens=8, temperature=0)])
with bitnet.load(threads=2) as model:
    wanted = asyncio.run(text(model))
    child = os.fork()
    if child == 0:
        os._exit(0 if asyncio.run(text(model)) == wanted else 3)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_fork
def test_asynchronous_calls_work_in_a_forked_child():
    run(ASYNC)


BUSY = """
import os, sys, threading, bitnet
with bitnet.load(threads=2) as model, bitnet.load(threads=1) as other:
    is_inside, may_end = threading.Event(), threading.Event()
    def hold():
        logits = model.session().feed([1])  # a view of the pool, which the child never drops
        with model.scheduler.alone():
            is_inside.set()
            may_end.wait()
    thread = threading.Thread(target=hold)
    thread.start()
    is_inside.wait()
    child = os.fork()
    if child == 0:
        try:
            model.generate([1], max_tokens=1)
        except ValueError as error:
            print(error, flush=True)
        model.close()
        os._exit(0 if other.generate([1], max_tokens=1).token_ids else 3)
    may_end.set()
    thread.join()
    assert model.generate([1], max_tokens=1).token_ids
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_fork
def test_a_fork_in_the_middle_of_another_threads_step_is_an_error_in_the_child():
    assert "when the process was forked: load it again" in run(BUSY)


def test_threads_of_two_models_in_two_python_threads():
    """Each Python thread that runs steps has a team of its own."""
    texts = {}

    def work(name, n):
        with bitnet.load(threads=n, prefix_cache=False) as model:
            texts[name] = model.generate(PROMPT, max_tokens=8, temperature=0).token_ids

    workers = [threading.Thread(target=work, args=(i, i + 1)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert texts[0] == texts[1] == texts[2]


SMALL_STACKS = """
import bitnet
for kv_dtype in ("int8", "f16"):
    texts = set()
    for n in (1, 2):
        with bitnet.load(threads=n, kv_dtype=kv_dtype, context=257) as model:
            done = model.generate([1] * 250, max_tokens=20, seed=1, context_end="window")
            texts.add(tuple(done.token_ids))
    print(len(texts))
"""


@pytest.mark.skipif(not ops.openmp, reason="without OpenMP")
def test_small_stacks_are_enough(isa):
    """As docs/memory.md has it; musl gives a thread 128 KiB."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STACKS],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_STACKSIZE": "96K", "BITNET_ISA": isa},
    )
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1"]), done.stderr


REFUSED = """
import resource, threading, bitnet
from bitnet.compute import ops
assert ops.startable_threads(1) == 1
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.RLIM_INFINITY))
with bitnet.load(threads=2, prefix_cache=False) as model:
    print(model.threads)
    model.threads = 3
    texts = []
    def say():
        texts.append(model.generate("and", max_tokens=20, seed=1).text)
    say()
    thread = threading.Thread(target=say)
    thread.start()
    thread.join()
    print(texts[0] == texts[1])
"""


@pytest.mark.skipif(not ops.openmp or sys.platform != "linux", reason="without RLIMIT_AS or OpenMP")
def test_threads_that_the_system_refuses_are_done_without():
    """libgomp ends the process where one cannot be started."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"OMP_STACKSIZE": "32G"},
    )
    assert (done.returncode, done.stdout.split()) == (0, ["1", "True"]), done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("threads: 1 instead of 2, as the system starts no more (Resource ")
    assert second.startswith("threads: 1 instead of 3, ")
