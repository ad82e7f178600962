"""bench: tokens a second of prefill and decode, and their share of the memory bandwidth."""

import argparse
import ctypes
import json
import statistics
import time

import numpy as np

import bitnet

from ..checkpoints import weights
from ..compute import ops
from ..runtime import dispatch
from . import options
from .terminal import Status

USAGE = "[MODEL]"
N_ARGS = (0, 1)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Medians of rounds. A round is a plain read of the weights, a prefill and a "
        "decode: a machine\nwhose clock drifts is compared with itself. The bound is "
        "what that read allows."
    )
    options.add_load(parser)
    parser.add_argument(
        "--prompt-tokens",
        type=options.number(int, 1),
        default=128,
        metavar="N",
        help="tokens to prefill (default: 128)",
    )
    parser.add_argument(
        "-n",
        "--tokens",
        type=options.number(int, 1),
        default=64,
        metavar="N",
        help="tokens to decode (default: 64)",
    )
    parser.add_argument(
        "--rounds",
        type=options.number(int, 1),
        default=5,
        metavar="N",
        help="rounds to take medians of (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def main(args: argparse.Namespace) -> int:
    status = Status()
    status.show("loading")
    begin = time.perf_counter()
    with bitnet.load(*args.positionals, **options.load_keywords(args)) as model:
        load_s = time.perf_counter() - begin
        found = measure(model, args.prompt_tokens, args.tokens, args.rounds, status.show)
    status.clear()
    found = {"load_s": load_s, **found}
    print(json.dumps(found) if args.json else _table(found))
    return 0


def measure(model, n_prompt, n_tokens, n_rounds, progress=lambda text: None):
    """A JSON-ready dict of figures of a Model. ValueError if the context is shorter than needed."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, model.config.vocab_size, n_prompt).tolist()
    rounds = []
    with weights.open(model.path) as files, model.session(n_prompt + n_tokens) as session:
        used, runs = bytes_per_token(files), weight_runs(files)
        session.feed(prompt[:1])  # the first pass also looks for damaged weights
        for i in range(n_rounds):
            progress(f"round {i + 1} of {n_rounds}")
            read = sum(ops.read_bandwidth(run, model.threads) for run in runs)
            session.trim(0)
            rounds.append((read, *_seconds(session, prompt, n_tokens)))
    read, prefill, decode = (statistics.median(column) for column in zip(*rounds, strict=True))
    read_bytes_s = sum(run.nbytes for run in runs) / read
    return {
        "model": str(model.path),
        "isa": dispatch.isa,
        "threads": model.threads,
        "rounds": n_rounds,
        "prompt_tokens": n_prompt,
        "tokens": n_tokens,
        "prefill_tps": n_prompt / prefill,
        "decode_tps": n_tokens / decode,
        "bytes_per_token": used,
        "read_gb_s": read_bytes_s / 1e9,
        "bound_tps": read_bytes_s / used,
        "share": n_tokens / decode * used / read_bytes_s,
    }


def _seconds(session, prompt, n_tokens):
    """(prefill, decode) of one round; greedy, as the choice of a token is part of decoding."""
    start = time.perf_counter()
    token = session.best(prompt)
    middle = time.perf_counter()
    for _ in range(n_tokens):
        token = session.best([token])
    return middle - start, time.perf_counter() - middle


def bytes_per_token(files):
    """Bytes of weights that one decoded token reads: every linear layer, and the
    head or the copy that it is screened by."""
    return sum(array.nbytes for array in _arrays(files))


def weight_runs(files):
    """The memory that holds those weights, as few uint8 arrays: one for each mapped file."""
    arrays = {array.ctypes.data: array for array in _arrays(files)}
    runs = []
    for _, address, n_bytes in files.mappings():
        inside = [a for a in arrays if address <= a < address + n_bytes]
        if inside:
            end = max(a + arrays[a].nbytes for a in inside)
            pointer = ctypes.cast(min(inside), ctypes.POINTER(ctypes.c_uint8))
            runs.append(np.ctypeslib.as_array(pointer, (end - min(inside),)))
        for a in inside:
            del arrays[a]
    return runs + [array.reshape(-1) for array in arrays.values()]  # repacked, in memory


def _arrays(files):
    names = [name for name in files.config.tensor_shapes() if name.endswith("_proj")]
    head = files.screen[0].view(np.uint8) if files.screen else files.rows("lm_head").data
    return [head, *(files.ternary(name).codes for name in names)]


def _table(found):
    return (
        f"{found['model']}: {found['bytes_per_token'] / 1e6:,.1f} MB of weights a token, "
        f"loaded in {found['load_s']:.2f} s\n"
        f"{found['isa']}, {found['threads']} threads, medians of {found['rounds']} rounds\n"
        f"prefill  {found['prefill_tps']:10,.1f} tokens/s  ({found['prompt_tokens']} tokens)\n"
        f"decode   {found['decode_tps']:10,.1f} tokens/s  ({found['tokens']} tokens)\n"
        f"read     {found['read_gb_s']:10,.1f} GB/s      of the same weights\n"
        f"bound    {found['bound_tps']:10,.1f} tokens/s  decode reaches {found['share']:.0%}"
    )
