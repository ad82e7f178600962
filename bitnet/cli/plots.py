"""Pictures of what commands found (extra `plot`): PNG, SVG or PDF, by the name of the file."""

from pathlib import Path

FORMATS = (".png", ".svg", ".pdf")


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
