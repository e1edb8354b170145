"""From the bytes of a request target to what is asked for: one pure function, before anything else looks at it.

Nothing the client spelt goes any further: a `Target` holds the path of a known row, written anew, and a decoded
role name that is only ever compared with the pod's own. Nothing is decoded twice.
"""

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote_to_bytes

from kube2iam.imds.allowlist import Allowed, Allowlist

VERSIONS = (
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2016-11-15",
    "2016-11-30",
    "2018-03-28",
    "2018-05-23",
    "2018-08-17",
    "2018-09-24",
    "2018-11-29",
    "2019-10-01",
    "2020-08-24",
    "2020-10-27",
    "2020-11-01",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "2024-04-11",
    "latest",
)
"""Every version of the metadata tree, in the order of `GET /`. All are served alike.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

_KNOWN = frozenset(VERSIONS)
_ADMIN = frozenset(("healthz", "livez", "readyz", "metrics"))
_TOKEN = "/latest/api/token"  # noqa: S105 - the path of the token, not a token
_ABSOLUTE = re.compile(rb"http://(?:169\.254\.169\.254|\[fd00:ec2::254\])(?::80)?(?=/)")
_REFUSED = re.compile(rb'[^!-~]|["#<>\\^`{|}]')
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}", re.ASCII)
_LOOKS_OWN = re.compile(r"api/token|iam/(?:info|security-credentials)", re.IGNORECASE)
"""What a server that is careless with paths might take for one of the agent's own."""
_PRINTABLE = re.compile(rb"[!-~]*")
_LONGEST = 512
"""Characters of a path of the real service; what is longer need not be compared with any pattern."""
_ROLES = ["meta-data", "iam", "security-credentials"]


class Kind(Enum):
    """What a target asks for."""

    ROOT = "root"
    """`/`: the list of versions."""
    VERSION = "version"
    """`/latest/`: what the tree holds."""
    TOKEN = "token"  # noqa: S105 - the name of a route
    """`/latest/api/token`, spelt exactly so."""
    MISPLACED_TOKEN = "misplaced-token"  # noqa: S105 - the name of a route
    """The token's path under another version, or with a slash too many: the real service answers a PUT with 403."""
    IAM = "iam"
    IAM_INFO = "iam-info"
    ROLES = "roles"
    """`meta-data/iam/security-credentials/`: the name of the pod's role."""
    CREDENTIALS = "credentials"
    METADATA = "metadata"
    """A value on the allowlist, passed through."""
    LISTING = "listing"
    """A directory on the allowlist, passed through and filtered."""
    ADMIN = "admin"
    """A probe or the metrics; for the node, never for a pod."""
    NOT_FOUND = "not-found"


@dataclass(frozen=True, slots=True)
class Target:
    """What a request asks for. `path` is canonical, below the version: `meta-data/placement/region`, `meta-data/`."""

    kind: Kind
    version: str = ""
    path: str = ""
    role: str | None = None
    """Of a credentials path: what the client takes for the role's name, decoded once. Only to be compared."""
    query: str = ""
    """Of an admin path; of all others it is dropped."""


class BadTargetError(ValueError):
    """A target that no honest client sends: 400, and the connection is closed. The message says which rule it broke."""


def parse(target: bytes, allowlist: Allowlist) -> Target:
    """What `target` (the request line's second field, as it came) asks for; raises BadTargetError. Pure."""
    path, query = _split(target)
    if path == _TOKEN:
        return Target(Kind.TOKEN, "latest", "api/token")
    segments = [segment for segment in path.split("/") if segment]
    if segments[1:4] == _ROLES and len(segments) > 4 and segments[0] in _KNOWN:
        role = _role("/".join(segments[4:]))
        return Target(Kind.CREDENTIALS, segments[0], "meta-data/iam/security-credentials", role)
    if "%" in path or ";" in path:
        raise BadTargetError("an escape or a parameter outside a role's name")
    if any(segment.startswith(".") for segment in segments):
        raise BadTargetError("a segment that begins with a dot")
    if not segments:
        return Target(Kind.ROOT)
    if path[1:] in _ADMIN:
        return Target(Kind.ADMIN, path=path[1:], query=query)
    return _below(segments[0], "/".join(segments[1:]), allowlist, slash=path.endswith("/"))


def _split(target: bytes) -> tuple[str, str]:
    """The path and the query of a target in origin form, or in absolute form for a metadata address."""
    if found := _ABSOLUTE.match(target):
        target = target[found.end() :]
    if not target.startswith(b"/"):
        raise BadTargetError("not a path, nor a URL of the metadata address")
    if _REFUSED.search(target):
        raise BadTargetError("a character that a path may not hold")
    path, _, query = target.decode("ascii").partition("?")
    return path, query


def _role(part: str) -> str:
    """The role part of a credentials path, decoded once, without one slash at its end."""
    if part.count("%") != len(_ESCAPE.findall(part)):
        raise BadTargetError("an escape that is none")
    decoded = unquote_to_bytes(part)
    if not _PRINTABLE.fullmatch(decoded):
        raise BadTargetError("an escaped character that no role's name holds")
    role = decoded.decode("ascii").removesuffix("/")
    if not {".", ".."}.isdisjoint(role.split("/")):
        raise BadTargetError("a dot segment in a role's name")
    return role


def _below(version: str, path: str, allowlist: Allowlist, *, slash: bool) -> Target:
    """What `path`, free of anything odd, asks for below a version."""
    if path == "api/token":
        return Target(Kind.MISPLACED_TOKEN, path=path)
    if version not in _KNOWN:
        return Target(Kind.NOT_FOUND)
    if path in _OWN:
        return Target(_OWN[path], version, path)
    return _passed_through(version, path, allowlist, slash=slash)


def _passed_through(version: str, path: str, allowlist: Allowlist, *, slash: bool) -> Target:
    """What `path` asks of the real service. All of `meta-data/iam/` is the agent's own, whatever a pattern says."""
    no = path.startswith("meta-data/iam/") or _LOOKS_OWN.search(path) or len(path) > _LONGEST
    match None if no else allowlist.check(path):
        case Allowed.LEAF:
            return Target(Kind.METADATA, version, path)
        case Allowed.DIRECTORY:
            return Target(Kind.LISTING, version, f"{path}/")
        case Allowed.EITHER:
            return Target(Kind.METADATA, version, f"{path}/" if slash else path)
        case None:
            return Target(Kind.NOT_FOUND, version)


_OWN = {
    "": Kind.VERSION,
    "meta-data/iam": Kind.IAM,
    "meta-data/iam/info": Kind.IAM_INFO,
    "meta-data/iam/security-credentials": Kind.ROLES,
}
