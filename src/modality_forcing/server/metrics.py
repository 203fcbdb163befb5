"""What Prometheus reads: one registry for each server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """Counters and gauges; names begin with ``mf_``. No label holds what a user sent."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("mf_requests", "HTTP requests", ["route", "method", "status"], registry=r)
        self.jobs = Counter("mf_jobs", "Jobs that ended", ["task", "state"], registry=r)
        self.refused = Counter("mf_refused", "Submissions refused", ["status"], registry=r)
        self.queued = Gauge("mf_queue_length", "Jobs that wait", registry=r)
        self.running = Gauge("mf_running_jobs", "Jobs that are computed", registry=r)
        self.ready = Gauge("mf_workers_ready", "Workers with a loaded model", registry=r)
        self.restarts = Counter("mf_worker_restarts", "Workers that had to be started again", registry=r)
        self.removed = Counter("mf_removed_jobs", "Jobs removed for their age or for room", registry=r)
        self.wait = Histogram(
            "mf_wait_seconds", "From arrival to start", ["task"], buckets=_SECONDS, registry=r
        )
        self.run = Histogram(
            "mf_batch_seconds", "Computing one batch", ["task"], buckets=_SECONDS, registry=r
        )
        self.batch = Histogram(
            "mf_batch_items", "Items computed together", buckets=(1, 2, 3, 4, 6, 8, 16, 32), registry=r
        )

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
