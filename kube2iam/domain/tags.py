"""Session tags: those of EKS Pod Identity, and those of the pod's annotations that its namespace allows. Pure.

Limits: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html
"""

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from kube2iam.domain.annotations import Glob, InvalidAnnotationError, json_texts, shorten
from kube2iam.domain.pod import LONGEST_ANNOTATION, Namespace, Pod

ALLOWED_TAGS = "iam.amazonaws.com/allowed-session-tags"
"""Namespace annotation: JSON array of the tag keys, or patterns with `*`, that its pods may set."""


_RESERVED = frozenset(
    (
        "eks-cluster-arn",
        "eks-cluster-name",
        "kubernetes-namespace",
        "kubernetes-pod-name",
        "kubernetes-pod-uid",
        "kubernetes-service-account",
    )
)
"""The tags of EKS Pod Identity, on which trust policies rely: no annotation may set them.

https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html
"""


_MOST_TAGS = 50
_LONGEST_KEY = 128
_LONGEST_VALUE = 256
_MOST_PATTERNS = 100
_NO_LIST = 'it is not a JSON array of texts, such as ["team", "cost-*"]'


@dataclass(frozen=True, slots=True)
class SessionTags:
    """Makes the tags of sessions."""

    prefix: str = "iam.amazonaws.com/session-tag."
    """Beginning of the pod annotations that are tags; the key follows it."""
    cluster: str = ""
    """Value of `eks-cluster-name`; if empty, there is no such tag."""

    def keep(self, annotation: str) -> bool:
        """Whether `of` reads this annotation of a pod or a namespace."""
        return annotation == ALLOWED_TAGS or annotation.startswith(self.prefix)

    def asked_by(self, pod: Pod) -> dict[str, str]:
        """The pod's annotations that are tags: name and value."""
        annotations = pod.annotations or {}
        return {name: value for name, value in annotations.items() if name.startswith(self.prefix)}

    def of(self, pod: Pod, namespace: Namespace | None) -> tuple[tuple[str, str], ...]:
        """The session's tags, sorted by key; raises InvalidAnnotationError."""
        tags = {
            "kubernetes-namespace": pod.namespace,
            "kubernetes-pod-name": pod.name,
            "kubernetes-pod-uid": pod.uid,
            "kubernetes-service-account": pod.service_account,
            "eks-cluster-name": self.cluster,
        }
        tags = {key: value for key, value in tags.items() if value}
        asked = self.asked_by(pod)
        if len(tags) + len(asked) > _MOST_TAGS:
            raise InvalidAnnotationError(
                f"annotations {self.prefix}*: {len(tags) + len(asked)} tags with the agent's own; "
                f"STS takes at most {_MOST_TAGS}"
            )
        if asked:
            text = namespace and namespace.annotation(ALLOWED_TAGS)
            allowed = _allowed(text or "[]")
            if isinstance(allowed, str):
                raise InvalidAnnotationError(f"annotation {ALLOWED_TAGS} of the namespace allows nothing: {allowed}")
            tags |= self._asked(asked, allowed)
        return tuple(sorted(tags.items()))

    def _asked(self, annotations: dict[str, str], allowed: tuple[Glob, ...]) -> dict[str, str]:
        tags: dict[str, str] = {}
        taken = set(_RESERVED)
        for annotation, value in annotations.items():
            key = annotation.removeprefix(self.prefix)
            problem = _problem(key, value, taken, allowed)
            if problem:
                raise InvalidAnnotationError(f"annotation {annotation}: {problem}")
            taken.add(key.lower())
            tags[key] = value
        return tags


def _problem(key: str, value: str, taken: set[str], allowed: tuple[Glob, ...]) -> str | None:
    """Why a pod may not set this tag, or None. STS does not tell keys apart that differ in case only."""
    if not 1 <= len(key) <= _LONGEST_KEY or not _taggable(key):
        return "what follows the prefix is not a tag's key"
    if len(value) > _LONGEST_VALUE or not _taggable(value):
        return (
            f"{shorten(value)} is not a tag's value; write at most {_LONGEST_VALUE} letters, digits, spaces or _.:/=+-@"
        )
    if key.lower() in taken:
        return f"the tag {key} is set already, in this or another spelling; remove the annotation"
    if not any(pattern.fullmatch(key.lower()) for pattern in allowed):
        return f'the namespace does not allow the tag; add "{key}" to its annotation {ALLOWED_TAGS}'
    return None


@lru_cache(maxsize=128)
def _allowed(text: str) -> tuple[Glob, ...] | str:
    """What the namespace's annotation allows, for keys in lower case, or why that is nothing."""
    if len(text) > LONGEST_ANNOTATION:
        return f"it has more than {LONGEST_ANNOTATION} characters"
    patterns = json_texts(text)
    if patterns is None:
        return _NO_LIST
    if len(patterns) > _MOST_PATTERNS:
        return f"it has more than {_MOST_PATTERNS} entries"
    return tuple(Glob(pattern.lower()) for pattern in patterns)


def _taggable(text: str) -> bool:
    """Whether AWS takes `text` as a key or value; what begins with `aws:` is its own."""
    return not text.lower().startswith("aws:") and all(
        char in "_.:/=+-@" or unicodedata.category(char)[0] in "LZN" for char in text
    )
