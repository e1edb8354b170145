"""What the demo's Kubernetes API keeps: objects with versions, and the changes that watches replay.

Semantics: https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Raw = dict[str, Any]

HISTORY = 1000
"""Changes that a watch can still ask for; older versions are gone (410)."""


class ApiError(Exception):
    """An answer that is a Kubernetes Status: HTTP code, reason and message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    def status(self) -> Raw:
        """The Status object."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object; `before` is what it was, so that a filtered watch can tell who left."""

    version: int
    resource: str
    before: Raw | None
    after: Raw | None


class Objects:
    """All objects of the cluster. Every change gets the next version."""

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.version = 1
        self.oldest = 1
        """The oldest version that a watch may start from."""
        self._now = now
        self._objects: dict[tuple[str, str, str], Raw] = {}
        self._history: deque[Change] = deque()
        self._changed = asyncio.Event()

    def list(self, resource: str, namespace: str = "") -> list[Raw]:
        """All objects of a resource, of one namespace or of all."""
        return [
            raw
            for (kind, where, _), raw in self._objects.items()
            if kind == resource and (not namespace or where == namespace)
        ]

    def get(self, resource: str, namespace: str, name: str) -> Raw:
        """One object; ApiError 404 if there is none."""
        try:
            return self._objects[resource, namespace, name]
        except KeyError:
            raise ApiError(404, "NotFound", f'{resource} "{name}" not found') from None

    def create(self, resource: str, namespace: str, raw: Raw) -> Raw:
        """Add an object, giving it uid, creation time and, with generateName, a name."""
        created = deepcopy(raw)
        metadata = created.setdefault("metadata", {})
        if namespace:
            metadata["namespace"] = namespace
        name = metadata.setdefault("name", f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:8]}")
        if (resource, namespace, name) in self._objects:
            raise ApiError(409, "AlreadyExists", f'{resource} "{name}" already exists')
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", self._now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        return self._store(resource, namespace, name, created)

    def replace(self, resource: str, namespace: str, name: str, raw: Raw) -> Raw:
        """Put a whole object in place of the one there; ApiError 409 if it names another version of it."""
        before = self.get(resource, namespace, name)
        after = deepcopy(raw)
        metadata = after.setdefault("metadata", {})
        wanted = metadata.get("resourceVersion")
        if wanted and wanted != before["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", f'{resource} "{name}" has been modified; read it again')
        for fixed in ("name", "namespace", "uid", "creationTimestamp"):
            if fixed in before["metadata"]:
                metadata[fixed] = before["metadata"][fixed]
        return self._store(resource, namespace, name, after)

    def patch(self, resource: str, namespace: str, name: str, patch: Raw) -> Raw:
        """Merge `patch` into an object: https://datatracker.ietf.org/doc/html/rfc7386."""
        return self.replace(resource, namespace, name, merged(self.get(resource, namespace, name), patch))

    def delete(self, resource: str, namespace: str, name: str) -> Raw:
        """Take an object away and return it."""
        before = self.get(resource, namespace, name)
        del self._objects[resource, namespace, name]
        self._record(resource, before, None)
        return before

    def changes(self, resource: str, since: int) -> Iterator[Change]:
        """What happened to a resource after version `since`; ApiError 410 when that is forgotten."""
        if since < self.oldest:
            raise ApiError(410, "Expired", f"too old resource version: {since} ({self.oldest})")
        return (change for change in self._history if change.version > since and change.resource == resource)

    def compact(self) -> None:
        """Forget every change so far, as etcd does from time to time."""
        self._history.clear()
        self.oldest = self.version

    async def changed(self, since: int) -> None:
        """Wait until anything has changed after version `since`."""
        while self.version <= since:
            await self._changed.wait()

    def _store(self, resource: str, namespace: str, name: str, raw: Raw) -> Raw:
        before = self._objects.get((resource, namespace, name))
        self._objects[resource, namespace, name] = raw
        self._record(resource, before, raw)
        return raw

    def _record(self, resource: str, before: Raw | None, after: Raw | None) -> None:
        self.version += 1
        if after is not None:
            after["metadata"]["resourceVersion"] = str(self.version)
        self._history.append(Change(self.version, resource, before, after))
        if len(self._history) > HISTORY:
            self.oldest = self._history.popleft().version
        self._changed.set()
        self._changed = asyncio.Event()


def merged(target: Any, patch: Any) -> Any:
    """`target` with a JSON merge patch applied; null takes a key away."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
