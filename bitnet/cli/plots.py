"""Pictures of what commands found (extra `plot`): PNG, SVG or PDF, by the name of the file; and
bars of text, which need nothing."""

from pathlib import Path

FORMATS = (".png", ".svg", ".pdf")

BAR = 40  # characters of the longest bar


def bars(rows):
    """Lines of text for [(label, value, value as people read it)]: a bar each, to one scale."""
    largest = max((value for _, value, _ in rows), default=0) or 1
    widths = [max(len(row[i]) for row in rows) for i in (0, 2)] if rows else [0, 0]
    return [
        f"{label:{widths[0]}}  {shown:>{widths[1]}}  {'#' * round(BAR * value / largest)}".rstrip()
        for label, value, shown in rows
    ]


def check(path):
    """Raise, before anything is measured, what would stand in the way of a picture there."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"--plot: {path} ({', '.join(FORMATS)})")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(2, "No such folder", str(Path(path).parent))
    try:
        import matplotlib
    except ImportError as error:
        message = f"--plot: {error} (pip install 'bitnet-engine[plot]' brings matplotlib)"
        raise ImportError(message) from None
    matplotlib.use("Agg")  # no window


def figure(n_panels=1):
    """(figure, [axes]), panels beside each other."""
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(
        1, n_panels, figsize=(1 + 5 * n_panels, 4.2), layout="constrained", squeeze=False
    )
    return made, list(axes[0])


def save(made, path):
    """Write a figure, and let go of it."""
    import matplotlib.pyplot as plt

    made.savefig(path, dpi=120)
    plt.close(made)


def plot_bench(rows, path):
    """Tokens a second of decode against the context, a line for each number of threads, sequences
    and prompt tokens, and dotted the bound of a plain read."""
    made, (axes,) = figure()
    series = {}
    for row in rows:
        series.setdefault((row["threads"], row["batch"], row["prompt_tokens"]), []).append(row)
    for (threads, batch, prompt), found in series.items():
        found.sort(key=lambda row: row["depth"])
        contexts = [row["depth"] + row["prompt_tokens"] for row in found]
        name = f"{threads} threads, {batch} sequences, prompt {prompt}"
        (line,) = axes.plot(contexts, [row["decode_tps"] for row in found], "o-", label=name)
        bounds = [row["bound_tps"] for row in found]
        axes.plot(contexts, bounds, "o:", markersize=3, color=line.get_color())
    axes.set(xlabel="context, tokens", ylabel="decode, tokens/s (dotted: a plain read)")
    axes.set(ylim=(0, None), title=f"{Path(rows[0]['model']).name}, {rows[0]['isa']}")
    axes.legend(fontsize="small")
    save(made, path)


def plot_memory(needs, contexts, title, path):
    """Bytes by purpose, [(label, bytes)], and beside it {KV dtype: the longest context}."""
    made, (left, right) = figure(2)
    names = [name for name, _ in needs][::-1]
    left.barh(names, [n_bytes / 2**20 for _, n_bytes in needs][::-1])
    left.set(xlabel="MiB", title=title)
    shown = right.bar(list(contexts), list(contexts.values()))
    right.bar_label(shown, [f"{n:,}" for n in contexts.values()])
    right.set(xlabel="type of keys and values", ylabel="longest context that fits, tokens")
    save(made, path)


def plot_comparison(found, path):
    """Of a Comparison, how many positions diverge by more than so much, and the log probability of
    the token that comes, b's against a's."""
    made, (left, right) = figure(2)
    import numpy as np

    divergences = np.sort([position.kl for position in found.positions])[::-1]
    shares = np.arange(1, len(divergences) + 1) / len(divergences)
    above = divergences > 0
    left.loglog(divergences[above], shares[above])
    left.set(xlabel="KL divergence, nats", ylabel="share of positions with more")
    left.set(title=f"mean {found.kl:.3e}, same top token {found.same_top:.2%}")
    a, b = ([getattr(p, name) for p in found.positions] for name in ("log_p_a", "log_p_b"))
    right.plot(a, b, ".", markersize=2)
    right.axline((0, 0), slope=1, color="gray", linewidth=0.5)
    right.set(xlabel="log p of the token that comes, a", ylabel="the same, b")
    save(made, path)
