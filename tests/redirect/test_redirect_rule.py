"""Interface patterns and rules as values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.redirect.rule import Family, Interfaces, RedirectError, RedirectRule, Status

PATTERNS = [
    # text, matches, does not match
    ("docker0", ["docker0"], ["docker", "docker01", "lo", "eth0"]),
    ("cali+", ["cali1", "cali0123456789a", "cali"], ["cal", "eth0", "xcali1", "lo"]),
    ("cbr0, cni0", ["cbr0", "cni0"], ["cbr", "eth0"]),
    ("eni+,veth+", ["eni1", "vethab"], ["eth0", "vet"]),
    ("!eth0", ["docker0", "eth1", "cali1"], ["eth0", "lo"]),
    ("!eth+, !ens5", ["docker0", "ens6"], ["eth0", "eth1", "ens5", "lo"]),
    ("cali+,!cali9", ["cali1"], ["cali9", "eth0"]),
    ("! eth0", ["eth1"], ["eth0", "lo"]),
    ("+", ["eth0", "docker0"], ["lo"]),
    ("+,!eth0", ["docker0"], ["eth0", "lo"]),
    ("lo", ["lo"], ["eth0"]),
    ("auto", ["eth0", "docker0"], ["lo"]),
    ("auto,!virbr0", ["eth0"], ["virbr0", "lo"]),
]


@pytest.mark.parametrize(("text", "matches", "others"), PATTERNS)
def test_patterns(text: str, matches: list[str], others: list[str]) -> None:
    interfaces = Interfaces.parse(text)
    assert [name for name in (*matches, *others) if interfaces.matches(name)] == matches


@pytest.mark.parametrize(
    "text",
    [
        "",
        "docker0,",
        ",",
        "!",
        "a b",
        "sixteen-letters-",
        "fifteen-letters+",
        "a+b",
        "a/b",
        'a"b',
        "!+",
        "auto,docker0",
    ],
)
def test_what_is_no_pattern_is_named(text: str) -> None:
    with pytest.raises(RedirectError, match="--host-interface") as caught:
        Interfaces.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


names = st.text("abceni0123456789.-", min_size=1, max_size=14)
patterns = st.builds(lambda name, rest: name + rest, names, st.sampled_from(["", "+"]))


@given(st.lists(patterns, max_size=4), st.lists(patterns, max_size=4), st.one_of(names, st.just("lo")))
def test_matching_is_some_of_these_and_none_of_those(included: list[str], excluded: list[str], name: str) -> None:
    def fits(pattern: str) -> bool:
        return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern

    text = ",".join([*(included or ["+"]), *(f"!{pattern}" for pattern in excluded)])
    wanted = (not included or any(map(fits, included))) and not any(map(fits, excluded)) and name != "lo"
    assert Interfaces.parse(text).matches(name) == wanted


@given(st.lists(patterns, min_size=1, max_size=4), st.lists(patterns, max_size=4))
def test_what_is_shown_can_be_given(included: list[str], excluded: list[str]) -> None:
    interfaces = Interfaces.parse(",".join([*included, *(f"!{pattern}" for pattern in excluded)]))
    assert Interfaces.parse(str(interfaces)) == interfaces


def test_a_rule_has_one_destination_for_each_family() -> None:
    rule = RedirectRule.of(("10.0.0.1", "fd00::1"), 8181, "cali+")
    assert (rule.destination(Family.IPV4), rule.destination(Family.IPV6)) == ("10.0.0.1", "fd00::1")
    assert str(rule) == "cali+,!lo -> 10.0.0.1:8181, [fd00::1]:8181"
    assert str(RedirectRule.of(("10.0.0.1",), 80, "eth0")) == "eth0,!lo -> 10.0.0.1:80, refused"


@pytest.mark.parametrize(
    ("host_ips", "said"),
    [
        ((), "--host-ip must be set"),
        (("127.0.0.1",), "pods cannot reach that address"),
        (("::1",), "pods cannot reach that address"),
        (("0.0.0.0",), "pods cannot reach that address"),
        (("ff02::1",), "pods cannot reach that address"),
        (("node-1",), "'node-1' is not an IP address"),
        (("169.254.169.254",), "the metadata service itself"),
        (("10.0.0.1", "fd00:ec2::254"), "the metadata service itself"),
        (("10.0.0.1", "10.0.0.2"), "at most one IPv4 and one IPv6 address"),
    ],
)
def test_what_is_no_destination_is_named(host_ips: tuple[str, ...], said: str) -> None:
    with pytest.raises(RedirectError, match=said):
        RedirectRule.of(host_ips, 8181, "docker0")


def test_a_status_says_what_is_missing() -> None:
    rule = RedirectRule.of(("10.0.0.1",), 8181, "docker0")
    both = (Family.IPV4, Family.IPV6)
    assert Status.of("nft", {}, families=both) == Status(present=False, lines=("nft: nothing",))
    whole = Status.of("nft", {Family.IPV4: rule, Family.IPV6: rule}, families=both)
    assert whole == Status(
        present=True,
        lines=(
            "nft: 169.254.169.254 from docker0,!lo -> 10.0.0.1:8181",
            "nft: fd00:ec2::254 from docker0,!lo -> refused",
        ),
    )
    half = Status.of("nft", {Family.IPV4: rule}, families=both)
    assert not half.present
    assert "fd00:ec2::254 is open" in half.lines[1]
    damaged = Status.of("nft", {Family.IPV4: None}, families=(Family.IPV4,), foreign=["nat: a rule"])
    assert not damaged.present
    assert "not as kube2iam writes them" in damaged.lines[0]
    assert damaged.lines[1] == "nft: not ours, in nat: a rule"
