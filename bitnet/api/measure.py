"""How fast a loaded model is, beside what a plain read of its weights allows."""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.memory_plan import state_bytes
from ..checkpoints.weights import Weights
from ..checks import check_number, check_whole
from ..compute import ops
from ..formats.group_scales import GroupedMatrix
from ..generation.scheduler import Scheduler
from ..generation.scoring import new_state, read
from ..models.lm_head_screen import LogitsQuery
from ..models.sequence_state import SequenceState
from ..runtime import dispatch
from .model import Model

Bytes = NDArray[np.uint8]


def measure(
    model: Model,
    n_prompt: int,
    n_tokens: int,
    n_rounds: int,
    progress: Callable[[str], object] = lambda text: None,
    *,
    depth: int = 0,
    batch: int = 1,
) -> dict[str, Any]:
    """Tokens a second of a prompt and of decoding, medians of rounds, as a JSON-ready dict.

    n_prompt, n_tokens: tokens of a round that are read, and decoded after it, of each sequence.
    progress: is told what goes on. depth: tokens that stand before them in the context. batch:
    sequences that are decoded side by side, prompts being read one after the other. ValueError
    where the model's context is shorter than all, or its slots are fewer than the batch.

    A round is a plain read of the weights, a prefill and a decode: a machine whose clock drifts is
    compared with itself. bound_tps: decoded tokens a second if nothing took time but such a read of
    the weights, once a step, and of each sequence's keys and values, kv_bytes (those of whole pages
    at the middle of the decode).
    """
    capacity = depth + n_prompt + n_tokens
    check_whole("capacity", capacity, model.context)
    check_number("batch", batch, int, 1, model.scheduler.slots)
    rng = np.random.default_rng(0)
    vocab_size = model.config.vocab_size
    prompts = rng.integers(0, vocab_size, (batch, n_prompt), np.int32)
    before = rng.integers(0, vocab_size, depth, np.int32)
    runs, used = weight_runs(model.weights), bytes_per_token(model.weights)
    rounds = []
    with Sequences(model.scheduler, capacity, batch, before) as sequences:
        for i in range(n_rounds):
            progress(f"round {i + 1} of {n_rounds}")
            seconds = read_seconds(runs, model.threads)
            sequences.rewind()
            rounds.append((seconds, *_seconds(sequences, prompts, n_tokens)))
    reading, prefill, decode = (statistics.median(column) for column in zip(*rounds, strict=True))
    read_bytes_s = sum(run.nbytes for run in runs) / reading
    kv_dtype = model.scheduler.kv_dtype
    kv_bytes = state_bytes(model.config, capacity - n_tokens // 2, kv_dtype)
    bound_tps = batch * read_bytes_s / (used + batch * kv_bytes)
    return {
        "model": str(model.path),
        "isa": dispatch.isa,
        "threads": model.threads,
        "rounds": n_rounds,
        "batch": batch,
        "depth": depth,
        "prompt_tokens": n_prompt,
        "tokens": n_tokens,
        "prefill_tps": batch * n_prompt / prefill,
        "decode_tps": batch * n_tokens / decode,
        "bytes_per_token": used,
        "kv_dtype": kv_dtype,
        "kv_bytes": kv_bytes,
        "read_gb_s": read_bytes_s / 1e9,
        "bound_tps": bound_tps,
        "share": batch * n_tokens / decode / bound_tps,
    }


class Sequences:
    """Sequences that have seen the same tokens: a context manager."""

    def __init__(
        self, scheduler: Scheduler, capacity: int, n: int, before: NDArray[np.int32]
    ) -> None:
        self._scheduler, self._capacity, self._n, self._before = scheduler, capacity, n, before

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            first = stack.enter_context(closing(new_state(self._scheduler, self._capacity)))
            # the first pass also looks for damaged weights
            read(self._scheduler, first, self._before if len(self._before) else np.zeros(1, "i4"))
            first.trim(len(self._before))
            forks = [stack.enter_context(closing(first.fork())) for _ in range(self._n - 1)]
            self._states, self._stack = [first, *forks], stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def rewind(self) -> None:
        """Let each forget all but the first tokens."""
        for state in self._states:
            if not state.trim(len(self._before)):
                state.trim(0)
                read(self._scheduler, state, self._before)

    def prefill(self, prompts: NDArray[np.int32]) -> NDArray[np.int32]:
        """Read the prompt of each, one after the other; the likeliest token behind each."""
        tokens = []
        for state, prompt in zip(self._states, prompts, strict=True):
            n = max(0, len(prompt) - self._scheduler.transformer.max_batch)
            read(self._scheduler, state, prompt[:n])
            tokens += self._best(prompt[n:], [state], len(prompt) - n)
        return np.array(tokens, np.int32)

    def decode(self, token_ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Go on with a token each, together; the likeliest token behind each."""
        return np.array(self._best(token_ids, self._states, 1), np.int32)

    def _best(
        self, token_ids: NDArray[np.int32], states: list[SequenceState], n_each: int
    ) -> list[int]:
        with self._scheduler.alone():
            sequences = [(state, n_each) for state in states]
            queries = [LogitsQuery(1)] * len(states)
            logits = self._scheduler.forward(token_ids, sequences, queries=queries)
            return [ops.argmax(row) for row in logits]


def _seconds(
    sequences: Sequences, prompts: NDArray[np.int32], n_tokens: int
) -> tuple[float, float]:
    """(prefill, decode) of one round; greedy, as the choice of a token is part of decoding."""
    start = time.perf_counter()
    tokens = sequences.prefill(prompts)
    middle = time.perf_counter()
    for _ in range(n_tokens):
        tokens = sequences.decode(tokens)
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
