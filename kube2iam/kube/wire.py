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

from kube2iam.kube import decode
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.decode import Page
from kube2iam.kube.errors import ClusterUnavailableError, cut, refusal

_PAGE = 500
"""Objects in a piece of a LIST, at most."""
_MOST = 16 * 2**20
"""Bytes of a watch's line, and of a piece of a LIST if it has more than one object.

Etcd takes objects of 1.5 MiB, which it counts as protobuf: as JSON they are up to six times that.
"""
_COMFORT = _MOST // 2
"""Bytes that a piece of a LIST should have at most, as far as that can be told from the one before."""
_TURN = 20
"""Events between two turns of the loop, some 1 ms: many may come in one piece."""
_LIST_TIMEOUT = 60.0
_BREAKS = (aiohttp.ClientError, HttpProcessingError, OSError)
_LONGEST_RETRY_AFTER = 120.0
_LONGEST_REFUSAL = 2**20
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


class _TooLongError(Exception):
    """More bytes than can be held."""


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
        self._limit = _PAGE

    async def page(self, cursor: str, *, not_older_than: str = "") -> Page:
        """The page of a LIST that `cursor` asks for; the first one if it is empty, of the most recent state.

        With `not_older_than`, a version, the first page is the last too: all of a state that the server has at hand.
        It goes without `limit`, with which older servers turn to etcd; and a `cursor` has its own version in it.
        https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions

        What is too long is asked for again in smaller pieces. A single object is read however long it is.
        """
        at_hand = [("resourceVersion", not_older_than), ("resourceVersionMatch", "NotOlderThan")]
        while True:
            paged = [("limit", str(self._limit)), *([("continue", cursor)] if cursor else [])]
            whole = bool(not_older_than) and not cursor
            try:
                return await self._page(at_hand if whole else paged, bounded=whole or self._limit > 1)
            except _TooLongError:
                not_older_than = ""
                self._limit = self._limit if whole else max(1, self._limit // 8)

    async def _page(self, how: Sequence[tuple[str, str]], *, bounded: bool) -> Page:
        async with await self._get([*self._selector, *how], timeout=_LIST_TIMEOUT) as response:
            body = await _read(response, _MOST if bounded else None)
        try:
            page = decode.page(body)
        except ValueError as error:
            raise RoundFailedError("malformed", f"the list can't be read: {error}") from None
        self._limit = min(_PAGE, max(1, max(1, len(page)) * _COMFORT // len(body)))
        return page

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
            message = _message(await _beginning(response))
        raise _refusal(response.status, message, response.headers.get("Retry-After", ""))


async def _read(response: aiohttp.ClientResponse, most: int | None) -> bytearray:
    """The body; raises _TooLongError where it has more than `most` bytes."""
    body = bytearray()
    try:
        async for piece in response.content.iter_any():
            body += piece
            if most is not None and len(body) > most:
                raise _TooLongError
    except TimeoutError:
        raise RoundFailedError("silent", "the answer did not end in time") from None
    except _BREAKS as error:
        raise RoundFailedError("broken", f"the connection broke: {error}") from None
    return body


async def _beginning(response: aiohttp.ClientResponse) -> bytes | bytearray:
    """The body of a refusal, which is short if it is the API server's own."""
    try:
        return await _read(response, _LONGEST_REFUSAL)
    except _TooLongError:
        return b"a long text"


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


def _event(line: bytes | bytearray) -> Event:
    try:
        kind, raw = decode.event(line)
    except ValueError as error:
        raise RoundFailedError("malformed", f"a line of the watch can't be read: {error}", relist=True) from None
    if not isinstance(raw, dict) or kind not in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"}:
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


def _message(body: bytes | bytearray) -> str:
    """What an answer that is not 200 says: a Status's message, or the beginning of its text."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        message = body[:200].decode(errors="replace")
    return cut(str(message).strip())
