"""GET /health, /ready, /metrics: whether the server works, takes requests, and how it fares."""

from starlette.requests import Request
from starlette.responses import Response

from ..errors import JSON
from ..service import Service


async def health(service: Service, request: Request) -> Response:
    """Whether the process can compute; where it cannot, it is to be started anew (500)."""
    alive = service.worker.is_alive
    return JSON({"status": "ok" if alive else "dead"}, 200 if alive else 500)


async def ready(service: Service, request: Request) -> Response:
    """Whether requests are taken; 503 once the server drains."""
    draining = service.worker.is_draining
    return JSON({"status": "draining" if draining else "ready"}, 503 if draining else 200)


async def metrics(service: Service, request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus's text format, or OpenMetrics for who asks."""
    text, media_type = service.metrics.text(request.headers.get("accept", ""))
    return Response(text, media_type=media_type)
