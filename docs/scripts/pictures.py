"""The pictures of the pages, and their tables, from recorded benchmark files.

`python docs/scripts/pictures.py` writes docs/pictures/*.svg, and into the pages each table that
stands between `<!-- table NAME -->` and `<!-- end of the table -->`. bench/support/record.py makes
the files, bench/results/NAME.json: lists of runs, each with command, commit, date and machine.
"""

import json
import re
from pathlib import Path

import diagrams
import memory_page
import svg

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PICTURES = ROOT / "bench" / "results", ROOT / "docs" / "pictures"
PAGES = [ROOT / "docs" / name for name in ("explanation/speed.md", "memory.md")]
TABLE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of the table -->)", re.S)
MIB = 2**20
PARTS = {  # purposes of the memory plan: what a picture calls them, and the colour
    "files": ("mapped files", "e"),
    "kv": ("keys and values", "a"),
    "tokenizer": ("tokenizer", "c"),
    "scratch": ("scratch", "b"),
    "others": ("all else", "d"),
}


def runs_of(name):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def source_of(name, what):
    """Two lines: what was measured, and where, when and of which commit. ValueError for a mixture
    of machines, which no picture should compare."""
    runs = runs_of(name)
    machines = {(run["machine"]["cpu"], run["machine"]["isa"]) for run in runs}
    if len(machines) > 1:
        raise ValueError(f"{name}: several machines: {machines}")
    cpu, isa = machines.pop()
    commits = sorted({run["commit"][:7] + "+" * run["commit"].endswith("+") for run in runs})
    dates = sorted({run["date"] for run in runs})
    return [
        what,
        f"{cpu}, {isa}; commit {', '.join(commits)}; {' to '.join({dates[0], dates[-1]})}",
    ]


def table(head, rows):
    numbers = [bool(re.match(r"[\d.,]+%?$", str(cell))) for cell in rows[0]]
    lines = [head, ["---:" if is_number else "---" for is_number in numbers], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


# ------------------------------------------------------------------------------------ other engines
def peers():
    """[(label, figures)] of bench_peers.py's runs."""
    for run in runs_of("decode-beside-peers"):
        for test, figures in run["result"].items():
            engine = figures["peer"].partition(",")[0]
            engine = engine.replace("llama-cpp-python", "llama.cpp, in llama-cpp-python")
            match = re.search(r"-(\d)t(?:-\d+)?\]$", test)
            shape = "Bonsai 1.7B" if "bonsai" in test else "2B-4T"
            what = "decode" if "decode" in test else "prompt of 128"
            threads = f"{match[1]} thread{'s' * (match[1] != '1')}"
            yield shape, what, engine, threads, figures


def peers_picture():
    groups = [
        (
            f"{shape}, {threads}: {engine}",
            [(f["tokens_s"], ""), (f["peer_tokens_s"], f"  (1/{f['ratio']:.1f})")],
        )
        for shape, what, engine, threads, f in sorted(peers(), key=lambda row: row[:4])
        if what == "decode"
    ]
    source = source_of("decode-beside-peers", "tokens a second, each pair in turn in one process")
    names = [("bitnet-engine", "a"), ("the other engine", "e")]
    return svg.bar_chart("Decode beside other engines", source, groups, names, "tokens/s")


def peers_table():
    rows = [
        [
            f"{shape}, {what}, {threads}",
            engine,
            f"{f['tokens_s']:.1f}",
            f"{f['peer_tokens_s']:.1f}",
            f"{f['ratio']:.1f}",
            f"{f['share']:.0%}" if "share" in f else "",
        ]
        for shape, what, engine, threads, f in sorted(peers(), key=lambda row: row[:4])
    ]
    head = ["shape", "other engine", "ours, tokens/s", "theirs", "ratio", "ours, of the bound"]
    return table(head, rows)


# ------------------------------------------------------------------------------------------ context
def decode_rows():
    """{(threads, KV dtype): {context: row of bench}}; the latest run of a row counts."""
    found = {}
    for run in runs_of("decode-by-context"):
        for row in run["result"]["rows"]:
            context = row["depth"] + row["prompt_tokens"]
            found.setdefault((row["threads"], row["kv_dtype"]), {})[context] = row
    return {key: dict(sorted(rows.items())) for key, rows in sorted(found.items())}


def context_picture():
    series = []
    for dtype, fill in ("f16", "a"), ("int8", "b"):
        rows = decode_rows()[1, dtype]
        for what, field in ("decode", "decode_tps"), ("what a plain read allows", "bound_tps"):
            points = [(n, row[field]) for n, row in rows.items()]
            series.append((f"{what}, {dtype} keys and values", fill, points, field != "decode_tps"))
    source = source_of("decode-by-context", "2B-4T's shape, one thread, medians of 5 rounds")
    title = "Decode by context, and its bound"
    return svg.line_chart(title, source, series, "context, tokens", "tokens a second")


def context_table():
    rows = [
        [
            f"{threads} thread{'s' * (threads > 1)}, {dtype}",
            f"{n:,}",
            f"{row['decode_tps']:.1f}",
            f"{row['bound_tps']:.1f}",
            f"{row['share']:.0%}",
            f"{row['read_gb_s']:.1f}",
        ]
        for (threads, dtype), found in decode_rows().items()
        for n, row in found.items()
    ]
    head = ["", "context", "tokens/s", "bound", "share", "plain read, GB/s"]
    return table(head, rows)


# ------------------------------------------------------------------------------------------- memory
def memory_rows():
    """[(label, {part: MiB})]"""
    for run in runs_of("memory-by-purpose"):
        settings, parts = run["result"]["settings"], dict.fromkeys(PARTS, 0)
        for need in run["result"]["plan"]:
            mapped = need["where"] == "files"
            part = "files" if mapped else need["purpose"]
            parts[part if part in PARTS else "others"] += need["nbytes"] / MIB
        n = settings["slots"]
        yield (
            f"{settings['kv_dtype']}, {n} slot{'s' * (n > 1)}, context {settings['context']:,}",
            parts,
        )


def memory_picture():
    rows = [(label, list(parts.values())) for label, parts in memory_rows()]
    source = source_of("memory-by-purpose", "2B-4T's shape, the plan of `bitnet memory`, MiB")
    return svg.stacked_chart("Memory by purpose", source, rows, list(PARTS.values()), "MiB")


def memory_table():
    rows = [
        [label, *(f"{n:,.1f}" for n in parts.values()), f"{sum(parts.values()):,.1f}"]
        for label, parts in memory_rows()
    ]
    return table(["MiB", *(name for name, _ in PARTS.values()), "sum"], rows)


DRAWN = {
    "decode-beside-peers": peers_picture,
    "decode-by-context": context_picture,
    "memory-by-purpose": memory_picture,
    **diagrams.DRAWN,
    **memory_page.DRAWN,
}
TABLES = {
    "decode-beside-peers": peers_table,
    "decode-by-context": context_table,
    "memory-by-purpose": memory_table,
}


def with_tables(text):
    """A page with its tables as the files say."""
    return TABLE.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main():
    for name, draw in DRAWN.items():
        (PICTURES / f"{name}.svg").write_text(str(draw()), "utf-8")
    for page in PAGES:
        page.write_text(with_tables(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
