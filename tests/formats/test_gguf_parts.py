"""A model in several GGUF files: one, from any of them, in place; what does not belong together."""

import os
import struct

import numpy as np
import pytest
from support import small_models as models
from support.small_files import STRING, U16, U32, text

import bitnet
from bitnet.checkpoints import weights
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError
from bitnet.formats import gguf_parts
from bitnet.formats.gguf_parts import open_gguf, part_names

SHAPE = models.Shape(hidden=128, ffn=128, heads=8, head_dim=16)  # all rows in place
NAMES = part_names("model-00001-of-00003.gguf")


def model():
    return models.gguf_model("bitnet-b1.58", SHAPE)


def save(folder, parts):
    return models.write(folder, {name: part.bytes() for name, part in parts.items()})


def test_names_of_parts():
    assert [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)] == NAMES
    assert part_names("Q8/a-00002-of-00002.gguf") == [
        "Q8/a-00001-of-00002.gguf", "Q8/a-00002-of-00002.gguf"]  # fmt: skip
    for name in ("model.gguf", "a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "a-1-of-2.gguf",
                 "-00001-of-00002.gguf", "a-00001-of-99999.gguf", "a-00001-of-00002.gguf.tmp",
                 "a-0000\u0661-of-00002.gguf"):  # fmt: skip
        assert part_names(name) is None


def test_a_model_is_one_from_any_of_its_parts_and_in_place(tmp_path):
    save(tmp_path, {"whole.gguf": model(), **models.split(model(), 3)})
    with bitnet.load(tmp_path / "whole.gguf") as whole:
        expected = whole.logits([0, 1, 2])
    for name in NAMES:
        with bitnet.load(tmp_path / name) as split:
            assert np.array_equal(split.logits([0, 1, 2]), expected)
            assert split.path == tmp_path / NAMES[0]
            assert split.memory().pool.by_purpose.get("weights") is None
        with weights.open(tmp_path / name, cache=False) as opened:
            maps = opened.mappings()
            assert [path.name for path, *_ in maps] == NAMES
            codes = opened.ternary("layers.0.mlp.down_proj").codes
            assert not codes.flags.writeable
            assert any(begin <= codes.ctypes.data < begin + n for _, begin, n in maps)


def test_every_part_changes_the_model(tmp_path):
    save(tmp_path, models.split(model(), 3))
    checkpoint = open_checkpoint(tmp_path / NAMES[2])
    assert [path.name for path in checkpoint.changed_by] == NAMES


def test_one_repacked_file_for_all_parts_and_stale_when_one_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    folder = save(tmp_path / "m", models.split(models.gguf_model("llama"), 3))

    def repacked(name):
        with weights.open(folder / name) as opened:
            assert len(opened.mappings()) == 4
            return opened.mappings()[-1][0]

    path = repacked(NAMES[0])
    inode = path.stat().st_ino
    assert repacked(NAMES[2]) == path and path.stat().st_ino == inode
    changed = folder / NAMES[1]
    os.utime(changed, ns=(1, changed.stat().st_mtime_ns + 1))
    assert repacked(NAMES[0]) == path and path.stat().st_ino != inode


def test_parts_behind_a_link(tmp_path):
    folder = save(tmp_path / "disk", models.split(model(), 3))
    os.symlink(folder / NAMES[1], tmp_path / "model.gguf")
    files, tensors = open_gguf(tmp_path / "model.gguf")
    assert [file.path.resolve().name for file in files] == NAMES
    assert len(tensors) == len(model().tensors)
    for i, name in enumerate(NAMES):  # as in the hub's cache
        (folder / name).rename(folder / f"blob{i}")
        os.symlink(folder / f"blob{i}", tmp_path / name)
    assert len(open_gguf(tmp_path / NAMES[1])[0]) == 3


def test_one_part_is_a_whole_file(tmp_path):
    for count in (0, 1):
        whole = model()
        whole.set("split.count", U16, struct.pack("<H", count))
        save(tmp_path, {"whole.gguf": whole})
        assert len(open_gguf(tmp_path / "whole.gguf")[0]) == 1


def test_metadata_is_that_of_part_1(tmp_path):
    parts = models.split(model(), 3)
    parts[NAMES[1]].set("general.architecture", STRING, text("llama"))
    files, _ = open_gguf(save(tmp_path, parts) / NAMES[1])
    assert files[0].metadata["general.architecture"] == "bitnet-b1.58"
    assert files[1].metadata == {}


def refused(folder, pattern, opened=NAMES[0]):
    with pytest.raises(FormatError, match=pattern):
        open_checkpoint(folder / opened)


@pytest.mark.parametrize("opened", NAMES)
def test_a_part_that_is_missing_or_another_one(tmp_path, opened):
    folder = save(tmp_path, models.split(model(), 3))
    i = 2 if opened == NAMES[0] else 0
    lost = folder / NAMES[i]
    raw = lost.read_bytes()
    lost.unlink()
    refused(folder, rf"{opened}: {lost.name}: missing \(part {i + 1} of 3", opened)
    lost.write_bytes((folder / NAMES[1]).read_bytes())
    if opened != NAMES[1]:
        refused(folder, rf"{lost.name}: split.no: 1 \({i}, ", opened)
    lost.write_bytes(raw[: len(raw) // 2])
    refused(folder, lost.name, opened)
    lost.write_bytes(model().bytes())
    refused(folder, rf"{lost.name}: split.no: missing", opened)


def test_a_part_under_another_name_says_which_it_is(tmp_path):
    folder = save(tmp_path, models.split(model(), 3))
    for i, name in enumerate(NAMES):
        (folder / "renamed.gguf").write_bytes((folder / name).read_bytes())
        refused(folder, rf"part {i + 1} of 3 \(named STEM-0000{i + 1}-of-00003", "renamed.gguf")


@pytest.mark.parametrize(("key", "type_id", "payload", "pattern"), [
    ("split.count", STRING, text("3"), "split.count: 3 .a whole number, 1024 at most"),
    ("split.count", U32, struct.pack("<I", 1 << 31), "split.count: 2147483648"),
    ("split.count", U16, struct.pack("<H", 4), "part 1 of 4"),
    ("split.count", U16, struct.pack("<H", 1024), "part 1 of 1024"),
    ("split.no", U16, struct.pack("<H", 3), "split.no: 3 .a whole number, 2 at most"),
    ("split.no", U16, struct.pack("<H", 1), "part 2 of 3"),
    ("split.no", STRING, text("0"), "split.no"),
    ("split.tensors.count", U32, struct.pack("<I", 7), "split.tensors.count: 7 .the parts have 13"),
])  # fmt: skip
def test_keys_that_lie(tmp_path, key, type_id, payload, pattern):
    parts = models.split(model(), 3)
    parts[NAMES[0]].set(key, type_id, payload)
    refused(save(tmp_path, parts), pattern)


def test_a_tensor_in_two_parts_and_too_many_tensors(tmp_path, monkeypatch):
    parts = models.split(model(), 3)
    parts[NAMES[2]].tensors.append(parts[NAMES[0]].tensors[0])
    refused(save(tmp_path, parts), rf"{NAMES[2]}: token_embd.weight: appears twice .*{NAMES[0]}")
    save(tmp_path, models.split(model(), 3))
    monkeypatch.setattr(gguf_parts, "MAX_TENSORS", 8)
    refused(tmp_path, rf"{NAMES[1]}: n_tensors: 10 \(8 in all parts")


def test_parts_have_one_kind_of_type_42(tmp_path):
    types = {"attn_q": "Q2_0_G64", "ffn_down": "Q2_0_G128"}
    parts = models.split(models.gguf_model("bitnet", SHAPE, types), 3)
    held = {i: {row[2] for row in part.tensors} for i, part in enumerate(parts.values())}
    assert sum(42 in kinds for kinds in held.values()) == 2
    save(tmp_path, parts)
    with pytest.raises(FormatError, match=r"attn_q.* type 42: groups of 64, and .* \(one kind"):
        open_gguf(tmp_path / NAMES[0])
