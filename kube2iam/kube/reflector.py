"""Keeps a store equal to what the API server has: LIST once, WATCH for ever, LIST again when in doubt.

It never gives up and never hurries: whatever the API server answers, a broken round costs a growing delay. An object of
the wrong shape costs itself only.
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import aiohttp
from aiohttp.http import HttpProcessingError

from kube2iam.domain.pod import MalformedObjectError, name_of, uid_of
from kube2iam.kube.backoff import Backoff
from kube2iam.kube.errors import ClusterUnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE = "500"
_LIST_TIMEOUT = 60.0
_HASTY = 1.0
"""A watch that ends within this many seconds has failed, however politely it ended."""
_STEADY = 5.0
"""A watch that has stood this many seconds shows that all is well: the next failure is the first one again."""
_LONGEST_RETRY_AFTER = 120.0

_GONE, _UNAUTHORIZED, _FORBIDDEN, _OK = 410, 401, 403, 200


class Store(Protocol[T]):
    """Who keeps the objects."""

    def project(self, raw: object) -> T:
        """What is kept of a decoded JSON object; raises MalformedObjectError."""

    def replace(self, objects: Iterable[T]) -> None:
        """These are all."""

    def upsert(self, item: T) -> None:
        """This one is new or changed."""

    def remove(self, raw: object) -> bool:
        """This one is deleted. False: it can't be told which one it is."""

    def forget(self, raw: object) -> bool:
        """This one can't be read any more: keep nothing of it until it can. False: it can't be told which one it is."""


class ClusterRequests(Protocol):
    """Who asks the API server."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        timeout: float = ...,  # noqa: ASYNC109
        silence: float | None = None,
    ) -> aiohttp.ClientResponse:
        """See ClusterApi.request."""


class ReflectorCounters(Protocol):
    """What is counted. `resource` is `pods` or `namespaces`; the reasons are few."""

    def listed(self, resource: str) -> None:
        """A LIST replaced everything."""

    def cluster_failure(self, resource: str, reason: str) -> None:
        """A LIST or WATCH failed."""

    def malformed_object(self, resource: str) -> None:
        """An object of the wrong shape was left out."""


class _RoundFailedError(Exception):
    """A LIST or WATCH that did not go well."""

    def __init__(self, reason: str, text: str, *, retry_after: float = 0.0, relist: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.retry_after = retry_after
        self.relist = relist


class Reflector(Generic[T]):
    """One resource of the API server, mirrored in a store."""

    def __init__(
        self,
        api: ClusterRequests,
        store: Store[T],
        *,
        resource: str,
        counters: ReflectorCounters,
        field_selector: str = "",
        resync: float = 1800.0,
        window: float = 290.0,
        silence: float = 120.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Mirror the core/v1 plural `resource`, or what of it `field_selector` names. Times are seconds.

        `resync` lies between two LISTs (0: never); `window` is the length of a watch; after `silence` the other side
        counts as dead (it sends a bookmark every minute or so).
        """
        self.resource = resource
        self.synced = asyncio.Event()
        """Set when the store has been filled for the first time; never cleared."""
        self.last_heard: float | None = None
        """When the API server said something last: seconds since the epoch."""
        self.trouble: str | None = None
        """What is wrong right now, for people."""
        self._api = api
        self._store = store
        self._selector = [("fieldSelector", field_selector)] if field_selector else []
        self._counters = counters
        self._resync = resync
        self._window = window
        self._silence = silence
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._random = random
        self._version: str | None = None
        self._list_due = 0.0
        self._reason: str | None = None

    async def run(self) -> NoReturn:
        """Mirror for ever; ends by cancellation only."""
        while True:
            try:
                if self._version is None or self._overdue():
                    await self._list()
                await self._watch()
            except _RoundFailedError as failure:
                if failure.relist:
                    self._version = None
                self._note(failure)
                await asyncio.sleep(self._backoff.next(at_least=failure.retry_after))

    # LIST

    async def _list(self) -> None:
        """Fill the store. Pages are projected one by one: decoded JSON takes seventy times the memory."""
        self._list_due = asyncio.get_running_loop().time() + self._resync  # if it fails, an old watch goes on meanwhile
        objects: list[T] = []
        cursor, version = "", ""
        while True:
            query = [*self._selector, ("limit", _PAGE), *([("continue", cursor)] if cursor else [])]
            async with await self._get(query, timeout=_LIST_TIMEOUT) as response:
                page = _page(await self._read(response))
            objects.extend(self._projected(page["items"]))
            version, cursor = page["version"], page["continue"]
            self.last_heard = self._clock()
            if not cursor:
                break
        self._store.replace(objects)
        self._version = version
        self._counters.listed(self.resource)
        if not self.synced.is_set():
            log.info("listed", extra={"resource": self.resource, "objects": len(objects)})
            self.synced.set()

    def _projected(self, items: Iterable[object]) -> Iterable[T]:
        for raw in items:
            try:
                yield self._store.project(raw)
            except MalformedObjectError as error:
                self._leave_out(raw, error)

    def _overdue(self) -> bool:
        return self._resync > 0 and asyncio.get_running_loop().time() >= self._list_due

    # WATCH

    async def _watch(self) -> None:
        """Apply events until the server ends the watch, which it does when its window is over."""
        loop = asyncio.get_running_loop()
        window = self._next_window()
        query = [
            *self._selector,
            ("watch", "true"),
            ("resourceVersion", self._version or ""),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(int(window))),
        ]
        async with await self._get(query, timeout=window + 30, silence=self._silence) as response:
            started = loop.time()
            steady = loop.call_later(_STEADY, self._all_is_well)
            try:
                async for line in self._lines(response):
                    self._apply(line)
                    self.last_heard = self._clock()
            finally:
                steady.cancel()
        if loop.time() - started < _HASTY:
            raise _RoundFailedError("hasty", "the watch ended at once")

    def _next_window(self) -> float:
        """Up to a fifth shorter than the longest, so that the nodes of a cluster don't ask all together."""
        window = self._window * (1 - 0.2 * self._random())
        if self._resync > 0:
            window = min(window, self._list_due - asyncio.get_running_loop().time())
        return max(window, 2 * _HASTY)

    def _apply(self, line: bytes) -> None:
        kind, raw = _event(line)
        if kind == "ERROR":
            raise _refusal(raw.get("code"), str(raw.get("message")))
        if kind in {"ADDED", "MODIFIED"}:
            known = self._take(raw)
        elif kind == "DELETED":
            known = self._store.remove(raw)
        else:
            known = kind == "BOOKMARK"
        if not known:
            self._counters.malformed_object(self.resource)
            raise _RoundFailedError("malformed", f"a {kind} event that names no object", relist=True)
        self._advance(raw)

    def _take(self, raw: object) -> bool:
        try:
            item = self._store.project(raw)
        except MalformedObjectError as error:
            self._leave_out(raw, error)
            return self._store.forget(raw)
        self._store.upsert(item)
        return True

    def _advance(self, raw: Mapping[str, Any]) -> None:
        metadata = raw.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        if isinstance(version, str) and version:
            self._version = version

    # What the wire brings

    async def _get(
        self,
        query: Sequence[tuple[str, str]],
        *,
        timeout: float,  # noqa: ASYNC109 - as ClusterApi.request
        silence: float | None = None,
    ) -> aiohttp.ClientResponse:
        path = f"/api/v1/{self.resource}"
        try:
            response = await self._api.request("GET", path, query=query, timeout=timeout, silence=silence)
        except ClusterUnavailableError as error:
            raise _RoundFailedError("unreachable", str(error)) from None
        if response.status == _OK:
            return response
        async with response:
            body = await self._read(response)
        raise _refusal(response.status, _message(body), response.headers.get("Retry-After", ""))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        except TimeoutError:
            raise _RoundFailedError("silent", "the answer did not end in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _RoundFailedError("broken", f"the connection broke: {error}") from None

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Whole lines; half a line at the end is dropped, its event comes again."""
        while True:
            try:
                line = await response.content.readline()
            except TimeoutError:
                raise _RoundFailedError("silent", "the API server fell silent") from None
            except (aiohttp.ClientError, OSError) as error:
                raise _RoundFailedError("broken", f"the connection broke: {error}") from None
            except HttpProcessingError as error:  # aiohttp's line limit, 4 MiB: twice what etcd takes
                raise _RoundFailedError("malformed", error.message, relist=True) from None
            if not line.endswith(b"\n"):
                return
            yield line

    # What people and metrics are told

    def _all_is_well(self) -> None:
        self._backoff.reset()
        if self._reason is not None:
            log.info("the API server answers again", extra={"resource": self.resource})
        self._reason = self.trouble = None

    def _note(self, failure: _RoundFailedError) -> None:
        """Say what is wrong once, and again when it is something else."""
        self._counters.cluster_failure(self.resource, failure.reason)
        self.trouble = str(failure)
        if failure.reason == self._reason:
            return
        self._reason = failure.reason
        level = logging.ERROR if failure.reason in {"http-401", "http-403"} else logging.WARNING
        log.log(
            level,
            "the API server's answer is no use",
            extra={"resource": self.resource, "reason": failure.reason, "error": self.trouble},
        )

    def _leave_out(self, raw: object, error: MalformedObjectError) -> None:
        self._counters.malformed_object(self.resource)
        log.warning(
            "object of the wrong shape left out",
            extra={
                "resource": self.resource,
                "object.name": name_of(raw),
                "object.uid": uid_of(raw),
                "error": str(error),
            },
        )


def _page(body: bytes) -> dict[str, Any]:
    """`items`, `version` and `continue` of a LIST's answer."""
    try:
        page = json.loads(body)
        metadata, items = page["metadata"], page.get("items") or []
        version, cursor = metadata["resourceVersion"], metadata.get("continue") or ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _RoundFailedError("malformed", f"the list can't be read: {error!r}") from None
    if not isinstance(items, list) or not isinstance(version, str) or not isinstance(cursor, str):
        raise _RoundFailedError("malformed", "the list has the wrong shape")
    return {"items": items, "version": version, "continue": cursor}


def _event(line: bytes) -> tuple[str, dict[str, Any]]:
    """Type and object of a watch's line."""
    try:
        event = json.loads(line)
        kind, raw = event["type"], event["object"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _RoundFailedError("malformed", f"a line of the watch can't be read: {error!r}", relist=True) from None
    if not isinstance(kind, str) or not isinstance(raw, dict):
        raise _RoundFailedError("malformed", "a line of the watch has the wrong shape", relist=True)
    return kind, raw


def _refusal(status: object, message: str, retry_after: str = "") -> _RoundFailedError:
    """An HTTP status, or the one in an ERROR event, as a failure of the round."""
    code = status if isinstance(status, int) and not isinstance(status, bool) else 0
    wait = min(float(retry_after), _LONGEST_RETRY_AFTER) if retry_after.isdecimal() else 0.0
    return _RoundFailedError(f"http-{code}", f"HTTP {code}: {message}", retry_after=wait, relist=code == _GONE)


def _message(body: bytes) -> str:
    """What an answer that is not 200 says: a Status's message, or the beginning of its text."""
    try:
        status = json.loads(body)
        message = status["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = body[:200].decode(errors="replace")
    return str(message).strip()[:500]
