import time

import pytest

from kube2iam.imds.allowlist import Allowed, Allowlist, PatternError


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("meta-data", Allowed.DIRECTORY),
        ("meta-data/ami-id", Allowed.LEAF),
        ("meta-data/block-device-mapping/root", Allowed.LEAF),
        ("meta-data/services", Allowed.DIRECTORY),
        ("meta-data/events/recommendations/rebalance", Allowed.EITHER),
        ("meta-data/network/interfaces/macs/02:00:00:00:00:01/ipv4-associations/1.2.3.4", Allowed.EITHER),
        ("dynamic/instance-identity/document", Allowed.LEAF),
        ("dynamic/instance-identity", None),
        ("dynamic/instance-identity/document/x", None),
        ("meta-data/placement/.hidden", None),
        ("meta-data/managed-ssh-keys", None),
        ("meta-data/public-keys/0/openssh-key", None),
        ("meta-data/tags/instance", None),
        ("user-data", None),
        ("", None),
    ],
)
def test_rows(path: str, expected: Allowed | None) -> None:
    assert Allowlist().check(path) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "meta-data/tags/instance/.*",
        "/latest/meta-data/tags/instance/.*",
        "^/latest/meta-data/tags/instance/[A-Za-z]+$",
        "/meta-data/tags/instance/Name",
        ".*",
    ],
)
def test_a_pattern_opens_what_it_matches_whole(pattern: str) -> None:
    allowlist = Allowlist([pattern])
    assert allowlist.check("meta-data/tags/instance/Name") is Allowed.EITHER
    assert Allowlist(["tags/instance/Name", "meta-data/tags"]).check("meta-data/tags/instance/Name") is None


SECRETS = [
    "user-data",
    "meta-data/iam/info",
    "meta-data/identity-credentials/ec2/info",
    "meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    "dynamic/instance-identity/pkcs7",
    "dynamic/instance-identity/signature",
    "dynamic/instance-identity/rsa2048",
    "meta-data/managed-ssh-keys/signer-cert",
]


@pytest.mark.parametrize("path", SECRETS)
@pytest.mark.parametrize("pattern", [".*", "meta-data/.*", "dynamic/.*", "[^x]+", "use[r]-dat[a]", "(?s:.)*"])
def test_a_secret_is_not_opened_by_a_pattern_that_does_not_name_it(path: str, pattern: str) -> None:
    assert Allowlist([pattern]).check(path) is None


@pytest.mark.parametrize("path", SECRETS)
def test_a_secret_is_opened_by_its_name(path: str) -> None:
    assert Allowlist([path]).check(path) is Allowed.EITHER


def test_each_word_must_be_named_by_the_pattern_that_matches() -> None:
    allowlist = Allowlist(["meta-data/identity-credentials/.*", "security-credentials", ".*"])
    assert allowlist.check("meta-data/identity-credentials/ec2/info") is Allowed.EITHER
    assert allowlist.check("meta-data/identity-credentials/ec2/security-credentials/ec2-instance") is None


def test_denying_wins() -> None:
    allowlist = Allowlist(["meta-data/tags/.*"], ["meta-data/tags/instance/Secret", "meta-data/network/.*"])
    assert allowlist.check("meta-data/tags/instance/Name") is Allowed.EITHER
    assert allowlist.check("meta-data/tags/instance/Secret") is None
    assert allowlist.check("meta-data/network") is None
    assert allowlist.check("meta-data/network/interfaces/macs/x") is None
    assert not allowlist.shown("meta-data", "network/")


def test_what_a_listing_shows() -> None:
    entries = [
        "ami-id",
        "events/",
        "iam/",
        "identity-credentials/",
        "public-keys/",
        "managed-ssh-keys/",
        "tags/",
        "network/",
    ]
    assert [entry for entry in entries if Allowlist().shown("meta-data", entry)] == ["ami-id", "events/", "network/"]
    assert Allowlist().shown("dynamic", "instance-identity/")
    assert not Allowlist().shown("dynamic", "fws/")


def test_lines_of_an_opened_listing_that_name_a_secret_are_hidden() -> None:
    allowlist = Allowlist(["dynamic/.*", "user-data"], ["dynamic/instance-identity/document"])
    assert allowlist.hidden("dynamic/instance-identity", "pkcs7")
    assert allowlist.hidden("dynamic/instance-identity", "document")
    assert not allowlist.hidden("dynamic/instance-identity", "other")
    assert not allowlist.hidden("", "user-data")


@pytest.mark.parametrize("pattern", ["", "(", "[a", "(?=x)", r"\1", "a**", "\udc99"])
@pytest.mark.parametrize("flag", ["allow", "deny"])
def test_a_pattern_that_cannot_be_used_is_named(flag: str, pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        Allowlist(**{flag: [pattern]})
    assert repr(pattern) in str(caught.value)


def test_no_pattern_stalls() -> None:
    allowlist = Allowlist(["(a*)*b", "(x+x+)+y"], ["(a|aa)+$"])
    begun = time.perf_counter()
    assert allowlist.check("a" * 8000 + "!") is None
    assert time.perf_counter() - begun < 0.1
