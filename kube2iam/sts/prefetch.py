"""Credentials before anybody asks: the index shows which pods live here, and their requests are kept warm."""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from kube2iam.domain.errors import Denial, Reason
from kube2iam.domain.pod import Pod
from kube2iam.domain.roles import AssumeRoleRequest, Decision, Grant

DEBOUNCE = 0.05
"""Seconds in which changes of the index are gathered."""
_TOGETHER = 4
"""Pods that are decided about in one turn of the loop: annotations may be long."""


class Pods(Protocol):
    """What prefetch needs of the index."""

    @property
    def synced(self) -> bool:
        """Whether the index has seen every pod and namespace."""

    def pods(self) -> Collection[Pod]:
        """The live pods of this node."""

    def holds(self, pod: Pod) -> bool:
        """Whether `pod` is known as it is."""

    def subscribe(self, key: str, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` at every change if `key` is empty; returns what ends that."""


class Wants(Protocol):
    """What prefetch needs of the cache."""

    def want(self, requests: Iterable[AssumeRoleRequest]) -> None:
        """All requests that live pods may use."""


class Prefetch:
    """Tells the cache, at every change of the index, which requests the live pods of this node may use."""

    def __init__(self, index: Pods, decide: Callable[[Pod], Decision], cache: Wants) -> None:
        self._index = index
        self._decide = decide
        self._cache = cache
        self._changed = asyncio.Event()
        self.decisions: list[Decision] = []
        """What the last look decided about this node's pods."""
        self.primed = asyncio.Event()
        """The cache has been told once, from a complete index and by an agent that can decide."""

    def changed(self) -> None:
        """Something that decisions depend on is different."""
        self._changed.set()

    async def run(self) -> None:
        """Follow the index for ever."""
        unsubscribe = self._index.subscribe("", self.changed)
        self.changed()
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(DEBOUNCE)
                self._changed.clear()
                if self._index.synced:
                    await self._look()
        finally:
            unsubscribe()

    async def _look(self) -> None:
        """Decide about all pods, a few in each turn of the loop. What changes meanwhile is looked at again."""
        decisions: list[Decision] = []
        for number, pod in enumerate(self._index.pods(), 1):
            if self._index.holds(pod):  # it may be another by now
                decisions.append(self._decide(pod))
            if number % _TOGETHER == 0:
                await asyncio.sleep(0)
        self._cache.want(decision.request for decision in decisions if isinstance(decision, Grant))
        self.decisions = decisions
        if not any(isinstance(decision, Denial) and decision.reason is Reason.NOT_READY for decision in decisions):
            self.primed.set()
