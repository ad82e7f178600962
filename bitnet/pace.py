"""How prompts share a step's rows with each other, and time with the sequences that generate."""

import time
from contextlib import contextmanager

SHARED_ROWS = 32  # of prompts in a step beside sequences that generate: a block of the kernels


class Pace:
    """Sees to it that prompts get no more time than the sequences that generate beside them.

    is_shared: whether both wait in the step that is planned.
    """

    def __init__(self):
        self.is_shared = False
        self._plain = None  # seconds of the latest step without prompts
        self._debt = 0.0  # seconds that prompts had more than the others

    def prompts_wait(self):
        """Whether a step without prompts is due."""
        return self.is_shared and (self._plain is None or self._debt > 0)

    @contextmanager
    def measure(self, has_prompts):
        """Around a step."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        if not has_prompts:
            self._plain = seconds
        if not self.is_shared:
            self._debt = 0.0
        elif has_prompts:  # the others had what a plain step takes, prompts the rest
            self._debt += seconds - 2 * min(self._plain, seconds)
        else:
            self._debt -= seconds


def in_order(prompts, n_rows):
    """{request: how many of n_rows it gets}: as many as it wants, first come, first served."""
    shares = {}
    for request in prompts:
        shares[request] = min(request.pending, n_rows)
        n_rows -= shares[request]
    return shares


def in_halves(prompts, n_rows):
    """The same: half to the one that came first, the rest to those that want least."""
    if not prompts:
        return {}
    first = prompts[0]
    shares = {first: min(first.pending, -(-n_rows // 2))}
    n_rows -= shares[first]
    for request in sorted(prompts, key=lambda r: r.pending):
        had = shares.get(request, 0)
        n = min(request.pending - had, n_rows)
        shares[request] = had + n
        n_rows -= n
    return shares
