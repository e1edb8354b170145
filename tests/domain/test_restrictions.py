import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.domain.arn import BaseArn, RoleArn
from kube2iam.domain.restrictions import Enforcement, PatternFormat, Restrictions, UnreadableAnnotationError

BASE = BaseArn.parse("arn:aws:iam::123456789012:role/")
GLOB = Restrictions(Enforcement.ON)
REGEXP = Restrictions(Enforcement.ON, format=PatternFormat.REGEXP)


def allows(rule: Restrictions, patterns: list[str], role: str, base: BaseArn | None = BASE) -> bool:
    arn = RoleArn.parse(role if role.startswith("arn:") else f"{BASE}{role}")
    return rule.allows(json.dumps(patterns), arn, base)


OTHER = "arn:aws:iam::999999999999:role/app"


@pytest.mark.parametrize(
    ("patterns", "role", "allowed"),
    [
        ([], "app", False),
        (["app"], "app", True),
        (["/app"], "app", True),
        (["app"], "app-admin", False),
        (["app"], "my-app", False),
        (["app*"], "app-admin", True),
        (["*"], "team/app", True),
        (["*"], OTHER, False),
        (["arn:*"], OTHER, True),
        (["arn:aws:iam::999999999999:role/*"], OTHER, True),
        (["arn:aws:iam::999999999999:role/*"], "app", False),
        (["team/*"], "team/app", True),
        (["team/*"], "team2/app", False),
        (["a.p"], "app", False),
        (["a?p"], "app", False),
        (["APP"], "app", False),
        (["x", "app"], "app", True),
    ],
)
def test_a_glob_matches_the_whole_role(patterns: list[str], role: str, *, allowed: bool) -> None:
    assert allows(GLOB, patterns, role) is allowed


@pytest.mark.parametrize(
    ("patterns", "role", "allowed"),
    [
        (["app"], "app", True),
        (["app"], "app-admin", False),
        (["^app$"], "app", True),
        (["app.*"], "app-admin", True),
        (["app|other"], "other", True),
        (["app|.*"], OTHER, False),
        (["app|arn:aws:iam::999999999999:role/app"], OTHER, False),
        (["arn:aws:iam::999999999999:role/.*"], OTHER, True),
        (["^arn:aws:iam::999999999999:role/app$"], OTHER, True),
        (["^arn:aws:iam::999999999999:role/app$"], "arn:aws:iam::999999999999:role/app-admin", False),
        ([".*"], OTHER, False),
        (["(team|ops)/[a-z]+"], "ops/app", True),
        (["(team|ops)/[a-z]+"], "dev/app", False),
        ([r"a\$"], "a", False),
        (["x)|(.*"], "app", None),
    ],
)
def test_a_regexp_matches_the_whole_role(patterns: list[str], role: str, *, allowed: bool | None) -> None:
    if allowed is None:
        with pytest.raises(UnreadableAnnotationError):
            allows(REGEXP, patterns, role)
    else:
        assert allows(REGEXP, patterns, role) is allowed


@pytest.mark.parametrize("text", ["app", "{}", '"app"', "[1]", '["app", null]', "[", "[" * 100_000, "null"])
@pytest.mark.parametrize("rule", [GLOB, REGEXP])
def test_what_cannot_be_read_allows_nothing_and_says_so(rule: Restrictions, text: str) -> None:
    with pytest.raises(UnreadableAnnotationError):
        rule.allows(text, RoleArn.parse(f"{BASE}app"), BASE)


@pytest.mark.parametrize("rule", [GLOB, REGEXP])
def test_an_annotation_without_end_allows_nothing(rule: Restrictions) -> None:
    with pytest.raises(UnreadableAnnotationError, match="more than 65536 characters"):
        rule.allows(json.dumps(["*", "a" * 65_536]), RoleArn.parse(f"{BASE}app"), BASE)


def test_what_is_no_character_is_no_regular_expression() -> None:
    with pytest.raises(UnreadableAnnotationError):
        REGEXP.allows('["a\\ud800"]', RoleArn.parse(f"{BASE}app"), BASE)


def test_a_refusal_does_not_repeat_a_long_entry() -> None:
    with pytest.raises(UnreadableAnnotationError) as caught:
        allows(REGEXP, ["(" * 8000], "app")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "(?=x)", r"\1", "["])
def test_a_pattern_that_is_no_regular_expression_is_named(pattern: str) -> None:
    with pytest.raises(UnreadableAnnotationError, match="is not a regular expression"):
        allows(REGEXP, [pattern], "app")


def test_without_a_base_arn_a_pattern_stands_for_itself() -> None:
    assert allows(GLOB, ["*"], OTHER, None)
    assert not allows(GLOB, ["app"], OTHER, None)


def test_an_absent_annotation_allows_nothing() -> None:
    assert not GLOB.allows(None, RoleArn.parse(OTHER), BASE)
    assert not GLOB.allows("", RoleArn.parse(OTHER), BASE)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*c", "(.*)*x", "(a|aa)+$y"])
def test_no_pattern_can_stall_the_agent(pattern: str) -> None:
    begun = time.perf_counter()
    assert not allows(REGEXP, [pattern], "a" * 64)
    assert time.perf_counter() - begun < 0.1


def test_no_glob_can_stall_the_agent_with_a_long_role() -> None:
    role = f"{BASE}{'a' * 500}/" + "a" * 64
    text = json.dumps(["*a" * 250 + "b"] * 125)
    begun = time.thread_time()
    for _pod in range(110):
        assert not GLOB.allows(text, RoleArn.parse(role), BASE)
    assert time.thread_time() - begun < 1


@pytest.mark.parametrize(
    ("rule", "entries"), [(GLOB, [1] + ["x" * 60] * 999), (REGEXP, [r"[^\\PL\\pL]"] * 800 + ["("])]
)
def test_what_cannot_be_read_is_found_out_once_and_not_for_each_pod(rule: Restrictions, entries: list[object]) -> None:
    text, role = json.dumps(entries), RoleArn.parse(f"{BASE}app")

    def refused() -> None:
        with pytest.raises(UnreadableAnnotationError):
            rule.allows(text, role, BASE)

    refused()
    begun = time.thread_time()
    for _pod in range(110):
        refused()
    assert time.thread_time() - begun < 0.1


@pytest.mark.parametrize("rule", [GLOB, REGEXP])
@pytest.mark.parametrize(
    "patterns",
    [
        ["*"] * 60_000,
        [r"\pL{1,20}"] * 800,
        [r"[\pL\pN\pS\pZ]*"] * 540,
        [".*a.{300}"] * 800,
        ["a" * 8000],
        ["(.{0,300}){3}"] * 600,
    ],
)
def test_no_annotation_can_stall_the_agent_by_its_size(rule: Restrictions, patterns: list[str]) -> None:
    begun = time.thread_time()
    try:
        assert allows(rule, patterns, "a" * 64) is (patterns[0] == "*")
    except UnreadableAnnotationError as error:
        assert len(str(error)) < 200
    assert time.thread_time() - begun < 0.1


@given(st.lists(st.text(max_size=20), max_size=3), st.sampled_from([GLOB, REGEXP]))
def test_no_pattern_of_a_namespace_reaches_another_account(patterns: list[str], rule: Restrictions) -> None:
    harmless = [pattern for pattern in patterns if "arn:" not in pattern.lower()]
    try:
        assert not allows(rule, harmless, OTHER)
    except UnreadableAnnotationError as error:
        assert str(error)
