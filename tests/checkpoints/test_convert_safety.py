"""convert(): an error, an interrupt or a wrong result leaves everything as it was; the command."""

import os
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.conversions import TARGETS, source_of, tensors_of, to

from bitnet import cli
from bitnet.checkpoints import conversion, convert
from bitnet.checkpoints.open_checkpoint import open_checkpoint
from bitnet.errors import FormatError
from bitnet.formats import ternary_layouts


class Stop(Exception):
    pass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a file and a folder in the way, and every step of progress reported."""
    monkeypatch.setattr(conversion, "REPORT_EVERY", 0)
    (tmp_path / "model.gguf").write_text("old")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    return tmp_path


def assert_untouched(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model", "model.gguf"]
    assert (folder / "model.gguf").read_text() == "old"
    assert (folder / "model" / "config.json").read_text() == "old"
    assert len(list((folder / "model").iterdir())) == 1


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("target", TARGETS)
def test_an_interrupted_conversion_leaves_nothing(target, share, error, folder):
    def progress(what, done, total):
        if done >= share * total:
            raise error

    with pytest.raises(error):
        to("hf_bitnet_online", folder, target, force=True, progress=progress)
    assert_untouched(folder)


@pytest.mark.parametrize("target", TARGETS)
def test_a_full_disk_leaves_nothing(target, folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # EFBIG from write()
    try:
        with pytest.raises(OSError):
            to("hf_bitnet_online", folder, target, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_untouched(folder)


@pytest.mark.parametrize("target", TARGETS)
def test_too_little_space_is_found_before_anything_is_written(target, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    written = []
    monkeypatch.setattr(convert.gguf, "write", written.append)
    monkeypatch.setattr(convert.safetensors, "write", written.append)
    with pytest.raises(OSError, match="bytes needed, 1048576 free"):
        to("hf_bitnet_online", folder, target, force=True)
    assert written == []
    assert_untouched(folder)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_there_stays_without_force(target, folder):
    with pytest.raises(FileExistsError, match="exists; --force replaces it"):
        to("hf_bitnet_online", folder, target)
    assert_untouched(folder)


@pytest.mark.parametrize("target", TARGETS)
def test_force_replaces(target, folder):
    path = to("hf_bitnet_online", folder, target, force=True)
    assert sorted(entry.name for entry in folder.iterdir()) == ["model", "model.gguf"]
    assert open_checkpoint(path).config.hidden_size == 192


def test_a_new_folder_that_cannot_get_its_name(folder, monkeypatch):
    replace_ = os.replace

    def fail(src, dst):
        if Path(dst).name == "model":
            raise OSError("no")
        replace_(src, dst)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        to("hf_bitnet_online", folder, "hf", force=True)
    assert_untouched(folder)


def test_a_folder_that_is_not_a_model_is_never_replaced(folder):
    (folder / "model" / "photos").mkdir()
    with pytest.raises(FileExistsError, match="no other folders"):
        to("hf_bitnet_online", folder, "hf", force=True)
    (folder / "model" / "photos").rmdir()
    (folder / "model" / "config.json").rename(folder / "model" / "letter.txt")
    with pytest.raises(FileExistsError, match=r"config\.json"):
        to("hf_bitnet_online", folder, "hf", force=True)
    assert (folder / "model" / "letter.txt").read_text() == "old"


@pytest.mark.parametrize("target, name", [("gguf", "model"), ("hf", "model.gguf")])
def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(target, name, folder):
    with pytest.raises(FileExistsError, match="not replaced"):
        convert.convert(source_of("gguf_tq1_0"), folder / name, to=target, force=True)
    assert_untouched(folder)


def test_a_link_is_replaced_and_not_what_it_leads_to(folder):
    (folder / "model").rename(folder / "real")
    (folder / "model").symlink_to("real")
    to("hf_bitnet_online", folder, "hf", force=True)
    assert not (folder / "model").is_symlink()
    assert (folder / "real" / "config.json").read_text() == "old"


@pytest.mark.parametrize("target", TARGETS)
def test_what_comes_in_between_stays(target, tmp_path):
    def progress(*_):
        path = tmp_path / ("model.gguf" if target == "gguf" else "model/letter.txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text("new")

    with pytest.raises(FileExistsError, match="exists; --force replaces it"):
        to("hf_bitnet_online", tmp_path, target, progress=progress)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["new"]


def test_the_source_is_never_replaced(tmp_path):
    shutil.copytree(source_of("hf_bitnet_offline"), tmp_path / "a")
    shutil.copy(source_of("gguf_tq1_0"), tmp_path / "a.gguf")
    for src, dst, target in (
        ("a", "a", "hf"), ("a", "a/model.safetensors", "gguf"), ("a.gguf", "a.gguf", "gguf"),
        ("a.gguf", ".", "hf"), ("a", "../" + tmp_path.name + "/a/../a", "hf"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="dst: "):
            convert.convert(tmp_path / src, tmp_path / dst, to=target, force=True)
    assert tensors_of(tmp_path / "a") == tensors_of(source_of("hf_bitnet_offline"))
    convert.convert(tmp_path / "a", tmp_path / "a" / "model.gguf")  # into its own folder: fine


def test_arguments_and_paths(tmp_path):
    source = source_of("gguf_tq1_0")
    with pytest.raises(ValueError, match="to: 'onnx'"):
        convert.convert(source, tmp_path / "b", to="onnx")
    with pytest.raises(ValueError, match="head: 'q4_0'"):
        convert.convert(source, tmp_path / "b", head="q4_0")
    with pytest.raises(FileNotFoundError):
        convert.convert(source, tmp_path / "no" / "b.gguf")
    with pytest.raises(FileNotFoundError):
        convert.convert(tmp_path / "none.gguf", tmp_path / "b.gguf")


# the check at the end -----------------------------------------------------------------------------


def flipped(chunks):
    """A packer that gets one weight of each tensor wrong."""
    for i, part in enumerate(ternary_layouts.pack_i2_s_stream(chunks)):
        part = part.copy()
        part[0] ^= 0b01 if not i and part[0] & 0b11 != 0b10 else 0
        yield part


def test_a_wrong_weight_is_found(folder, monkeypatch):
    monkeypatch.setattr(convert, "pack_i2_s_stream", flipped)
    with pytest.raises(FormatError, match="codes or scale: not as in the source"):
        to("hf_bitnet_online", folder, force=True)
    assert_untouched(folder)
    to("hf_bitnet_online", folder, force=True, verify=False)
    assert open_checkpoint(folder / "model.gguf")


def test_a_wrong_scale_is_found(folder, monkeypatch):
    stored = convert.hf_scale
    monkeypatch.setattr(convert, "hf_scale", lambda *a: (2 * scale for scale in stored(*a)))
    with pytest.raises(FormatError, match="codes or scale: not as in the source"):
        to("hf_bitnet_online", folder, "hf", force=True)
    assert_untouched(folder)


def test_a_wrong_norm_or_embedding_is_found(folder, monkeypatch):
    vector, rows = conversion.Conversion.vector, conversion.Conversion.rows
    monkeypatch.setattr(conversion.Conversion, "vector", lambda *a: vector(*a)[::-1])
    with pytest.raises(FormatError, match="norm: not as in the source"):
        to("hf_bitnet_online", folder, force=True)
    monkeypatch.setattr(conversion.Conversion, "vector", vector)
    monkeypatch.setattr(conversion.Conversion, "rows", lambda *a: (r[::-1] for r in rows(*a)))
    with pytest.raises(FormatError, match="embed_tokens: not as in the source"):
        to("hf_bitnet_online", folder, force=True)
    assert_untouched(folder)


def test_a_wrong_configuration_or_tokenizer_is_found(folder, monkeypatch):
    metadata, keys = convert.gguf_metadata, convert.tokenizer_export.to_gguf
    wrong = {"bitnet-b1.58.rope.freq_base": 10000.0}
    monkeypatch.setattr(convert, "gguf_metadata", lambda *a: metadata(*a) | wrong)
    with pytest.raises(FormatError, match="rope_theta: not as in the source"):
        to("hf_bitnet_online", folder, force=True)
    monkeypatch.setattr(convert, "gguf_metadata", metadata)
    wrong = {"tokenizer.ggml.add_bos_token": False}
    monkeypatch.setattr(convert.tokenizer_export, "to_gguf", lambda *a: keys(*a) | wrong)
    with pytest.raises(FormatError, match="tokenizer: not as in the source"):
        to("hf_bitnet_online", folder, force=True)
    assert_untouched(folder)


# progress, and the command ------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_progress_counts_what_was_read_and_checked(target, folder):
    seen = []
    to("hf_llama_bitlinear", folder, target, force=True, progress=lambda *a: seen.append(a))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2]
    assert {what.split()[0] for what, _, _ in seen} == {"writing", "checking"}


def test_the_command(tmp_path, capsys):
    source, dst = str(source_of("hf_bitnet_offline")), str(tmp_path / "b.gguf")
    assert cli.main(["convert", source, dst, "--head", "q8_0"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{dst}: ") and "peak memory" in out and out.count("\n") == 1
    assert err == "bitnet: note: embed_tokens: BF16 to Q8_0\n"
    assert cli.main(["convert", source, dst]) == 1
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert cli.main(["convert", dst, str(tmp_path / "b")]) == 0
    assert tensors_of(dst) == tensors_of(tmp_path / "b")
    with pytest.raises(SystemExit):
        cli.main(["convert", source])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_and_leaves_nothing(number, tmp_path, monkeypatch, capsys):
    rows = conversion.Conversion.rows

    def killed(*arguments):
        os.kill(os.getpid(), number)
        yield from rows(*arguments)

    monkeypatch.setattr(conversion.Conversion, "rows", killed)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["convert", str(source_of("gguf_tq1_0")), str(tmp_path / "b.gguf")]) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []
