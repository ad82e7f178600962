"""Sessions on disk: restored they go on as if nothing had happened; other files are refused."""

import stat

import numpy as np
import pytest
from support.paths import DATA, TINY_MODEL

import bitnet
from bitnet.api.load import BUNDLED_MODEL
from bitnet.checkpoints import weights
from bitnet.errors import FormatError
from bitnet.formats import gguf
from bitnet.formats.gguf import GGUFFile
from bitnet.runtime.pool import Pool

IDS = [(7 * i) % 2000 for i in range(300)]  # two full pages and a part of a third


@pytest.fixture(scope="module", params=["f16", "f32", "int8"])
def model(request):
    with bitnet.load(kv_dtype=request.param, threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("n", [1, 127, 128, 129, 256, 300])
def test_a_restored_session_goes_on_as_if_nothing_had_happened(model, tmp_path, n):
    session, other = model.session(), model.session()
    session.feed(IDS[:n])
    session.save(tmp_path / "s.gguf")
    other.feed([1, 2, 3])
    other.restore(tmp_path / "s.gguf")
    assert other.token_ids == IDS[:n] and other.length == n
    expected = session.feed([5, 6]).tobytes()
    assert other.feed([5, 6]).tobytes() == expected
    twin = other.fork()
    assert twin.decode(9).tobytes() == session.decode(9).tobytes()
    for s in (session, other, twin):
        s.close()


def test_nothing_of_others_is_in_the_file(model, tmp_path):
    """The rest of the last page has held another sequence."""
    with model.session() as old:
        old.feed(IDS[:128])
    with model.session() as session:
        session.feed([1, 2, 3])
        session.save(tmp_path / "a.gguf")
    with (
        bitnet.load(kv_dtype=model.scheduler.kv_dtype, threads=1) as fresh,
        fresh.session() as session,
    ):
        session.feed([1, 2, 3])
        session.save(tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_file_is_its_owners_alone(model, tmp_path):
    path = tmp_path / "s.gguf"
    path.write_bytes(b"another")
    path.chmod(0o644)
    with model.session() as session:
        session.feed(IDS[:3])
        session.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_session_is_not_saved(model, tmp_path):
    with model.session() as session, pytest.raises(ValueError, match="empty"):
        session.save(tmp_path / "s.gguf")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused_and_the_session_stays(model, tmp_path):
    path = tmp_path / "s.gguf"
    with model.session() as session:
        session.feed(IDS[:200])
        session.save(path)
        good = path.read_bytes()
        page = next(iter(GGUFFile(path).tensors.values()))
        at = good.index(page.data.tobytes())
        expected = session.fork().decode(1).tobytes()
        for damage in (
            good[:-1], good[:1000], b"",
            good[:at + 77] + bytes([good[at + 77] ^ 1]) + good[at + 78:],
            good.replace(b"session.tokens", b"session.xokens"),
            good.replace(b"session.checksum", b"session.checkXum"),
        ):  # fmt: skip
            path.write_bytes(damage)
            with pytest.raises(FormatError):
                session.restore(path)
            assert session.token_ids == IDS[:200]
        assert session.decode(1).tobytes() == expected


def test_files_of_others_are_refused(model, tmp_path):
    path, dtype = tmp_path / "s.gguf", model.scheduler.kv_dtype
    with model.session() as session:
        session.feed(IDS[:50])
        session.save(path)
        with pytest.raises(FormatError, match=r"general\.architecture: bitnet-b1"):
            session.restore(BUNDLED_MODEL)
        with pytest.raises(FileNotFoundError):
            session.restore(tmp_path / "nothing")
    with model.session(capacity=40) as small, pytest.raises(bitnet.ContextFull):
        small.restore(path)
    other = "f16" if dtype == "f32" else "f32"
    wrong_dtype = pytest.raises(FormatError, match=f"session.dtype: {dtype}")
    with bitnet.load(kv_dtype=other) as wrong, wrong.session() as session, wrong_dtype:
        session.restore(path)
    data = DATA / "hf_bitnet_offline"
    wrong_model = pytest.raises(FormatError, match=r"session\.model")
    with bitnet.load(data, kv_dtype=dtype) as wrong, wrong.session() as session, wrong_model:
        session.restore(path)


def version_of(dtype):
    return f"{3 if dtype == 'int8' else 2}, of {dtype} keys and values"


def test_files_of_0_1_0_are_refused_in_one_sentence(model, tmp_path):
    """Their fingerprint saw four rows of a tensor."""
    path = tmp_path / "s.gguf"
    with model.session() as session:
        session.feed(IDS[:50])
        session.save(path)
        path.write_bytes(path.read_bytes().replace(b"session.version", b"session.xersion"))
        with pytest.raises(FormatError) as error:
            session.restore(path)
    limit = version_of(model.scheduler.kv_dtype) + ": save it again"
    assert str(error.value) == f"{path}: session.version: missing ({limit})"


def test_int8_files_of_before_exact_sums_are_refused_and_others_are_not(model, tmp_path):
    """Their pages lay otherwise, and what followed would have had other bits."""
    path, dtype = tmp_path / "s.gguf", model.scheduler.kv_dtype
    with model.session() as session:
        session.feed(IDS[:50])
        session.save(path)
        file = GGUFFile(path)
        stored = [(n, t.shape, t.type, t.data.copy()) for n, t in file.tensors.items()]
        gguf.write(path, {**file.metadata, "session.version": 2}, stored)
        if dtype != "int8":
            session.restore(path)
            return
        with pytest.raises(FormatError) as error:
            session.restore(path)
        assert session.token_ids == IDS[:50]
    limit = version_of(dtype) + ": save it again"
    assert str(error.value) == f"{path}: session.version: 2 ({limit})"


def test_a_model_with_other_rows_but_four_of_each_tensor_is_another(tmp_path):
    """All rows but those that the fingerprint of 0.1.0 looked at."""
    raw = np.frombuffer(TINY_MODEL.read_bytes(), np.uint8).copy()
    file = GGUFFile(TINY_MODEL)
    n_changed = 0
    for tensor in file.tensors.values():
        if tensor.type == "I2_S":
            at = tensor.data.ctypes.data - file.data.ctypes.data
            rows = raw[at : at + len(tensor.data) - 32].reshape(tensor.shape[0], -1)
            changed = np.delete(np.arange(len(rows)), slice(None, None, len(rows) // 4))
            rows[changed] = 0xAA - rows[changed]  # 2 - code in each of four
            n_changed += len(changed)
    assert n_changed == 12_688
    (tmp_path / "other.gguf").write_bytes(raw.tobytes())
    with bitnet.load(TINY_MODEL, threads=1) as model, model.session() as session:
        session.feed(IDS[:50])
        session.save(tmp_path / "s.gguf")
    refused = pytest.raises(FormatError, match=r"session\.model: .*the model it was saved with")
    other = bitnet.load(tmp_path / "other.gguf", threads=1)
    with other, other.session() as session, refused:
        session.restore(tmp_path / "s.gguf")


def test_a_fingerprint_is_of_every_tensor_wherever_it_lies(tmp_path):
    source = DATA / "gguf_i2_s_bitnet158" / "ggml-model-i2_s.gguf"
    with weights.open(source) as files:
        expected = files.fingerprint()
    with weights.open(source) as files:
        files.copy_into(Pool(1 << 30))
        assert files.fingerprint() == expected
    file, path = GGUFFile(source), tmp_path / "m.gguf"
    for name, tensor in file.tensors.items():
        raw = bytearray(source.read_bytes())
        end = tensor.data.ctypes.data - file.data.ctypes.data + len(tensor.data)
        raw[end - (33 if tensor.type == "I2_S" else 1)] ^= 0x40  # its last code or number
        path.write_bytes(raw)
        with weights.open(path) as files:
            assert files.fingerprint() != expected, name


@pytest.mark.parametrize("name", ["hf_bitnet_online", "hf_bitnet_offline"])
def test_repacked_in_a_file_or_in_memory_a_model_has_one_fingerprint(tmp_path, name):
    with weights.open(DATA / name, cache=False) as files:
        expected = files.fingerprint()
    with weights.open(DATA / name, cache=tmp_path / "cache") as files:
        assert files.repacked is not None and files.fingerprint() == expected


def test_a_model_is_known_by_its_weights(tmp_path):
    raw = bytearray(BUNDLED_MODEL.read_bytes())
    (tmp_path / "same.gguf").write_bytes(raw)
    tensor = GGUFFile(tmp_path / "same.gguf").tensors["blk.0.attn_norm.weight"]
    at = raw.index(tensor.data.tobytes())
    raw[at : at + 4] = np.float32(0.5).tobytes()
    (tmp_path / "other.gguf").write_bytes(raw)
    found = []
    for path in (None, tmp_path / "same.gguf", tmp_path / "other.gguf"):
        with bitnet.load(path) as model:
            found.append(model.weights.fingerprint())
    assert found[0] == found[1] != found[2]
