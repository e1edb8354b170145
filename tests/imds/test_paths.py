import re
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kube2iam.imds.allowlist import PROTECTED, Allowlist
from kube2iam.imds.guard import may_leave
from kube2iam.imds.paths import VERSIONS, BadTargetError, Kind, Target, parse
from tests.fakes.imds import understood

ALLOWLIST = Allowlist()
ROLES = "/latest/meta-data/iam/security-credentials"


def read(target: str | bytes, allowlist: Allowlist = ALLOWLIST) -> Target:
    return parse(target if isinstance(target, bytes) else target.encode("latin-1"), allowlist)


def kind(target: str | bytes, allowlist: Allowlist = ALLOWLIST) -> Kind | int:
    try:
        return read(target, allowlist).kind
    except BadTargetError:
        return 400


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", Kind.ROOT),
        ("//", Kind.ROOT),
        ("/?x", Kind.ROOT),
        ("/latest", Kind.VERSION),
        ("/latest/", Kind.VERSION),
        ("/1.0", Kind.VERSION),
        ("/latest/api/token", Kind.TOKEN),
        ("/latest/api/token?x=1", Kind.TOKEN),
        ("http://169.254.169.254/latest/api/token", Kind.TOKEN),
        ("/latest/api/token/", Kind.MISPLACED_TOKEN),
        ("//latest/api/token", Kind.MISPLACED_TOKEN),
        ("/latest//api/token", Kind.MISPLACED_TOKEN),
        ("/2021-03-23/api/token", Kind.MISPLACED_TOKEN),
        ("/whatever/api/token", Kind.MISPLACED_TOKEN),
        ("/latest/api", Kind.NOT_FOUND),
        ("/latest/meta-data/iam", Kind.IAM),
        ("/latest/meta-data/iam/", Kind.IAM),
        ("/latest/meta-data/iam/info", Kind.IAM_INFO),
        ("/latest/meta-data/iam/info/", Kind.IAM_INFO),
        ("/latest/meta-data/iam/info/x", Kind.NOT_FOUND),
        ("/latest/meta-data/iam/anything", Kind.NOT_FOUND),
        (ROLES, Kind.ROLES),
        (f"{ROLES}/", Kind.ROLES),
        (f"{ROLES}//", Kind.ROLES),
        (f"{ROLES}?/placement/region", Kind.ROLES),
        ("/latest/meta-data//iam/security-credentials/", Kind.ROLES),
        (f"{ROLES}/app", Kind.CREDENTIALS),
        (f"http://[fd00:ec2::254]{ROLES}/app", Kind.CREDENTIALS),
        (f"http://169.254.169.254:80{ROLES}/app", Kind.CREDENTIALS),
        (f"http://169.254.169.254:8080{ROLES}/app", 400),
        (f"http://169.254.169.254@evil.example{ROLES}/app", 400),
        ("http://169.254.169.254", 400),
        ("http://evil.example/latest/meta-data/instance-id", 400),
        ("http://2852039166/latest/user-data", 400),
        ("https://169.254.169.254/latest/user-data", 400),
        ("HTTP://169.254.169.254/latest/", 400),
        ("latest/meta-data/instance-id", 400),
        ("", 400),
        ("*", 400),
        ("169.254.169.254:80", 400),
        ("/latest/meta-data", Kind.LISTING),
        ("/latest/meta-data/", Kind.LISTING),
        ("/latest/dynamic/", Kind.LISTING),
        ("/latest/dynamic/instance-identity/", Kind.NOT_FOUND),
        ("/latest/dynamic/instance-identity/document/", Kind.METADATA),
        ("/latest/dynamic/instance-identity/pkcs7", Kind.NOT_FOUND),
        ("/latest/meta-data/placement/region", Kind.METADATA),
        ("/latest/meta-data/placement/availability-zone/", Kind.METADATA),
        ("/latest/meta-data/placement/a/b", Kind.NOT_FOUND),
        ("/latest/meta-data/network/", Kind.LISTING),
        ("/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/vpc-id", Kind.METADATA),
        ("/latest/meta-data/events/maintenance/history", Kind.METADATA),
        ("/latest/meta-data/spot/instance-action", Kind.METADATA),
        ("/latest/meta-data/public-keys/", Kind.NOT_FOUND),
        ("/latest/meta-data/network/interfaces/macs" + "/a" * 250, Kind.NOT_FOUND),
        ("/latest/meta-data/tags/instance/Name", Kind.NOT_FOUND),
        ("/latest/user-data", Kind.NOT_FOUND),
        ("/LATEST/meta-data/instance-id", Kind.NOT_FOUND),
        ("/latest/Meta-Data/instance-id", Kind.NOT_FOUND),
        ("/latest/meta-data/instance-ID", Kind.NOT_FOUND),
        ("/9999-99-99/meta-data/instance-id", Kind.NOT_FOUND),
        ("/0/meta-data/instance-id", Kind.NOT_FOUND),
        ("/healthz", Kind.ADMIN),
        ("/readyz?verbose", Kind.ADMIN),
        ("//healthz", Kind.NOT_FOUND),
        ("/healthz/", Kind.NOT_FOUND),
        ("/debug/store", Kind.NOT_FOUND),
        ("/favicon.ico", Kind.NOT_FOUND),
    ],
)
def test_targets(target: str, expected: Kind | int) -> None:
    assert kind(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        "/latest/meta-data/./instance-id",
        "/latest/../latest/meta-data/instance-id",
        "/latest/meta-data/placement/..",
        "/latest/meta-data/.iam/info",
        "/latest/meta-data/%2e%2e/user-data",
        "/latest/meta-data/instance%2did",
        "/latest/meta-data/instance-id%00",
        "/latest%2fmeta-data",
        "/latest\\meta-data/instance-id",
        "/latest/meta-data;x/instance-id",
        "/latest/meta-data/instance-id#x",
        "/latest/meta-data/instance-id\x00",
        "/latest/meta-data/instance-id\t",
        "/latest/meta-data/instance id",
        "/latest/meta-data/instance-id\x7f",
        "/latest/meta-data/\xe9",
        '/latest/meta-data/"',
        "/latest/meta-data/{x}",
        "/latest/meta-data/instance-id?\r\nHost: x",
        f"{ROLES}/%",
        f"{ROLES}/%4",
        f"{ROLES}/%u0061",
        f"{ROLES}/app%00",
        f"{ROLES}/app%0aother",
        f"{ROLES}/app%20",
        f"{ROLES}/app%c3%a9",
        f"{ROLES}/..",
        f"{ROLES}/../info",
        f"{ROLES}/%2e%2e%2finfo",
        f"{ROLES}/app/../other",
        f"{ROLES}/app\\other",
    ],
)
def test_what_no_honest_client_sends_is_refused(target: str) -> None:
    assert kind(target) == 400


@pytest.mark.parametrize(
    ("part", "role"),
    [
        ("app", "app"),
        ("app/", "app"),
        ("/app", "app"),
        ("team/app", "team/app"),
        ("role/team/app", "role/team/app"),
        ("arn:aws:iam::123456789012:role/app", "arn:aws:iam::123456789012:role/app"),
        ("arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fapp", "arn:aws:iam::123456789012:role/app"),
        ("a%2Bb%2Cc%40d", "a+b,c@d"),
        ("a+b,c@d=e", "a+b,c@d=e"),
        ("%2541", "%41"),
        ("x;y", "x;y"),
        ("app?query", "app"),
        ("..a", "..a"),
    ],
)
def test_role_part_is_decoded_once(part: str, role: str) -> None:
    assert read(f"{ROLES}/{part}") == Target(Kind.CREDENTIALS, "latest", ROLES.removeprefix("/latest/"), role)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_served_alike(version: str) -> None:
    paths = ("", "meta-data/", "meta-data/iam/info", "meta-data/iam/security-credentials/", "meta-data/instance-id")
    for path in paths:
        dated, latest = read(f"/{version}/{path}"), read(f"/latest/{path}")
        assert (dated.kind, dated.path) == (latest.kind, latest.path)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/latest/meta-data/instance-id/", "meta-data/instance-id"),
        ("/1.0//meta-data///placement//region/?recursive=true", "meta-data/placement/region"),
        ("/latest/meta-data/placement", "meta-data/placement/"),
        (
            "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01",
            "meta-data/network/interfaces/macs/02:00:00:00:00:01",
        ),
        (
            "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/",
            "meta-data/network/interfaces/macs/02:00:00:00:00:01/",
        ),
    ],
)
def test_only_the_canonical_path_goes_on(target: str, path: str) -> None:
    assert read(target).path == path


def test_query_is_kept_for_probes_only() -> None:
    assert read("/readyz?verbose").query == "verbose"
    assert read("/latest/meta-data/instance-id?verbose").query == ""


WORDS = st.sampled_from(
    [
        "latest", "1.0", "2009-04-04", "LATEST", "meta-data", "Meta-Data", "dynamic", "user-data", "iam", "IAM", "info",
        "security-credentials", "identity-credentials", "ec2", "ec2-instance", "instance-identity", "document", "pkcs7",
        "signature", "instance-id", "placement", "region", "network", "interfaces", "macs", "events", "api", "token",
        "tags", "instance", "..", ".", "%2e%2e", "%252e", "%2f", "%5c", "\\", ";", ";x=1", "?", "#", "%00", "%", "\x00",
        "\xc0\xae", "é", "canary-node-role", "app", "managed-ssh-keys", "public-keys", "a", " ", "\t", "\r\n",
    ]
)  # fmt: skip
TARGETS = st.lists(st.one_of(WORDS, st.just("/"), st.text(max_size=4)), max_size=14).map("/".join) | st.text()
OPEN = Allowlist(allow=[".*", "(?i).*", "meta-data/.*|dynamic/.*"])
CANONICAL = re.compile(
    r"meta-data/|dynamic/"
    r"|meta-data/(ami-id|ami-launch-index|hostname|instance-id|instance-life-cycle|instance-type|local-hostname|local-ipv4"
    r"|mac|profile|public-hostname|public-ipv4|reservation-id|security-groups)"
    r"|meta-data/(placement|services|block-device-mapping|spot|autoscaling)/[A-Za-z0-9._:-]*"
    r"|meta-data/network/(interfaces/(macs/([A-Za-z0-9._:-]+/?)*)?)?"
    r"|meta-data/events/([A-Za-z0-9._:-]+/?)*"
    r"|dynamic/instance-identity/document"
)


@given(TARGETS)
@example("/latest/meta-data/placement/..;/iam/info")
@example("/latest/meta-data/network/interfaces/macs/a/iam/info")
def test_nothing_but_a_row_reaches_upstream(text: str) -> None:
    target = ("/" + text.lstrip("/")).encode("utf-8", "surrogatepass")
    try:
        found = parse(target, ALLOWLIST)
    except BadTargetError:
        return
    if found.kind in {Kind.METADATA, Kind.LISTING}:
        assert CANONICAL.fullmatch(found.path)
        assert not any(part.startswith(".") for part in found.path.split("/"))


@given(TARGETS)
@example("/latest/user-data")
@example("/latest/meta-data/identity-credentials/ec2/info")
@example("/latest/dynamic/instance-identity/pkcs7")
def test_no_careless_pattern_opens_a_secret(text: str) -> None:
    try:
        found = parse(("/" + text.lstrip("/")).encode("utf-8", "surrogatepass"), OPEN)
    except BadTargetError:
        return
    if found.kind in {Kind.METADATA, Kind.LISTING}:
        assert not any(word in understood(f"/latest/{found.path}") for word in (*PROTECTED, "api/token"))


@given(TARGETS)
def test_guard_stops_what_a_forgiving_server_would_read_as_a_secret(text: str) -> None:
    path = text.lstrip("/").encode("utf-8", "surrogatepass").decode("latin-1")
    if may_leave(path):
        assert not any(word in understood(f"/latest/{path}") for word in (*PROTECTED, "api/token"))


@given(TARGETS)
@example("/latest/meta-data/network/interfaces/macs/a/iam/info")
@example("/latest/meta-data/placement/signature")
@example("/latest/meta-data/events/maintenance/history")
def test_the_guard_lets_the_rows_pass(text: str) -> None:
    try:
        found = parse(("/" + text.lstrip("/")).encode("utf-8", "surrogatepass"), ALLOWLIST)
    except BadTargetError:
        return
    if found.kind in {Kind.METADATA, Kind.LISTING}:
        assert may_leave(found.path)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_target_or_refused(target: bytes) -> None:
    assert kind(target) == 400 or isinstance(kind(target), Kind)


REFUSED = ["/latest/user-data", "/latest/meta-data/iam/x", "/latest/dynamic/instance-identity/pkcs7", f"{ROLES}/other"]


@given(st.sampled_from(REFUSED), st.data())
def test_spelling_a_refused_path_otherwise_opens_nothing(target: str, data: st.DataObject) -> None:
    spelt = "".join(
        data.draw(
            st.sampled_from([char, char.swapcase(), quote(char, safe="") if char != "/" else "%2F"])
            | st.sampled_from([f"%{ord(char):02x}", f"%25{ord(char):02X}", f"{char}/", f"/.{char}", f"{char};"])
        )
        for char in target
    )
    assert kind(spelt) not in {Kind.METADATA, Kind.LISTING, Kind.TOKEN}


@given(st.sampled_from(REFUSED), st.integers(1, 4))
def test_encoding_a_refusal_again_is_refused_again(target: str, times: int) -> None:
    for _ in range(times):
        target = "/" + quote(target.removeprefix("/"), safe="")
    assert kind(target) in {400, Kind.NOT_FOUND}
