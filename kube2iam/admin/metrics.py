"""Metrics in Prometheus' text format: Go kube2iam's names and labels kept, more added.

The only module that knows `prometheus_client`; every other room counts through a small protocol of its own, which
`Metrics` implements. What a request counts is resolved to a plain Python number beforehand, because the client's own
counters cost more than the answer.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, UntypedMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

BUCKETS = tuple(0.001 * 2**n for n in range(14))
"""Upper bounds in seconds, as Go kube2iam's."""

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_MANY_ROLES = 1000
_OTHER = "other"


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


class _Histogram(Collector):
    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._series: dict[tuple[str, ...], Observations] = {}

    def labels(self, *values: str) -> Observations:
        return self._series.setdefault(values, Observations())

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in list(self._series.items()):
            family.add_metric(values, list(_cumulated(series.counts)), series.total)
        yield family


def _cumulated(counts: Iterable[int]) -> Iterator[tuple[str, float]]:
    seen = 0
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
        seen += count
        yield bound, seen


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Count one."""
        self.value += 1


class _Counter(Collector):
    """A counter whose series cost one addition. Names that do not end in `_total` come out untyped."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._series: dict[tuple[str, ...], Count] = {}

    def labels(self, *values: str) -> Count:
        return self._series.setdefault(values, Count())

    def collect(self) -> Iterator[Metric]:
        family: CounterMetricFamily | UntypedMetricFamily = (
            CounterMetricFamily(self._name, self._text, labels=self._labels)
            if self._name.endswith("_total")
            else UntypedMetricFamily(self._name, self._text, labels=self._labels)
        )
        for values, series in list(self._series.items()):
            family.add_metric(values, series.value)
        yield family
