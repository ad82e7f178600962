"""How fast a loaded model is, beside what a plain read of its weights allows."""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.weights import Weights
from ..compute import ops
from ..formats.group_scales import GroupedMatrix
from ..generation.session import Session
from ..runtime import dispatch
from .model import Model

Bytes = NDArray[np.uint8]


def measure(
    model: Model,
    n_prompt: int,
    n_tokens: int,
    n_rounds: int,
    progress: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Tokens a second of a prompt and of decoding, medians of rounds, as a JSON-ready dict.

    n_prompt, n_tokens: tokens of a round that are read, and decoded after it. progress: is told
    what goes on. ValueError where the model's context is shorter than both.

    A round is a plain read of the weights, a prefill and a decode: a machine whose clock drifts is
    compared with itself. bound_tps: decoded tokens a second if nothing but that read took time.
    """
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, model.config.vocab_size, n_prompt).tolist()
    rounds = []
    runs, used = weight_runs(model.weights), bytes_per_token(model.weights)
    with model.session(n_prompt + n_tokens) as session:
        session.feed(prompt[:1])  # the first pass also looks for damaged weights
        for i in range(n_rounds):
            progress(f"round {i + 1} of {n_rounds}")
            read = read_seconds(runs, model.threads)
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


def _seconds(session: Session, prompt: list[int], n_tokens: int) -> tuple[float, float]:
    """(prefill, decode) of one round; greedy, as the choice of a token is part of decoding."""
    start = time.perf_counter()
    token = session.best(prompt)
    middle = time.perf_counter()
    for _ in range(n_tokens):
        token = session.best([token])
    return middle - start, time.perf_counter() - middle


def read_seconds(runs: list[Bytes], n_threads: int) -> float:
    """Seconds of a plain read of these bytes, just now."""
    return float(sum(ops.read_bandwidth(run, n_threads) for run in runs))


def bytes_per_token(weights: Weights) -> int:
    """Bytes of weights that one decoded token reads: the linear layers and the head, or the int8
    copy that the head is screened by."""
    return sum(array.nbytes for array in _arrays(weights))


def weight_runs(weights: Weights) -> list[Bytes]:
    """The memory that holds those weights, as few uint8 arrays: one for each mapped file.

    They are views of the weights' memory, to be dropped before these are closed.
    """
    arrays = {array.ctypes.data: array for array in _arrays(weights)}
    runs = []
    for _, address, n_bytes in weights.mappings():
        inside = [a for a in arrays if address <= a < address + n_bytes]
        if inside:
            end = max(a + arrays[a].nbytes for a in inside)
            pointer = ctypes.cast(min(inside), ctypes.POINTER(ctypes.c_uint8))
            runs.append(np.ctypeslib.as_array(pointer, (end - min(inside),)))
        for a in inside:
            del arrays[a]
    return runs + [array.reshape(-1) for array in arrays.values()]  # in memory: repacked, copied


def _arrays(weights: Weights) -> Iterator[Bytes]:
    head = weights.rows("lm_head")
    if weights.screen:
        yield weights.screen[0].view(np.uint8)
    elif isinstance(head, GroupedMatrix):
        yield from head.arrays()[:2]
    else:
        yield head.data
    for name in weights.config.tensor_shapes():
        if weights.config.arch.is_linear(name):
            ternary = weights.ternary(name)
            if isinstance(ternary, GroupedMatrix):
                yield from ternary.arrays()[:2]  # biases are not read
            else:
                yield ternary.codes
