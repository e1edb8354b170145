"""Which paths of the real metadata service a pod may read: nothing, except these rows.

What each category holds: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html
"""

import re
from collections.abc import Collection, Iterable
from enum import Enum
from typing import Protocol

import re2

_LEAVES = frozenset(
    (
        "meta-data/ami-id",
        "meta-data/ami-launch-index",
        "meta-data/hostname",
        "meta-data/instance-id",
        "meta-data/instance-life-cycle",
        "meta-data/instance-type",
        "meta-data/local-hostname",
        "meta-data/local-ipv4",
        "meta-data/mac",
        "meta-data/profile",
        "meta-data/public-hostname",
        "meta-data/public-ipv4",
        "meta-data/reservation-id",
        "meta-data/security-groups",
        "dynamic/instance-identity/document",
    )
)
_ONE_BELOW = "meta-data/(?:placement|services|block-device-mapping|spot|autoscaling)"
_ALL_BELOW = "meta-data/(?:network/interfaces/macs|events)"
_SEGMENT = "/[A-Za-z0-9][A-Za-z0-9._:-]{0,63}"
_LEAF = re.compile(rf"{_ONE_BELOW}{_SEGMENT}", re.ASCII)
_DEEP = re.compile(rf"{_ALL_BELOW}(?:{_SEGMENT}){{1,6}}", re.ASCII)
_DIRECTORY = re.compile(rf"meta-data|dynamic|{_ONE_BELOW}|{_ALL_BELOW}|meta-data/network(?:/interfaces)?", re.ASCII)
_UNLISTED = "dynamic/instance-identity"
"""Has a value that may be read, and no listing, which would name the signed documents."""

PROTECTED = (
    "iam",
    "identity-credentials",
    "security-credentials",
    "user-data",
    "managed-ssh",
    "pkcs7",
    "signature",
    "rsa2048",
    "dsa2048",
)
"""Words of paths that prove the node's identity or carry its secrets: a pattern must name each word it means."""


class PatternError(ValueError):
    """A pattern of `--metadata-allow` or `--metadata-deny` that cannot be used; the message names it."""


class Allowed(Enum):
    """How an allowed path is answered."""

    LEAF = "leaf"
    """A value; a slash at the end of the request changes nothing."""
    DIRECTORY = "directory"
    """A listing, of which only what is itself allowed is shown."""
    EITHER = "either"
    """Only the real service knows which: the request's slash at the end is kept."""


class Pattern(Protocol):
    """What is used of a compiled google-re2 pattern."""

    def fullmatch(self, text: str) -> object | None:
        """A match of the whole of `text`, or None."""


class Allowlist:
    """The rows above, adjusted by whole-path regular expressions. Paths have no slash at either end.

    A pattern is matched against the path below the version (`meta-data/tags/instance/Name`), with or without
    `/` or `/latest/` before it and `/` after it. Denying wins. A path that contains one of PROTECTED is allowed only by
    a pattern whose own text contains the same word, so that `.*` opens none of them. Raises PatternError.
    """

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = tuple((text.lower(), _compile(text)) for text in allow)
        self._deny = tuple(_compile(text) for text in deny)
        self.named = frozenset(word for word in PROTECTED if any(word in text for text, _ in self._allow))
        """Protected words that some pattern names."""

    def check(self, path: str) -> Allowed | None:
        """How `path` is answered, or None where it is not allowed."""
        if self.denied(path):
            return None
        words = [word for word in PROTECTED if word in path.lower()]
        row = None if words else _row(path)
        return row or (Allowed.EITHER if self._opened(path, words) else None)

    def denied(self, path: str) -> bool:
        """Whether a pattern of `--metadata-deny` takes `path` away."""
        return bool(self._deny) and any(_matches(pattern, path) for pattern in self._deny)

    def shown(self, directory: str, entry: str) -> bool:
        """Whether the listing of `directory` may show `entry`, which ends with a slash if it is a directory itself."""
        path = f"{directory}/{entry.removesuffix('/')}"
        if path == _UNLISTED:
            return not self.denied(path)
        found = self.check(path)
        return found is not None and (found is not Allowed.LEAF or not entry.endswith("/"))

    def hidden(self, path: str, line: str) -> bool:
        """Whether `line`, found in the answer to a path that may be a listing, names something that is withheld."""
        entry = line.removesuffix("/")
        return (entry in PROTECTED and entry not in self.named) or self.denied(f"{path}/{entry}")

    def _opened(self, path: str, words: Collection[str]) -> bool:
        """Whether a pattern allows `path` and names each of the protected `words` that are in it."""
        return any(all(word in text for word in words) and _matches(pattern, path) for text, pattern in self._allow)


def _row(path: str) -> Allowed | None:
    if path in _LEAVES or _LEAF.fullmatch(path):
        return Allowed.LEAF
    if _DIRECTORY.fullmatch(path):
        return Allowed.DIRECTORY
    return Allowed.EITHER if _DEEP.fullmatch(path) else None


def _compile(text: str) -> Pattern:
    options = re2.Options()
    options.log_errors = False
    try:
        pattern: Pattern = re2.compile(text, options)
    except (re2.error, UnicodeEncodeError) as error:
        raise PatternError(f"{text!r} is not a regular expression: {error}") from None
    if not text:
        raise PatternError("'' matches no path; leave the flag out instead")
    return pattern


def _matches(pattern: Pattern, path: str) -> bool:
    spellings = (f"{start}{path}{end}" for start in ("", "/", "/latest/") for end in ("", "/"))
    return any(pattern.fullmatch(spelling) for spelling in spellings)
