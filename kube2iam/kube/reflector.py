"""Keeps a store equal to what the API server has: LIST once, WATCH for ever, LIST again when in doubt.

It never gives up and never hurries: whatever the API server answers, a broken round costs a growing delay. An object of
the wrong shape costs itself only.

The first LIST asks for the most recent state, for which many API servers read all pods of the cluster from etcd, be it
for one node's. A later one takes what the API server has at hand, if that is not older than what was seen already.
Where it has nothing so new (it is behind, or etcd was restored), the next one asks for the most recent state again.
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Generic, NoReturn, Protocol, TypeVar

from kube2iam.domain.pod import MalformedObjectError
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.backoff import Backoff
from kube2iam.kube.decode import Page
from kube2iam.kube.faults import FaultCounters, Faults
from kube2iam.kube.wire import Event, OversizedError, RoundFailedError, Wire

log = logging.getLogger(__name__)

T = TypeVar("T")

_HASTY = 1.0
"""A watch that ends within this many seconds has failed, however politely it ended."""
_STEADY = 5.0
"""A watch that has stood this many seconds shows that all is well: the next failure is the first one again."""
_PAUSE = 5.0
"""Seconds between an object that is too long to be read and the LIST that it makes necessary."""
_SPREAD = 0.2
"""The time between two LISTs is up to this part longer or shorter, so that nodes that began together part."""


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


class ReflectorCounters(FaultCounters, Protocol):
    """What is counted. `resource` is `pods` or `namespaces`."""

    def listed(self, resource: str) -> None:
        """A LIST replaced everything."""


class Reflector(Generic[T]):
    """One resource of the API server, mirrored in a store."""

    def __init__(
        self,
        api: ClusterApi,
        store: Store[T],
        *,
        resource: str,
        counters: ReflectorCounters,
        field_selector: str = "",
        resync: float = 1800.0,
        window: float = 290.0,
        silence: float = 150.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.time,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Mirror the core/v1 plural `resource`, or what of it `field_selector` names. Times are seconds.

        `resync` lies between two LISTs (0: never); `window` is the length of a watch; after `silence` another one is
        begun, because the other side may be dead (it sends a bookmark every minute or two, if there is news).
        """
        self.resource = resource
        self.synced = asyncio.Event()
        """Set when the store has been filled for the first time; never cleared."""
        self.last_heard: float | None = None
        """When the API server said something last: seconds since the epoch."""
        self._faults = Faults(resource, counters)
        self._wire = Wire(api, resource, field_selector)
        self._store = store
        self._counters = counters
        self._resync = resync
        self._window = window
        self._silence = silence
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._random = random
        self._version = ""  # the last one seen: a WATCH goes on from it, a LIST must not be older
        self._lost = True  # whether a WATCH can't go on from it
        self._at_hand = False  # whether the next LIST takes what the server has at hand
        self._list_due = 0.0

    @property
    def trouble(self) -> str | None:
        """What is wrong right now, for people."""
        return self._faults.trouble

    async def run(self) -> NoReturn:
        """Mirror for ever; ends by cancellation only."""
        while True:
            try:
                if self._lost or self._overdue():
                    await self._list()
                await self._watch()
            except OversizedError as failure:  # one object's fault: no delay grows, for its neighbours' sake
                self._lost = True
                self._faults.note(failure)
                self._counters.malformed_object(self.resource)
                await asyncio.sleep(_PAUSE)
            except RoundFailedError as failure:
                self._lost |= failure.relist
                self._faults.note(failure)
                await asyncio.sleep(self._backoff.next(at_least=failure.retry_after))

    # LIST

    async def _list(self) -> None:
        """Fill the store, page by page."""
        spread = 1 + _SPREAD * (2 * self._random() - 1)
        self._list_due = (
            asyncio.get_running_loop().time() + self._resync * spread
        )  # also if it fails: the watch goes on
        objects: list[T] = []
        version, cursor = await self._take_page("", objects)
        one_page = not cursor
        while cursor:
            version, following = await self._take_page(cursor, objects)
            if following == cursor:
                raise RoundFailedError("malformed", "the pages of the list never end")
            cursor = following
        self._store.replace(objects)
        self._version, self._lost = version, False
        self._at_hand = one_page  # what is at hand comes in one piece, and more would take much memory
        self._faults.over()
        self._counters.listed(self.resource)
        if not self.synced.is_set():
            log.info("listed", extra={"resource": self.resource, "objects": len(objects)})
            self.synced.set()

    async def _take_page(self, cursor: str, objects: list[T]) -> tuple[str, str]:
        """Project a page, which is not kept; returns its version and the next one's cursor."""
        page = await self._page(cursor)
        self.last_heard = self._clock()
        for part in page.slices():
            objects.extend(self._projected(part))
            await asyncio.sleep(0)  # pods that ask meanwhile are not kept waiting
        return page.version, page.cursor

    async def _page(self, cursor: str) -> Page:
        try:
            return await self._wire.page(cursor, not_older_than=self._version if self._at_hand else "")
        except RoundFailedError as failure:
            if failure.relist:
                self._at_hand = False
            raise

    def _projected(self, items: Iterable[object]) -> Iterable[T]:
        for raw in items:
            try:
                yield self._store.project(raw)
            except MalformedObjectError as error:
                self._faults.leave_out(raw, error)

    def _overdue(self) -> bool:
        return self._resync > 0 and asyncio.get_running_loop().time() >= self._list_due

    # WATCH

    async def _watch(self) -> None:
        """Apply events until the server ends the watch, which it does when its window is over."""
        loop = asyncio.get_running_loop()
        async with self._wire.watch(self._version, window=self._next_window(), silence=self._silence) as events:
            self._faults.over()
            opened = loop.time()
            steady = loop.call_later(_STEADY, self._all_is_well)
            try:
                async for event in events:
                    self.last_heard = self._clock()
                    self._apply(event)
            finally:
                steady.cancel()
        if loop.time() - opened < _HASTY:
            raise RoundFailedError("hasty", "the watch ended at once")

    def _all_is_well(self) -> None:
        self._backoff.reset()
        self._faults.settled()

    def _next_window(self) -> float:
        """Up to a fifth shorter than the longest, so that the nodes of a cluster don't ask all together."""
        window = self._window * (1 - 0.2 * self._random())
        if self._resync > 0:
            window = min(window, self._list_due - asyncio.get_running_loop().time())
        return max(window, 2 * _HASTY)

    def _apply(self, event: Event) -> None:
        if event.kind in {"ADDED", "MODIFIED"}:
            known = self._take(event.raw)
        elif event.kind == "DELETED":
            known = self._store.remove(event.raw)
        else:
            known = True
        if not known:
            raise RoundFailedError("malformed", f"a {event.kind} event that names no object", relist=True)
        self._version = event.version or self._version

    def _take(self, raw: object) -> bool:
        try:
            item = self._store.project(raw)
        except MalformedObjectError as error:
            self._faults.leave_out(raw, error)
            return self._store.forget(raw)
        self._store.upsert(item)
        return True
