"""What the agent keeps of a pod and of a namespace: a few fields, taken from raw JSON at once.

Field meanings: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address
from typing import Any, Self

Keep = Callable[[str], bool]
"""Says of an annotation's name whether any rule reads it; all others are dropped when the object arrives."""


LONGEST_ANNOTATION = 65_536
"""Characters. Kubernetes allows a quarter of a megabyte for each object, and every namespace of a cluster is kept."""


class MalformedObjectError(ValueError):
    """An API object of the wrong shape; the message names the field."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the API server showed it last. Times are seconds since the epoch."""

    namespace: str
    name: str
    uid: str
    created: float
    node: str = ""
    host_ips: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    host_network: bool = False
    service_account: str = ""
    """Mirror pods of the kubelet have none."""
    annotations: Mapping[str, str] | None = None
    finished: bool = False
    """Phase Succeeded or Failed: it runs no more and its address may be another's."""
    deletion: float | None = None
    """deletionTimestamp, which is when its grace period ends; None while nobody deletes it."""
    containers_ended: bool = False
    """Every container that it has is in state terminated."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def annotation(self, key: str) -> str | None:
        """The annotation's text; empty is not the same as absent (None)."""
        return None if self.annotations is None else self.annotations.get(key)

    @classmethod
    def from_raw(cls, raw: object, keep: Keep) -> Self:
        """The pod in one decoded JSON object of the API; raises MalformedObjectError."""
        metadata = _mapping(raw, "metadata", required=True)
        spec = _mapping(raw, "spec")
        status = _mapping(raw, "status")
        deletion = metadata.get("deletionTimestamp")
        return cls(
            namespace=_text(metadata, "namespace", required=True),
            name=_text(metadata, "name", required=True),
            uid=_text(metadata, "uid", required=True),
            created=_time(metadata.get("creationTimestamp"), "metadata.creationTimestamp"),
            node=_text(spec, "nodeName"),
            host_ips=tuple(_addresses(status, "hostIP", "hostIPs")),
            ips=tuple(_addresses(status, "podIP", "podIPs")),
            host_network=_switch(spec, "hostNetwork"),
            service_account=_text(spec, "serviceAccountName"),
            annotations=_annotations(metadata, keep),
            finished=_text(status, "phase") in {"Succeeded", "Failed"},
            deletion=None if deletion is None else _time(deletion, "metadata.deletionTimestamp"),
            containers_ended=_all_ended(status),
        )


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and the annotations that rules read."""

    name: str
    annotations: Mapping[str, str] | None = None

    def annotation(self, key: str) -> str | None:
        """The annotation's text; empty is not the same as absent (None)."""
        return None if self.annotations is None else self.annotations.get(key)

    @classmethod
    def from_raw(cls, raw: object, keep: Keep) -> Self:
        """The namespace in one decoded JSON object of the API; raises MalformedObjectError."""
        metadata = _mapping(raw, "metadata", required=True)
        return cls(name=_text(metadata, "name", required=True), annotations=_annotations(metadata, keep))


def uid_of(raw: object) -> str | None:
    """The uid of an object that may be of the wrong shape, or None."""
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    uid = metadata.get("uid") if isinstance(metadata, dict) else None
    return uid if isinstance(uid, str) else None


def name_of(raw: object) -> str | None:
    """The name of an object that may be of the wrong shape, or None."""
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else None


def canonical_address(text: str) -> str:
    """An IP address as the index spells it: compressed, IPv4-mapped IPv6 unwrapped. Raises ValueError."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return str(address)


def _mapping(raw: object, field: str, *, required: bool = False) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise MalformedObjectError("the object is not a JSON object")
    value = raw.get(field)
    if value is None and not required:
        return {}
    if not isinstance(value, dict):
        raise MalformedObjectError(f"{field} is not a JSON object")
    return value


def _text(raw: Mapping[str, Any], field: str, *, required: bool = False) -> str:
    value = raw.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise MalformedObjectError(f"{field} is not a text")
    return value


def _switch(raw: Mapping[str, Any], field: str) -> bool:
    value = raw.get(field)
    if value is not None and not isinstance(value, bool):
        raise MalformedObjectError(f"{field} is not true or false")
    return bool(value)


def _time(value: object, field: str) -> float:
    if not isinstance(value, str):
        raise MalformedObjectError(f"{field} is not a time")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise MalformedObjectError(f"{field} is not a time") from None
    if moment.tzinfo is None:
        raise MalformedObjectError(f"{field} has no time zone")
    return moment.timestamp()


def _addresses(status: Mapping[str, Any], one: str, many: str) -> Iterator[str]:
    """`status.podIP` and `status.podIPs` (or hostIP, hostIPs) without repeats, canonical."""
    listed = _list(status, many)
    seen: set[str] = set()
    for value in [status.get(one), *(item.get("ip") if isinstance(item, dict) else item for item in listed)]:
        if value in (None, ""):
            continue
        try:
            address = canonical_address(value) if isinstance(value, str) else None
        except ValueError:
            address = None
        if address is None:
            raise MalformedObjectError(f"status.{one} or status.{many} holds no IP address")
        if address not in seen:
            seen.add(address)
            yield address


def _annotations(metadata: Mapping[str, Any], keep: Keep) -> Mapping[str, str] | None:
    raw = metadata.get("annotations")
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise MalformedObjectError("metadata.annotations is not a JSON object")
    kept = {key: _beginning(value) for key, value in raw.items() if keep(key)}
    if not all(isinstance(value, str) for value in kept.values()):
        raise MalformedObjectError("metadata.annotations holds something that is not a text")
    return kept or None


def _beginning(value: Any) -> Any:
    """What is kept of an annotation: enough to see that it is too long, which every rule refuses."""
    return value[: LONGEST_ANNOTATION + 1] if isinstance(value, str) else value


def _all_ended(status: Mapping[str, Any]) -> bool:
    """Whether every container has a state and each of them is terminated; False where none is reported."""
    states = [
        item.get("state") if isinstance(item, dict) else None
        for field in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
        for item in _list(status, field)
    ]
    return bool(status.get("containerStatuses")) and all(
        isinstance(state, dict) and state.get("terminated") is not None for state in states
    )


def _list(status: Mapping[str, Any], field: str) -> list[Any]:
    value = status.get(field) or []
    if not isinstance(value, list):
        raise MalformedObjectError(f"status.{field} is not a list")
    return value
