"""What the server counts, for Prometheus."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.exceptions import HTTPException

from tt_flux_kontext.edit import Phase
from tt_flux_kontext.serving.errors import LEFT, ApiError

PREFIX = "tt_flux_kontext"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300, 600, 1200)  # edges of histograms
_OUTCOMES = {LEFT: "left", 429: "queue full", 503: "unavailable", 504: "late"}


class Metrics:
    """Of one server, in a registry of its own."""

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(f"{PREFIX}_requests", "Requests by outcome", ["route", "outcome"], registry=registry)
        self._request_seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From the end of the upload to the last byte's being ready, of requests that gave pictures",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._phases = Histogram(
            f"{PREFIX}_phase_seconds", "Of each phase of an edit", ["phase"], buckets=SECONDS, registry=registry
        )
        self._steps = Counter(f"{PREFIX}_steps", "Denoising steps", registry=registry)
        self.waiting = Gauge(f"{PREFIX}_waiting", "Requests in the queue", registry=registry)
        self.at_work = Gauge(f"{PREFIX}_at_work", "Requests on the device", registry=registry)

    def phase(self, phase: Phase, seconds: float) -> None:
        self._phases.labels(phase.name).observe(seconds)
        self._steps.inc(bool(phase.step))

    def answered(self, route: str, seconds: float) -> None:
        self._requests.labels(route, "ok").inc()
        self._request_seconds.labels(route).observe(seconds)

    def failed(self, route: str, error: ApiError) -> None:
        outcome = _OUTCOMES.get(error.status) or ("failed" if error.status >= 500 else "refused")
        self._requests.labels(route, outcome).inc()

    @contextmanager
    def counting(self, route: str) -> Iterator[None]:
        """Counts what fails; what succeeds is counted when it is answered."""
        try:
            yield
        except ApiError as error:
            self.failed(route, error)
            raise
        except Exception as error:
            status = error.status_code if isinstance(error, HTTPException) else 500
            self.failed(route, ApiError(status, str(error)))
            raise

    def text(self) -> bytes:
        return generate_latest(self._registry)
