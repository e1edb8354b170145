import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.domain.pod import MalformedObjectError, Namespace, Pod, canonical_address, name_of, uid_of


def keep(key: str) -> bool:
    return key == "iam.amazonaws.com/role"


def raw_pod(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "metadata": {
            "namespace": "shop",
            "name": "cart-1",
            "uid": "u1",
            "creationTimestamp": "2026-11-23T10:00:00Z",
            "annotations": {"iam.amazonaws.com/role": "cart", "other": "dropped"},
        },
        "spec": {"nodeName": "n1", "serviceAccountName": "cart"},
        "status": {"phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}]},
    }
    for path, value in changes.items():
        room, _, field = path.partition("__")
        raw[room] = {**raw[room], field: value}
    return raw


def test_the_fields_that_rules_read_are_kept() -> None:
    assert Pod.from_raw(raw_pod(), keep) == Pod(
        namespace="shop",
        name="cart-1",
        uid="u1",
        created=datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp(),
        node="n1",
        host_ips=("10.0.0.1",),
        ips=("10.1.0.5",),
        service_account="cart",
        annotations={"iam.amazonaws.com/role": "cart"},
    )


def test_every_address_counts_and_mapped_ones_are_unwrapped() -> None:
    pod = Pod.from_raw(raw_pod(status__podIPs=[{"ip": "::ffff:10.1.0.5"}, {"ip": "FD00:0:0::5"}]), keep)
    assert pod.ips == ("10.1.0.5", "fd00::5")


def test_an_empty_annotation_is_not_an_absent_one() -> None:
    assert (
        Pod.from_raw(raw_pod(metadata__annotations={"iam.amazonaws.com/role": ""}), keep).annotation(
            "iam.amazonaws.com/role"
        )
        == ""
    )
    assert Pod.from_raw(raw_pod(metadata__annotations=None), keep).annotation("iam.amazonaws.com/role") is None


ENDED = {"state": {"terminated": {"exitCode": 0}}}


@pytest.mark.parametrize(
    ("statuses", "ended"),
    [
        ({}, False),
        ({"containerStatuses": [ENDED]}, True),
        ({"containerStatuses": [{"state": {"terminated": {}}}, {"state": {"running": {}}}]}, False),
        (
            {"containerStatuses": [{"state": {"waiting": {}}}], "initContainerStatuses": [{"state": {"running": {}}}]},
            False,
        ),
        (
            {
                "containerStatuses": [{"state": {"terminated": {}}}],
                "ephemeralContainerStatuses": [{"state": {"running": {}}}],
            },
            False,
        ),
        ({"containerStatuses": ["odd"]}, False),
    ],
)
def test_containers_have_ended_when_each_is_terminated(statuses: dict[str, Any], ended: bool) -> None:
    raw = raw_pod()
    raw["status"] |= statuses
    assert Pod.from_raw(raw, keep).containers_ended is ended


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metadata__uid": 7}, "uid"),
        ({"metadata__uid": ""}, "uid"),
        ({"metadata__name": None}, "name"),
        ({"metadata__creationTimestamp": "yesterday"}, "creationTimestamp"),
        ({"metadata__creationTimestamp": "2026-11-23T10:00:00"}, "creationTimestamp"),
        ({"metadata__deletionTimestamp": 5}, "deletionTimestamp"),
        ({"metadata__annotations": ["x"]}, "annotations"),
        ({"metadata__annotations": {"iam.amazonaws.com/role": {"a": 1}}}, "annotations"),
        ({"spec__nodeName": []}, "nodeName"),
        ({"spec__hostNetwork": "true"}, "hostNetwork"),
        ({"status__podIP": "not-an-address"}, "podIP"),
        ({"status__podIPs": "10.1.0.5"}, "podIPs"),
        ({"status__podIPs": [{"ip": 5}]}, "podIP"),
    ],
)
def test_an_object_of_the_wrong_shape_is_refused_by_the_fields_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(MalformedObjectError, match=field):
        Pod.from_raw(raw_pod(**change), keep)


FIELDS = ["metadata", "spec", "status", "uid", "name", "namespace", "annotations", "podIPs", "podIP", "ip", "phase"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "spec",
                    "status",
                    "uid",
                    "name",
                    "namespace",
                    "annotations",
                    "podIPs",
                    "podIP",
                    "ip",
                    "phase",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_a_pod_or_malformed(raw: object) -> None:
    for kind in (Pod, Namespace):
        try:
            kind.from_raw(raw, lambda _key: True)
        except MalformedObjectError as error:
            assert str(error)
    json.dumps([uid_of(raw), name_of(raw)])


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_its_ipv4_address(address: object) -> None:
    assert canonical_address(f"::ffff:{address}") == str(address)


def test_a_namespace_keeps_what_rules_read() -> None:
    raw = {"metadata": {"name": "shop", "annotations": {"iam.amazonaws.com/role": "x", "y": "z"}}}
    assert Namespace.from_raw(raw, keep) == Namespace("shop", {"iam.amazonaws.com/role": "x"})
