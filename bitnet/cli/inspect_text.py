"""What `bitnet inspect` found, as lines for people."""

import re
from pathlib import Path

from ..checkpoints.memory_plan import Need, table

MIN_GAP = 4096  # bytes that no tensor takes and that are worth a word: more than padding


def rows(facts):
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


def refused_rows(facts):
    yield "model", facts["path"]
    yield from _file_rows(facts["files"])
    yield "architecture", facts["architecture"] or "not stated"
    yield "tokenizer", _tokenizer_text(facts["tokenizer"])
    if not facts["tensors"]:
        yield "tensors", "none: this is a vocabulary only"
    yield "cannot run", facts["refused"]


def aligned(rows):
    before = None
    for title, text in rows:
        yield f"{'' if title == before else title:13} {text}"
        before = title


def by_layer(facts):
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


def every_tensor(facts):
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
