"""Whether the rule covers this node's pods: the interfaces that it matches, against those that lead to the pods.

A rule whose interfaces no pod is behind looks like any other, while every pod reads the node's own role. Only what is
certain counts: a pod that is attached to this node, by an interface that is neither the loopback nor an uplink. An
address whose route has a gateway or leaves by an uplink may be a pod's that is gone already.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import cache

from kube2iam.redirect.routes import Route, automatic, route_to, uplinks
from kube2iam.redirect.rule import Interfaces

log = logging.getLogger(__name__)

Addresses = tuple[str, ...]
"""Those of one pod; empty while it has none."""

_PAUSE = 1.0
"""Seconds between two looks at least, however fast pods come and go."""

_ENTRANCES = {"cilium_host": "lxc+"}
"""Where a network's routes do not end at the interface that its pods' packets come in by.

Cilium without endpoint routes:
https://docs.cilium.io/en/stable/network/concepts/routing/
"""

_OF_ONE_POD = re.compile(r"(azv|cali|eni|gke|lxc|tap|veth|vlan).+")
"""Names of interfaces of which each pod has its own, and how they begin."""

_SHOWN = 3


def unmatched(
    interfaces: Interfaces, pods: Collection[Addresses], route: Callable[[str], Route | None]
) -> Sequence[str]:
    """For each pod that `interfaces` leaves out, an interface that it is behind."""
    route = cache(route)  # one view of the node for `auto` and for what it is compared with
    if interfaces.auto:
        interfaces = automatic(interfaces, [address for addresses in pods for address in addresses], route)
    outward = uplinks(route)

    def missed(addresses: Addresses) -> str | None:
        found = (_entrance(way) for address in addresses if (way := route(address)) and way.interface not in outward)
        return next((name for name in found if name and not interfaces.matches(name)), None)

    return [name for addresses in pods if (name := missed(addresses))]


def _entrance(route: Route) -> str | None:
    """The interface that the packets of the route's target come in by; None if it is not attached to this node."""
    return _ENTRANCES.get(route.interface) or (route.interface if route.direct else None)


class Coverage:
    """Looks for pods that `--host-interface` leaves out: a period apart, and soon after pods' addresses change.

    `pods` gives the addresses of each of this node's pods; period and pause in seconds. Says in the log when pods of
    another kind of interface are left out than before, and when none are any more.
    """

    def __init__(
        self,
        host_interface: str,
        pods: Callable[[], Iterable[Addresses]],
        *,
        period: float,
        pause: float = _PAUSE,
        route: Callable[[str], Route | None] = route_to,
    ) -> None:
        self._flag = f"--host-interface={host_interface}"
        self._interfaces = Interfaces.parse(host_interface)
        self._pods = pods
        self._period = period
        self._pause = pause
        self._route = route
        self._changed = asyncio.Event()
        self._seen: frozenset[Addresses] = frozenset()
        self._said: Sequence[str] = ()
        self.unmatched: int | None = None
        """How many pods the last look found left out; None before the first."""
        self.problem: str | None = None
        """That in a sentence, with its mend; None if there were none."""

    def changed(self) -> None:
        """Pods may have other addresses than before."""
        self._changed.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self._due()
            await self.look()
            await asyncio.sleep(self._pause)

    async def _due(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._period):
                while frozenset(self._pods()) == self._seen:
                    await self._changed.wait()
                    self._changed.clear()

    async def look(self) -> None:
        """Look once. The kernel is asked in a thread, since a full node has some hundred addresses."""
        self._seen = frozenset(self._pods())
        self._found(await asyncio.to_thread(unmatched, self._interfaces, self._seen, self._route))

    def _found(self, names: Sequence[str]) -> None:
        patterns = sorted({_pattern(name) for name in names})
        self.unmatched, self.problem = len(names), self._sentence(names, patterns) if names else None
        if names and patterns != self._said:
            fields = {"redirect.interface": _some(names), "redirect.pods": self.unmatched, "error": self.problem}
            log.error("pods are not redirected", extra=fields)
        elif self._said and not names:
            log.info("no pod is left out of the redirect any more", extra={"redirect.interface": ",".join(self._said)})
        self._said = patterns

    def _sentence(self, names: Sequence[str], patterns: Sequence[str]) -> str:
        who, they = (
            ("1 pod of this node is", "it") if len(names) == 1 else (f"{len(names)} pods of this node are", "they")
        )
        return (
            f"{self._flag} does not match {_some(names)}, by which {who} reached: {they} can read the node's role; "
            f"use auto or add {','.join(patterns)}"
        )


def _pattern(name: str) -> str:
    """What to write in `--host-interface` for pods behind `name`."""
    one = _OF_ONE_POD.fullmatch(name)
    return f"{one[1]}+" if one else name


def _some(names: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    distinct = sorted(set(names))
    more = len(distinct) - _SHOWN
    return ", ".join(distinct[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
