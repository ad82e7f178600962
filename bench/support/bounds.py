"""What no kernel can beat: a plain read of the weights, and the instructions of AVX2.

The clock is measured under load, by additions that wait for each other: one takes one cycle
everywhere. That loop is compiled here, with the compiler that the installation needs as well.
"""

import ctypes
import functools
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from bitnet.api.measure import bytes_per_token, read_seconds, weight_runs
from bitnet.runtime import dispatch

AT_ONCE = 4  # vector operations in a cycle
# Vector operations for 128 ternary weights and a token, by the bits of activations that are rounded
# by groups, None: one scale a token. With 16 bits and PQ2_0: 7 to take the codes of a block apart,
# 8 products of a plane's bytes, 9 to add them up; of 4 blocks together 5 to add lanes and 7 for the
# scales. With 8: 7, 4 and 4; 34.
OPERATIONS = {None: 15, 16: 7 + 8 + 9 + (5 + 7) / 4, 8: 7 + 4 + 4 + 34 / 4}
ADDS = 64_000_000
SOURCE = """
unsigned long adds(unsigned long n) {
    unsigned long x = 0;
    for (unsigned long i = 0; i < n; i += 8) {
        %s
    }
    return x;
}
""" % ('x += 1; __asm__ volatile("" : "+r"(x));' * 8)


@functools.cache
def _loop():
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "clock.c"), Path(folder, "clock.so")
        source.write_text(SOURCE)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", source, "-o", library], check=True)
        adds = ctypes.CDLL(str(library)).adds
    adds.argtypes, adds.restype = (ctypes.c_ulong,), ctypes.c_ulong
    return adds


def hertz():
    """Cycles a second, just now; takes some 20 ms."""
    adds = _loop()
    begin = time.perf_counter()
    adds(ADDS)
    return ADDS / (time.perf_counter() - begin)


def seconds_of(function):
    """How long a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


class Bounds:
    """The bounds of a model's decode step: a context manager."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        weights = self.model.weights
        self._used, self._runs = bytes_per_token(weights), weight_runs(weights)
        shapes = weights.config.tensor_shapes()
        names = {name for name in shapes if name.endswith("_proj")}
        if weights.has_group_scales and weights.screen is None:  # its head is ternary too
            names.add("embed_tokens" if weights.config.tie_word_embeddings else "lm_head")
        self._n_weights = sum(np.prod(shapes[name]) for name in names)
        self._operations = OPERATIONS[weights.activation_bits] / 128
        return self

    def __exit__(self, *error):
        del self._runs

    def measure(self):
        """[seconds of a plain read of the map, cycles a second], just now."""
        return np.array([read_seconds(self._runs, self.model.threads), hertz()])

    def figures(self, measured, tokens_s):
        """The figures of a decode at tokens_s: the bounds, tokens a second, and its share."""
        read, cycles = measured
        read_bytes_s = sum(run.nbytes for run in self._runs) / read
        found = {
            "tokens_s": tokens_s,
            "read_gb_s": read_bytes_s / 1e9,
            "read_bound": read_bytes_s / self._used,
        }
        if dispatch.isa in ("avx2", "avxvnni"):  # the head's are not counted
            rate = self.model.threads * cycles * AT_ONCE / self._operations
            found |= {"ghz": cycles / 1e9, "instruction_bound": rate / self._n_weights}
        lower = min(value for name, value in found.items() if "bound" in name)
        return found | {"share": tokens_s / lower}
