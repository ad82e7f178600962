"""convert(): a model in any container and ternary type to a GGUF of I2_S, or to a packed HF folder.

Tensors go through one at a time, in pieces; the result has its name only once every one of them was
read back and is what was meant.
"""

import contextlib
import errno
import mmap
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..formats import gguf, safetensors
from ..formats.atomic_write import atomic
from ..formats.float_blocks import F16_LARGEST, dequantize, quantize
from ..formats.mapped_file import check_map
from ..formats.ternary_layouts import BLOCK, CHUNK, I2_S_TAIL, pack_hf, pack_i2_s_stream
from ..runtime import memory_report
from ..text import tokenizer_export
from ..text.tokenizer import Tokenizer
from .checkpoint import FLOATS, is_linear
from .export_config import differences, gguf_export_spec, gguf_metadata, hf_export_spec, hf_files
from .open_checkpoint import open_checkpoint

HEADS = {"f16": ("F16", 1), "q8_0": ("Q8_0", 32), "q6_k": ("Q6_K", 256)}  # type, columns a block
FREE_MARGIN = 64 << 20  # bytes of disk left to others
MODEL_FOLDERS = {"1_Pooling", "2_Normalize"}  # inside one of an embedding model
RELEASE_EVERY = 32 << 20  # bytes read between two releases of mapped pages
REPORT_EVERY = 0.1  # seconds
SAMPLES = (  # texts that must have the same tokens before and after
    "Hello, world! It's 3.14159  or 12345678 (or so).\n\n\tNew line\r\n",
    "Zażółć gęślą jaźń, 日本語のテキスト, नमस्ते, привет, 👩‍👩‍👧 é",
    "def f(x):\n    return x**2  # we'll see   what's LEFT",
)


@dataclass(frozen=True)
class Converted:
    """What convert() did. bytes_in, bytes_out: of the files. peak_rss: of the process, in bytes.

    notes: sentences about what the result cannot say, or says in another way than the source.
    """

    path: Path
    bytes_in: int
    bytes_out: int
    seconds: float
    peak_rss: int
    notes: tuple[str, ...]


def convert(
    src,
    dst,
    *,
    to=None,
    head=None,
    masters=False,
    layout="128x32",
    force=False,
    verify=True,
    progress=None,
):
    """Convert the model at src, an HF folder or a .gguf file; returns a Converted.

    to: "gguf" or "hf"; None: by the name of dst. head: the type of embedding and head, one of
        HEADS; None: as in the source, if the container has it, else F16 (GGUF) or F32 (HF).
    masters, layout: see open_checkpoint. force: replace dst. verify: read every tensor back.
    progress: called as (what, bytes done, bytes in all) about ten times a second.

    Raises ValueError for an argument, FormatError for the source, or where the target cannot hold
    the model or the result is not what was meant; FileExistsError, OSError. Then, and when it is
    interrupted, nothing is left behind and dst is as it was.
    """
    started, src, dst = time.monotonic(), Path(src), Path(dst)
    to = to or ("gguf" if dst.suffix == ".gguf" else "hf")
    if to not in ("gguf", "hf"):
        raise ValueError(f"to: {to!r} (gguf, hf)")
    if head is not None and head not in HEADS:
        raise ValueError(f"head: {head!r} ({', '.join(HEADS)})")
    source = open_checkpoint(src, layout=layout, masters=masters)
    _check_paths(source, dst, to, force)
    write, target = (_write_gguf, gguf_export_spec) if to == "gguf" else (_write_hf, hf_export_spec)
    work = _Work(source, target(source.config), head, verify, progress)
    with _staged(dst, force) as temporary:
        write(work, temporary)
        for file in source.files:
            check_map(file.data, file.path)
        if verify:
            _verify(work, temporary, dst)
    return Converted(
        dst,
        sum(file.data.nbytes for file in source.files),
        sum(path.stat().st_size for path in ([dst] if dst.is_file() else dst.rglob("*"))),
        time.monotonic() - started,
        memory_report.usage().peak_rss,
        tuple(work.notes),
    )


# where to -----------------------------------------------------------------------------------------


def _check_paths(source, dst, to, force):
    """Nothing of the source may be replaced, and with force only what can be a model."""
    inputs = [path.resolve() for path in (source.path, *source.changed_by)]
    if any(path.is_relative_to(dst.resolve()) for path in inputs):
        raise ValueError(f"dst: {dst} (not the source, nor a folder it is in)")
    if not dst.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(dst.parent))
    if not os.path.lexists(dst):
        return
    if not force:
        raise _exists(dst)
    if not (dst.is_file() if to == "gguf" else _is_model_folder(dst)):
        wanted = "a file" if to == "gguf" else "a folder with a config.json, and no other folders"
        raise FileExistsError(errno.EEXIST, f"not replaced, as it is not {wanted}", str(dst))


def _exists(dst):
    return FileExistsError(errno.EEXIST, "exists; --force replaces it", str(dst))


def _is_model_folder(path):
    if not (path / "config.json").is_file():
        return False
    return {entry.name for entry in path.iterdir() if entry.is_dir()} <= MODEL_FOLDERS


@contextlib.contextmanager
def _staged(dst, force):
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


def _check_space(folder, needed):
    free = shutil.disk_usage(folder).free
    if free < needed + FREE_MARGIN:
        message = f"{needed + FREE_MARGIN} bytes needed, {free} free"
        raise OSError(errno.ENOSPC, message, str(folder))


# the tensors --------------------------------------------------------------------------------------


class _Work:
    """One conversion: the source's tensors as the target is to hold them, and how far it is.

    made: {name: digest of what the result must give back}. scales: {name: float32 (1,)} once read.
    """

    def __init__(self, source, target, head, verify, progress):
        self.source, self.target, self.head = source, target, head
        self.made, self.scales, self.notes = {}, {}, []
        self.verify, self.progress = verify, progress
        self.done, self.doing = 0, "writing"
        self.released = self.reported = 0
        self.files, self.total = source.files, _n_bytes(source)

    def start_checking(self, found):
        """From now on found is read, the result; returns what was meant."""
        meant, self.made = self.made, {}
        self.doing, self.files, self.total = "checking", found.files, self.done + _n_bytes(found)
        return meant

    def advance(self, name, n_bytes):
        """n_bytes of a tensor were read: give their pages back, they would count as ours."""
        self.done += n_bytes
        if self.done - self.released >= RELEASE_EVERY:
            self.released = self.done
            _release(self.files)
        now = time.monotonic()
        if self.progress and now - self.reported >= REPORT_EVERY:
            self.reported = now
            self.progress(f"{self.doing} {name}", self.done, self.total)

    def ternary(self, name):
        """(scale float32 (1,), chunks of codes) in the target's order of rows."""
        t = self.source.ternary[name]
        scales, chunks = t.read()
        if scales.size > 1:
            limit = "one for the tensor, as I2_S and packed HF files hold no others"
            raise FormatError(t.tensor.path, t.tensor.name, f"{scales.size} scales", limit)
        self.scales[name] = scales
        order = _row_order(name, t.n_rows, self.source.config, self.target.config)
        if order is not None:
            chunks = [_whole(chunks, t)[order]]
        return scales, self.watched(name, t, scales, chunks)

    def watched(self, name, t, scales, chunks):
        """The chunks of a tensor as they are, while digest and progress are kept."""
        digest, n_bytes, n_rows = blake2b(scales.tobytes()), t.tensor.data.nbytes, 0
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk))
            before, n_rows = n_rows, n_rows + len(chunk)
            self.advance(name, n_bytes * n_rows // t.n_rows - n_bytes * before // t.n_rows)
            yield chunk
        self.made[name] = digest.digest()

    def rows(self, name, type_name):
        """The embedding or head in this type, in pieces."""
        tensor, digest = self.source.floats[name], blake2b()
        for part in _row_parts(tensor):
            out = part
            if tensor.type != type_name:
                out = quantize(type_name, dequantize(tensor.type, part, tensor.shape[1]))
            digest.update(np.ascontiguousarray(out))
            self.advance(name, part.nbytes)
            yield out
        self.made[name] = digest.digest()

    def vector(self, name):
        """A norm as the target stores it."""
        values, config = self.source.vector(name), self.source.config
        if name.endswith(".q_norm") and self.target.config.query_scale != config.query_scale:
            values = values * np.float32(config.query_scale)
        stored = values
        if self.target.config.norms_are_offsets and not name.endswith("_proj.norm"):
            stored = values - np.float32(1)
            values = np.float32(1) + stored  # for |values| < 0.5 that may lose the last bits
        self.advance(name, self.source.floats[name].data.nbytes)
        self.made[name] = blake2b(values.tobytes()).digest()
        return stored

    def row_type(self, name, kept, default):
        """The type the target gets for the embedding or head: head, else as in the source if it is
        one of kept, else the default. Another pass finds whether its values fit."""
        tensor = self.source.floats[name]
        chosen, block = HEADS[self.head] if self.head else (default, 1)
        if self.head is None and tensor.type in kept:
            return tensor.type
        if tensor.shape[1] % block:
            limit = f"a multiple of {block}, for --head {self.head}"
            raise FormatError(tensor.path, f"{tensor.name} columns", tensor.shape[1], limit)
        if tensor.type != chosen and self.peak(name) > F16_LARGEST:
            chosen = "F32"
        if tensor.type != chosen:
            self.notes.append(f"{name}: {tensor.type} to {chosen}")
        return chosen

    def peak(self, name):
        """The largest |value| of the embedding or head; FormatError if one is not finite."""
        tensor, peak = self.source.floats[name], 0.0
        self.total += tensor.data.nbytes
        for part in _row_parts(tensor):
            peak = np.maximum(peak, np.abs(dequantize(tensor.type, part, tensor.shape[1])).max())
            self.advance(name, part.nbytes)
        if not np.isfinite(peak):  # NaN stays in a maximum
            raise FormatError(tensor.path, tensor.name, "NaN or infinite", "finite weights")
        return peak


def _n_bytes(source):
    tensors = [t.tensor for t in source.ternary.values()]
    return sum(tensor.data.nbytes for tensor in (*tensors, *source.floats.values()))


def _release(files):
    """Give mapped pages back to the system: resident memory stays that of one tensor."""
    for file in files:
        base = file.data
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def _row_parts(tensor):
    data = tensor.data.reshape(tensor.shape[0], -1)
    step = max(1, CHUNK // tensor.shape[1])
    for at in range(0, len(data), step):
        yield data[at : at + step]


def _row_order(name, n_rows, source, target):
    """Which row of the source each row of the target is, None where they are the same.

    Rows of q and k lie in each head as (2, head_dim / 2) for RoPE over (j, j + head_dim / 2), and
    as (head_dim / 2, 2) for RoPE over (2j, 2j + 1).
    """
    moved = name.endswith(("q_proj", "k_proj"))
    if not moved or source.rope_interleaved == target.rope_interleaved:
        return None
    half = source.head_dim // 2
    of_head = (half, 2) if source.rope_interleaved else (2, half)
    return np.arange(n_rows).reshape(-1, *of_head).swapaxes(1, 2).reshape(-1)


def _whole(chunks, t):
    """All codes of a tensor, uint8 (n_rows, n_cols)."""
    codes, at = np.empty((t.n_rows, t.n_cols), np.uint8), 0
    for chunk in chunks:
        codes[at : at + len(chunk)] = chunk
        at += len(chunk)
    return codes


# GGUF ---------------------------------------------------------------------------------------------


def _write_gguf(work, path):
    source, target = work.source, work.target
    metadata = gguf_metadata(target.config, _name_of(source))
    metadata |= tokenizer_export.to_gguf(source.tokenizer_source, source.config)
    tensors = []
    for name, shape in target.config.tensor_shapes().items():
        if is_linear(name):
            type_name, data = "I2_S", _i2_s(work, name)
        elif len(shape) == 1:
            type_name, data = "F32", _later(work.vector, name)
        else:
            kept = set(gguf.TYPE_IDS) - {"F32", "BF16"}
            type_name = work.row_type(name, kept, "F16")
            data = work.rows(name, type_name)
        _check_fits(source, name, shape, type_name)
        tensors.append((f"{target.family.gguf_name(name)}.weight", shape, type_name, data))
    n_bytes = sum(gguf.n_bytes_of(type_name, shape) for _, shape, type_name, _ in tensors)
    work.total += n_bytes if work.verify else 0
    _check_space(path.parent, n_bytes)
    _note_gguf(work)
    gguf.write(path, metadata, tensors)


def _i2_s(work, name):
    scales, chunks = work.ternary(name)
    yield from pack_i2_s_stream(chunks)
    yield scales.tobytes() + bytes(I2_S_TAIL - 4)


def _later(make, *arguments):
    yield make(*arguments)


def _check_fits(source, name, shape, type_name):
    try:
        gguf.n_bytes_of(type_name, shape)
    except ValueError as error:
        raise FormatError(source.path, f"{name} shape", shape, error) from None


def _name_of(source):
    metadata = getattr(source.files[0], "metadata", {})
    name = metadata.get("general.name", "")
    return name if isinstance(name, str) and name else source.path.resolve().stem


def _note_gguf(work):
    config, cut = work.source.config, set()
    for name, t in work.source.ternary.items():
        if t.n_cols % BLOCK:
            cut.add(f"{name.rpartition('.')[2]} ({t.n_cols})")
    if cut:
        work.notes.append(
            f"rows of {', '.join(sorted(cut))} are not a multiple of {BLOCK}: "
            "bitnet.cpp loads them and computes nonsense"
        )
    if config.query_scale != 1:
        work.notes.append(f"the query scale {config.query_scale:g} is in the weights of q_norm")
    if work.source.prompts:
        names = ", ".join(work.source.prompts)
        work.notes.append(f"prompts are not in a GGUF: {names}")


# Hugging Face -------------------------------------------------------------------------------------


def _write_hf(work, folder):
    source, target, linear_class = work.source, work.target, _linear_class(work.source)
    if work.head is not None:
        raise ValueError(f"head: {work.head!r} (None for an HF folder)")
    kept = FLOATS if linear_class == "bitlinear" else ()  # transformers casts those of this alone
    tensors = []
    for name, shape in target.config.tensor_shapes().items():
        prefix = "" if name == "lm_head" else target.prefix
        stem = prefix + target.family.hf_name(name)
        if is_linear(name):
            packed = -(-shape[0] // 4), shape[1]
            scale = _hf_scale(work, name, linear_class)
            tensors.append((f"{stem}.weight", packed, "U8", _packed(work, name)))
            tensors.append((f"{stem}.weight_scale", (1,), "F32", scale))
        elif len(shape) == 1:
            tensors.append((f"{stem}.weight", shape, "F32", _later(work.vector, name)))
        else:
            type_name = work.row_type(name, kept, "F32")
            tensors.append((f"{stem}.weight", shape, type_name, work.rows(name, type_name)))
    n_bytes = sum(safetensors.n_bytes_of(t, shape) for _, shape, t, _ in tensors)
    work.total += n_bytes if work.verify else 0
    _check_space(folder.parent, n_bytes)
    folder.mkdir()
    safetensors.write(folder / safetensors.SINGLE, {"format": "pt"}, tensors)
    files = hf_files(target.config, linear_class, source.prompts)
    files |= tokenizer_export.to_hf(source.tokenizer_source, source.config)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with atomic(folder / name) as file:
            file.write(data)


def _linear_class(source):
    """What transformers is to do with the scales: "bitlinear" divides by them, as published Llama
    models want it, where all stay the same by that; "autobitlinear" multiplies.

    That of masters is 1 / x already, and of those 1 / (1 / (1 / x)) == 1 / x for every float32.
    """
    if source.config.family != "llama":
        return "autobitlinear"
    one = np.float32(1)
    stored = (t.scales() for t in source.ternary.values() if not t.stored_as.endswith("masters"))
    return "bitlinear" if all((one / (one / s) == s).all() for s in stored) else "autobitlinear"


def _packed(work, name):
    _, chunks = work.ternary(name)
    yield pack_hf(_whole(chunks, work.source.ternary[name]))


def _hf_scale(work, name, linear_class):
    """Run once the tensor is written, which finds its scale."""
    scales = work.scales[name]
    yield 1 / scales if linear_class == "bitlinear" else scales


# what was written ---------------------------------------------------------------------------------


def _verify(work, path, dst):
    """Read the result as a model; FormatError where it is not what was meant."""

    def check(equal, field):
        if not equal:
            raise FormatError(dst, field, "not as in the source", "nothing was kept")

    found = open_checkpoint(path)
    changed = differences(found.config, work.target.config)
    check(not changed, ", ".join(changed))
    meant = work.start_checking(found)
    for name, t in found.ternary.items():
        scales, chunks = t.read()
        for _ in work.watched(name, t, scales, chunks):
            pass
        check(work.made[name] == meant[name], f"{name} codes or scale")
    for name, tensor in found.floats.items():
        digest = blake2b()
        if len(tensor.shape) == 1:
            digest.update(found.vector(name).tobytes())
            work.advance(name, tensor.data.nbytes)
        for part in _row_parts(tensor) if len(tensor.shape) == 2 else ():
            digest.update(np.ascontiguousarray(part))
            work.advance(name, part.nbytes)
        check(digest.digest() == meant[name], name)
    _release(found.files)
    before, after = (
        Tokenizer.from_source(s.tokenizer_source, s.config) for s in (work.source, found)
    )
    for text in SAMPLES if before else ():
        ids = [t and t.encode(text, add_eos=True) for t in (before, after)]
        check(ids[0] == ids[1], "tokenizer")
