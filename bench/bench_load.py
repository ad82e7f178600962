"""How long until a model can generate, and where the time goes: header, tokenizer, weights.

The files are in the page cache: what is timed is our own work.
"""

import pytest

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints import weights
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.formats.gguf import GGUFFile
from bitnet.text.tokenizer import Tokenizer


@pytest.fixture(scope="module", params=["bundled", "2b-4t-shape"])
def path(request):
    if request.param == "bundled":
        return BUNDLED_MODEL
    return request.getfixturevalue("synthetic_path")


def rounds(benchmark, function):
    benchmark.pedantic(function, rounds=5, warmup_rounds=1)


def test_header(benchmark, path):
    """The GGUF's metadata and tensor table, every bound checked."""
    rounds(benchmark, lambda: GGUFFile(path))


def test_scan(benchmark, path):
    """The header, the configuration, and every tensor's place."""
    rounds(benchmark, lambda: open_checkpoint(path))


def test_open(benchmark, path):
    """The same and the weights: mapped, or from the repacked file."""
    rounds(benchmark, lambda: weights.open(path).close())


def test_tokenizer(benchmark, path):
    """The encoder of the library, for llama-3's 128,256 tokens and 280,147 merges."""
    source = open_checkpoint(path)
    rounds(benchmark, lambda: Tokenizer.from_source(source.tokenizer_source, source.config))


def test_load(benchmark, path):
    """All of it: ready to generate."""
    rounds(benchmark, lambda: bitnet.load(path, threads=2).close())


def test_load_to_first_token(benchmark, path):
    """And the first token, with the one look at every weight that the first pass takes."""

    def first_token():
        with bitnet.load(path, threads=2) as model:
            model.generate([1], max_tokens=1, temperature=0)

    rounds(benchmark, first_token)
