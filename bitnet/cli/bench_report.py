"""What bench found, as people want it: a table, a comparison, and a sentence on what limits it."""

import csv
import io
import json

from ..errors import FormatError

KEY = ("threads", "batch", "depth", "prompt_tokens", "tokens")  # what was measured
COLUMNS = {  # heading: (field of a row, how it is written)
    "threads": ("threads", "d"),
    "batch": ("batch", "d"),
    "depth": ("depth", ",d"),
    "prompt": ("prompt_tokens", ",d"),
    "prefill t/s": ("prefill_tps", ",.1f"),
    "decode t/s": ("decode_tps", ",.1f"),
    "bound t/s": ("bound_tps", ",.1f"),
    "share": ("share", ".0%"),
}
COMPARED = {"prefill x": ("prefill_ratio", ".2f"), "decode x": ("decode_ratio", ".2f")}
READ_LIMITED = 0.75  # share of the bound from which on reading is said to be the limit
DISTURBED = 1.2  # share above which the read, or what else ran meanwhile, says nothing
MUCH_KV = 0.25  # share of keys and values in what is read from which on their type is worth a word


def columns_of(rows):
    """{heading: (field, format)}, with the comparison's where a row has it."""
    return COLUMNS | (COMPARED if any("decode_ratio" in row for row in rows) else {})


def cells(rows):
    """[[text]]: the headings, then a line for each row; empty where nothing is compared."""
    columns = columns_of(rows)
    return [list(columns)] + [
        [format(row[name], how) if name in row else "" for name, how in columns.values()]
        for row in rows
    ]


def as_table(rows):
    """Lines of text, in columns."""
    lines = cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)) for line in lines]


def as_markdown(rows):
    """Lines of a Markdown table."""
    head, *lines = cells(rows)
    rule = ["---:"] * len(head)
    return [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]


def as_csv(rows):
    """Lines of CSV: every field of the rows, as it is."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().splitlines()


def read_rows(path):
    """The rows of a file that `bench --json` wrote. FormatError where it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
        return {tuple(row[name] for name in KEY): row for row in rows}
    except (ValueError, KeyError, TypeError):
        raise FormatError(path, "rows", "missing", "a file of `bitnet bench --json`") from None


def add_ratios(rows, old, path):
    """Add prefill_ratio and decode_ratio to the rows that old, of read_rows, has too."""
    alike = [(row, old[key]) for row in rows if (key := tuple(row[n] for n in KEY)) in old]
    if not alike:
        names = ", ".join(KEY)
        raise FormatError(path, "rows", "none of these", f"a row with the same {names}")
    for row, before in alike:
        row["prefill_ratio"] = row["prefill_tps"] / before["prefill_tps"]
        row["decode_ratio"] = row["decode_tps"] / before["decode_tps"]


def limit(rows, cores):
    """A sentence on what limits decode, and what to change.

    It is about the row with the most threads, and of these one sequence with the least before it.
    cores: threads that the machine grants.
    """
    row = min(rows, key=lambda r: (-r["threads"], r["batch"], r["depth"]))
    share = f"{row['share']:.0%} of what a plain read of its bytes allows"
    if row["share"] > DISTURBED:
        return f"Something disturbed the plain read ({share}): measure again, with more --rounds."
    is_reading = row["share"] >= READ_LIMITED
    begins = f"Decode is limited by {'reading memory' if is_reading else 'computing'} ({share}): "
    if row["threads"] < cores:
        return f"{begins}use more threads, -t {cores} (the cores that are granted here)."
    if not is_reading:
        return f"{begins}all {cores} granted cores are in use with {row['isa']}, faster ones help."
    kv_bytes = row["batch"] * row["kv_bytes"]
    if kv_bytes > MUCH_KV * (kv_bytes + row["bytes_per_token"]) and row["kv_dtype"] != "int8":
        return f"{begins}--kv-dtype int8 has fewer bytes of keys and values to read."
    return f"{begins}sequences side by side (-b) share each read of the weights."
