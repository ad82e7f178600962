"""Which `bitnet` is tested: the installed one where there is one, else the one built in place.

The folder ./bitnet of a checkout that was only pip-installed has no compiled modules, yet Python
would find it first (`python -m pytest` puts the working directory at the front of sys.path).
"""
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != ROOT]
if importlib.util.find_spec("bitnet") is None:
    sys.path.insert(0, str(ROOT))


def pytest_report_header():
    import bitnet
    return f"bitnet {bitnet.__version__} from {Path(bitnet.__file__).parent}"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Repacked weights go to a folder of this run, not to the user's cache."""
    os.environ["BITNET_CACHE"] = str(tmp_path_factory.mktemp("cache"))
