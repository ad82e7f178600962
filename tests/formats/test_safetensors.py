"""The safetensors reader: one file, folders of shards, links, and the PyPI writer as an oracle."""

import json
import os
import struct

import numpy as np
import pytest
from support import small_files

from bitnet.errors import FormatError
from bitnet.formats.safetensors import SafetensorsFile, member, open_folder

TWO = {"a": ("U8", (2, 3), bytes(range(6))), "b": ("BF16", (2,), b"wxyz")}


def save(path, *args, **kwargs):
    path.write_bytes(small_files.safetensors(*args, **kwargs))
    return path


def test_tensors_lie_in_the_map(tmp_path):
    file = SafetensorsFile(save(tmp_path / "m.safetensors", TWO))
    a, b = file.tensors["a"], file.tensors["b"]
    assert (a.type, a.shape, a.data.tolist()) == ("U8", (2, 3), [0, 1, 2, 3, 4, 5])
    assert (b.type, b.shape, b.data.tobytes()) == ("BF16", (2,), b"wxyz")
    assert b.data.ctypes.data == a.data.ctypes.data + 6  # a view of the file, no copy
    assert not a.data.flags.writeable


def test_scalars_empty_tensors_spaces_and_notes(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "s": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "e": {"dtype": "F32", "shape": [0, 7], "data_offsets": [4, 4]},
    }
    padded = json.dumps(header).encode() + b"    "
    tensors = {"s": ("F32", (), struct.pack("<f", 2))}
    file = SafetensorsFile(save(tmp_path / "m.safetensors", tensors, header=padded))
    assert file.tensors["s"].shape == () and len(file.tensors["e"].data) == 0
    assert "__metadata__" not in file.tensors


def test_the_pypi_writer_agrees(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.arange(5, dtype=np.uint8)}
    numpy.save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {"x": (2, 3), "y": (5,)}
    for name, array in arrays.items():
        assert file.tensors[name].data.tobytes() == array.tobytes()


def sharded(folder, **where):
    for i, (name, tensor) in enumerate(TWO.items(), 1):
        save(folder / f"model-{i}.safetensors", {name: tensor})
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"} | where
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards(tmp_path):
    files, tensors = open_folder(sharded(tmp_path))
    assert [file.path.name for file in files] == ["model-1.safetensors", "model-2.safetensors"]
    assert tensors["b"].data.tobytes() == b"wxyz"


@pytest.mark.parametrize(
    "name",
    ["../m.safetensors", "/etc/passwd", "sub/m.safetensors", "", ".", "..", "x\0y", "n" * 300],
)
def test_an_index_cannot_leave_its_folder(tmp_path, name):
    with pytest.raises(FormatError):
        open_folder(sharded(tmp_path, a=name))


def test_an_index_that_lies(tmp_path):
    with pytest.raises(FormatError, match="a tensor of model-2"):
        open_folder(sharded(tmp_path, a="model-2.safetensors"))
    for weight_map in ([], {"a": 1}, None):
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(FormatError, match="weight_map"):
            open_folder(tmp_path)


def test_weights_behind_a_link_of_the_user(tmp_path):
    """One file, and a shard, on another disk; other files of the folder may not be links."""
    folder = tmp_path / "model"
    folder.mkdir()
    os.symlink(save(tmp_path / "other.safetensors", TWO), folder / "model.safetensors")
    files, tensors = open_folder(folder)
    assert tensors["a"].shape == (2, 3) and files[0].path.parent == folder
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "index").write_text(json.dumps(index))
    os.symlink(tmp_path / "index", folder / "model.safetensors.index.json")
    with pytest.raises(FormatError, match=r"link: .*only weights may lie elsewhere"):
        open_folder(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_folder(folder)[1]["a"].shape == (2, 3)


def test_a_hub_cache_whose_blobs_are_on_another_disk(tmp_path):
    snapshot, disk = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "disk"
    snapshot.mkdir(parents=True)
    disk.mkdir()
    (disk / "0123").write_text("{}")
    os.symlink(disk, tmp_path / "hub" / "blobs")
    os.symlink("../../blobs/0123", snapshot / "config.json")
    assert member(snapshot, "config.json").read_text() == "{}"


def test_a_hub_cache_links_its_snapshot_to_blobs(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save(blobs / "0123", TWO)
    os.symlink("../../blobs/0123", snapshot / "model.safetensors")
    files, tensors = open_folder(snapshot)
    assert tensors["a"].shape == (2, 3) and files[0].path.name == "model.safetensors"


def test_member_of_a_folder(tmp_path):
    (tmp_path / "folder.json").mkdir()
    assert member(tmp_path, "config.json") is None
    assert member(tmp_path, "folder.json") is None  # not a file
    with pytest.raises(FormatError, match="nothing else"):
        open_folder(tmp_path)
