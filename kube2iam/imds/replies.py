"""What the pods' port answers, rendered once and sent many times.

Headers and bodies are those of the real service: `Server: EC2ws`, `text/plain` also for JSON, always a Content-Length,
never chunked. https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

import json
from collections.abc import Mapping
from functools import cache, lru_cache
from hashlib import sha256
from http import HTTPStatus
from time import gmtime, strftime

from kube2iam.domain.arn import RoleArn
from kube2iam.domain.errors import Reason
from kube2iam.domain.roles import Credentials

_NO_HEADERS: Mapping[str, str] = {}


class Reply:
    """A rendered answer. One object may be sent any number of times, to anyone."""

    __slots__ = ("closing", "length", "start", "status", "tail")

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: str = "text/plain",
        headers: Mapping[str, str] = _NO_HEADERS,
        closing: bool = False,
    ) -> None:
        self.status = status
        self.closing = closing
        """Whether the connection must not be used again."""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nServer: EC2ws\r\n".encode()
        head = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode()
        self.tail = head + body
        self.length = len(body)

    @property
    def body(self) -> bytes:
        """The body alone."""
        return self.tail[len(self.tail) - self.length :]

    def render(self, between: bytes, *, head: bool = False) -> bytes:
        """The bytes for the wire. `between` is whole header lines (Date, Connection); `head` leaves the body out."""
        tail = self.tail[: len(self.tail) - self.length] if head else self.tail
        return b"%b%b%b" % (self.start, between, tail)


class CredentialReplies:
    """The credentials documents, each rendered once. Bounded: what is not asked for again is forgotten."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._rendered: dict[str, tuple[Credentials, Reply]] = {}

    def get(self, given: Credentials) -> Reply:
        """The document for `given`: exactly these seven keys in this order, as clients scan it for some of them."""
        known = self._rendered.get(given.access_key_id)
        if known is not None and known[0] is given:
            return known[1]
        if len(self._rendered) >= self._most:
            self._rendered.clear()
        reply = Reply(200, _credentials(given))
        self._rendered[given.access_key_id] = given, reply
        return reply


@lru_cache(maxsize=1024)
def role_listing(name: str) -> Reply:
    """The role's bare name on one line without a line feed."""
    return Reply(200, name.encode())


def iam_info(arn: RoleArn, updated: float) -> Reply:
    """`iam/info`, as if the instance profile were named as the role. Its id is made from the ARN and never changes."""
    profile = f"arn:{arn.partition}:iam::{arn.account}:instance-profile{arn.path}{arn.name}"
    document = {
        "Code": "Success",
        "LastUpdated": _time(updated),
        "InstanceProfileArn": profile,
        "InstanceProfileId": f"AIPA{_identifier(profile)}",
    }
    return Reply(200, _document(document))


@cache
def denied(reason: Reason) -> Reply:
    """The empty answer to a denial: its status and its short code; the explanation is not for the wire."""
    headers = {"X-Kube2iam-Denied": reason.code}
    if reason.passing:
        headers["Retry-After"] = "1"
    return Reply(reason.status, headers=headers)


@cache
def empty(status: int) -> Reply:
    """An answer without a body that leaves the connection usable."""
    return Reply(status)


@cache
def closing(status: int) -> Reply:
    """An answer without a body after which the connection is closed."""
    return Reply(status, closing=True)


@cache
def method_not_allowed(allow: str) -> Reply:
    """405 that names the methods that are allowed."""
    return Reply(405, headers={"Allow": allow})


def _credentials(given: Credentials) -> bytes:
    return _document(
        {
            "Code": "Success",
            "LastUpdated": _time(given.issued),
            "Type": "AWS-HMAC",
            "AccessKeyId": given.access_key_id,
            "SecretAccessKey": given.secret_access_key,
            "Token": given.token,
            "Expiration": _time(given.expiration),
        }
    )


def _document(document: Mapping[str, str]) -> bytes:
    """JSON as the real service lays it out: two spaces before a key, ` : ` after it."""
    return json.dumps(document, indent=2, separators=(",", " : ")).encode("ascii")


def _time(moment: float) -> str:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(moment))


def _identifier(text: str) -> str:
    """17 characters of the alphabet of AWS's unique ids."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    return "".join(alphabet[byte % 32] for byte in sha256(text.encode()).digest()[:17])
