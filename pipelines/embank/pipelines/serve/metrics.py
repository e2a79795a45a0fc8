"""What a server counts, for Prometheus. With several workers, prometheus-client adds up what each wrote to files."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from embank.pipelines.serve.scoring import Scored
from embank.pipelines.serve.state import StateFolder

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
PATHS = ("/score", "/embed", "/reload", "/health", "/ready", "/metrics")


class Metrics:
    """The counters of a worker.

    Args:
        state: the server's folder.
        is_shared: whether prometheus-client keeps counters in that folder's files, as in a worker of several.
    """

    def __init__(self, state: StateFolder, *, is_shared: bool) -> None:
        self.state = state
        self.is_shared = is_shared
        own = self.registry = CollectorRegistry()
        self.requests = Counter("embank_requests", "Requests by path and status.", ["path", "status"], registry=own)
        self.seconds = Histogram(
            "embank_request_seconds", "From a request to its answer.", ["path"], buckets=_SECONDS, registry=own
        )
        self.rows = Counter("embank_rows", "Rows that were scored.", registry=own)
        self.batch_rows = Histogram("embank_batch_rows", "Rows scored at once.", buckets=_ROWS, registry=own)
        self.batch_requests = Histogram(
            "embank_batch_requests", "Requests scored at once.", buckets=_ROWS[:9], registry=own
        )
        self.unknown = Counter("embank_unknown_ids", "Values that the vocabularies lack.", ["feature"], registry=own)
        self.errors = Counter("embank_errors", "Requests refused, by kind.", ["kind"], registry=own)
        self.reloads = Counter("embank_reloads", "Reloads by outcome.", ["outcome"], registry=own)
        self.waiting = Gauge(
            "embank_waiting_rows", "Rows that wait to be scored.", multiprocess_mode="livesum", registry=own
        )

    def answered(self, path: str, *, status: int, seconds: float) -> None:
        """Counts a request."""
        path = path if path in PATHS else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def scored(self, scored: Scored, num_requests: int) -> None:
        """Counts a batch."""
        self.batch_requests.observe(num_requests)
        if scored.num_rows:
            self.rows.inc(scored.num_rows)
            self.batch_rows.observe(scored.num_rows)
        for feature, count in scored.unknown.items():
            if count:
                self.unknown.labels(feature).inc(count)

    def text(self) -> bytes:
        """All workers' figures, in Prometheus's format."""
        registry = self.registry
        if self.is_shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self.state.metrics))  # type: ignore[no-untyped-call]
        models = CollectorRegistry()
        models.register(_Models(self.state))
        return generate_latest(registry) + generate_latest(models)


class _Models(Collector):
    """What each worker serves, as it has said itself."""

    def __init__(self, state: StateFolder) -> None:
        self.state = state

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "embank_model_info", "What each worker serves.", labels=["worker", "version", "checksum"]
        )
        sequence = GaugeMetricFamily(
            "embank_model_sequence", "How often what each worker serves has changed.", labels=["worker"]
        )
        for number, loaded in sorted(self.state.loaded().items()):
            info.add_metric([str(number), loaded.version, loaded.checksum], 1)
            sequence.add_metric([str(number)], loaded.sequence)
        workers = GaugeMetricFamily("embank_workers", "Processes that live or are about to.")
        workers.add_metric([], len(self.state.workers()))
        return [info, sequence, workers]
