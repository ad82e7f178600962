"""inspect: what a model file holds, how it will be used and what memory it will need."""

import argparse
import json
import math
import re
from pathlib import Path

from ..api.load import BUNDLED_MODEL, DEFAULT_CONTEXT, context_of
from ..checkpoints import hub, repack_cache
from ..checkpoints.checkpoint import DEFAULT_LAYOUT
from ..checkpoints.memory_plan import Need, Planner, Settings, state_bytes, table
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
from ..verify.file_report import file_report
from . import inspect_report, options
from .terminal import printable

USAGE = "[MODEL]"
N_ARGS = (0, 1)
MIN_GAP = 4096  # bytes that no tensor takes and that are worth a word: more than padding


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "From the headers alone: a file of any size takes a moment. A file that cannot "
        "be used is\nshown as far as it can be read, with the reason and exit code 1."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, with every tensor")
    parser.add_argument(
        "--report",
        action="store_true",
        help="what headers say and what a sample of the weights shows, without weights and paths, "
        "to paste into a report; also of a file that cannot be used",
    )
    parser.add_argument(
        "--tensors",
        action="store_true",
        help="every tensor with its place in the file, not one line a kind",
    )
    parser.add_argument(
        "--context",
        type=options.number(int, 1),
        metavar="N",
        help="tokens a sequence may hold, for the memory needed (default: the "
        f"model's, {DEFAULT_CONTEXT} at most)",
    )
    options.add_kv_dtype(parser)
    options.add_layout(parser, "how the I2_S tensors of a GGUF lie")


def main(args: argparse.Namespace) -> int:
    path = hub.find(args.positionals[0]) if args.positionals else BUNDLED_MODEL
    if args.report:
        report = file_report(path)
        rows = inspect_report.rows(report)
        print(json.dumps(report) if args.json else printable("\n".join(_aligned(rows))))
        return 0
    refused = None
    try:
        facts = describe(path, context=args.context, kv_dtype=args.kv_dtype, layout=args.layout)
    except FormatError as error:
        facts, refused = describe_refused(path, error), error
    if args.json:
        print(json.dumps(facts))
    else:
        rows = _refused_rows(facts) if refused else _rows(facts)
        table = _every_tensor(facts) if args.tensors else _by_layer(facts)
        print(printable("\n".join([*_aligned(rows), "", *table])))
    if refused:
        raise refused
    return 0


# what is found ------------------------------------------------------------------------------------
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


# for people ---------------------------------------------------------------------------------------
def _rows(facts):
    """(title, text) of every line; a title is shown once."""
    yield "model", facts["path"]
    yield from _file_rows(facts["files"])
    yield from _config_rows(facts)
    yield from _weight_rows(facts)
    yield from _memory_rows(facts["memory"])


def _file_rows(files):
    for file in files:
        name = f"{Path(file['path']).name}: " if len(files) > 1 else ""
        unused = f", {file['unused_bytes']:,} unused" if file["unused_bytes"] >= MIN_GAP else ""
        yield (
            "file map",
            (
                f"{name}{file['bytes']:,} bytes: header to {file['header_bytes']:,}, "
                f"then {file['tensor_bytes']:,} of tensors{unused}"
            ),
        )


def _config_rows(facts):
    c = facts["config"]
    yield (
        "family",
        (
            f"{c['family']} ({c['architecture']}): {c['num_hidden_layers']} layers, "
            f"hidden {c['hidden_size']}, ffn {c['intermediate_size']}, {c['hidden_act']}"
        ),
    )
    heads = f"{c['num_attention_heads']} heads, {c['num_key_value_heads']} for keys and values"
    order = ", interleaved" if c["rope_interleaved"] else ""
    scaling = f"; RoPE scaling {c['rope_scaling']}" if c["rope_scaling"] else ""
    base = f"RoPE base {c['rope_theta']:,.10g}{order}{scaling}"
    yield "attention", f"{heads}, of {c['head_dim']}; {base}"
    if any(c["sliding_layers"]):
        yield (
            "attention",
            (
                f"{sum(c['sliding_layers'])} of the layers see the last "
                f"{c['sliding_window']:,} positions; their RoPE base "
                f"{c['rope_local_theta']:,.10g}"
            ),
        )
    if c["pooling"]:
        yield "embedding", f"of a text: that of its {c['pooling']} token, of length 1"
    yield (
        "vocabulary",
        (
            f"{c['vocab_size']:,} rows, "
            f"{'tied' if c['tie_word_embeddings'] else 'separate'} head; begins with "
            f"{_ids([c['bos_token_id']])}, ends at {_ids(c['eos_token_ids'])}"
        ),
    )
    yield "tokenizer", _tokenizer_text(facts["tokenizer"])
    kv = facts["kv_bytes_per_token"]
    yield (
        "context",
        (
            f"{c['max_position_embeddings']:,} tokens, a token's keys and values "
            f"{kv['f16']:,} bytes as f16, {kv['f32']:,} as f32"
        ),
    )


def _ids(ids):
    return ", ".join(str(i) for i in ids if i is not None) or "no token"


def _tokenizer_text(tokenizer):
    if tokenizer["kind"] is None:
        return "none: token ids only"
    n_tokens = "" if tokenizer["tokens"] is None else f", {tokenizer['tokens']:,} tokens"
    template = "with" if tokenizer["chat_template"] else "without"
    return f"{tokenizer['kind']}{n_tokens}, {template} a chat template"


def _weight_rows(facts):
    types = sorted({t["stored_as"] for t in facts["tensors"] if t["ternary"]})
    yield (
        "weights",
        (
            f"{facts['ternary_weights']:,} ternary, {facts['ternary_bits']:.3f} bits "
            f"each ({', '.join(types)})"
        ),
    )
    yield (
        "weights",
        (
            f"{facts['float_weights']:,} others; {facts['file_bits']:.3f} bits each in "
            "the whole file"
        ),
    )
    if facts["group_scales"]:
        groups = sorted({t["group"] for t in facts["tensors"] if t["group"]})
        shown = " or ".join(str(group) for group in groups) or "all"
        yield "weights", f"one scale for {shown} columns of a row"
    repacked = facts["derived"]
    if not repacked["bytes"]:
        yield "repacked file", "not needed: every ternary tensor is used in place"
        return
    when = "there already" if repacked["path"] else "made at the first load"
    if repacked["place"] == "memory":
        when = "made in memory at each load, without a cache folder of ours"
    parts = [f"{repacked['tensors']} repacked tensors"] * (repacked["tensors"] > 0)
    parts += ["the screen of the head"] * (repacked["screen_bytes"] > 0)
    yield "repacked file", f"{repacked['bytes']:,} bytes of {' and '.join(parts)}, {when}"
    if repacked["path"]:
        yield "repacked file", repacked["path"]


def _memory_rows(memory):
    yield (
        "memory",
        (
            f"for {memory['context']:,} tokens of {memory['kv_dtype']} keys and values, "
            f"one sequence, threads: {memory['threads']}"
        ),
    )
    for line in table([Need(**need) for need in memory["needs"]]):
        yield "memory", line


def _refused_rows(facts):
    yield "model", facts["path"]
    yield from _file_rows(facts["files"])
    yield "architecture", facts["architecture"] or "not stated"
    yield "tokenizer", _tokenizer_text(facts["tokenizer"])
    if not facts["tensors"]:
        yield "tensors", "none: this is a vocabulary only"
    yield "cannot run", facts["refused"]


def _aligned(rows):
    before = None
    for title, text in rows:
        yield f"{'' if title == before else title:13} {text}"
        before = title


def _by_layer(facts):
    """One line for the tensors that differ only in their layer."""
    sizes = {}  # (name, type, shape, use) -> [bytes of each]
    for t in facts["tensors"]:
        name = re.sub(r"\.\d+\.", ".*.", t["name"], count=1)
        key = (name, t["stored_as"], _shape(t), t["use"])
        sizes.setdefault(key, []).append(t["bytes"])
    rows = [("tensor", "", "type", "shape", "bytes", "use")] if sizes else []
    rows += [
        (name, f"{len(each)} x", type_, shape, f"{sum(each):,}", use)
        for (name, type_, shape, use), each in sizes.items()
    ]
    return _columns(rows, "<><>><")


def _every_tensor(facts):
    rows = [("tensor", "type", "shape", "bytes", "offset", "use", "file")]
    rows += [
        (
            t["name"],
            t["stored_as"],
            _shape(t),
            f"{t['bytes']:,}",
            f"{t['offset']:,}",
            t["use"],
            Path(t["file"]).name,
        )
        for t in facts["tensors"]
    ]
    return _columns(rows, "<<>>><<")


def _columns(rows, aligns):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            f"{cell:{align}{width}}" for cell, align, width in zip(row, aligns, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _shape(entry):
    return " x ".join(map(str, entry["shape"]))
