"""convert(): a model in any container and ternary type to a GGUF of I2_S, or to a packed HF folder;
one whose groups of columns have scales to a GGUF of such a type, or to a folder for MLX.

Tensors go through one at a time, in chunks of rows; the result has its name only once every one of
them was read back and is what was meant.
"""

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import check_choice
from ..errors import FormatError
from ..formats import gguf, safetensors
from ..formats.atomic_write import atomic, check_free_space
from ..formats.ggml_types import FLOAT_TYPES, ROW_TYPES
from ..formats.mapped_file import check_map
from ..formats.ternary_layouts import (
    I2_S_CODES,
    I2_S_TAIL,
    join_codes,
    pack_hf,
    pack_i2_s_stream,
)
from ..progress import Progress
from ..runtime import memory_report
from ..runtime.float_mode import in_ieee_mode
from ..text import tokenizer_export
from ..text.tokenizer import Tokenizer
from .checkpoint import DEFAULT_LAYOUT, Checkpoint
from .conversion import HEAD_TYPES, Conversion
from .convert_groups import (
    GROUP_TYPES,
    default_type,
    mlx_entries,
    packed_rows,
    smallest_group,
)
from .export_config import differences, gguf_export_spec, gguf_metadata, hf_export_spec, hf_files
from .open_checkpoint import open_checkpoint

MODEL_FOLDERS = {"1_Pooling", "2_Normalize"}  # folders inside that of an embedding model
TOKENIZER_SAMPLES = (  # texts that must have the same tokens before and after
    "Hello, world! It's 3.14159  or 12345678 (or so).\n\n\tNew line\r\n",
    "Zażółć gęślą jaźń, 日本語のテキスト, नमस्ते, привет, 👩‍👩‍👧 é",
    "def f(x):\n    return x**2  # we'll see   what's LEFT",
)


@dataclass(frozen=True)
class Converted:
    """What convert() did. bytes_in, bytes_out: of the files. peak_rss: of the process, in bytes.

    notes: sentences about what the result cannot say, or says in another way than the original.
    """

    path: Path
    bytes_in: int
    bytes_out: int
    seconds: float
    peak_rss: int
    notes: tuple[str, ...]


@in_ieee_mode
def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: str | None = None,
    head: str | None = None,
    type: str | None = None,
    masters: bool = False,
    layout: str = DEFAULT_LAYOUT,
    force: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> Converted:
    """Convert the model at src, an HF folder or a .gguf file; returns a Converted.

    to: "gguf" or "hf"; None: by the name of dst. head: the type of embedding and head, one of
        HEAD_TYPES; None: as at src, if the container has it, else F16 (GGUF) or F32 (HF).
    type: of the ternary tensors in a GGUF, one of GROUP_TYPES, for a model whose groups of columns
        have scales; None: Q2_0 if one has groups of 64, else PQ2_0. Other models are I2_S.
    masters, layout: see open_checkpoint. force: replace dst. verify: read every tensor back.
    progress: is told bytes, about ten times a second, see bitnet/progress.py.

    Raises ValueError for an argument, FormatError for what is at src, or where the container cannot
    hold the model or the result is not what was meant; FileExistsError, OSError. Then, and when it
    is interrupted, nothing is left behind and dst is as it was.
    """
    started, src, dst = time.monotonic(), Path(src), Path(dst)
    to = to or ("gguf" if dst.suffix == ".gguf" else "hf")
    check_choice("to", to, ("gguf", "hf"))
    if head is not None:
        check_choice("head", head, HEAD_TYPES)
    if type is not None:
        check_choice("type", type, GROUP_TYPES)
    checkpoint = open_checkpoint(src, layout=layout, masters=masters)
    _refuse_unwritten(checkpoint)
    checkpoint.settle_tables()
    if type is not None and not (checkpoint.has_group_scales and to == "gguf"):
        raise ValueError(f"type: {type!r} (None but for a GGUF of a model with scales of groups)")
    if head is not None and checkpoint.table("lm_head") in checkpoint.ternary:
        raise ValueError(f"head: {head!r} (None, as the head is ternary)")
    _check_paths(checkpoint, dst, to, force)
    is_gguf = to == "gguf"
    spec = (gguf_export_spec if is_gguf else hf_export_spec)(checkpoint.config)
    conversion = Conversion(checkpoint, spec, head, verify, progress)
    ternary_type = "I2_S"
    if checkpoint.has_group_scales:
        ternary_type = GROUP_TYPES[type] if type else default_type(checkpoint)
    with _staged(dst, force) as temporary:
        if is_gguf:
            _write_gguf(conversion, temporary, ternary_type)
        else:
            _write_hf(conversion, temporary)
        for file in checkpoint.files:
            check_map(file.data, file.path)
        if verify:
            _verify(conversion, temporary, dst)
    return Converted(
        dst,
        sum(file.data.nbytes for file in checkpoint.files),
        sum(path.stat().st_size for path in ([dst] if dst.is_file() else dst.rglob("*"))),
        time.monotonic() - started,
        memory_report.usage().peak_rss,
        tuple(conversion.notes),
    )


# where to -----------------------------------------------------------------------------------------


def _check_paths(checkpoint: Checkpoint, dst: Path, to: str, force: bool) -> None:
    """Nothing of the original may be replaced, and with force only what can be a model."""
    inputs = [path.resolve() for path in (checkpoint.path, *checkpoint.changed_by)]
    if any(path.is_relative_to(dst.resolve()) for path in inputs):
        raise ValueError(f"dst: {dst} (not the source, nor a folder it is in)")
    if not dst.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(dst.parent))
    if not os.path.lexists(dst):
        return
    if not force:
        raise _exists(dst)
    if not (dst.is_file() if to == "gguf" else _is_model_folder(dst)):
        expected = "a file" if to == "gguf" else "a folder with a config.json, and no other folders"
        raise FileExistsError(errno.EEXIST, f"not replaced, as it is not {expected}", str(dst))


def _refuse_unwritten(checkpoint: Checkpoint) -> None:
    arch = checkpoint.config.arch
    if not arch.can_be_written:
        limit = "a family that is converted; heads lie in another order in each container"
        raise FormatError(checkpoint.path, "family", arch.name, limit)


def _exists(dst: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "exists; --force replaces it", str(dst))


def _is_model_folder(path: Path) -> bool:
    if not (path / "config.json").is_file():
        return False
    return {entry.name for entry in path.iterdir() if entry.is_dir()} <= MODEL_FOLDERS


@contextlib.contextmanager
def _staged(dst: Path, force: bool) -> Iterator[Path]:
    """A path beside dst for a file or folder, renamed to dst if the block ends well, else removed.

    With force, what was at dst is removed last.
    """
    stem = f".{dst.name}.{secrets.token_hex(4)}"
    temporary, old = dst.with_name(stem + ".tmp"), dst.with_name(stem + ".old")
    try:
        yield temporary
        if os.path.lexists(dst) and not force:  # it has come while we wrote
            raise _exists(dst)
        if dst.is_dir():  # a folder cannot be replaced in one step
            os.rename(dst, old)
        os.replace(temporary, dst)
    finally:
        if os.path.lexists(old) and not os.path.lexists(dst):
            os.rename(old, dst)
        for left in (temporary, old):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


# GGUF ---------------------------------------------------------------------------------------------


def _write_gguf(conversion: Conversion, path: Path, ternary_type: str) -> None:
    checkpoint, config = conversion.checkpoint, conversion.spec.config
    metadata = gguf_metadata(config, _name_of(checkpoint), ternary_type)
    metadata |= tokenizer_export.to_gguf(checkpoint.tokenizer_source, checkpoint.config)
    kept = set(ROW_TYPES) - {"F32", "BF16"}
    tensors = []
    for name, shape in config.tensor_shapes().items():
        data: Iterator[Any]
        if name in checkpoint.ternary:
            type_name, data = ternary_type, _ternary_rows(conversion, name, ternary_type)
        elif len(shape) == 1:
            type_name, data = "F32", _later(conversion.vector, name)
        else:
            type_name = conversion.row_type(name, kept, "F16")
            data = conversion.rows(name, type_name)
        _check_fits(checkpoint, name, shape, type_name)
        tensors.append((f"{config.arch.gguf_name(name)}.weight", shape, type_name, data))
    n_bytes = sum(gguf.n_bytes_of(type_name, shape) for _, shape, type_name, _ in tensors)
    conversion.total += n_bytes if conversion.verify else 0
    check_free_space(path.parent, n_bytes)
    _note_gguf(conversion)
    gguf.write(path, metadata, tensors)


def _ternary_rows(
    conversion: Conversion, name: str, type_name: str
) -> Iterator[np.ndarray | bytes]:
    """The bytes of a ternary tensor: what follows is of the stream of I2_S alone."""
    if type_name != "I2_S":
        yield from packed_rows(conversion, name, type_name)
        return
    yield from pack_i2_s_stream(conversion.ternary(name))
    yield conversion.scales[name].tobytes() + bytes(I2_S_TAIL - 4)


def _later(make: Callable[[str], np.ndarray], name: str) -> Iterator[np.ndarray]:
    yield make(name)


def _check_fits(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], type_name: str) -> None:
    try:
        gguf.n_bytes_of(type_name, shape)
    except ValueError as error:
        raise FormatError(checkpoint.path, f"{name} shape", shape, str(error)) from None


def _name_of(checkpoint: Checkpoint) -> str:
    metadata = getattr(checkpoint.files[0], "metadata", {})
    name = metadata.get("general.name", "")
    if isinstance(name, str) and name:
        return name
    return os.fsencode(checkpoint.path.resolve().stem).decode("utf-8", "replace")


def _note_gguf(conversion: Conversion) -> None:
    checkpoint, cut = conversion.checkpoint, set()
    for name, t in checkpoint.ternary.items():
        if t.n_cols % I2_S_CODES and not checkpoint.has_group_scales:
            cut.add(f"{name.rpartition('.')[2]} ({t.n_cols})")
    if cut:
        conversion.notes.append(
            f"rows of {', '.join(sorted(cut))} are not a multiple of {I2_S_CODES}: "
            "bitnet.cpp loads them and computes nonsense"
        )
    scale = checkpoint.config.query_scale
    if scale != 1:
        conversion.notes.append(f"the query scale {scale:g} is in the weights of q_norm")
    if checkpoint.prompts:
        names = ", ".join(checkpoint.prompts)
        conversion.notes.append(f"prompts are not in a GGUF: {names}")


# Hugging Face -------------------------------------------------------------------------------------


def _write_hf(conversion: Conversion, folder: Path) -> None:
    checkpoint, config = conversion.checkpoint, conversion.spec.config
    group = smallest_group(checkpoint) if checkpoint.has_group_scales else None
    linear_class = "" if group else _linear_class(checkpoint)
    if conversion.head is not None:
        raise ValueError(f"head: {conversion.head!r} (None for an HF folder)")
    # transformers casts embedding and head to float32 only under this class of linears
    kept = FLOAT_TYPES if group or linear_class == "bitlinear" else ()
    tensors: list[tuple[str, tuple[int, ...], str, Iterator[np.ndarray]]] = []
    for name, shape in config.tensor_shapes().items():
        prefix = "" if name == "lm_head" else conversion.spec.prefix
        stem = prefix + config.arch.hf_name(name)
        if group and name in checkpoint.ternary:
            tensors += mlx_entries(conversion, name, stem, group)
        elif config.arch.is_linear(name):
            packed = -(-shape[0] // 4), shape[1]
            scale = hf_scale(conversion, name, linear_class)
            tensors.append((f"{stem}.weight", packed, "U8", _packed(conversion, name)))
            tensors.append((f"{stem}.weight_scale", (1,), "F32", scale))
        elif len(shape) == 1:
            tensors.append((f"{stem}.weight", shape, "F32", _later(conversion.vector, name)))
        else:
            type_name = conversion.row_type(name, kept, "F32")
            rows = conversion.rows(name, type_name)
            tensors.append((f"{stem}.weight", shape, type_name, rows))
    n_bytes = sum(safetensors.n_bytes_of(t, shape) for _, shape, t, _ in tensors)
    conversion.total += n_bytes if conversion.verify else 0
    check_free_space(folder.parent, n_bytes)
    folder.mkdir()
    safetensors.write(folder / safetensors.SINGLE, {"format": "pt"}, tensors)
    files = hf_files(config, linear_class, checkpoint.prompts, group)
    files |= tokenizer_export.to_hf(checkpoint.tokenizer_source, checkpoint.config)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with atomic(folder / name) as file:
            file.write(data)


def _linear_class(checkpoint: Checkpoint) -> str:
    """The linear_class of the folder: transformers divides by the scales of "bitlinear", and
    multiplies by those of "autobitlinear".

    That of published models of the family; "autobitlinear" where a scale would not survive being
    inverted twice. A scale of masters does: it is 1 / x, and 1 / (1 / (1 / x)) == 1 / x for every
    float32.
    """
    published = checkpoint.config.arch.linear_class
    if published != "bitlinear":
        return published
    one = np.float32(1)
    stored = (t.scales() for t in checkpoint.ternary.values() if not t.are_masters)
    return published if all((one / (one / s) == s).all() for s in stored) else "autobitlinear"


def _packed(conversion: Conversion, name: str) -> Iterator[np.ndarray]:
    t = conversion.checkpoint.ternary[name]
    yield pack_hf(join_codes(conversion.ternary(name), t.n_rows, t.n_cols))


def hf_scale(conversion: Conversion, name: str, linear_class: str) -> Iterator[np.ndarray]:
    """The scale of a tensor. To be run after the tensor is written, which finds the scale."""
    scales = conversion.scales[name]
    yield 1 / scales if linear_class == "bitlinear" else scales


# what was written ---------------------------------------------------------------------------------


def _verify(conversion: Conversion, path: Path, dst: Path) -> None:
    """Read the result as a model; FormatError where it is not what was meant."""

    def check(is_equal: bool, field: str) -> None:
        if not is_equal:
            raise FormatError(dst, field, "not as in the source", "nothing was kept")

    result = open_checkpoint(path)
    changed = differences(result.config, conversion.spec.config)
    check(not changed, ", ".join(changed))
    expected = conversion.start_checking(result)
    has_groups = conversion.checkpoint.has_group_scales
    check(result.has_group_scales == has_groups, "scales of groups")
    check(result.ternary.keys() == conversion.checkpoint.ternary.keys(), "ternary tensors")
    for name, t in result.ternary.items():
        if has_groups:
            for _ in conversion.watched_groups(name, t, t.read_groups()):
                pass
            check(conversion.digests[name] == expected[name], f"{name} weights")
            continue
        scales, chunks = t.read()
        for _ in conversion.watched(name, t, scales, chunks):
            pass
        check(conversion.digests[name] == expected[name], f"{name} codes or scale")
    for name, tensor in result.floats.items():
        digest = blake2b()
        if len(tensor.shape) == 1:
            digest.update(result.vector(name).tobytes())
            conversion.advance(name, tensor.data.nbytes)
        for rows in tensor.row_steps() if len(tensor.shape) == 2 else ():
            digest.update(np.ascontiguousarray(rows).data)
            conversion.advance(name, rows.nbytes)
        check(digest.digest() == expected[name], name)
    conversion.release()
    checkpoints = conversion.checkpoint, result
    before, after = (Tokenizer.from_source(c.tokenizer_source, c.config) for c in checkpoints)
    ends, kept = (
        {*c.config.eos_token_ids, *(tokenizer.eos_ids if tokenizer else ())}
        for c, tokenizer in zip(checkpoints, (before, after), strict=True)
    )
    check(ends <= kept, "tokens that end a text")
    for text in TOKENIZER_SAMPLES if before else ():
        ids = [t and t.encode(text, add_eos=True) for t in (before, after)]
        check(ids[0] == ids[1], "tokenizer")
