"""What /metrics shows, by prometheus_client: numbers only, nothing of a prompt.

Each server has a registry of its own, so that two in one process do not share their counters.
"""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ..runtime import dispatch
from ..runtime.pool import PoolStats
from ..version import VERSION

# Seconds: from a token of the smallest model to the reply of a large one, four in a decade
BUCKETS = (0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1,
           0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 300, 1000)  # fmt: skip


@dataclass
class Counts:
    """Of one generation: tokens of its prompts, of these known from earlier ones, written, drafted,
    of these accepted; prompts that were looked up among earlier ones, and of these found."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    drafted: int = 0
    accepted: int = 0
    lookups: int = 0
    hits: int = 0


@dataclass(frozen=True)
class Load:
    """Sequences of a model. open: all that have a place, also those whose prompt is not encoded
    yet, and other work that takes one; running, waiting: those with a slot, and for one."""

    open: int
    running: int
    waiting: int
    capacity: int
    slots: int


class Metrics:
    """The metrics of one server; used in the event loop only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "HTTP requests by route and status, 0 where the client left before one",
            "route", "status")  # fmt: skip
        self._request_seconds = self._histogram(
            "request", "Time from a request's headers to the end of its answer", "route"
        )
        self._cancelled = self._counter("cancelled", "Requests whose client left before the end")
        self.tokens = self._counter(
            "tokens", "Tokens of prompts, of these known from earlier ones (cached), and generated",
            "model", "kind")  # fmt: skip
        self.drafted = self._counter("draft_tokens", "Tokens that speculation offered", "model")
        self.accepted = self._counter(
            "draft_accepted_tokens", "Tokens that speculation offered and that were right", "model"
        )
        self.lookups = self._counter(
            "prefix_lookups", "Prompts that were looked up among earlier ones", "model"
        )
        self.hits = self._counter("prefix_hits", "Prompts that began like an earlier one", "model")
        self.queue = self._histogram("queue", "Time a sequence waits for a slot", "model")
        self.first_token = self._histogram(
            "first_token", "Time from a place in the queue to the first token", "model"
        )
        self.generation = self._histogram(
            "generation",
            "Time from a place in the queue to the last token, of complete requests",
            "model",
        )
        build = {"version": VERSION, "isa": str(dispatch.isa), "python": platform.python_version()}
        Info("bitnet_build", "The version and its kernels", registry=self.registry).info(build)
        ProcessCollector(registry=self.registry)
        self._state = _State()
        self.registry.register(self._state)

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request that was answered, or dropped with status 0."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def cancel(self) -> None:
        """A request whose client left."""
        self._cancelled.inc()

    def of_model(
        self, name: str, pool: Callable[[], PoolStats], load: Callable[[], Load] | None = None
    ) -> "ModelMetrics":
        """The metrics of one model. pool, load: asked when somebody asks for the metrics; load is
        None of one that generates nothing."""
        found = ModelMetrics(self, name)
        self._state.models.append((name, pool, load, found.gaps))
        return found

    def text(self, accept: str) -> tuple[bytes, str]:
        """(what /metrics shows, its media type). accept: the request's header."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"bitnet_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        name = f"bitnet_{name}_seconds"
        return Histogram(name, text, labels, registry=self.registry, buckets=BUCKETS)


class ModelMetrics:
    """The metrics of one model; all of its series are there from the beginning, at 0."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        kinds = ("prompt", "cached", "generated")
        self._counters = {kind: metrics.tokens.labels(name, kind) for kind in kinds} | {
            "drafted": metrics.drafted.labels(name),
            "accepted": metrics.accepted.labels(name),
            "lookups": metrics.lookups.labels(name),
            "hits": metrics.hits.labels(name),
        }
        self.queue, self.first_token = metrics.queue.labels(name), metrics.first_token.labels(name)
        self.gaps = Gaps()
        self.generation = metrics.generation.labels(name)

    def count(self, counts: Counts) -> None:
        """What a generation, or an embedding, has used."""
        for name, counter in self._counters.items():
            if n := getattr(counts, name):
                counter.inc(n)


class Gaps:
    """Times between tokens, as a histogram counts them. Every token adds to it, where one of the
    library's takes ten times as long: 3 % of the speed of the smallest model."""

    def __init__(self) -> None:
        self._counts, self._sum = [0] * (len(BUCKETS) + 1), 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, model: str) -> None:
        bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric([model], buckets, self._sum)


Asked = tuple[str, Callable[[], PoolStats], Callable[[], Load] | None, Gaps]


class _State(Collector):
    """What is asked for when somebody looks: memory, the sequences that run and wait, and Gaps."""

    def __init__(self) -> None:
        self.models: list[Asked] = []

    def collect(self) -> Iterator[Metric]:
        model = ["model"]
        used = _gauge("pool_bytes", "Bytes of the memory pool in use", "model", "purpose")
        reserved = _gauge("pool_reserved_bytes", "Bytes the memory pool has of the system", *model)
        limit = _gauge("pool_limit_bytes", "Most bytes the memory pool may have", *model)
        loads = {
            "open": _gauge("sequences", "Sequences that have a place: all of a request's", *model),
            "running": _gauge("sequences_running", "Sequences that have a slot", *model),
            "waiting": _gauge("sequences_waiting", "Sequences that wait for a slot", *model),
            "capacity": _gauge("sequences_limit", "Most sequences that may have a place", *model),
            "slots": _gauge("slots", "Most sequences that run at once", *model),
        }
        between = HistogramMetricFamily(
            "bitnet_between_tokens_seconds",
            "Time from a piece of a sequence's text, as a rule a token, to the next",
            labels=model,
        )
        for name, pool, load, gaps in self.models:
            stats = pool()
            for purpose, counts in stats.by_purpose.items():
                used.add_metric([name, purpose], counts[0])
            reserved.add_metric([name], stats.reserved)
            limit.add_metric([name], stats.limit)
            now = load and load()
            for field, family in loads.items() if now else ():
                family.add_metric([name], getattr(now, field))
            if load is not None:
                gaps.add_to(between, name)
        yield from (used, reserved, limit, *loads.values(), between)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"bitnet_{name}", text, labels=labels)
