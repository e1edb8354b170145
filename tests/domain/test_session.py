"""What a session looks like: always something that STS accepts, or a sentence that says what to mend."""

import json
import re
import string
import time
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.domain.annotations import InvalidAnnotationError
from kube2iam.domain.arn import RoleArn
from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.policy import Policy
from kube2iam.domain.session import SessionShape, expand
from kube2iam.domain.tags import ALLOWED_TAGS, SessionTags
from kube2iam.settings import DURATION, POLICY_ARNS, TEMPLATE_FIELDS, Settings

ROLE = RoleArn("aws", "123456789012", "/team/", "app")
EXTERNAL_ID = "iam.amazonaws.com/external-id"
PREFIX = "iam.amazonaws.com/session-tag."
_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")
_POLICY = "arn:aws:iam::aws:policy/ReadOnlyAccess"


def pod(name: str = "web-0", namespace: str = "shop", **annotations: str) -> Pod:
    return named(name, namespace, annotations)


def named(name: str, namespace: str, annotations: dict[str, str]) -> Pod:
    return Pod(
        namespace, name, "uid-1", 0.0, ips=("10.0.0.7",), service_account="seller", annotations=annotations or None
    )


def annotated(**values: str) -> Pod:
    return named("web-0", "shop", values)


def shape(**settings: object) -> SessionShape:
    return SessionShape.from_settings(Settings(**({"node": "n1"} | settings)))  # type: ignore[arg-type] # any of them


def tags_of(annotations: dict[str, str], allowed: str | None = '["*"]') -> dict[str, str]:
    namespace = Namespace("shop", None if allowed is None else {ALLOWED_TAGS: allowed})
    return dict(SessionTags(cluster="c1").of(named("web-0", "shop", annotations), namespace))


def test_an_ordinary_pod_asks_for_the_nodes_session() -> None:
    request = shape().request(ROLE, pod(), None)
    assert (request.arn, request.session_name, request.duration) == (ROLE, "n1", 3600)
    assert (request.external_id, request.source_identity, request.policy_arns, request.tags) == (None, None, (), ())


def test_two_ordinary_pods_ask_the_same() -> None:
    assert shape().request(ROLE, pod("a"), None) == shape().request(ROLE, pod("b"), None)


def test_a_name_that_tells_the_pod_makes_a_session_for_each() -> None:
    each = shape(session_name="{namespace}.{pod}")
    assert each.request(ROLE, pod("a"), None).session_name == "shop.a"
    assert each.request(ROLE, pod("b"), None).session_name == "shop.b"


def test_every_field_of_a_template_has_its_value() -> None:
    template = "=".join(f"{{{name}}}" for name in TEMPLATE_FIELDS)
    found = shape(session_name=template, cluster_name="c1", source_identity="{service_account}@{cluster}")
    request = found.request(ROLE, pod(), None)
    assert request.session_name == "c1=n1=shop=web-0=seller=app=10.0.0.7"
    assert request.source_identity == "seller@c1"


@pytest.mark.parametrize(
    ("template", "values", "name"),
    [
        ("{node}", {"node": "ip-10-0-0-1.eu-west-1.compute.internal"}, "ip-10-0-0-1.eu-west-1.compute.internal"),
        ("k2i-{node}", {"node": "n"}, "k2i-n"),
        ("x", {}, "x-"),
        ("{ip}", {"ip": "fd00::1"}, "fd00--1-"),
        ("{ip}", {"ip": ""}, "-"),
        ("{pod}", {"pod": "p" * 80}, f"{'p' * 43}-"),
        ("{namespace}-{pod}", {"namespace": "a-b", "pod": "c"}, "a-b-c-"),
        ("{namespace}-{pod}", {"namespace": "a", "pod": "b-c"}, "a-b-c"),
        ("{namespace}{pod}", {"namespace": "a", "pod": "b"}, "ab-"),
        ("{pod}", {"pod": "web-0123456789abcdef0123"}, "web-0123456789abcdef0123-"),
        ("{node}", {"node": "i-0123456789abcdef0"}, "i-0123456789abcdef0"),
    ],
)
def test_a_name_is_as_the_template_says_or_that_with_a_digest(template: str, values: dict[str, str], name: str) -> None:
    found = expand(template, values)
    assert _NAME.fullmatch(found)
    assert found == name if not name.endswith("-") else re.fullmatch(f"{re.escape(name)}[0-9a-f]{{20}}", found)


_values = st.text(st.sampled_from("ab-.:é" + string.hexdigits), max_size=8) | st.text(max_size=100)
_templates = st.lists(st.sampled_from(["{namespace}", "{pod}", "-", ".", "ab", "="]), min_size=1, max_size=6).map(
    "".join
)


@given(_templates, st.tuples(_values, _values), st.tuples(_values, _values))
def test_names_are_valid_and_tell_values_apart(template: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    used = [place for place, name in enumerate(("namespace", "pod")) if f"{{{name}}}" in template]
    names = [expand(template, {"namespace": values[0], "pod": values[1]}) for values in (one, other)]
    assert all(_NAME.fullmatch(name) for name in names)
    assert (names[0] == names[1]) == all(one[place] == other[place] for place in used)


@given(_values)
def test_a_name_with_a_digest_is_no_other_values_plain_name(value: str) -> None:
    digested = expand("{pod}", {"pod": f"{value}/"})
    assert expand("{pod}", {"pod": digested}) != digested


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 3600), ("900", 900), ("7200", 7200), ("2h", 7200), ("1h30m", 5400), ("43200s", 43200)]
)
def test_a_pod_may_say_its_sessions_duration(text: str, seconds: int) -> None:
    assert shape().request(ROLE, annotated(**{DURATION: text}), None).duration == seconds


@pytest.mark.parametrize("text", ["899", "43201", "13h", "1h0.5s", "-2h", "two hours", "9" * 50, "٩٠٠", "1e4", " 900"])
def test_a_duration_that_sts_would_refuse_is_named(text: str) -> None:
    with pytest.raises(InvalidAnnotationError, match=rf"{DURATION}.*write whole seconds"):
        shape().request(ROLE, annotated(**{DURATION: text}), None)


@pytest.mark.parametrize("template", ["{pod}-{ip}", "{pod}-{ip:}"])
def test_a_session_that_is_named_by_the_address_needs_it(template: str) -> None:
    assert shape(session_name=template).needs_address
    assert shape(source_identity=template).needs_address
    assert not shape(session_name="{pod}-ip").needs_address


def test_the_ttl_of_go_kube2iam_doubles() -> None:
    assert shape(iam_role_session_ttl=900.0).request(ROLE, pod(), None).duration == 1800


def test_the_external_id_is_the_pods() -> None:
    assert shape().request(ROLE, annotated(**{EXTERNAL_ID: "a/b:c"}), None).external_id == "a/b:c"
    assert shape().request(ROLE, annotated(**{EXTERNAL_ID: ""}), None).external_id is None
    other = shape(iam_external_id="example.com/id")
    assert other.request(ROLE, annotated(**{"example.com/id": "xy", EXTERNAL_ID: "zz"}), None).external_id == "xy"
    assert shape(iam_external_id="").request(ROLE, annotated(**{EXTERNAL_ID: "zz"}), None).external_id is None


@pytest.mark.parametrize("text", ["a", "a b", "ab\n", "é" * 3, "a" * 1225, "a;b"])
def test_an_external_id_that_sts_would_refuse_is_named_but_not_shown(text: str) -> None:
    with pytest.raises(InvalidAnnotationError, match=EXTERNAL_ID) as caught:
        shape().request(ROLE, annotated(**{EXTERNAL_ID: text}), None)
    assert "\n" not in str(caught.value)
    assert f" {text} " not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "arns"),
    [
        ("", ()),
        (" ", ()),
        (_POLICY, (_POLICY,)),
        (f"{_POLICY}, {_POLICY},", (_POLICY,)),
        (
            f'["{_POLICY}", "arn:aws:iam::123456789012:policy/a/b", ""]',
            ("arn:aws:iam::123456789012:policy/a/b", _POLICY),
        ),
        (f"{_POLICY}B,{_POLICY}A", (f"{_POLICY}A", f"{_POLICY}B")),
        ("[]", ()),
    ],
)
def test_session_policies_stand_between_commas_or_in_json(text: str, arns: tuple[str, ...]) -> None:
    assert shape().request(ROLE, annotated(**{POLICY_ARNS: text}), None).policy_arns == arns


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ReadOnlyAccess", "'ReadOnlyAccess' is no policy of the role's account"),
        ("arn:aws:iam::aws:role/x", "write arn:aws:iam::123456789012:policy/<name>, or aws for the account"),
        ("arn:aws:iam::999999999999:policy/x", "no policy"),
        ("arn:aws-cn:iam::aws:policy/ReadOnlyAccess", "no policy"),
        ("arn:aws:iam::aws:policy//ReadOnlyAccess", "no policy"),
        (f"{_POLICY} {_POLICY}", "no policy"),
        (",", "names no policy; remove it"),
        ('[""]', "names no policy; remove it"),
        (f'["{_POLICY}"', "not a JSON array"),
        ("[1]", "not a JSON array"),
        ("[" * 4096, "not a JSON array"),
        (" " * 5000, "more than 4096 characters"),
        (",".join(str(number) for number in range(45_000)), "more than 4096 characters"),
        (",".join(f"{_POLICY}{number}" for number in range(11)), "11 policies"),
        ("arn:aws:iam::aws:policy/" + "a/" * 1500 + "b", "STS takes at most 10 with 2048"),
    ],
)
def test_a_session_policy_that_sts_would_refuse_is_named(text: str, said: str) -> None:
    with pytest.raises(InvalidAnnotationError, match=re.escape(said)) as caught:
        shape().request(ROLE, annotated(**{POLICY_ARNS: text}), None)
    assert len(str(caught.value)) < 400


def test_tags_are_those_of_eks_pod_identity() -> None:
    assert shape(session_tags=True, cluster_name="c1").request(ROLE, pod(), None).tags == (
        ("eks-cluster-name", "c1"),
        ("kubernetes-namespace", "shop"),
        ("kubernetes-pod-name", "web-0"),
        ("kubernetes-pod-uid", "uid-1"),
        ("kubernetes-service-account", "seller"),
    )


def test_without_a_clusters_name_there_is_no_such_tag() -> None:
    assert "eks-cluster-name" not in dict(shape(session_tags=True).request(ROLE, pod(), None).tags)


def test_annotations_are_tags_where_the_namespace_allows_them() -> None:
    found = tags_of({f"{PREFIX}team": "blue", f"{PREFIX}cost-centre": "4 7"}, '["team", "cost-*"]')
    assert (found["team"], found["cost-centre"]) == ("blue", "4 7")


@pytest.mark.parametrize("allowed", [None, "", "[]", '["te"]', '["eam", "t*x"]', '["*-team"]'])
def test_a_tag_that_the_namespace_does_not_allow_is_named(allowed: str | None) -> None:
    with pytest.raises(InvalidAnnotationError, match=rf"{PREFIX}team.*add \"team\" to its annotation {ALLOWED_TAGS}"):
        tags_of({f"{PREFIX}team": "blue"}, allowed)


@pytest.mark.parametrize("allowed", ["team", '"team"', "{}", '["team", 1]', "[" * 100_000])
def test_a_namespaces_annotation_that_cannot_be_read_allows_nothing(allowed: str) -> None:
    with pytest.raises(InvalidAnnotationError, match=rf"{ALLOWED_TAGS} of the namespace allows nothing"):
        tags_of({f"{PREFIX}team": "blue"}, allowed)
    assert "kubernetes-namespace" in tags_of({}, allowed)


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"kubernetes-namespace": "other"}, "set already"),
        ({"Kubernetes-Namespace": "other"}, "set already"),
        ({"eks-cluster-arn": "arn"}, "set already"),
        ({"team": "a", "Team": "b"}, "set already"),
        ({"": "a"}, "not a tag's key"),
        ({"k" * 129: "a"}, "not a tag's key"),
        ({"a*b": "a"}, "not a tag's key"),
        ({"team": "v" * 257}, "not a tag's value"),
        ({"team": "a\nb"}, "not a tag's value"),
        ({"team": "a&b"}, "not a tag's value"),
        ({"team": "aws:reserved"}, "not a tag's value"),
        ({"AWS:team": "a"}, "not a tag's key"),
        ({f"t{number}": "v" for number in range(46)}, "STS takes at most 50"),
    ],
)
def test_a_tag_that_sts_would_refuse_or_trust_policies_rely_on_is_named(annotations: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidAnnotationError, match=re.escape(said)) as caught:
        tags_of({PREFIX + key: value for key, value in annotations.items()})
    assert PREFIX in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pod_without_a_service_account_has_no_tag_of_one() -> None:
    mirror = replace(pod(), service_account="")
    assert "kubernetes-service-account" not in dict(shape(session_tags=True).request(ROLE, mirror, None).tags)


@pytest.mark.parametrize("patterns", [100, 101, 10_000])
def test_no_namespace_can_make_its_pods_decisions_slow(patterns: int) -> None:
    allowed = json.dumps([f"team-{number}-*" + "*a" * 100 for number in range(patterns - 1)] + ["*"])
    begun = time.process_time()
    for _pod in range(110):
        annotations = {f"{PREFIX}team-{number}-x": "v" for number in range(40)}
        if patterns <= 100:
            assert len(tags_of(annotations, allowed)) == 45
        else:
            with pytest.raises(
                InvalidAnnotationError, match=r"allows nothing: it has more than \d+ (entries|characters)"
            ):
                tags_of(annotations, allowed)
    assert time.process_time() - begun < 1


def test_stars_side_by_side_are_one() -> None:
    begun = time.process_time()
    for _pod in range(110):
        assert len(tags_of({f"{PREFIX}team-{number}": "v" for number in range(45)}, json.dumps(["*" * 65_000]))) == 50
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("value", ["", "größer 1", "a_b.c:d/e=f+g-h@i", "日本", "v" * 256])
def test_what_sts_accepts_for_a_tags_value_is_accepted(value: str) -> None:
    assert tags_of({f"{PREFIX}team": value})["team"] == value


@pytest.mark.parametrize(
    ("pattern", "key", "allowed"),
    [
        ("*", "team", True),
        ("team", "TEAM", True),
        ("t*m", "team", True),
        ("t*m", "tm", True),
        ("te*am", "tea", False),
        ("*a*a*", "aa", True),
        ("*a*a*", "a", False),
        ("ab*ab", "ab", False),
        ("ab*ab", "abab", True),
        ("t?am", "team", False),
        ("[t]eam", "team", False),
        ("a*" * 60 + "b", "a" * 63, False),
    ],
)
def test_patterns_of_tag_keys_know_stars_only(pattern: str, key: str, allowed: bool) -> None:
    namespace = Namespace("shop", {ALLOWED_TAGS: f'["{pattern}"]'})
    wanted = named("web-0", "shop", {PREFIX + key: "v"})
    if allowed:
        assert (key, "v") in SessionTags().of(wanted, namespace)
    else:
        with pytest.raises(InvalidAnnotationError, match="does not allow"):
            SessionTags().of(wanted, namespace)


def test_transitive_tags_are_those_of_the_session_in_any_case() -> None:
    found = shape(session_tags=True, transitive_session_tags=("Kubernetes-Namespace", "team"))
    assert found.request(ROLE, pod(), None).transitive_tag_keys == ("kubernetes-namespace",)


def test_tag_annotations_are_nothing_while_tags_are_off() -> None:
    assert shape().request(ROLE, annotated(**{f"{PREFIX}team": "blue"}), None).tags == ()
    assert not shape().needs_namespace(annotated(**{f"{PREFIX}team": "blue"}))


def test_the_namespace_matters_to_pods_with_tag_annotations_only() -> None:
    found = shape(session_tags=True)
    assert found.needs_namespace(annotated(**{f"{PREFIX}team": "blue"}))
    assert not found.needs_namespace(pod())


def test_a_pod_with_tags_waits_until_its_namespace_is_known() -> None:
    decision = Policy(shape(session_tags=True)).decide(
        annotated(**{"iam.amazonaws.com/role": str(ROLE), f"{PREFIX}team": "blue"}), None
    )
    assert isinstance(decision, Denial)
    assert decision.reason is Reason.UNKNOWN_NAMESPACE


@pytest.mark.parametrize(
    ("annotation", "off", "on"),
    [
        (EXTERNAL_ID, True, True),
        (DURATION, True, True),
        (POLICY_ARNS, True, True),
        (f"{PREFIX}team", False, True),
        (ALLOWED_TAGS, False, True),
        ("iam.amazonaws.com/other", False, False),
    ],
)
def test_only_what_is_read_is_kept(annotation: str, off: bool, on: bool) -> None:
    assert shape().keep(annotation) is off
    assert shape(session_tags=True).keep(annotation) is on


_keys = st.sampled_from([DURATION, EXTERNAL_ID, POLICY_ARNS, f"{PREFIX}team", f"{PREFIX}x", PREFIX])
_texts = st.text(max_size=60) | st.sampled_from(["900", "2h", "[]", "ab", _POLICY, "blue"])


@given(st.dictionaries(_keys, _texts), st.none() | st.text(max_size=40) | st.just('["*"]'))
def test_whatever_is_annotated_sts_would_accept_the_request_or_it_is_refused_here(
    annotations: dict[str, str], allowed: str | None
) -> None:
    namespace = None if allowed is None else Namespace("shop", {ALLOWED_TAGS: allowed})
    found = shape(session_tags=True, session_name="{pod}", source_identity="{pod}")
    try:
        request = found.request(ROLE, named("web-0", "shop", annotations), namespace)
    except InvalidAnnotationError as error:
        assert "annotation iam.amazonaws.com/" in str(error)
        return
    assert 900 <= request.duration <= 43200
    assert request.external_id is None or re.fullmatch(r"[A-Za-z0-9_+=,.@:/-]{2,1224}", request.external_id)
    assert len(request.policy_arns) <= 10
    assert all(len(value) <= 256 for _, value in request.tags)
    assert list(request.tags) == sorted(request.tags)
    assert request.source_identity == "web-0"


def test_the_key_of_the_cache_is_the_whole_request() -> None:
    whole = shape(session_tags=True).request(ROLE, pod(), None)
    changes: dict[str, Any] = {
        "arn": RoleArn("aws", "123456789012", "/", "other"),
        "session_name": "other",
        "duration": 900,
        "external_id": "other",
        "source_identity": "other",
        "policy_arns": (_POLICY,),
        "tags": (),
        "transitive_tag_keys": ("team",),
    }
    assert set(changes) == {field.name for field in fields(whole) if field.compare}
    assert (replace(whole), hash(replace(whole))) == (whole, hash(whole))
    for name, value in changes.items():
        other = replace(whole, **{name: value})
        assert other != whole
        assert hash(other) != hash(whole)
