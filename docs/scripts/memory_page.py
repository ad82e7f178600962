"""The pictures of docs/memory.md that show its own tables, and the plan of keys and values."""

import re
import sys
from pathlib import Path

import svg

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "support"))
from memory_table import DOCUMENT, DTYPES, SHAPES, config_of

from bitnet.checkpoints.memory_plan import state_bytes

GIB = 2**30
MODEL, CONTEXTS = "bitnet-b1.58-2B-4T", (512, *range(4096, 32769, 4096))
TABLES = {  # name: the first line of a table of the page
    "cold": "| | | load to first token, file cold / warm |",
    "shared": "| processes | RSS, sum |",
    "less": "| weights in memory, at most | tokens/s |",
}
SOURCE = ["the table of this page"]


def rows_of(name):
    """[[cell]] of a table, without its head."""
    text = DOCUMENT.read_text("utf-8")
    lines = text[text.index(TABLES[name]) :].splitlines()
    table = lines[: lines.index("")] if "" in lines else lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def numbers(cell):
    """Those of a cell, 1,888 as 1888."""
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", cell)]


def kv():
    config = config_of(*SHAPES[MODEL])
    series = [
        (dtype, fill, [(n, state_bytes(config, n, dtype) / GIB) for n in CONTEXTS], False)
        for dtype, fill in zip(DTYPES, "cab", strict=True)
    ]
    source = [f"one sequence of {MODEL}, the memory plan"]
    return svg.line_chart("Keys and values by context", source, series, "context, tokens", "GiB")


def shared():
    rows = [[numbers(cell)[0] / 1024 for cell in row] for row in rows_of("shared")]
    labels = "sum of resident sets", "sum of proportional sets", "of it the model's files"
    series = [
        (label, fill, [(1024 * row[0], row[i]) for row in rows], False)
        for i, (label, fill) in enumerate(zip(labels, "cab", strict=True), 1)
    ]
    return svg.line_chart("Processes that share a model", SOURCE, series, "processes", "GiB")


def less():
    points = [(numbers(row[0])[0], numbers(row[1])[0]) for row in rows_of("less")]
    series = [("decode", "a", points, False)]
    title = "Weights in less memory than they take"
    return svg.line_chart(title, SOURCE, series, "MiB of weights in memory", "tokens a second")


def cold():
    groups = [
        (row[0].strip("`").partition("`")[0], [(seconds, "") for seconds in numbers(row[2])])
        for row in rows_of("cold")
    ]
    names = [("file cold", "a"), ("file warm", "b")]
    return svg.bar_chart("Load to first token", SOURCE, groups, names, "s")


DRAWN = {"memory-kv": kv, "memory-shared": shared, "memory-less": less, "memory-cold": cold}
