"""Two pods claim one address: ask the API server which of them is alive (`--resolve-duplicate-cache-ips`)."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import aiohttp

from kube2iam.domain.pod import MalformedObjectError, Pod
from kube2iam.kube import decode
from kube2iam.kube.api import ClusterApi
from kube2iam.kube.errors import ClusterUnavailableError, cut, refusal

log = logging.getLogger(__name__)

_TIMEOUT = 2.0
_REMEMBERED = 5.0
"""Seconds for which an answer counts, a failure too: a pod that asks in a loop costs the API server nothing more."""


class DuplicateCounters(Protocol):
    """What is counted."""

    def duplicate_asked(self) -> None:
        """The API server was asked."""

    def duplicate_resolved(self) -> None:
        """Its answer named one pod."""


class DuplicateResolver:
    """The pod that the API server says has an address; None while it can't tell."""

    def __init__(
        self,
        api: ClusterApi,
        *,
        project: Callable[[object], Pod],
        mine: Callable[[Pod], bool],
        node: str,
        counters: DuplicateCounters,
    ) -> None:
        self._api = api
        self._project = project
        self._mine = mine
        self._node = node
        self._counters = counters
        self._answers: dict[str, tuple[float, asyncio.Task[Pod | None]]] = {}

    async def resolve(self, address: str) -> Pod | None:
        """The one live pod of this node with the canonical `address`. Those who ask at once share one LIST."""
        now = asyncio.get_running_loop().time()
        self._answers = {key: answer for key, answer in self._answers.items() if now < answer[0]}
        if address not in self._answers:
            self._answers[address] = now + _REMEMBERED, asyncio.create_task(self._ask(address))
        return await asyncio.shield(self._answers[address][1])

    async def _ask(self, address: str) -> Pod | None:
        self._counters.duplicate_asked()
        try:
            items = await self._list(address)
        except (ClusterUnavailableError, aiohttp.ClientError, OSError, ValueError) as error:
            log.warning("duplicate address not resolved", extra={"pod.status.ip": address, "error": cut(str(error))})
            return None
        owners = [pod for pod in map(self._readable, items) if pod and self._owns(pod, address)]
        if len(owners) != 1:
            return None
        self._counters.duplicate_resolved()
        return owners[0]

    async def _list(self, address: str) -> list[object]:
        selector = f"status.podIP={address}" + (f",spec.nodeName={self._node}" if self._node else "")
        response = await self._api.request(
            "GET", "/api/v1/pods", query=[("fieldSelector", selector), ("limit", "100")], timeout=_TIMEOUT
        )
        async with response:
            if response.status != 200:
                raise ClusterUnavailableError(refusal(response.status))
            page = decode.page(await response.read())
        return [raw for part in page.slices() for raw in part]

    def _readable(self, raw: object) -> Pod | None:
        try:
            return self._project(raw)
        except MalformedObjectError:
            return None

    def _owns(self, pod: Pod, address: str) -> bool:
        return address in pod.ips and not (pod.host_network or pod.finished or pod.deletion) and self._mine(pod)

    async def aclose(self) -> None:
        """End what is still being asked."""
        for _, task in self._answers.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._answers.values()), return_exceptions=True)
