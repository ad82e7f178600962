"""How many threads the machine grants, while it runs."""

import math
import time

from ..runtime import cpu

SECONDS = 1.0  # between two looks, which take 0.2 ms


class GrantedThreads:
    """Looks at affinity and cgroup quota again. n_max: threads at most; None: the user's choice."""

    def __init__(self, n_max: int | None) -> None:
        self._n_max = n_max
        self._looked_at = -math.inf  # of time.monotonic

    def look(self) -> int | None:
        """The threads to use now; None where the last look was just before, or none is due."""
        now = time.monotonic()
        if self._n_max is None or now - self._looked_at < SECONDS:
            return None
        self._looked_at = now
        return min(self._n_max, cpu.threads()[0])
