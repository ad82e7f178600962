"""The model of a server that is started without one, in this process."""

import pytest
from support.paths import TINY_MODEL

import bitnet


@pytest.fixture(scope="module")
def model():
    with bitnet.load(TINY_MODEL) as one:
        yield one
