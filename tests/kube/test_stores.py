import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import MalformedObjectError
from kube2iam.kube import decode
from kube2iam.kube.stores import NamespaceStore, PodStore
from kube2iam.kube.wire import Event, RoundFailedError, _event
from tests.fakes.kube import namespace, pod

SECTIONS = st.sampled_from(
    ["metadata", "spec", "status", "annotations", "podIPs", "containerStatuses", "deletionTimestamp"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | SECTIONS, inner, max_size=4),
    max_leaves=12,
)


def everything(_key: str) -> bool:
    return True


def deep(raw: Any, path: tuple[str, ...], value: object) -> Any:
    """`raw` with one field replaced."""
    head, *rest = path
    inner = raw.get(head)
    return raw | {head: deep(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value}


def projected(raw: object) -> object:
    try:
        return PodStore(PodIndex(), everything).project(raw)
    except MalformedObjectError as error:
        return str(error)


FIELDS = [
    ("metadata",),
    ("metadata", "uid"),
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "creationTimestamp"),
    ("metadata", "deletionTimestamp"),
    ("metadata", "annotations"),
    ("metadata", "annotations", "iam.amazonaws.com/role"),
    ("spec",),
    ("spec", "nodeName"),
    ("spec", "hostNetwork"),
    ("spec", "serviceAccountName"),
    ("status",),
    ("status", "phase"),
    ("status", "podIP"),
    ("status", "podIPs"),
    ("status", "hostIP"),
    ("status", "hostIPs"),
    ("status", "containerStatuses"),
    ("status", "initContainerStatuses"),
]


@given(field=st.sampled_from(FIELDS), value=JSON)
def test_a_pod_with_any_field_replaced_is_read_or_called_malformed(field: tuple[str, ...], value: object) -> None:
    raw = deep(pod("a", ip="10.0.0.1"), field, value)
    store = PodStore(PodIndex(), everything)
    try:
        known = store.project(raw)
    except MalformedObjectError as error:
        assert str(error)
    else:
        assert known.uid == raw["metadata"]["uid"]
        store.upsert(known)


@given(raw=JSON)
def test_any_object_is_read_or_called_malformed_and_can_be_forgotten(raw: object) -> None:
    for store in (PodStore(PodIndex(), everything), NamespaceStore(PodIndex(), everything)):
        try:
            store.project(raw)
        except MalformedObjectError as error:
            assert str(error)
        assert store.remove(raw) in {True, False}
        assert store.forget(raw) in {True, False}


@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_a_page_or_a_failed_round(body: bytes) -> None:
    try:
        page = decode.page(body)
    except ValueError as error:
        assert str(error)
    else:
        assert page.version
        assert sum(map(len, page.slices())) == len(page)


@given(raw=JSON)
def test_an_object_of_any_shape_is_decoded_or_comes_whole(raw: object) -> None:
    body = json.dumps({"metadata": {"resourceVersion": "1"}, "items": [raw]}).encode()
    ((read,),) = decode.page(body).slices()
    store = PodStore(PodIndex(), everything)
    assert store.forget(read) == store.forget(raw)


@given(field=st.sampled_from(FIELDS), value=JSON)
def test_a_decoded_pod_is_what_the_whole_one_is(field: tuple[str, ...], value: object) -> None:
    raw = deep(pod("a", ip="10.0.0.1"), field, value)
    _, read = decode.event(json.dumps({"type": "ADDED", "object": raw}).encode())
    assert projected(read) == projected(raw)


@given(
    line=st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.tuples(JSON, JSON).map(lambda both: json.dumps({"type": both[0], "object": both[1]}).encode())
    | JSON.map(lambda value: json.dumps({"type": "ERROR", "object": value}).encode())
)
def test_any_line_is_an_event_or_a_failed_round(line: bytes) -> None:
    try:
        event = _event(line)
    except RoundFailedError as failure:
        assert failure.reason == "malformed" or failure.reason.startswith("http-")
    else:
        assert isinstance(event, Event)
        assert event.version is None or event.version


def test_namespaces_are_kept_by_name_and_only_with_annotations_that_rules_read() -> None:
    index = PodIndex()
    store = NamespaceStore(index, lambda key: key == "wanted")
    store.replace([store.project(namespace("a", wanted="1", other="2"))])
    known = index.namespace("a")
    assert known is not None
    assert known.annotations == {"wanted": "1"}
    assert store.forget(namespace("a"))
    assert index.namespace("a") is None


@pytest.mark.parametrize("gone", ["remove", "forget"])
def test_a_pod_that_was_only_forgotten_may_come_back(gone: str) -> None:
    index = PodIndex()
    store = PodStore(index, everything)
    raw = pod("a", ip="10.0.0.1")
    store.replace([store.project(raw)])
    assert getattr(store, gone)(raw)
    store.upsert(store.project(raw))
    assert [known.name for known in index.pods()] == (["a"] if gone == "forget" else [])
