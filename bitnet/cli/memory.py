"""memory: what a model needs with these settings; with --measure beside what the OS counts."""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from ..api.choices import KV_DTYPES
from ..checks import format_bytes
from . import options, plots
from .terminal import Status, printable

USAGE = "[MODEL]"
N_ARGS = (0, 1)
N_GENERATED = 16  # tokens that a measurement generates behind the prompt


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Without --measure nothing is loaded: a file of any size takes a moment. What is mapped is "
        "shared\nby processes and counts against no limit."
    )
    options.add_load(parser)
    options.add_speculative(parser)
    options.add_slots(parser, 1, "sequences at once")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw bytes by purpose, and the longest context that fits by --kv-dtype (needs the "
        "extra `plot`); - for bars of text instead",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="load the model, fill every slot, and see where the memory is",
    )
    parser.add_argument(
        "-n",
        "--tokens",
        type=options.number(int, 2),
        metavar="N",
        help="fill the slots with N tokens each (default: the context)",
    )


def main(args: argparse.Namespace) -> int:
    if args.plot == "-" and (args.json or args.measure):
        args.parser.error("--plot -: not with --json or --measure, which print something else")
    if args.plot not in (None, "-"):
        plots.check(args.plot)
    from ..api.load import BUNDLED_MODEL, context_of, draft_path, limit_of
    from ..checkpoints import hub
    from ..checkpoints.memory_plan import Planner, Settings
    from ..checkpoints.open_checkpoint import open_checkpoint
    from ..runtime import cpu

    status = Status()
    pulling = options.load_meter(status)
    path = hub.find(args.positionals[0], pulling) if args.positionals else BUNDLED_MODEL
    draft_file = draft_path(args.speculative, pulling)
    status.clear()
    draft = draft_file and open_checkpoint(draft_file, layout=args.layout)
    planner = Planner(open_checkpoint(path, layout=args.layout), draft)
    n_threads = cpu.threads(args.threads)[0]
    context = context_of(planner.config, args.context)
    settings = Settings(
        context, args.kv_dtype, args.slots, n_threads, args.mapping, args.activations
    )
    limit = limit_of(args.memory_limit)
    if limit is not None:
        planner.check(settings, *limit)
    report = _measure(path, args, context) if args.measure else None
    contexts = _longest_contexts(planner, settings, limit)
    if args.plot not in (None, "-"):
        title = f"{Path(path).name}, context {context}"
        plots.plot_memory(_bytes_by_purpose(planner, settings), contexts, title, args.plot)
    if args.json:
        figures = _figures(path, planner, settings, limit, report)
        print(json.dumps({**figures, "longest_context": contexts}))
    elif args.plot == "-":
        print("\n".join(_bars(planner, settings, contexts)))
    else:
        print(printable("\n".join(_lines(path, planner, settings, limit, report))))
    return 0


def _longest_contexts(planner, settings, limit):
    """{KV dtype: tokens of the longest context with which one slot fits}; without a limit, in the
    machine's memory."""
    from ..runtime import cgroup

    n_bytes = cgroup.memory() if limit is None else limit[0]
    return {
        dtype: planner.longest_context(replace(settings, kv_dtype=dtype), n_bytes)
        for dtype in KV_DTYPES
    }


def _bytes_by_purpose(planner, settings):
    """[(purpose, bytes)], the largest first; files and libraries are marked as mapped."""
    found = {}
    for need in planner.needs(settings):
        name = need.purpose + (" (mapped)" if need.where == "files" else "")
        found[name] = found.get(name, 0) + need.nbytes
    return sorted(found.items(), key=lambda item: -item[1])


def _bars(planner, settings, contexts):
    needs = _bytes_by_purpose(planner, settings)
    yield f"bytes by purpose, context {settings.context}, {settings.kv_dtype}"
    yield from plots.bars([(name, n, format_bytes(n)) for name, n in needs])
    yield "\nlongest context that fits, tokens"
    yield from plots.bars([(dtype, n, f"{n:,}") for dtype, n in contexts.items()])


def _measure(path, args, context):
    """The MemoryReport of the model with every slot full."""
    status = Status()
    more = {"slots": args.slots, "speculative": args.speculative}
    with options.load(args, status, path, **more) as model:
        status.show("filling the slots")
        n_tokens = min(args.tokens or context, context)
        held = _fill(model, args.slots, n_tokens)
        report = model.memory()
        status.clear()
        del held
        return report


def _fill(model, slots, n_tokens):
    """Give each slot a sequence of its own; what has to stay alive meanwhile."""
    n_prompt = max(1, n_tokens - N_GENERATED)
    prompts = [[i % model.config.vocab_size] * n_prompt for i in range(slots)]
    if model.config.pooling is None:  # finished sequences are kept, so the slots stay full
        # a token drawn from all reads a large head itself, the likeliest one its screen
        model.generate(prompts[0][:1], max_tokens=1, temperature=1, top_k=0, top_p=1, seed=0)
        return model.generate(prompts, max_tokens=max(1, n_tokens - n_prompt), temperature=0)
    sessions = [model.session() for _ in prompts]
    for session, prompt in zip(sessions, prompts, strict=True):
        session.feed(prompt)
    return sessions


def _figures(path, planner, settings, limit, report):
    return {
        "path": str(path),
        "settings": asdict(settings),
        "plan": [asdict(need) for need in planner.needs(settings)],
        "private_bytes": planner.private(settings),
        "memory_limit": limit and limit[0],
        "full_slots": planner.full_slots(settings, limit[0]) if limit else settings.slots,
        "measured": report and report.as_dict(),
    }


def _lines(path, planner, settings, limit, report):
    from ..checkpoints.memory_plan import table

    s = settings
    yield f"{path}, context={s.context} kv_dtype={s.kv_dtype} slots={s.slots}" + (
        f" threads={s.threads} mapping={s.mapping}"
    )
    yield from table(planner.needs(settings))
    if limit:
        n_bytes, setter = limit
        fits = f"{setter} {format_bytes(n_bytes)}: it fits"
        n_full = planner.full_slots(settings, n_bytes)
        if n_full < s.slots:
            fits += f", with {n_full} of {s.slots} slots full; others wait until there is room"
        yield fits
    if report:
        yield ""
        yield from str(report).splitlines()
        growth = report.growth()
        if growth:
            unexplained, planned = report.unexplained() / growth, sum(report.planned.values())
            yield (
                f"the parts explain all but {100 * unexplained:.1f} % of the growth; the plan is "
                f"{100 * (planned / growth - 1):+.1f} % off"
            )
