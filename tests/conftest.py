"""Which `bitnet` is tested: the installed one where there is one, else the one built in place.

The folder ./bitnet of a checkout that was only pip-installed has no compiled modules, yet Python
would find it first: `python -m pytest` and `python -c` put the working directory at the front.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def elsewhere(entries):
    """The entries of a path that are not the checkout."""
    return [entry for entry in entries if Path(entry or os.curdir).resolve() != ROOT]


sys.path[:] = elsewhere(sys.path)
inherited = elsewhere(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
if importlib.util.find_spec("bitnet") is None:
    sys.path.insert(0, str(ROOT))
    inherited.insert(0, str(ROOT))
# a Python that a test starts looks where this one does
os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(inherited)}


def pytest_report_header():
    import bitnet

    return f"bitnet {bitnet.__version__} from {Path(bitnet.__file__).parent}"


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
