"""LIST and WATCH of one resource as they come over the wire: pages and events, or the reason why there are none.

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.http import HttpProcessingError

from kube2iam.kube.api import ClusterApi
from kube2iam.kube.errors import ClusterUnavailableError, cut, refusal

PAGE = 500
"""Objects in a piece of a LIST."""
_MOST = 16 * 2**20
"""Bytes of a watch's line. Etcd takes objects of 1.5 MiB, which it counts as protobuf: as JSON up to six times that."""
_TURN = 20
"""Events between two turns of the loop, some 1 ms: many may come in one piece."""
_LIST_TIMEOUT = 60.0
_BREAKS = (aiohttp.ClientError, HttpProcessingError, OSError)
_LONGEST_RETRY_AFTER = 120.0
_BAD_VERSION = {400, 410, 422}
"""What the server says to a version that it has forgotten, or can't read."""
_BEHIND = "Too large resource version"
"""What it says, with 504, when it has seen nothing so new: https://github.com/kubernetes/kubernetes/issues/91073"""


class RoundFailedError(Exception):
    """A LIST or WATCH that did not go well.

    `reason` is one of few words, for metrics; `retry_after` is what the server asked for, in seconds; `relist` says
    that the version it was asked with is of no use there. The text is short, whatever the server said.
    """

    def __init__(self, reason: str, text: str, *, retry_after: float = 0.0, relist: bool = False) -> None:
        super().__init__(cut(text, 1000))
        self.reason = reason
        self.retry_after = retry_after
        self.relist = relist


class OversizedError(RoundFailedError):
    """An object that is too long to be read has changed, and nobody can tell which one: all must be listed again."""

    def __init__(self) -> None:
        super().__init__("malformed", f"a line of the watch is longer than {_MOST} bytes", relist=True)


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a LIST; `cursor` asks for the next one and is empty in the last."""

    items: list[object]
    version: str
    cursor: str


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a WATCH."""

    kind: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    raw: dict[str, Any]

    @property
    def version(self) -> str | None:
        """Where a WATCH goes on after this event."""
        metadata = self.raw.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        return version if isinstance(version, str) and version else None


class Wire:
    """The requests that a reflector makes. Everything that goes wrong becomes a RoundFailedError."""

    def __init__(self, api: ClusterApi, resource: str, field_selector: str) -> None:
        self._api = api
        self._path = f"/api/v1/{resource}"
        self._selector = [("fieldSelector", field_selector)] if field_selector else []

    async def page(self, cursor: str, *, not_older_than: str = "") -> Page:
        """The page of a LIST that `cursor` asks for; the first one if it is empty, of the most recent state.

        With `not_older_than`, a version, the first page is the last too: all of a state that the server has at hand.
        It goes without `limit`, with which older servers turn to etcd; and a `cursor` has its own version in it.
        https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
        """
        if cursor:
            how = [("limit", str(PAGE)), ("continue", cursor)]
        elif not_older_than:
            how = [("resourceVersion", not_older_than), ("resourceVersionMatch", "NotOlderThan")]
        else:
            how = [("limit", str(PAGE))]
        async with await self._get([*self._selector, *how], timeout=_LIST_TIMEOUT) as response:
            return _page(await _read(response))

    @asynccontextmanager
    async def watch(self, version: str, *, window: float, silence: float) -> AsyncIterator[AsyncIterator[Event]]:
        """The events after `version`, for `window` seconds or until `silence`; opened once the server has agreed.

        Half a line at the end is dropped: its event comes again.
        """
        query = [
            *self._selector,
            ("watch", "true"),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(int(window))),
        ]
        async with (
            await self._get(query, timeout=window + 30, silence=silence) as response,
            aclosing(_events(response)) as events,
        ):
            yield events

    async def _get(
        self,
        query: Sequence[tuple[str, str]],
        *,
        timeout: float,  # noqa: ASYNC109 - as ClusterApi.request
        silence: float | None = None,
    ) -> aiohttp.ClientResponse:
        try:
            response = await self._api.request("GET", self._path, query=query, timeout=timeout, silence=silence)
        except ClusterUnavailableError as error:
            raise RoundFailedError("unreachable", str(error)) from None
        if response.status == 200:
            return response
        async with response:
            message = _message(await _read(response))
        raise _refusal(response.status, message, response.headers.get("Retry-After", ""))


async def _read(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except TimeoutError:
        raise RoundFailedError("silent", "the answer did not end in time") from None
    except _BREAKS as error:
        raise RoundFailedError("broken", f"the connection broke: {error}") from None


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[Event]:
    try:
        async for line in _lines(response):
            yield _event(line)
    except TimeoutError:
        return  # in a quiet cluster it may be well: only another request can tell
    except _BREAKS as error:
        raise RoundFailedError("broken", f"the connection broke: {error}") from None


async def _lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytearray]:
    """Lines without their ends, in whatever pieces they come. Between many that come at once the loop turns."""
    line = bytearray()
    async for piece in response.content.iter_any():
        *ends, rest = piece.split(b"\n")
        for number, end in enumerate(ends):
            if number % _TURN == 0:
                await asyncio.sleep(0)
            line += end
            yield line
            line = bytearray()
        line += rest
        if len(line) > _MOST:
            raise OversizedError


def _page(body: bytes) -> Page:
    try:
        page = json.loads(body)
        metadata, items = page["metadata"], page.get("items") or []
        version, cursor = metadata["resourceVersion"], metadata.get("continue") or ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RoundFailedError("malformed", f"the list can't be read: {error}") from None
    if not isinstance(items, list) or not isinstance(version, str) or not version or not isinstance(cursor, str):
        raise RoundFailedError("malformed", "the list has the wrong shape")
    return Page(items, version, cursor)


def _event(line: bytes | bytearray) -> Event:
    try:
        event = json.loads(line)
        kind, raw = event["type"], event["object"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RoundFailedError("malformed", f"a line of the watch can't be read: {error}", relist=True) from None
    if not isinstance(raw, dict) or kind not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"):
        raise RoundFailedError("malformed", "a line of the watch has the wrong shape", relist=True)
    if kind == "ERROR":
        raise _refusal(raw.get("code"), cut(str(raw.get("message"))))
    return Event(kind, raw)


def _refusal(status: object, message: str, retry_after: str = "") -> RoundFailedError:
    """An HTTP status, or the one in an ERROR event, as a failure of the round."""
    code = status if isinstance(status, int) and 100 <= status <= 599 else 0
    wait = min(float(retry_after), _LONGEST_RETRY_AFTER) if retry_after.isdecimal() else 0.0
    reason = "behind" if _BEHIND in message else f"http-{code}"
    relist = reason == "behind" or code in _BAD_VERSION
    return RoundFailedError(reason, refusal(code, message), retry_after=wait, relist=relist)


def _message(body: bytes) -> str:
    """What an answer that is not 200 says: a Status's message, or the beginning of its text."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = body[:200].decode(errors="replace")
    return cut(str(message).strip())
