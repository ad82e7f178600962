"""Counters in Prometheus's text format: numbers only, nothing of a prompt."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..runtime.pool import PoolStats
from .worker import Generation, Worker

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # seconds: two in a decade


class Histogram:
    """How many times fell below each of BUCKETS, as Prometheus counts."""

    def __init__(self) -> None:
        self._counts, self._sum = [0] * (len(BUCKETS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """The lines of /metrics."""
        total = 0
        for bound, n in zip((*BUCKETS, "+Inf"), self._counts, strict=True):
            total += n
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """The counters of one server; used in the event loop only."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}  # (route, status) -> how many
        self.tokens = {"prompt": 0, "cached": 0, "generated": 0}
        self.first_token, self.duration = Histogram(), Histogram()
        self.cancelled = 0

    def count(self, route: str, status: int) -> None:
        """A request that was answered, or dropped with status 0."""
        self.requests[route, status] = self.requests.get((route, status), 0) + 1

    def finish(self, usage: dict[str, Any], generation: Generation) -> None:
        """A generation that was completed, with its usage."""
        self.tokens["prompt"] += usage["prompt_tokens"]
        self.tokens["cached"] += usage["prompt_tokens_details"]["cached_tokens"]
        self.tokens["generated"] += usage["completion_tokens"]
        self.first_token.add(generation.first)
        self.duration.add(generation.ended)

    def text(self, worker: Worker, pools: Sequence[PoolStats]) -> str:
        """What /metrics shows. pools: of each model, shown as one."""
        lines = ["# TYPE bitnet_requests_total counter"]
        for (route, status), n in sorted(self.requests.items()):
            lines.append(f'bitnet_requests_total{{route="{route}",status="{status}"}} {n}')
        lines.append("# TYPE bitnet_tokens_total counter")
        lines += [f'bitnet_tokens_total{{kind="{k}"}} {n}' for k, n in self.tokens.items()]
        lines += [
            "# TYPE bitnet_cancelled_total counter",
            f"bitnet_cancelled_total {self.cancelled}",
        ]
        gauges = {
            "sequences": worker.n_open, "sequences_limit": worker.capacity, "slots": worker.slots,
            "pool_reserved_bytes": sum(pool.reserved for pool in pools),
            "pool_limit_bytes": sum(pool.limit for pool in pools),
        }  # fmt: skip
        for name, value in gauges.items():
            lines += [f"# TYPE bitnet_{name} gauge", f"bitnet_{name} {value}"]
        lines.append("# TYPE bitnet_pool_bytes gauge")
        used: Counter[str] = Counter()
        for pool in pools:
            used.update({purpose: counts[0] for purpose, counts in pool.by_purpose.items()})
        lines += [f'bitnet_pool_bytes{{purpose="{name}"}} {n}' for name, n in sorted(used.items())]
        for name, histogram in (
            ("bitnet_first_token_seconds", self.first_token),
            ("bitnet_generation_seconds", self.duration),
        ):
            lines += [f"# TYPE {name} histogram", *histogram.lines(name)]
        return "\n".join(lines) + "\n"
