"""Progress callbacks: one signature everywhere, and what one that raises leaves behind."""

import numpy as np
import pytest
from support.paths import DATA
from support.talker import TALKER, kv_bytes

import bitnet
from bitnet.checkpoints.convert import convert
from bitnet.progress import Meter
from bitnet.verify import verify
from bitnet.verify.file_report import file_report

REPACKED = DATA / "gguf_tq1_0" / "model.gguf"  # a type that no kernel reads in place
PAIRS = [("The king came", f" and went {i}") for i in range(9)]


class Stop(Exception):
    """Raised by a caller's function."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("BITNET_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def model(no_limit):
    with bitnet.load(TALKER, threads=1, prefix_cache=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def text():
    return (DATA / "heldout.txt").read_text()[:4000]


def load(progress, **options):
    bitnet.load(REPACKED, threads=1, progress=progress, **options).close()


def works(model, text, folder):
    """{name: (a function that takes progress, whether the last call says that all is done)}."""

    def perplexity(progress):
        path = folder / "logits"
        bitnet.perplexity(model, text, context=64, save_logits=path, progress=progress)

    def compare(progress):
        bitnet.compare(model, folder / "of-model", progress=progress)

    bitnet.perplexity(model, text, context=64, chunks=3, save_logits=folder / "of-model")
    return {
        "load": (load, True),
        "load, in memory": (lambda progress: load(progress, mapping="copy"), False),
        "convert": (
            lambda p: convert(TALKER, folder / "made.gguf", progress=p, verify=False),
            True,
        ),
        "verify": (lambda progress: verify(REPACKED, TALKER, progress=progress), False),
        "report": (lambda progress: file_report(REPACKED, progress), False),
        "perplexity": (perplexity, True),
        "compare": (compare, True),
        "loglikelihood": (lambda progress: model.loglikelihood(PAIRS, progress=progress), True),
    }


def test_all_tell_it_in_the_same_way(model, text, tmp_path, cache):
    for name, (work, is_whole) in works(model, text, tmp_path).items():
        told = []
        work(lambda *arguments, told=told: told.append(arguments))
        assert told, name
        for what, done, total in told:
            assert isinstance(what, str) and what, name
            assert type(done) is type(total) is int and done >= 0 and (done <= total or not total)
        assert any(total for _, _, total in told), name
        if is_whole:
            assert told[-1][1] == told[-1][2], (name, told[-1])
            assert [done for _, done, _ in told] == sorted(done for _, done, _ in told), name


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, OSError, bitnet.Cancelled])
def test_one_that_raises_ends_the_work(model, text, tmp_path, cache, error):
    def raises(what, done, total):
        if total:
            raise error("of the caller")

    for name, (work, _) in works(model, text, tmp_path).items():
        before = {path.name for path in tmp_path.iterdir()}
        with pytest.raises(error, match="of the caller"):
            work(raises)
        assert kv_bytes(model) == 0, name
        after = {path.name for path in tmp_path.iterdir()}
        assert after - before <= {"cache"}, name  # no logits, no GGUF, nothing temporary
        left = {path.suffix for path in cache.iterdir()} if cache.exists() else set()
        assert left <= {".lock"}, name
    with bitnet.load(REPACKED, threads=1) as loaded:  # and it can be done again
        assert np.isfinite(loaded.logits([1, 2])).all()
    assert any(cache.glob("*.gguf"))


def test_the_repacked_file_is_written_once_and_told_once(cache):
    told = []
    load(lambda *arguments: told.append(arguments))
    assert told and all("repacking" in what for what, _, _ in told)
    told.clear()
    load(lambda *arguments: told.append(arguments))
    assert told == []


def test_a_meter_tells_the_end_and_not_every_byte():
    told = []
    meter = Meter(lambda *arguments: told.append(arguments), 1000)
    for _ in range(1000):
        meter.add("reading", 1)
    assert told[0] == ("reading", 1, 1000) and told[-1] == ("reading", 1000, 1000)
    assert len(told) < 500
