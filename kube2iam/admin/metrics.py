"""Metrics in Prometheus' text format: Go kube2iam's names and labels kept, more added.

The only module that knows `prometheus_client`; every other room counts through a small protocol of its own, which
`Metrics` implements. What a request counts is resolved to a plain Python number beforehand, because the client's own
counters cost more than the answer.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UntypedMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from kube2iam.domain.errors import Reason

BUCKETS = tuple(0.001 * 2**n for n in range(14))
"""Upper bounds in seconds, as Go kube2iam's."""

UPSTREAM_FAILURES = "timeout", "connection", "too-long", "status"
"""The kinds of failure of the metadata service; they are those of `imds.upstream`."""

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_MOST_SERIES = 500
"""Of one metric; what comes after that is counted together. Roles come from annotations, of which there is no end."""
_OTHER = "other"

S = TypeVar("S")

Values = Callable[[], Mapping[tuple[str, ...], float]]
"""Reads a metric's values by its labels, when it is scraped."""


class Observations:
    """One series of a histogram: how many observations fell into each bucket, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Count one."""
        self.value += 1


class _Family(Collector, Generic[S]):
    """One metric: its series by the values of their labels, never more than _MOST_SERIES."""

    def __init__(self, make: Callable[[], S], name: str, text: str, labels: tuple[str, ...]) -> None:
        self._make, self._name, self._text, self._labels = make, name, text, labels
        self._series: dict[tuple[str, ...], S] = {}

    def labels(self, *values: str) -> S:
        """The series with these labels; resolve it once and keep it where it counts often."""
        known = self._series.get(values)
        if known is None:
            if len(self._series) >= _MOST_SERIES:
                values = (_OTHER,) * len(values)
            known = self._series.setdefault(values, self._make())
        return known


class _Histogram(_Family[Observations]):
    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in list(self._series.items()):
            family.add_metric(values, list(_cumulated(series.counts)), series.total)
        yield family


class _Counter(_Family[Count]):
    """A counter. A name that does not end in `_total`, as some of upstream's, comes out untyped."""

    def collect(self) -> Iterator[Metric]:
        kind = CounterMetricFamily if self._name.endswith("_total") else UntypedMetricFamily
        family = kind(self._name, self._text, labels=self._labels)
        for values, series in list(self._series.items()):
            family.add_metric(values, series.value)
        yield family


class _Read(Collector):
    """A gauge or counter whose values are read where they are, at each scrape."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], read: Values) -> None:
        self._name, self._text, self._labels, self._read = name, text, labels, read

    def collect(self) -> Iterator[Metric]:
        kind = CounterMetricFamily if self._name.endswith("_total") else GaugeMetricFamily
        family = kind(self._name, self._text, labels=self._labels)
        for values, value in self._read().items():
            family.add_metric(values, value)
        yield family


def _cumulated(counts: Iterable[int]) -> Iterator[tuple[str, float]]:
    seen = 0
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
        seen += count
        yield bound, seen


class Metrics:
    """Every metric of the agent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._http = self._histogram("http_request_duration_seconds", "Requests of pods.", "code", "method", "handler")
        self._sts = self._histogram("iam_request_duration_seconds", "Requests to STS.", "code", "role_arn")
        for code in ("Success", "UnknownError"):
            self._sts.labels(code, "")
        self._hits = self._counter("iam_cache_hits_total", "Credentials answered from the cache.", "role_arn")
        self._duplicates = self._counter("iam_k8s_dup_req_count", "Addresses that several pods claimed.").labels()
        self._resolved = self._counter(
            "iam_k8s_dup_req_success_count", "Of these, the ones that the API server told apart."
        ).labels()
        self._unknown = self._counter("iam_k8s_pod_not_in_pod_cache", "Requests of addresses not known.").labels()
        self._denials = self._counter("denials_total", "Requests that got nothing, by reason.", "reason")
        for reason in Reason:  # a series that begins with its first event hides it from increase()
            self._denials.labels(reason.code)
        self._v1 = self._counter(
            "imdsv1_requests_total", "Requests without a session token, by namespace.", "namespace"
        )
        self._lists = self._counter("cluster_lists_total", "Full listings of a resource.", "resource")
        self._failures = self._counter(
            "cluster_failures_total", "Failed requests to the API server.", "resource", "reason"
        )
        self._malformed = self._counter(
            "cluster_malformed_objects_total", "Objects of the wrong shape, left out.", "resource"
        )
        self._events = self._counter("cluster_events_total", "Kubernetes Events by outcome.", "outcome")
        self._upstream = self._counter("upstream_failures_total", "Failed requests to the metadata service.", "kind")
        for kind in UPSTREAM_FAILURES:
            self._upstream.labels(kind)
        self._drift = self._counter(
            "redirect_drift_total", "Times the redirect was found changed and was mended."
        ).labels()

    def _histogram(self, name: str, text: str, *labels: str) -> _Histogram:
        metric = _Histogram(Observations, f"kube2iam_{name}", text, labels)
        self._registry.register(metric)
        return metric

    def _counter(self, name: str, text: str, *labels: str) -> _Counter:
        metric = _Counter(Count, f"kube2iam_{name}", text, labels)
        self._registry.register(metric)
        return metric

    def add(self, name: str, text: str, read: Values, *labels: str) -> None:
        """Add the gauge `kube2iam_<name>` (a counter if it ends in `_total`), whose values are read at each scrape."""
        self._registry.register(_Read(f"kube2iam_{name}", text, labels, read))

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    # For the pods' port

    def observer(self, handler: str, method: str, code: int) -> Callable[[float], None]:
        """What takes the seconds of each request with these labels."""
        return self._http.labels(str(code), method, handler).observe

    def denied(self, reason: Reason) -> None:
        """A request got nothing."""
        self._denials.labels(reason.code).inc()
        if reason is Reason.UNKNOWN_ADDRESS:
            self._unknown.inc()

    def without_token(self, namespace: str) -> None:
        """A request came without a session token."""
        self._v1.labels(namespace).inc()

    # For credentials

    def fetched(self, role: str, code: str, seconds: float) -> None:
        """A call to STS has ended."""
        self._sts.labels(code, role).observe(seconds)

    def hit(self, role: str) -> Callable[[], None]:
        """What counts each answer from the cache."""
        return self._hits.labels(role).inc

    # For the cluster side

    def listed(self, resource: str) -> None:
        """A LIST replaced everything."""
        self._lists.labels(resource).inc()

    def cluster_failure(self, resource: str, reason: str) -> None:
        """A LIST or WATCH failed."""
        self._failures.labels(resource, reason).inc()

    def malformed_object(self, resource: str) -> None:
        """An object of the wrong shape was left out."""
        self._malformed.labels(resource).inc()

    def cluster_event(self, outcome: str) -> None:
        """An Event was posted, dropped or refused."""
        self._events.labels(outcome).inc()

    def duplicate_asked(self) -> None:
        """The API server was asked which pod has an address."""
        self._duplicates.inc()

    def duplicate_resolved(self) -> None:
        """It could say."""
        self._resolved.inc()

    # For the real metadata service

    def upstream_failure(self, kind: str) -> None:
        """It did not answer as it should."""
        self._upstream.labels(kind).inc()

    # For the redirect

    def redirect_drift(self) -> None:
        """Someone else changed the rule, and it was put back."""
        self._drift.inc()
