"""What a curious pod tries: plain HTTP from a pod's place, byte for byte as given."""

from collections.abc import Mapping
from dataclasses import dataclass

from kube2iam.demo.metadata import NODE_ROLE, TOKEN_HEADER, TTL_HEADER
from kube2iam.demo.network import METADATA
from kube2iam.demo.places import Place

LISTING = "/latest/meta-data/iam/security-credentials/"
TIMEOUT = 3.0

SECRET_PATHS = (
    "/latest/user-data",
    "/2021-03-23/user-data",
    "//latest//user-data/",
    "/latest/%75ser-data",
    "/latest/USER-DATA",
    "/latest/meta-data/../user-data",
    "/latest/meta-data/iam/info",
    "/latest/meta-data/iam/security-credentials",
    f"{LISTING}{NODE_ROLE}",
    f"/2012-01-12/meta-data/iam/security-credentials/{NODE_ROLE}",
    f"/latest/meta-data/iam;x/security-credentials/{NODE_ROLE}",
    f"/latest/meta-data\\iam\\security-credentials\\{NODE_ROLE}",
    "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    "/latest/dynamic/instance-identity/pkcs7",
    "/latest/dynamic/instance-identity/signature/",
    "http://169.254.169.254/latest/user-data",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as it came: status (0 for none), headers with lower-case names, and all of its bytes."""

    status: int
    headers: Mapping[str, str]
    body: str
    raw: bytes


def ask(place: Place, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """One request for 169.254.169.254 from inside `place`. Blocks; a refused or silent connection is status 0."""
    fields = {"Host": METADATA, "Connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    raw = b""
    try:
        with place.connect(METADATA, 80, timeout_s=TIMEOUT) as connection:
            connection.sendall(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode())
            while chunk := connection.recv(65536):
                raw += chunk
    except OSError:
        pass
    return _parse(raw)


def token(place: Place) -> str:
    """An IMDSv2 session token for `place`, or nothing."""
    answer = ask(place, "/latest/api/token", method="PUT", headers={TTL_HEADER: "60"})
    return answer.body if answer.status == 200 else ""


def unguarded(place: Place, secret: str) -> bool:
    """Whether `place` reaches the real service and its user-data, as it does while no agent keeps the node."""
    return ask(place, LISTING).body == NODE_ROLE and ask(place, "/latest/user-data").body == secret


def leaks(place: Place, canaries: Mapping[str, str]) -> list[str]:
    """Ask for every secret of the node in many spellings, with and without a token; what was seen of them."""
    found: list[str] = []
    for headers in ({}, {TOKEN_HEADER: token(place)}):
        for target in SECRET_PATHS:
            raw = ask(place, target, headers=headers).raw
            found += [f"{name} by {target}" for name, text in canaries.items() if text.encode() in raw]
    return found


def _parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(status, headers, body.decode(errors="replace"), raw)
