"""What `bitnet inspect` finds in a model's files."""

import math

from ..api.load import context_of
from ..checkpoints import repack_cache
from ..checkpoints.checkpoint import DEFAULT_LAYOUT
from ..checkpoints.memory_plan import Planner, Settings, state_bytes
from ..checkpoints.model_files import model_at
from ..checkpoints.open_checkpoint import open_checkpoint
from ..checkpoints.repacked_tensors import repacked_bytes
from ..errors import FormatError
from ..formats.gguf import GGUFFile, n_bytes_of
from ..formats.gguf_parts import open_gguf
from ..formats.safetensors import open_folder
from ..models import lm_head_screen
from ..runtime import cpu
from ..runtime.kv_cache import DEFAULT_KV_DTYPE, DTYPES, PAGE


def describe(path, *, context=None, kv_dtype=DEFAULT_KV_DTYPE, layout=DEFAULT_LAYOUT):
    """A JSON-ready dict of a .gguf file or a Hugging Face folder.

    context, kv_dtype: for the memory needed. layout: see open_checkpoint. FormatError for a model
    that cannot be used, ValueError for a context beyond the model's, OSError.
    """
    checkpoint = open_checkpoint(path, layout=layout)
    if checkpoint.is_undecided():
        repack_cache.find(checkpoint)
    config = checkpoint.config
    context = context_of(config, context)
    tensors, repacked = _tensors(checkpoint), _repacked(checkpoint)
    ternary = [t for t in tensors if t["ternary"]]
    n_ternary, n_all = (sum(t["weights"] for t in some) for some in (ternary, tensors))
    ternary_bytes = sum(t["bytes"] for t in tensors if t["ternary"] or t["use"] == "scale")
    return {
        "path": str(path),
        "family": config.family,
        "config": {name: getattr(config, name) for name in config.__dataclass_fields__}
        | {"rope_scaling": config.rope_scaling and str(config.rope_scaling)},
        "files": [_file(file) for file in checkpoint.files],
        "ternary_weights": n_ternary,
        "float_weights": n_all - n_ternary,
        "group_scales": checkpoint.has_group_scales,
        "ternary_bits": 8 * ternary_bytes / n_ternary,
        "file_bits": 8 * sum(len(file.data) for file in checkpoint.files) / n_all,
        "kv_bytes_per_token": {dtype: state_bytes(config, PAGE, dtype) // PAGE for dtype in DTYPES},
        "tokenizer": _tokenizer(checkpoint.tokenizer_source),
        "derived": repacked,
        "memory": _memory(checkpoint, context, kv_dtype),
        "tensors": tensors,
    }


def describe_refused(path, error):
    """The same of what cannot be used, as far as it can be read; raises `error` where it cannot."""
    try:
        files, tensors = _readable(model_at(path))
    except (FormatError, OSError):
        raise error from None
    metadata = getattr(files[0], "metadata", {}) if files else {}
    architecture = metadata.get("general.architecture")
    return {
        "path": str(path),
        "refused": str(error),
        "architecture": str(architecture) if architecture else None,
        "files": [_file(file) for file in files],
        "tokenizer": _gguf_tokenizer(metadata),
        "tensors": [
            _entry(t, files, t.type, "", math.prod(t.shape), False) for t in tensors.values()
        ],
    }


def _readable(path):
    """(files, tensors) of a folder, of a GGUF, or of one part whose others are not there."""
    if path.is_dir():
        return open_folder(path)
    try:
        return open_gguf(path)
    except FormatError:
        file = GGUFFile(path)
        return [file], file.tensors


def _file(file):
    """Where the bytes of one mapped file are: header, tensors, and what neither takes."""
    spans = sorted(_span(t, file) for t in file.tensors.values())
    header = spans[0][0] if spans else len(file.data)
    unused, at = 0, header
    for begin, end in [*spans, (len(file.data), len(file.data))]:
        unused += max(0, begin - at)
        at = max(at, end)
    return {
        "path": str(file.path),
        "bytes": len(file.data),
        "header_bytes": header,
        "tensor_bytes": sum(end - begin for begin, end in spans),
        "unused_bytes": unused,
    }


def _span(tensor, file):
    begin = tensor.data.ctypes.data - file.data.ctypes.data
    return begin, begin + len(tensor.data)


def _tensors(checkpoint):
    """Every tensor of the files in their order there, those of no use included."""
    entries, known = [], {}
    for t in checkpoint.ternary.values():
        use = "in place" if checkpoint.is_in_place(t) else "repacked once"
        group = t.quantization.weight_group if checkpoint.has_group_scales else None
        known[t.tensor.name] = t.stored_as, use, t.n_rows * t.n_cols, True, group
    for t in checkpoint.floats.values():
        use = "in place" if len(t.shape) == 2 else "copied"
        known[t.name] = t.type, use, math.prod(t.shape), False
    for file in checkpoint.files:
        for t in sorted(file.tensors.values(), key=lambda t: t.data.ctypes.data):
            is_scale = t.name.endswith(("_scale", ".scale", ".scales", ".biases"))
            use = "scale" if is_scale else "not used"
            entries.append(_entry(t, [file], *known.get(t.name, (t.type, use, 0, False))))
    return entries


def _entry(tensor, files, stored_as, use, n_weights, is_ternary, group=None):
    """group: columns that have one scale, None: not of groups, or the whole row."""
    file = next(file for file in files if file.path == tensor.path)
    return {
        "name": tensor.name,
        "type": tensor.type,
        "stored_as": stored_as,
        "shape": list(tensor.shape),
        "weights": n_weights,
        "ternary": is_ternary,
        "group": group,
        "use": use,
        "file": str(tensor.path),
        "bytes": tensor.data.nbytes,
        "offset": _span(tensor, file)[0],
    }


def _tokenizer(source):
    if source.metadata is not None:
        return _gguf_tokenizer(source.metadata)
    path = source.tokenizer_json or source.sentencepiece
    return {
        "kind": path and path.name,
        "tokens": None,
        "chat_template": _has_text(source.tokenizer_config.get("chat_template")),
    }


def _gguf_tokenizer(metadata):
    parts = (metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    return {
        "kind": ", ".join(part for part in parts if isinstance(part, str)) or None,
        "tokens": len(metadata.get("tokenizer.ggml.tokens", ())),
        "chat_template": _has_text(metadata.get("tokenizer.chat_template")),
    }


def _has_text(template):
    """Whether there is a chat template: a blank one is none."""
    return bool(template.strip() if isinstance(template, str) else template)


def _repacked(checkpoint):
    """What a load makes of the files: tensors that the kernels cannot read in place, and in a file
    the screen of the head. Bytes, and whether it is there."""
    repacked = [t for t in checkpoint.ternary.values() if not checkpoint.is_in_place(t)]
    has_groups = checkpoint.has_group_scales
    n_bytes = sum(repacked_bytes(t, has_groups) for t in repacked)
    place = "sidecar" if repack_cache.has_folder() else None
    head, n_screen = checkpoint.screened_head(), 0
    if place and head:
        table = lm_head_screen.table((head.n_rows, head.n_cols))
        n_screen = sum(n_bytes_of(type_name, shape) for _, shape, type_name in table)
    path = repack_cache.find(checkpoint) if (repacked or n_screen) and place else None
    return {
        "tensors": len(repacked),
        "bytes": n_bytes + n_screen,
        "screen_bytes": n_screen,
        "place": place or "memory",
        "path": path and str(path),
    }


def _memory(checkpoint, context, kv_dtype):
    planner, settings = Planner(checkpoint), Settings(context, kv_dtype, threads=cpu.threads()[0])
    needs = planner.needs(settings)
    return {
        **vars(settings),
        "needs": [vars(need) for need in needs],
        "private_bytes": planner.private(settings),
        "mapped_bytes": sum(n.nbytes for n in needs if n.purpose == "files"),
    }
