"""Kubernetes Events: what `kubectl describe pod` shows a developer whose pod gets no role.

Needs `create` and `patch` on events. https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

import aiohttp

from kube2iam.kube.api import ClusterApi
from kube2iam.kube.backoff import Backoff
from kube2iam.kube.errors import ClusterUnavailableError, cut, refusal

log = logging.getLogger(__name__)

_QUEUE = 256
_SERIES = 1024
_PACE = 0.2
"""Seconds between two posts: no node sends more than five a second, whatever its pods do."""
_REPEAT = 300.0
"""Seconds between two updates of the same event."""
_MESSAGE = 1024
"""Characters that the API allows."""
_NAME = 253 - 17

_NOT_FOUND, _TOO_MANY, _FORBIDDEN, _UNAUTHORIZED = 404, 429, 403, 401


class EventCounters(Protocol):
    """What is counted."""

    def cluster_event(self, outcome: str) -> None:
        """`sent`, `failed` or `dropped`."""


@dataclass(frozen=True, slots=True)
class _About:
    """What an event says of which object; the same again is the same event."""

    kind: str
    namespace: str
    name: str
    uid: str
    reason: str
    message: str


@dataclass(slots=True)
class _Series:
    """How often it was said."""

    first: float
    last: float
    count: int = 0
    event: str = ""
    """The name of the Event that the API server has; empty before that."""
    sent: float = float("-inf")
    waiting: bool = False


class EventRecorder:
    """Posts Warnings. Loses some rather than wait, repeat itself or burden the API server."""

    def __init__(
        self,
        api: ClusterApi,
        *,
        node: str,
        counters: EventCounters,
        clock: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self._api = api
        self._node = node
        self._counters = counters
        self._clock = clock
        self._backoff = backoff or Backoff(most=60.0)
        self._queue: asyncio.Queue[tuple[_About, _Series]] = asyncio.Queue(_QUEUE)
        self._series: OrderedDict[_About, _Series] = OrderedDict()
        self._trouble: str | None = None
        self._said_no_patch = False

    def record(self, kind: str, namespace: str, name: str, uid: str, reason: str, message: str) -> None:  # noqa: PLR0917
        """Say that `reason` (UpperCamelCase) holds for a Pod or Namespace. Costs nothing and never fails.

        What is said of a namespace (`namespace` is empty) is filed inside it: there its people look.
        """
        about = _About(kind, namespace or name, name, uid, reason, message[:_MESSAGE])
        now = self._clock()
        series = self._series.setdefault(about, _Series(now, now))
        self._series.move_to_end(about)
        series.count += 1
        series.last = now
        if not series.waiting and now - series.sent >= _REPEAT:
            self._enqueue(about, series)
        if len(self._series) > _SERIES:
            self._series.popitem(last=False)

    def _enqueue(self, about: _About, series: _Series) -> None:
        try:
            self._queue.put_nowait((about, series))
            series.waiting = True
        except asyncio.QueueFull:
            self._counters.cluster_event("dropped")

    async def run(self) -> NoReturn:
        """Post what was recorded, for ever."""
        while True:
            about, series = await self._queue.get()
            rest = await self._post(about, series)
            await asyncio.sleep(rest)

    async def _post(self, about: _About, series: _Series) -> float:
        """Send one; returns the seconds to rest."""
        series.waiting = False
        try:
            status = await self._send(about, series)
            trouble = None if status < 300 else refusal(status, needs="create, patch on events")
        except (ClusterUnavailableError, aiohttp.ClientError, OSError) as error:
            status, trouble = 0, cut(str(error))
        if status == _FORBIDDEN and series.event:
            self._stop_counting(about)
            return _PACE
        self._note(trouble)
        if trouble is None:
            series.sent = self._clock()
            self._counters.cluster_event("sent")
            self._backoff.reset()
            return _PACE
        self._counters.cluster_event("failed")
        if status in {0, _UNAUTHORIZED, _FORBIDDEN, _TOO_MANY} or status >= 500:
            self._enqueue(about, series)
            return self._backoff.next()
        return _PACE

    def _stop_counting(self, about: _About) -> None:
        """Forget a series that the API server has, but lets nobody change: said again, it is a new Event."""
        self._series.pop(about, None)
        self._counters.cluster_event("failed")
        if not self._said_no_patch:
            log.warning("events can't be counted up", extra={"error": "HTTP 403: that needs patch on events"})
        self._said_no_patch = True

    async def _send(self, about: _About, series: _Series) -> int:
        """Create the Event or count it up; returns the HTTP status."""
        path = f"/api/v1/namespaces/{about.namespace}/events"
        if series.event:
            seen = {"count": series.count, "lastTimestamp": _time(series.last)}
            status = await self._ask("PATCH", f"{path}/{series.event}", seen, "application/merge-patch+json")
            if status != _NOT_FOUND:
                return status
        event = f"{about.name[:_NAME]}.{secrets.token_hex(8)}"
        status = await self._ask("POST", path, self._body(about, series, event), "application/json")
        series.event = event if status < 300 else ""
        return status

    async def _ask(self, method: str, path: str, body: Mapping[str, Any], content_type: str) -> int:
        response = await self._api.request(method, path, body=body, content_type=content_type)
        async with response:
            await response.read()
            return response.status

    def _body(self, about: _About, series: _Series, name: str) -> Mapping[str, Any]:
        object_ = {"apiVersion": "v1", "kind": about.kind, "namespace": about.namespace, "name": about.name}
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": about.namespace, "name": name},
            "involvedObject": {**object_, "uid": about.uid} if about.uid else object_,
            "type": "Warning",
            "reason": about.reason,
            "message": about.message,
            "count": series.count,
            "firstTimestamp": _time(series.first),
            "lastTimestamp": _time(series.last),
            "source": {"component": "kube2iam", "host": self._node},
            "reportingComponent": "kube2iam",
            "reportingInstance": self._node,
        }

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self._trouble:
            log.warning("events can't be posted", extra={"error": trouble})
        self._trouble = trouble


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
