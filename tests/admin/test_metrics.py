from prometheus_client.parser import text_string_to_metric_families

from kube2iam.admin.metrics import BUCKETS, Metrics
from kube2iam.domain.errors import Reason


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_upstreams_names_and_labels_are_there_from_the_start() -> None:
    names = {name for name, _ in samples(Metrics())}
    assert {
        "kube2iam_iam_k8s_dup_req_count",
        "kube2iam_iam_k8s_dup_req_success_count",
        "kube2iam_iam_k8s_pod_not_in_pod_cache",
        "kube2iam_iam_request_duration_seconds_bucket",
        "process_resident_memory_bytes",
    } <= names


def test_both_outcomes_of_sts_exist_before_the_first_call() -> None:
    found = samples(Metrics())
    for code in ("Success", "UnknownError"):
        assert found["kube2iam_iam_request_duration_seconds_count", (("code", code), ("role_arn", ""))] == 0


def test_a_histogram_counts_what_is_observed() -> None:
    metrics = Metrics()
    observe = metrics.observer("roleHandler", "GET", 200)
    for seconds in (0.001, 0.0011, 3.0, 100.0):
        observe(seconds)
    found = samples(metrics)
    labels = (("code", "200"), ("handler", "roleHandler"), ("method", "GET"))
    name = "kube2iam_http_request_duration_seconds"

    def below(bound: str) -> float:
        return found[f"{name}_bucket", tuple(sorted((*labels, ("le", bound))))]

    assert [below("0.001"), below("0.002"), below("4.096"), below("+Inf")] == [1, 2, 3, 4]
    assert found[f"{name}_count", labels] == 4
    assert found[f"{name}_sum", labels] == 0.001 + 0.0011 + 3.0 + 100.0
    assert len(BUCKETS) == 14


def test_a_denial_counts_by_its_reason_and_an_unknown_address_as_upstream_does() -> None:
    metrics = Metrics()
    metrics.denied(Reason.UNKNOWN_ADDRESS)
    metrics.denied(Reason.NO_ROLE)
    found = samples(metrics)
    assert found["kube2iam_denials_total", (("reason", "unknown-address"),)] == 1
    assert found["kube2iam_denials_total", (("reason", "no-role"),)] == 1
    assert found["kube2iam_iam_k8s_pod_not_in_pod_cache", ()] == 1


def test_labels_stay_bounded_whatever_roles_there_are() -> None:
    metrics = Metrics()
    for number in range(3000):
        metrics.fetched(f"arn:aws:iam::123456789012:role/r{number}", "Success", 0.1)
    counted = {
        labels: value
        for (name, labels), value in samples(metrics).items()
        if name == "kube2iam_iam_request_duration_seconds_count"
    }
    assert len(counted) <= 1001
    assert sum(counted.values()) == 3000
    assert counted[("code", "other"), ("role_arn", "other")] > 1990


def test_values_are_read_when_they_are_scraped() -> None:
    metrics = Metrics()
    values: dict[tuple[str, ...], float] = {}
    metrics.add("degraded", "Trouble.", lambda: values, "cause")
    metrics.add("iam_cache_hits_total", "Hits.", lambda: {("r",): 7}, "role_arn")
    assert ("kube2iam_degraded", (("cause", "sts"),)) not in samples(metrics)
    values["sts",] = 1
    found = samples(metrics)
    assert found["kube2iam_degraded", (("cause", "sts"),)] == 1
    assert found["kube2iam_iam_cache_hits_total", (("role_arn", "r"),)] == 7
