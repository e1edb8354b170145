from dataclasses import replace
from typing import Any

import pytest

from kube2iam.domain.arn import BaseArn
from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.policy import NAMESPACE_DEFAULT, Policy
from kube2iam.domain.restrictions import Enforcement, Restrictions
from kube2iam.domain.roles import Grant
from kube2iam.domain.session import SessionShape

ROLE = "iam.amazonaws.com/role"
ALLOWED = "iam.amazonaws.com/allowed-roles"
BASE = BaseArn.parse("arn:aws:iam::123456789012:role/")
PLAIN = Policy(SessionShape(node="n1"), base=BASE)
RESTRICTED = replace(PLAIN, restrictions=Restrictions(Enforcement.ON))
SHOP = Namespace("shop")


def pod(role: str | None = "app", **annotations: str) -> Pod:
    named = {} if role is None else {ROLE: role}
    return Pod("shop", "cart-1", "u1", created=0, ips=("10.1.0.5",), annotations=named | annotations)


def namespace(**annotations: str) -> Namespace:
    keys = {"allowed": ALLOWED, "default": NAMESPACE_DEFAULT}
    return Namespace("shop", {keys[name]: text for name, text in annotations.items()})


def said(policy: Policy, asker: Pod, home: Namespace | None = SHOP) -> tuple[str, str]:
    """(where the role came from, the role), or (the reason's code, "")."""
    decision = policy.decide(asker, home)
    if isinstance(decision, Denial):
        return decision.reason.code, ""
    return decision.source, str(decision.arn).removeprefix(str(BASE))


@pytest.mark.parametrize(
    ("changes", "role", "home", "expected"),
    [
        ({}, "app", SHOP, ("pod annotation", "app")),
        ({}, None, SHOP, ("no-role", "")),
        ({}, "", SHOP, ("no-role", "")),
        ({}, "no role", SHOP, ("role-malformed", "")),
        ({"default_role": "fallback"}, None, SHOP, ("default role", "fallback")),
        ({"default_role": "fallback"}, "app", SHOP, ("pod annotation", "app")),
        ({"default_role": "fallback"}, "", SHOP, ("no-role", "")),
        ({"default_role": "fallback"}, "no role", SHOP, ("role-malformed", "")),
        ({}, None, namespace(default="shared"), ("no-role", "")),
        ({"namespace_defaults": True}, None, namespace(default="shared"), ("namespace default", "shared")),
        ({"namespace_defaults": True}, "app", namespace(default="shared"), ("pod annotation", "app")),
        (
            {"namespace_defaults": True, "default_role": "fallback"},
            None,
            namespace(default="shared"),
            ("namespace default", "shared"),
        ),
        ({"namespace_defaults": True, "default_role": "fallback"}, None, namespace(default=""), ("no-role", "")),
        ({"namespace_defaults": True}, None, None, ("unknown-namespace", "")),
        ({"discovering": True}, "app", SHOP, ("not-ready", "")),
        ({"base": None}, "app", SHOP, ("role-malformed", "")),
    ],
)
def test_the_first_source_that_says_anything_decides(
    changes: dict[str, Any], role: str | None, home: Namespace | None, expected: tuple[str, str]
) -> None:
    assert said(replace(PLAIN, **changes), pod(role), home) == expected


@pytest.mark.parametrize(
    ("role", "home", "expected"),
    [
        ("app", namespace(allowed='["app"]'), ("pod annotation", "app")),
        ("app", namespace(allowed='["team/*"]'), ("namespace-denied", "")),
        ("app", namespace(allowed="[]"), ("namespace-denied", "")),
        ("app", SHOP, ("namespace-denied", "")),
        ("app", namespace(allowed="app"), ("namespace-unreadable", "")),
        ("app", None, ("unknown-namespace", "")),
        ("no role", SHOP, ("role-malformed", "")),
        (None, SHOP, ("default role", "fallback")),
        ("fallback", SHOP, ("pod annotation", "fallback")),
    ],
)
def test_restrictions_decide_but_for_the_default_role(
    role: str | None, home: Namespace | None, expected: tuple[str, str]
) -> None:
    assert said(replace(RESTRICTED, default_role="fallback"), pod(role), home) == expected


def test_a_namespaces_own_default_is_restricted_too() -> None:
    policy = replace(RESTRICTED, namespace_defaults=True)
    assert said(policy, pod(None), namespace(default="shared", allowed='["app"]')) == ("namespace-denied", "")
    assert said(policy, pod(None), namespace(default="shared", allowed='["shared"]')) == ("namespace default", "shared")


def test_report_only_grants_and_says_what_would_break() -> None:
    policy = replace(PLAIN, restrictions=Restrictions(Enforcement.REPORT_ONLY))
    grant = policy.decide(pod(), namespace(allowed='["other"]'))
    assert isinstance(grant, Grant)
    assert grant.would_deny is not None
    assert grant.would_deny.reason is Reason.NAMESPACE_DENIED
    for home in (namespace(allowed='["app"]'), None):
        allowed = policy.decide(pod(), home)
        assert isinstance(allowed, Grant)
        assert allowed.would_deny is None


@pytest.mark.parametrize(
    ("role", "home", "words"),
    [
        ("arn:aws:iam:123567989012:role/nginx-role", SHOP, "did you mean arn:aws:iam::123567989012:role/nginx-role"),
        (None, SHOP, "shop/cart-1 has no iam.amazonaws.com/role annotation"),
        ("app", SHOP, "has no annotation iam.amazonaws.com/allowed-roles"),
        ("app", namespace(allowed='["x"]'), "does not allow arn:aws:iam::123456789012:role/app"),
        ("app", namespace(allowed="x"), "not a JSON array of texts"),
    ],
)
def test_a_denial_says_what_is_wrong(role: str | None, home: Namespace, words: str) -> None:
    decision = RESTRICTED.decide(pod(role), home)
    assert isinstance(decision, Denial)
    assert words in decision.explanation


def test_an_annotation_that_sts_would_refuse_is_refused_here() -> None:
    asker = pod("app", **{"iam.amazonaws.com/external-id": "has spaces"})
    assert said(PLAIN, asker) == ("annotation-invalid", "")


def test_a_session_named_by_the_address_waits_for_it() -> None:
    policy = replace(PLAIN, shape=SessionShape(name="{pod}.{ip}"))
    assert said(policy, replace(pod(), ips=())) == ("unknown-address", "")
    assert said(policy, pod()) == ("pod annotation", "app")
    assert said(PLAIN, replace(pod(), ips=())) == ("pod annotation", "app")


def test_two_external_ids_are_two_requests() -> None:
    decisions = [
        PLAIN.decide(pod("app", **{"iam.amazonaws.com/external-id": text}), SHOP) for text in ("right-id", "wrong-id")
    ]
    requests = {decision.request for decision in decisions if isinstance(decision, Grant)}
    assert len(requests) == 2


def test_only_annotations_that_rules_read_are_kept() -> None:
    policy = replace(PLAIN, role_key="example.com/role")
    kept = ["example.com/role", ALLOWED, NAMESPACE_DEFAULT, "iam.amazonaws.com/external-id"]
    assert all(policy.keep(key) for key in kept)
    assert not policy.keep(ROLE)
    assert not policy.keep("kubectl.kubernetes.io/last-applied-configuration")
