"""What a pod's session with STS looks like: name, duration, external ID, policies, tags. Pure.

Every limit of https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html that can be told here is checked
before STS is asked.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from string import Formatter
from typing import Self

from kube2iam import parse
from kube2iam.domain.annotations import InvalidAnnotationError, json_texts, shorten
from kube2iam.domain.arn import PARTITION, RoleArn
from kube2iam.domain.pod import Namespace, Pod
from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.domain.tags import SessionTags
from kube2iam.settings import DURATION, POLICY_ARNS, Settings

_SHORTEST, _LONGEST = 900, 43_200
_MOST_POLICIES = 10
_LONGEST_NAME = 64
_DIGITS = 20
_NAME = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)
_NOT_OF_A_NAME = re.compile(r"[^\w+=,.@-]", re.ASCII)
_DIGEST = re.compile(rf"-[0-9a-f]{{{_DIGITS}}}\Z")
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII)
_POLICY_ARN = re.compile(rf"arn:({PARTITION}):iam::(aws|\d{{12}}):policy/(?:[!-~]+/)?[\w+=,.@-]{{1,128}}", re.ASCII)
_LONGEST_POLICIES = 2048
"""Characters of all policies' ARNs together."""
_LONGEST_TEXT = 2 * _LONGEST_POLICIES
"""Characters of the annotation that holds them."""


@dataclass(frozen=True, slots=True)
class SessionShape:
    """How sessions are made; one value for the whole agent."""

    node: str = ""
    cluster: str = ""
    name: str = "{node}"
    """Template of the session's name."""
    source_identity: str = ""
    """Template of the source identity; empty for none."""
    duration: int = 3600
    """Seconds, where the pod does not say."""
    external_id_key: str = "iam.amazonaws.com/external-id"
    tags: SessionTags | None = None
    """None for no session tags."""
    transitive: frozenset[str] = frozenset()
    """Keys of tags, in lower case."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The shape that the flags describe."""
        return cls(
            node=settings.node_or_host,
            cluster=settings.cluster_name,
            name=settings.session_name,
            source_identity=settings.source_identity,
            duration=settings.session_duration,
            external_id_key=settings.iam_external_id,
            tags=SessionTags(settings.session_tag_prefix, settings.cluster_name) if settings.session_tags else None,
            transitive=frozenset(key.lower() for key in settings.transitive_session_tags),
        )

    def keep(self, annotation: str) -> bool:
        """Whether `request` reads this annotation of a pod or a namespace."""
        return annotation in {self.external_id_key, DURATION, POLICY_ARNS} or (
            self.tags is not None and self.tags.keep(annotation)
        )

    def needs_namespace(self, pod: Pod) -> bool:
        """Whether an annotation of the namespace decides what is asked for this pod."""
        return self.tags is not None and bool(self.tags.asked_by(pod))

    @property
    def needs_address(self) -> bool:
        """Whether a pod's address is part of what is asked for it."""
        return "ip" in parse.fields_of(self.name) | parse.fields_of(self.source_identity)

    def request(self, arn: RoleArn, pod: Pod, namespace: Namespace | None) -> AssumeRoleRequest:
        """What to ask STS for `pod` in role `arn`; raises InvalidAnnotationError."""
        values = self._values(arn, pod)
        tags = self.tags.of(pod, namespace) if self.tags else ()
        return AssumeRoleRequest(
            arn=arn,
            session_name=expand(self.name, values),
            duration=_duration(pod.annotation(DURATION)) or self.duration,
            external_id=_external_id(self.external_id_key, pod.annotation(self.external_id_key)),
            source_identity=expand(self.source_identity, values) if self.source_identity else None,
            policy_arns=_policy_arns(pod.annotation(POLICY_ARNS), arn),
            tags=tags,
            transitive_tag_keys=tuple(key for key, _ in tags if key.lower() in self.transitive),
        )

    def _values(self, arn: RoleArn, pod: Pod) -> dict[str, str]:
        return {
            "cluster": self.cluster,
            "node": self.node,
            "namespace": pod.namespace,
            "pod": pod.name,
            "service_account": pod.service_account,
            "role": arn.name,
            "ip": pod.ips[0] if pod.ips else "",
        }


def expand(template: str, values: Mapping[str, str]) -> str:
    """`template` with `values` in it, as a valid session name: 2 to 64 characters of `[A-Za-z0-9_+=,.@-]`.

    Different values of the fields that it names give different names: where characters had to be replaced or cut, or
    where the text could be read as other values (`{pod}-{role}` of `a-b`, `c` and of `a`, `b-c`), the last 21
    characters are a dash and a digest of the values, long enough that nobody finds two values with the same one.
    """
    parts = [(literal, name) for literal, name, _, _ in Formatter().parse(template)]
    used = [values[name] for _, name in parts if name]
    text = "".join(literal + (values[name] if name else "") for literal, name in parts)
    if _NAME.fullmatch(text) and not _DIGEST.search(text) and _readable(parts, values):
        return text
    digest = hashlib.sha256(json.dumps(used).encode()).hexdigest()[:_DIGITS]
    return f"{_NOT_OF_A_NAME.sub('-', text)[: _LONGEST_NAME - _DIGITS - 1]}-{digest}"


def _readable(parts: list[tuple[str, str | None]], values: Mapping[str, str]) -> bool:
    """Whether each value ends where the literal after it first occurs, so that the text tells the values."""
    for (_, name), (literal, _) in pairwise(parts):
        following = f"{values[name or '']}{literal}"
        if not literal or following.index(literal) != len(values[name or ""]):
            return False
    return True


def _duration(text: str | None) -> int | None:
    if not text:
        return None
    try:
        seconds = parse.duration(f"{text}s" if text.isdigit() else text)
    except ValueError:
        seconds = 0.0
    if not seconds.is_integer() or not _SHORTEST <= seconds <= _LONGEST:
        raise InvalidAnnotationError(
            f"annotation {DURATION}: {shorten(text)} is not a session's duration; "
            f"write whole seconds from {_SHORTEST} to {_LONGEST}, or a duration such as 2h"
        )
    return int(seconds)


def _external_id(key: str, text: str | None) -> str | None:
    if not text:
        return None
    if not _EXTERNAL_ID.fullmatch(text):
        raise InvalidAnnotationError(
            f"annotation {key}: not an external ID; write 2 to 1224 letters, digits or _+=,.@:/- without spaces"
        )
    return text


def _policy_arns(text: str | None, role: RoleArn) -> tuple[str, ...]:
    """The policies that narrow the session. An annotation that seems to name some must not narrow nothing."""
    if text and len(text) > _LONGEST_TEXT:  # first: a longer one may be cut
        raise InvalidAnnotationError(f"annotation {POLICY_ARNS}: it has more than {_LONGEST_TEXT} characters")
    if not text or not text.strip():
        return ()
    items = json_texts(text) if text.lstrip().startswith("[") else tuple(item.strip() for item in text.split(","))
    if items is None:
        raise InvalidAnnotationError(
            f"annotation {POLICY_ARNS}: it is not a JSON array of texts; commas between ARNs will do"
        )
    found = sorted({item for item in items if item})
    if items and not found:
        raise InvalidAnnotationError(f"annotation {POLICY_ARNS}: it names no policy; remove it if none is meant")
    for item in found:
        match = _POLICY_ARN.fullmatch(item)
        if not match or match[1] != role.partition or match[2] not in {"aws", role.account}:
            raise InvalidAnnotationError(
                f"annotation {POLICY_ARNS}: {shorten(item)} is no policy of the role's account or of AWS; "
                f"write arn:{role.partition}:iam::{role.account}:policy/<name>, or aws for the account"
            )
    if len(found) > _MOST_POLICIES or sum(map(len, found)) > _LONGEST_POLICIES:
        raise InvalidAnnotationError(
            f"annotation {POLICY_ARNS}: {len(found)} policies with {sum(map(len, found))} characters in all; "
            f"STS takes at most {_MOST_POLICIES} with {_LONGEST_POLICIES}"
        )
    return tuple(found)
