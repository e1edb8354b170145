"""A reflector that follows a fake API server into a real index."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kube2iam.domain.index import PodIndex
from kube2iam.domain.pod import Pod
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.backoff import Backoff
from kube2iam.kube.reflector import Reflector
from kube2iam.kube.stores import PodStore


@dataclass
class Counted:
    """Every counter of the cluster side."""

    lists: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    def listed(self, resource: str) -> None:
        self.lists[resource] += 1

    def cluster_failure(self, resource: str, reason: str) -> None:
        assert resource
        self.failures[reason] += 1

    def malformed_object(self, resource: str) -> None:
        self.malformed[resource] += 1

    def duplicate_asked(self) -> None:
        self.duplicates["asked"] += 1

    def duplicate_resolved(self) -> None:
        self.duplicates["resolved"] += 1

    def cluster_event(self, outcome: str) -> None:
        self.events[outcome] += 1


@dataclass
class Following:
    index: PodIndex
    reflector: Reflector[Pod]
    counted: Counted

    def names(self) -> set[str]:
        return {pod.name for pod in self.index.pods()}

    async def until(self, *names: str) -> None:
        """Wait until exactly these pods are known."""
        await self.until_true(lambda: self.names() == set(names))

    async def until_true(self, holds: Callable[[], bool]) -> None:
        """Wait for a change of the index that makes it so."""
        changed = asyncio.Event()
        unsubscribe = self.index.subscribe("", changed.set)
        try:
            async with asyncio.timeout(3600):
                while not holds():
                    await changed.wait()
                    changed.clear()
        finally:
            unsubscribe()


@asynccontextmanager
async def following(url: str, **options: Any) -> AsyncIterator[Following]:
    """Follow pods; without jitter, so that times can be told."""
    api = await ClusterApi.connect(api_server=url, api_token="secret")
    index, counted = PodIndex(), Counted()
    index.replace_namespaces([])
    settings: dict[str, Any] = {"random": lambda: 0.0, "backoff": Backoff(random=lambda: 1.0)} | options
    reflector = Reflector(
        api, PodStore(index, lambda key: key.startswith("iam.")), resource="pods", counters=counted, **settings
    )
    task = asyncio.create_task(reflector.run())
    try:
        yield Following(index, reflector, counted)
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])
        await api.aclose()
