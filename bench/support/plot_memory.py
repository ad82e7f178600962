"""Plot the tables of docs/memory.md ([plot] extra): python bench/support/plot_memory.py

The figures that were plotted stand in the PNG as text, which a test compares with the page.
"""

import argparse
import json
import re
from pathlib import Path

from memory_table import DOCUMENT, DTYPES, SHAPES, config_of
from pyplot import pyplot

from bitnet.checkpoints.memory_plan import state_bytes

PICTURE = DOCUMENT.with_suffix(".png")
TEXT_KEY = "Description"  # of the PNG's text: the figures as JSON
MODEL, CONTEXTS = "bitnet-b1.58-2B-4T", range(512, 32769, 512)
TABLES = {  # name: the first line of a table of docs/memory.md
    "cold": "| | | load to first token, file cold / warm |",
    "shared": "| processes | RSS, sum |",
    "less": "| weights in memory, at most | tokens/s |",
}


def rows_of(text, first_line):
    """[[cell]] of a table, without its head."""
    lines = text[text.index(first_line) :].splitlines()
    table = lines[: lines.index("")] if "" in lines else lines
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def numbers(cell):
    """Those of a cell, 1,888 as 1888."""
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", cell)]


def figures(text):
    """What the page says, by panel: MiB, seconds, tokens a second."""
    cold, shared, less = (rows_of(text, first) for first in TABLES.values())
    config = config_of(*SHAPES[MODEL])
    kv = {d: [state_bytes(config, n, d) // 2**20 for n in CONTEXTS] for d in DTYPES}
    return {
        "kv": kv,
        "shared": [[n for cell in row for n in numbers(cell)] for row in shared],
        "less": [[numbers(row[0])[0], numbers(row[1])[0]] for row in less],
        "cold": {row[0].split("`")[1]: numbers(row[2]) for row in cold},
    }


def plot_kv(axes, found):
    for dtype, sizes in found.items():
        axes.plot(CONTEXTS, [n / 1024 for n in sizes], label=dtype)
    axes.set(title=f"keys and values, {MODEL}", xlabel="context, tokens", ylabel="GiB")
    axes.legend()


def plot_shared(axes, found):
    counts, *sums = zip(*found, strict=True)
    for label, sizes in zip(("sum of RSS", "sum of PSS", "model's PSS"), sums, strict=True):
        axes.plot(counts, [n / 1024 for n in sizes], "o-", label=label)
    axes.set(title="processes that share a model", xlabel="processes", ylabel="GiB", ylim=(0, None))
    axes.legend()


def plot_less(axes, found):
    axes.plot(*zip(*found, strict=True), "o-")
    axes.set(title="weights in less memory than they take", ylabel="decode, tokens/s")
    axes.set(xlabel="MiB of weights in memory", xlim=(0, None), ylim=(0, None))


def plot_cold(axes, found):
    for i, state in enumerate(("cold", "warm")):
        seconds = [times[i] for times in found.values()]
        axes.bar([k + 0.4 * i for k in range(len(found))], seconds, 0.4, label=state)
    axes.set_xticks([k + 0.2 for k in range(len(found))], list(found))
    axes.set(title="load to first token", ylabel="seconds")
    axes.legend()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", metavar="OUT.png", nargs="?", type=Path, default=PICTURE)
    args = parser.parse_args()
    found = figures(DOCUMENT.read_text("utf-8"))
    figure, axes = pyplot().subplots(2, 2, figsize=(10, 7), layout="constrained")
    plots = {"kv": plot_kv, "shared": plot_shared, "less": plot_less, "cold": plot_cold}
    for place, (name, plot) in zip(axes.flat, plots.items(), strict=True):
        plot(place, found[name])
    figure.savefig(args.out, dpi=80, metadata={TEXT_KEY: json.dumps(found)})


if __name__ == "__main__":
    main()
