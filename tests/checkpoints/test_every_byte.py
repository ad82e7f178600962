"""Small files cut after every byte, with every byte wrong, and with every number another: whatever
comes out, it is a FormatError or a file that opens."""

import contextlib
import os

import pytest
from fuzz import make_corpus, targets
from fuzz.mutate import gguf_places
from support import small_models
from support.refusals import HUGE, refused, u64
from support.small_files import safetensors

from bitnet.errors import FormatError

GGUF = small_models.gguf_model("llama").bytes()  # 4 KB
PLACES = gguf_places(GGUF)
EVERY_VALUE = make_corpus.every_value().bytes()
SAFETENSORS = safetensors(small_models.hf_tensors("llama", linears="packed"))
N_HEADER = 8 + int.from_bytes(SAFETENSORS[:8], "little")
TOKENIZER_MODEL = make_corpus.sentencepiece_models()["unigram.model"]

# A file written anew for each case waits for the disk; one that is cut, or poked into, does not.


def cut_short(path, raw, lengths=None):
    """The file holds ever less of raw: yields after each cut."""
    path.write_bytes(raw)
    for n in sorted(range(len(raw)) if lengths is None else lengths, reverse=True):
        os.truncate(path, n)
        yield


def with_bytes(path, raw, changes):
    """The file holds raw with some bytes replaced, one (at, new) of changes after the other."""
    path.write_bytes(raw)
    with open(path, "r+b", buffering=0) as file:
        for at, new in changes:
            file.seek(at)
            file.write(new)
            yield
            file.seek(at)
            file.write(raw[at : at + len(new)])


def one_byte_off(path, raw, n=None):
    """The file holds raw with one of its first n bytes inverted."""
    return with_bytes(path, raw, ((at, bytes([raw[at] ^ 0xFF])) for at in range(n or len(raw))))


def test_gguf_cut(tmp_path):
    for _ in cut_short(tmp_path / "model.gguf", GGUF):
        with pytest.raises(FormatError):
            targets.gguf(tmp_path)


def test_gguf_bytes(tmp_path):
    for _ in one_byte_off(tmp_path / "model.gguf", EVERY_VALUE):
        with contextlib.suppress(FormatError):
            targets.gguf(tmp_path)


@pytest.mark.parametrize("value", [0, 1, *HUGE])
def test_gguf_numbers(tmp_path, value):
    changes = [(at, (value % 256**n).to_bytes(n, "little")) for _, at, n in PLACES]
    for _ in with_bytes(tmp_path / "model.gguf", GGUF, changes):
        with contextlib.suppress(FormatError):
            targets.gguf(tmp_path)


@pytest.mark.parametrize("what", ["key length", "tensor length"])
@pytest.mark.parametrize("value", [0, 257, *HUGE])
def test_names_of_impossible_length(tmp_path, what, value):
    at = next(at for found, at, _ in PLACES if found == what)
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF[:at] + u64(value) + GGUF[at + 8 :])
    refused(path, f"length: {value} ")


def test_safetensors_cut(tmp_path):
    lengths = [*range(N_HEADER), *range(N_HEADER, len(SAFETENSORS), 97)]
    for _ in cut_short(tmp_path / "model.safetensors", SAFETENSORS, lengths):
        with pytest.raises(FormatError):
            targets.safetensors(tmp_path)


def test_safetensors_bytes(tmp_path):
    for _ in one_byte_off(tmp_path / "model.safetensors", SAFETENSORS, N_HEADER):
        with contextlib.suppress(FormatError):
            targets.safetensors(tmp_path)


@pytest.mark.parametrize("damaged", [cut_short, one_byte_off])
def test_tokenizer_model(tmp_path, damaged):
    for _ in damaged(tmp_path / "tokenizer.model", TOKENIZER_MODEL):
        with contextlib.suppress(FormatError):
            targets.sentencepiece(tmp_path)
