"""What Prometheus is told. One registry a service; with several workers the figures of all.

With `PROMETHEUS_MULTIPROC_DIR` set before this is used, prometheus-client keeps its values in files
there, and every worker answers for all of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one process; `requests` by route and code."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self.registry: CollectorRegistry = CollectorRegistry()
        told: dict[str, Any] = {"namespace": "rest_deploy", "registry": self.registry}
        if not os.environ.get(DIRECTORY):
            ProcessCollector(registry=self.registry)
        self.requests = Counter("requests", "Answered.", ("route", "code"), **told)
        self.images = Counter("images", "Computed.", **told)
        self.queue = Gauge(
            "queue_images", "Waiting for the engine.", multiprocess_mode="livesum", **told
        )
        self.in_flight = Gauge(
            "requests_in_flight", "Being answered.", multiprocess_mode="livesum", **told
        )
        self.body_bytes = Gauge(
            "body_bytes", "Memory of request bodies held.", multiprocess_mode="livesum", **told
        )
        self.ready = Gauge("ready", "Workers that serve.", multiprocess_mode="livesum", **told)
        self.batch = Histogram("batch_images", "Of one engine call.", buckets=IMAGES, **told)
        self.queued = Histogram(
            "queue_seconds", "From body to engine call.", buckets=SECONDS, **told
        )
        self.computed = Histogram("compute_seconds", "Of one engine call.", buckets=SECONDS, **told)
        self.total = Histogram(
            "request_seconds", "From headers to answer.", ("route",), buckets=SECONDS, **told
        )
        self.loads = Counter("loads", "Engines loaded while serving.", ("outcome",), **told)

    def render(self) -> tuple[bytes, str]:
        """The text format, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        if not os.environ.get(DIRECTORY):
            return generate_latest(self.registry), CONTENT_TYPE_LATEST
        from prometheus_client.multiprocess import MultiProcessCollector

        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody), CONTENT_TYPE_LATEST
