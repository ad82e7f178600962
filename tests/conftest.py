"""What all tests share: the bundled model, instruction sets, a cache folder of their own."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

# A Python that a test starts finds the bitnet that is tested, whatever folder it is started in.
# (Nothing is imported here: test_layout.py and test_docs.py need no compiled modules.)
TESTED = Path(importlib.util.find_spec("bitnet").origin).parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(TESTED.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Children inherit an ignored SIGINT, as what a script runs in the background has: a test that sends
# one to them would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header():
    return f"bitnet from {TESTED}"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Repacked weights go to a folder of this run, not to the user's cache."""
    os.environ["BITNET_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        from bitnet.runtime import cpu

        metafunc.parametrize("isa", cpu.supported(), indirect=True)


@pytest.fixture
def isa(request):
    """Each instruction set that this CPU has, in use."""
    from bitnet.runtime import dispatch

    yield dispatch.use(request.param)
    dispatch.use()


@pytest.fixture(scope="module")
def model():
    """The bundled one."""
    import bitnet

    with bitnet.load() as one:
        yield one
