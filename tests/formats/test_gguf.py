"""The GGUF reader and writer, against files put together byte by byte and the PyPI reader."""

import os
import struct

import numpy as np
import pytest
from support import small_files
from support.small_files import ARRAY, BOOL, GGUF, STRING, text

from bitnet.errors import FormatError
from bitnet.formats.ggml_types import TYPES
from bitnet.formats.gguf import GGUFFile, n_bytes_of, write
from bitnet.formats.gguf_metadata import StringArray


def save(tmp_path, model, name="model.gguf"):
    path = tmp_path / name
    path.write_bytes(model.bytes())
    return path


def test_every_scalar_type(tmp_path):
    values = {
        0: ("B", 255), 1: ("b", -128), 2: ("H", 65535), 3: ("h", -32768), 4: ("I", 2**32 - 1),
        5: ("i", -(2**31)), 6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**64 - 1),
        11: ("q", -(2**63)), 12: ("d", 0.1),
    }  # fmt: skip
    model = GGUF()
    for type_id, (code, value) in values.items():
        model.set(f"k{type_id}", type_id, struct.pack("<" + code, value))
    model.set("text", STRING, text("é"))
    read = GGUFFile(save(tmp_path, model)).metadata
    assert read.pop("text") == "é"
    assert read == {f"k{type_id}": value for type_id, (_, value) in values.items()}
    assert type(read["k7"]) is bool and type(read["k6"]) is float and type(read["k4"]) is int


def test_arrays(tmp_path):
    model = GGUF()
    model.set("floats", ARRAY, small_files.numbers(6, "f", [1.5, -2.0]))
    model.set("odd", ARRAY, small_files.numbers(3, "h", [1, -2, 3]))
    model.set("flags", ARRAY, small_files.numbers(7, "?", [True, False]))
    model.set("none", ARRAY, small_files.strings([]))
    read = GGUFFile(save(tmp_path, model)).metadata
    assert read["floats"].tolist() == [1.5, -2.0] and not read["floats"].flags.writeable
    assert read["odd"].tolist() == [1, -2, 3]
    assert read["flags"].tolist() == [1, 0]
    assert list(read["none"]) == [] and "" not in read["none"]


def test_strings_are_decoded_when_asked_for(tmp_path):
    entries = ["a", "", "żółć", "a", "\N{GRINNING FACE}" * 3, "b" * 300]
    model = GGUF()
    model.set("s", ARRAY, small_files.strings(entries))
    model.set("after", BOOL, b"\1")
    metadata = GGUFFile(save(tmp_path, model)).metadata
    array = metadata["s"]
    assert isinstance(array, StringArray) and metadata["after"] is True
    assert list(array) == entries == [array[i] for i in range(6)] == array[:]
    assert array[-1] == entries[-1] and array[1:4] == entries[1:4]
    assert [array.index(entry) for entry in entries] == [0, 1, 2, 0, 4, 5]
    assert array.index("a", 1) == 3 and "żółć" in array and "ż" not in array
    with pytest.raises(IndexError):
        array[6]
    with pytest.raises(ValueError, match="not in s"):
        array.index("a", 1, 3)


def test_index_is_not_fooled_by_text_that_looks_like_an_entry(tmp_path):
    inner = struct.pack("<Q", 2) + b"ab"
    model = GGUF()
    model.set("s", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"x" + inner) + text("ab"))
    assert GGUFFile(save(tmp_path, model)).metadata["s"].index("ab") == 1


def test_a_string_that_is_not_utf8_is_an_error_when_read(tmp_path):
    model = GGUF()
    model.set("s", ARRAY, struct.pack("<IQ", STRING, 2) + text("ok") + text(b"\xff"))
    array = GGUFFile(save(tmp_path, model)).metadata["s"]
    assert array[0] == "ok"
    with pytest.raises(FormatError, match=r"s\[1\]"):
        array[1]
    with pytest.raises(FormatError, match=r"s\[1\]"):
        list(array)


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_lie_in_the_map(tmp_path, version):
    model = small_files.gguf_model()
    model.version = version
    path = save(tmp_path, model)
    file = GGUFFile(path)
    raw = path.read_bytes()
    for name, ne, _, data, _ in model.tensors:
        tensor = file.tensors[name]
        assert tensor.shape == tuple(reversed(ne)) and tensor.data.tobytes() == data
        offset = tensor.data.ctypes.data - file.data.ctypes.data
        assert raw[offset : offset + len(data)] == data  # a view of the file, no copy
        assert not tensor.data.flags.writeable and type(tensor.data) is np.ndarray
    assert file.tensors["blk.0.attn_k.weight"].type == "I2_S"
    assert file.tensors["token_embd.weight"].type == "F16"


def test_other_alignments(tmp_path):
    model = GGUF(tensors=[["a", [3], 0, bytes(12), 0], ["b", [2], 0, bytes(8), 64]])
    model.set("general.alignment", 4, struct.pack("<I", 64))
    raw = model.bytes()
    head = raw[: -32 - 32]
    path = tmp_path / "aligned.gguf"
    path.write_bytes(head + bytes(-len(head) % 64) + b"A" * 12 + bytes(52) + b"B" * 8)
    tensors = GGUFFile(path).tensors
    assert tensors["a"].data.tobytes() == b"A" * 12 and tensors["b"].data.tobytes() == b"B" * 8


def test_data_in_another_order_and_bytes_after_it(tmp_path):
    model = GGUF(tensors=[["a", [8], 0, b"A" * 32, 32], ["b", [8], 0, b"B" * 32, 0]])
    path = tmp_path / "reversed.gguf"
    path.write_bytes(model.bytes() + b"tail")
    tensors = GGUFFile(path).tensors
    assert tensors["a"].data.tobytes() == b"B" * 32 and tensors["b"].data.tobytes() == b"A" * 32


def test_a_file_without_tensors(tmp_path):
    model = GGUF()
    model.set("general.architecture", STRING, text("llama"))
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(model.bytes()[: 24 + 8 + 20 + 4 + 13])  # no padding after the keys either
    assert GGUFFile(path).tensors == {}


def written(path):
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 3, (2, 64, 1), dtype=np.uint8).repeat(128, axis=2)
    packed = (codes[..., 0] * 85).astype(np.uint8)
    metadata = {
        "general.architecture": "test", "n": 7, "minus": -7, "x": 0.25, "yes": True,
        "big": np.uint64(2**40), "names": ["a", "é", ""], "ids": [1, 2], "signed": [-1, 2],
        "scores": np.array([0.5, 1.5], np.float32), "types": np.array([1, 3], np.int32),
    }  # fmt: skip
    tensors = [
        ("m", (2, 3), "F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
        ("h", (2, 3), "F16", np.arange(6, dtype=np.float16).reshape(3, 2).T),
        ("t", (2, 256), "I2_S", iter([packed[0], packed[1], bytes(4) + bytes(28)])),
        ("v", (5,), "BF16", b"0123456789"),
    ]
    write(path, metadata, tensors)
    return metadata, packed


def test_write_and_read_back(tmp_path):
    path = tmp_path / "written.gguf"
    metadata, packed = written(path)
    file = GGUFFile(path)
    for key, value in metadata.items():
        read = file.metadata[key]
        assert list(read) == list(value) if hasattr(value, "__len__") else read == value
    assert file.tensors["m"].data.view("<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert file.tensors["h"].data.view("<f2").tolist() == [0, 2, 4, 1, 3, 5]
    assert file.tensors["t"].data[:128].tobytes() == packed.tobytes()
    assert len(file.tensors["t"].data) == 128 + 32
    assert file.tensors["v"].shape == (5,)
    assert list(tmp_path.iterdir()) == [path]


def test_written_bytes_are_those_of_the_format(tmp_path):
    model = GGUF(tensors=[["a", [3, 2], 0, bytes(range(24)), None], ["b", [8], 1, b"B" * 16, None]])
    model.set("general.architecture", STRING, text("x"))
    model.set("n", 4, struct.pack("<I", 5))
    path = tmp_path / "exact.gguf"
    tensors = [("a", (2, 3), "F32", bytes(range(24))), ("b", (8,), "F16", b"B" * 16)]
    write(path, {"general.architecture": "x", "n": 5}, tensors)
    assert path.read_bytes() == model.bytes()


def test_the_pypi_reader_agrees(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "theirs.gguf"
    rng = np.random.default_rng(5)
    matrix = rng.standard_normal((4, 32)).astype(np.float32)
    blocks = rng.integers(0, 256, (3, 2, 34), dtype=np.uint8)
    metadata = {"general.architecture": "test", "names": ["a", "é"], "x": 0.5, "n": 3, "ok": True}
    tensors = [("m", (4, 32), "F32", matrix), ("q", (3, 64), "Q8_0", blocks)]
    write(path, metadata, tensors)
    theirs = gguf.GGUFReader(path)
    assert {t.name: (t.shape.tolist(), t.tensor_type.name) for t in theirs.tensors} == {
        "m": ([32, 4], "F32"), "q": ([64, 3], "Q8_0"),
    }  # fmt: skip
    assert theirs.tensors[0].data.tobytes() == matrix.tobytes()
    assert theirs.tensors[1].data.tobytes() == blocks.tobytes()
    assert {key: theirs.fields[key].contents() for key in metadata} == metadata


@pytest.mark.parametrize(
    ("type_name", "shape", "n_bytes"),
    [
        ("F32", (3, 5), 60), ("BF16", (7,), 14), ("Q4_0", (2, 96), 2 * 3 * 18),
        ("Q4_1", (2, 96), 2 * 3 * 20), ("Q5_0", (2, 96), 2 * 3 * 22), ("Q5_1", (2, 96), 2 * 3 * 24),
        ("Q8_0", (2, 96), 2 * 3 * 34), ("IQ4_NL", (2, 96), 2 * 3 * 18),
        ("Q4_K", (3, 512), 3 * 2 * 144), ("Q5_K", (3, 512), 3 * 2 * 176),
        ("Q6_K", (3, 512), 3 * 2 * 210), ("TQ1_0", (3, 512), 3 * 2 * 54),
        ("TQ2_0", (3, 512), 3 * 2 * 66), ("I2_S", (2, 192), 2 * 48 + 32),
        ("Q2_0_G64", (3, 192), 3 * 3 * 18), ("Q2_0_G128", (3, 768), 3 * 6 * 34),
        ("IQ1_BN", (3, 192), 3 * (2 + 3 * 13)), ("IQ2_BN", (3, 192), 3 * (4 + 3 * 16)),
        ("IQ2_BN_R4", (8, 192), 8 * (4 + 3 * 16)), ("TQ2_0", (2, 3, 256), 2 * 3 * 66),
    ],
)  # fmt: skip
def test_the_bytes_of_every_type(tmp_path, type_name, shape, n_bytes):
    assert n_bytes_of(type_name, shape) == n_bytes
    data = np.arange(n_bytes, dtype=np.uint16).astype(np.uint8)
    after = np.float32([1, 2])
    path = tmp_path / "model.gguf"
    write(path, {}, [("t", shape, type_name, data), ("after", (2,), "F32", after)])
    tensors = GGUFFile(path).tensors
    assert tensors["t"].type == type_name and tensors["t"].shape == shape
    assert (tensors["t"].data == data).all()
    assert tensors["after"].data.view("<f4").tolist() == [1, 2]


def test_every_type_that_is_read_has_a_size():
    for type_name in TYPES:
        assert n_bytes_of(type_name, (4, 256)) > 0


def q2_0(group, n_rows, n_cols):
    return np.resize(np.arange(251, dtype=np.uint8), n_rows * n_cols // group * (2 + group // 4))


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("names", ["large", "small large", "large small", "small large small2"])
def test_the_groups_of_q2_0_follow_from_the_room(tmp_path, group, names):
    """A small tensor cannot tell, for its end is padded: a large one decides for the file."""
    shapes = {name: (64, 256) if name == "large" else (1, 128) for name in names.split()}
    data = {name: q2_0(group, *shape) for name, shape in shapes.items()}
    path = tmp_path / "model.gguf"
    write(path, {}, [(name, shapes[name], f"Q2_0_G{group}", data[name]) for name in shapes])
    found = GGUFFile(path).tensors
    assert {tensor.type for tensor in found.values()} == {f"Q2_0_G{group}"}
    assert all((found[name].data == data[name]).all() for name in shapes)


def test_q2_0_with_room_for_both_is_that_of_llama_cpp(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, {}, [("t", (1, 128), "Q2_0_G128", q2_0(128, 1, 128))])
    assert GGUFFile(path).tensors["t"].type == "Q2_0_G64"


def test_q2_0_that_fits_neither_way_is_refused(tmp_path):
    for n_cols, n_bytes in ((192, 3 * 18), (256, 2 * 34)):
        path = save(tmp_path, GGUF(tensors=[["t", [n_cols, 64], 42, bytes(32), None]]))
        with pytest.raises(FormatError, match=f"t end: .* {path.stat().st_size} bytes"):
            GGUFFile(path)
        assert path.stat().st_size < 64 * n_bytes


@pytest.mark.parametrize(
    ("type_id", "name", "instead"),
    [
        (38, "TL1 of bitnet.cpp", "`bitnet convert`"),
        (39, "TL2 of bitnet.cpp, or MXFP4", "`bitnet convert`"),
        (10, "Q2_K", "`bitnet convert`"),
        (1000, "unknown", "`bitnet convert`"),
    ],
)
def test_a_type_that_is_not_read_is_named_with_the_way_out(tmp_path, type_id, name, instead):
    path = save(tmp_path, GGUF(tensors=[["t", [256, 4], type_id, bytes(1024), None]]))
    with pytest.raises(FormatError) as caught:
        GGUFFile(path)
    assert f"t type: {type_id} ({name})" in str(caught.value)
    assert instead in str(caught.value) and "TQ1_0, TQ2_0, I2_S, Q2_0, IQ1" in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (("t", (1, 129), "I2_S", b""), "multiple of 128"),
        (("t", (4, 33), "Q8_0", b""), "multiple of 32"),
        (("t", (6, 128), "IQ2_BN_R4", b""), "multiple of 4 rows"),
        (("t", (4,), "F32", bytes(15)), "15 bytes given"),
        (("t", (4,), "F32", [bytes(8), bytes(9)]), "17 bytes given"),
    ],
)
def test_write_refuses_what_does_not_fit(tmp_path, tensor, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "bad.gguf", {}, [tensor])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.gguf"
    path.write_bytes(b"old")

    def chunks():
        yield bytes(8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, {}, [("t", (4,), "F32", chunks())])
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_what_is_no_file_is_not_replaced(tmp_path):
    """Nor a device: root, as in containers, would replace /dev/null by what is written there."""
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    for path in (fifo, link, tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            write(path, {}, [("t", (4,), "F32", bytes(16))])
    assert set(tmp_path.iterdir()) == {fifo, link} and fifo.is_fifo() and link.is_symlink()


@pytest.mark.parametrize("value", [np.complex128(1), 2**64, np.zeros((2, 2)), [1, "a"], object()])
def test_metadata_that_gguf_has_no_type_for(tmp_path, value):
    with pytest.raises(ValueError, match="GGUF has no value"):
        write(tmp_path / "x.gguf", {"x": value}, [])


@pytest.mark.parametrize(
    ("value", "type_id"),
    [(0, 4), (2**32 - 1, 4), (-1, 5), (2**32, 11), (-(2**31) - 1, 11), (2**63, 10), (0.5, 6)],
)
def test_the_type_of_a_python_number(tmp_path, value, type_id):
    path = tmp_path / "x.gguf"
    write(path, {"x": value}, [])
    assert path.read_bytes()[24 + 9] == type_id
    assert GGUFFile(path).metadata == {"x": value}
