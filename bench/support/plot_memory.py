"""Plot what bench/support/mapping.py and the planner say of memory ([plot] extra).

`python bench/support/plot_memory.py RUN.jsonl OUT.png`: RUN has the lines of mapping.py's
experiments shared, less and cold, of the 2B-4T shape.
"""

import argparse
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from memory_table import DTYPES, SHAPES, config_of

from bitnet.checkpoints.memory_plan import state_bytes

GIB = 1 << 30


def plot_kv(axes):
    config = config_of(*SHAPES["bitnet-b1.58-2B-4T"])
    contexts = range(512, 32769, 512)
    for dtype in DTYPES:
        axes.plot(contexts, [state_bytes(config, n, dtype) / GIB for n in contexts], label=dtype)
    axes.set(title="keys and values of a sequence", xlabel="context, tokens", ylabel="GiB")
    axes.legend()


def plot_shared(axes, rows):
    counts = [row["processes"] for row in rows]
    for key, label in (("rss", "sum of RSS"), ("pss", "sum of PSS"), ("file_pss", "model's PSS")):
        axes.plot(counts, [row[key] / GIB for row in rows], "o-", label=label)
    axes.set(title="processes that share a model", xlabel="processes", ylabel="GiB", ylim=(0, None))
    axes.legend()


def plot_less(axes, rows):
    axes.plot([row["memory"] / GIB for row in rows], [row["tokens_s"] for row in rows], "o-")
    axes.set(
        title="weights in less memory than they take",
        ylabel="decode, tokens/s",
        xlabel="GiB of weights in memory",
        xlim=(0, None),
        ylim=(0, None),
    )


def plot_cold(axes, rows):
    rows = [row for row in rows if "first_token_s" in row]
    policies = list(dict.fromkeys(row["mapping"] for row in rows))
    for i, state in enumerate(("cold", "warm")):
        seconds = [row["first_token_s"] for row in rows if row["file"] == state]
        axes.bar([k + 0.4 * i for k in range(len(policies))], seconds, 0.4, label=state)
    axes.set_xticks([k + 0.2 for k in range(len(policies))], policies)
    axes.set(title="load to first token", ylabel="seconds")
    axes.legend()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", metavar="RUN.jsonl")
    parser.add_argument("out", metavar="OUT.png")
    args = parser.parse_args()
    found = {}
    with open(args.run) as file:
        for line in file:
            row = json.loads(line)
            found.setdefault(row["experiment"], []).append(row)
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    plot_kv(axes[0, 0])
    plot_shared(axes[0, 1], found["shared"])
    plot_less(axes[1, 0], found["less"])
    plot_cold(axes[1, 1], found["cold"])
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
