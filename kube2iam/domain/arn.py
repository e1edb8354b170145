"""Role ARNs: parsed once, valid ever after.

Format and limits: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html and
https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html (RoleArn: 20 to 2,048 characters).
"""

import re
from dataclasses import dataclass
from typing import Self

from kube2iam.domain.annotations import shorten

PARTITION = r"aws(?:-[a-z0-9]+)*"
_ROLE_ARN = re.compile(rf"arn:({PARTITION}):iam::(\d{{12}}):role(/[!-~]+/|/)([\w+=,.@-]{{1,64}})", re.ASCII)
_BASE_ARN = re.compile(rf"arn:({PARTITION}):iam::(\d{{12}}):role((?:/[\w+=,.@-]+)*)/?", re.ASCII)
_NAME = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)
_ASSUMED = re.compile(rf"arn:({PARTITION}):sts::(\d{{12}}):assumed-role/([^/]+)(?:/.*)?", re.ASCII)
_PROFILE = re.compile(rf"arn:({PARTITION}):iam::(\d{{12}}):instance-profile(/.+)", re.ASCII)
_MAX_LENGTH = 2048
_MAX_PATH = 512


class MalformedRoleError(ValueError):
    """A text that names no role. The message is one sentence that says what is wrong and how to write it."""


@dataclass(frozen=True, slots=True)
class RoleArn:
    """An IAM role: `arn:{partition}:iam::{account}:role{path}{name}`; `path` begins and ends with a slash."""

    partition: str
    account: str
    path: str
    name: str

    def __str__(self) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role{self.path}{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The role that the ARN `text` names; raises MalformedRoleError with the mend where one can be guessed."""
        match = _match(text)
        if match is None:
            raise MalformedRoleError(_explain(text))
        return cls(match[1], match[2], match[3], match[4])

    @property
    def spellings(self) -> tuple[str, str, str, str]:
        """How a client may write this role in a credentials path: name, path and name, resource, whole ARN."""
        local = f"{self.path}{self.name}".lstrip("/")
        return self.name, local, f"role/{local}", str(self)


@dataclass(frozen=True, slots=True)
class BaseArn:
    """What completes a bare role name: `arn:{partition}:iam::{account}:role{path}`; `path` ends with a slash."""

    partition: str
    account: str
    path: str = "/"

    def __str__(self) -> str:
        return f"arn:{self.partition}:iam::{self.account}:role{self.path}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The base in `text`, with or without its last slash; raises MalformedRoleError."""
        match = _BASE_ARN.fullmatch(text)
        if match is None:
            raise MalformedRoleError(
                f"{text!r} is not a base role ARN; expected arn:<partition>:iam::<12-digit account>:role/[path/]"
            )
        return cls(match[1], match[2], f"{match[3]}/")


def complete(text: str, base: BaseArn | None) -> RoleArn:
    """The role that an annotation, a pattern-free setting or a flag names: a bare name, path and name, or an ARN.

    Raises MalformedRoleError with a sentence that says how to mend the text. Never guesses an account.
    """
    if len(text) > _MAX_LENGTH:
        raise MalformedRoleError(f"{shorten(text)} has {len(text)} characters; a role's ARN has at most {_MAX_LENGTH}")
    if text.lower().startswith("arn:"):
        return RoleArn.parse(text)
    if base is None:
        raise MalformedRoleError(
            f"role {shorten(text)} has no account: write the whole ARN (arn:aws:iam::<account>:role/<name>) "
            "or start kube2iam with --base-role-arn"
        )
    try:
        return RoleArn.parse(f"{base}{text.removeprefix('/')}")
    except MalformedRoleError:
        raise MalformedRoleError(_explain_name(text)) from None


def _match(text: str) -> re.Match[str] | None:
    match = _ROLE_ARN.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    return match if match and len(match[3]) <= _MAX_PATH else None


def _explain(text: str) -> str:
    guess = _mend(text)
    said = f"{shorten(text)} is not a role ARN"
    if guess:
        return f"{said}; did you mean {guess}"
    return f"{said}; expected arn:<partition>:iam::<12-digit account>:role/[path/]<name>"


def _explain_name(text: str) -> str:
    said = f"{shorten(text)} is not a role name"
    bare = "".join(text.split())
    if bare != text and len(bare) <= _MAX_PATH and _NAME.fullmatch(bare.rpartition("/")[2]):
        return f"{said}; did you mean {bare}"
    return f"{said}; expected 1 to 64 letters, digits or +=,.@_- (a path may come before it: team/app)"


def _mend(text: str) -> str | None:
    """A valid role ARN near `text`, or None: the slips that people make when they write one by hand."""
    text = "".join(text.split())
    if match := _ASSUMED.fullmatch(text):
        text = f"arn:{match[1]}:iam::{match[2]}:role/{match[3]}"
    elif match := _PROFILE.fullmatch(text):
        text = f"arn:{match[1]}:iam::{match[2]}:role{match[3]}"
    else:
        head, colon, rest = text.partition("/")
        parts = [part for part in head.lower().split(":") if part]
        if len(parts) == 5 and parts[0] == "arn" and parts[2] in {"iam", "sts"} and parts[4] in {"role", "roles"}:
            text = f"arn:{parts[1]}:iam::{parts[3]}:role{colon}{rest}"
    text = text.rstrip("/")
    return text if _match(text) else None
