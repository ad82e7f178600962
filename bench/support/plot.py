"""Plot what `pytest bench/bench_model.py --benchmark-json RUN.json` measured ([plot] extra).

`python bench/support/plot.py RUN.json OUT.png`: on the left tokens a second against context, with
the bound of a plain read; on the right the roofline: multiply-adds a second against those for each
byte of packed weights read, which grow with the tokens of a step until the cores are the limit.
"""

import argparse
import json
import re

from pyplot import pyplot

WEIGHTS = 2.084e9  # ternary weights of the 2B-4T shape, four in a byte


def points(run, test):
    """{threads: [(parameter, figures)]} of a test of bench_model.py."""
    found = {}
    for entry in run["benchmarks"]:
        match = re.fullmatch(rf"{test}\[(\d+)t-(\d+)\]", entry["name"])
        if match:
            n_threads, parameter = map(int, match.groups())
            found.setdefault(n_threads, []).append((parameter, entry["extra_info"]))
    return {n: sorted(rows, key=lambda row: row[0]) for n, rows in sorted(found.items())}


def plot_context(axes, run):
    for n_threads, rows in points(run, "test_decode").items():
        depths = [depth for depth, _ in rows]
        (line,) = axes.plot(depths, [f["tokens_s"] for _, f in rows], "o-", label=f"{n_threads} t")
        axes.plot(
            depths,
            [f["read_bound"] for _, f in rows],
            ":",
            color=line.get_color(),
            label=f"{n_threads} t, plain read",
        )
    axes.set(xlabel="context, tokens", ylabel="decode, tokens/s", ylim=(0, None))
    axes.legend()


def plot_roofline(axes, run):
    bandwidths = points(run, "test_decode")
    batches, prompts = points(run, "test_batch"), points(run, "test_prefill")
    for n_threads in batches:
        rows = [(n, f["tokens_s"]) for n, f in batches[n_threads]]
        rows += [(n, f["tokens_s"]) for n, f in prompts.get(n_threads, ()) if n <= 256]
        rates = [tokens_s * WEIGHTS / 1e9 for _, tokens_s in rows]
        (line,) = axes.loglog([4 * n for n, _ in rows], rates, "o-", label=f"{n_threads} t")
        reads = [f["read_gb_s"] for _, f in bandwidths.get(n_threads, ())]
        if reads:  # a step of n tokens uses each byte 4 n times
            roof = [4 * n * max(reads) for n, _ in rows]
            shown = [(4 * n, r) for (n, _), r in zip(rows, roof, strict=True) if r < 4 * max(rates)]
            axes.loglog(
                *zip(*shown, strict=True),
                ":",
                color=line.get_color(),
                label=f"{n_threads} t, plain read",
            )
    axes.set(xlabel="multiply-adds for each byte of weights", ylabel="G multiply-adds/s")
    axes.legend()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN.json")
    parser.add_argument("out", metavar="OUT.png")
    args = parser.parse_args()
    with open(args.run) as file:
        run = json.load(file)
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    plot_context(left, run)
    plot_roofline(right, run)
    info = run["machine_info"]
    figure.suptitle(f"{info['cpu'].get('brand_raw', '')}, {info['bitnet']['isa']}")
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
