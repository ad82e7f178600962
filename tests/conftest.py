"""What all tests share: the bundled model, instruction sets, a cache folder of their own."""

import os
from pathlib import Path

import pytest

import bitnet

# A Python that a test starts finds the bitnet that is tested, whatever folder it is started in.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(bitnet.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def pytest_report_header():
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
    with bitnet.load() as one:
        yield one
