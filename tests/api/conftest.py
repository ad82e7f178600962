"""What tests of the API share: no limit from outside, and the talker's reference."""

import numpy as np
import pytest
from support.talker import TALKER


@pytest.fixture(scope="module", autouse=True)
def no_limit():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BITNET_MEMORY_LIMIT", raising=False)
        yield


@pytest.fixture(scope="module")
def stored():
    return np.load(TALKER / "reference.npz", allow_pickle=False)
