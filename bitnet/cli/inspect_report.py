"""The lines of `bitnet inspect --report`."""

import json
from collections.abc import Iterator
from typing import Any


def rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(title, text) of every line. facts: of verify.file_report."""
    n_tensors = sum(file["tensors"] for file in facts["files"])
    sizes = ", ".join(f"{file['bytes']:,}" for file in facts["files"])
    yield "report", f"of bitnet {facts['version']}: headers, and a sample of the weights"
    yield "container", f"{facts['container']}, {n_tensors:,} tensors, {sizes} bytes"
    yield "use", f"family {facts['family']}" if facts["family"] else f"refused: {facts['refused']}"
    for key, value in facts["keys"].items():
        yield "header", f"{key} = {json.dumps(value, ensure_ascii=False)}"
    if facts["family"]:
        yield "RoPE scaling", f"read as {facts['rope_scaling'] or 'none'}"
    yield from _text_rows(facts)
    for type_, of_type in facts["types"].items():
        counts = f"{of_type['tensors']:,} tensors, {of_type['values']:,} values"
        names = ", ".join(of_type["names"])
        yield "types", f"{type_}: {counts}, {of_type['bytes']:,} bytes: {names}"
    for table, of_table in facts["tables"].items():
        shape = of_table and " x ".join(map(str, of_table["shape"]))
        yield table, f"{of_table['type']}, {shape}" if of_table else "none"
    yield "sample", f"the first and last rows of each matrix, {facts['sampled_rows']} in all"
    for form, sample in facts["samples"].items():
        first, *others = _sample_texts(sample)
        yield "sample", f"{form}: {first}"
        for text in others:
            yield "sample", f"  {text}"
    if facts["first_layer"]:
        yield "first layer", "by our kernels with inputs of 16 bits, beside float64: relative RMS"
    for checked in facts["first_layer"] or ():
        seen = f"{checked['name']}: {checked['rows']:,} rows scanned"
        if checked["error"] is not None:
            seen += f", {checked['error']:.1e} in {checked['compared']:,}"
        yield "first layer", seen + (f"; FAULT: {checked['fault']}" if checked["fault"] else "")


def _text_rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of tokens and template."""
    for name, token in facts["tokens"].items():
        text = "of no token" if token["text"] is None else token["text"]
        yield "tokens", f"{name} {token['id']} {text}"
    if facts["n_tokens"] is not None:
        yield "tokens", f"{facts['n_tokens']:,} in the file"
    if facts["eos_token_ids"] is not None:
        yield "tokens", f"the header ends a text at {facts['eos_token_ids']}"
    template = facts["chat_template"]
    if template is None:
        yield "template", "none"
    else:
        text = f"SHA-256 {template['sha256']}, {template['characters']:,} characters"
        yield "template", text


def _sample_texts(sample: dict[str, Any]) -> Iterator[str]:
    tensors = f"{sample['tensors']:,} tensors"
    if "codes" not in sample:
        yield tensors
        return
    shares = ", ".join(f"{code} {share:.2%}" for code, share in sample["codes"].items())
    illegal = f"{sample['illegal_codes']:,} illegal codes"
    yield f"{tensors}, {sample['sampled_weights']:,} weights seen: {shares}, {illegal}"
    low, high = sample["scale_min"], sample["scale_max"]
    scales = f"{sample['scales']:,} scales"
    yield f"{scales}, {low:.6g} to {high:.6g}" if low else f"{scales}, none above 0"
    for whole, names in _COUNTS.items():
        there = [name for name in names if name in sample]
        if there:
            yield f"of {whole}: " + ", ".join(_counted(sample, name, whole) for name in there)


_COUNTS = {  # what is counted: of which the sample says how many
    "scales": (
        "zero", "zero_under_weights", "subnormal", "negative", "not_finite", "other_biases"
    ),
    "rows": ("rows_of_one_scale",),
    "pairs": ("equal_pairs", "pairs_with_a_half_of_zeros"),
}  # fmt: skip


def _counted(sample: dict[str, Any], name: str, whole: str) -> str:
    n, n_all = sample[name], sample[whole]
    return f"{name.replace('_', ' ')} {n:,}" + (f" ({n / n_all:.2%})" if n and n_all else "")
