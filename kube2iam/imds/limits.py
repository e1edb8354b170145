"""What one pod may take of the agent, so that the others notice nothing."""

import resource
import sys
from collections.abc import Callable
from time import monotonic

_BURST = 5.0
"""Seconds' worth of requests that may come at once."""
_MOST_BUCKETS = 65_536
_MOST_KEPT = 4 << 20
"""Bytes of one party that may wait here: beginnings of requests, and requests that are not answered yet."""
STRANGERS = ""
"""The party of all addresses that no pod is known to have."""
_SPARE_DESCRIPTORS = 256
"""Open files that connections leave to everything else: STS, the API server, the state directory."""


class PodLimits:
    """Counts connections, waiting requests and the rate of costly ones, by address. 0 turns a limit off.

    Costly is what makes the agent wait for something: STS, the real metadata service, a pod's address. What is
    answered from memory is never counted: to refuse it would cost as much. Memory is bounded: an address of which
    nothing is open and whose allowance is whole again is forgotten. However many STRANGERS there are, half of what is
    for all is left to pods. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        *,
        connections: int = 0,
        connections_per_pod: int = 0,
        rate: float = 0.0,
        held: int = 0,
        held_per_pod: int = 0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._most_connections = connections or float("inf")
        self._most_connections_per_pod = connections_per_pod or float("inf")
        self._most_held = held or float("inf")
        self._most_held_per_pod = held_per_pod or float("inf")
        self._rate = rate
        self._burst = max(rate * _BURST, 1.0)
        self._clock = clock
        self._connections: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        self._connections_of_strangers = 0
        self._held_of_strangers = 0
        self._buckets: dict[str, tuple[float, float]] = {}
        self.connections = 0
        """Connections open."""
        self.held = 0
        """Requests that wait for an answer."""

    def connect(self, address: str, *, stranger: bool = False) -> bool:
        """Count one more connection of the address, if it may have one."""
        of_pod = self._connections.get(address, 0)
        if self.connections >= self._most_connections or of_pod >= self._most_connections_per_pod:
            return False
        if stranger and self._connections_of_strangers >= self._most_connections / 2:
            return False
        self._connections_of_strangers += stranger
        self._connections[address] = of_pod + 1
        self.connections += 1
        return True

    def disconnect(self, address: str, *, stranger: bool = False) -> None:
        """Count one connection less."""
        _decrement(self._connections, address)
        self._connections_of_strangers -= stranger
        self.connections -= 1

    def hold(self, address: str, *, stranger: bool = False) -> bool:
        """Count one more costly request of the address as waiting, if it may."""
        of_pod = self._held.get(address, 0)
        if self.held >= self._most_held or of_pod >= self._most_held_per_pod:
            return False
        if stranger and self._held_of_strangers >= self._most_held / 2:
            return False
        if not self._spend(address):
            return False
        self._held_of_strangers += stranger
        self._held[address] = of_pod + 1
        self.held += 1
        return True

    def release(self, address: str, *, stranger: bool = False) -> None:
        """Count one waiting request less."""
        _decrement(self._held, address)
        self._held_of_strangers -= stranger
        self.held -= 1

    def keep(self, party: str, size: int) -> bool:
        """Count `size` bytes more, or less, that wait for the party. False, and not counted, if that is too much."""
        kept = self._kept.get(party, 0) + size
        if size > 0 and kept > _MOST_KEPT:
            return False
        if kept:
            self._kept[party] = kept
        else:
            self._kept.pop(party, None)
        return True

    def sweep(self) -> None:
        """Forget the addresses whose allowance is whole again."""
        if self._buckets:
            now = self._clock()
            whole = [address for address, bucket in self._buckets.items() if self._left(bucket, now) >= self._burst]
            for address in whole:
                del self._buckets[address]

    def _spend(self, address: str) -> bool:
        """Take one from the address's token bucket."""
        if not self._rate:
            return True
        now = self._clock()
        bucket = self._buckets.get(address)
        left = self._burst if bucket is None else self._left(bucket, now)
        if left < 1.0:
            return False
        if bucket is None and len(self._buckets) >= _MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[address] = left - 1.0, now
        return True

    def _left(self, bucket: tuple[float, float], now: float) -> float:
        left, then = bucket
        return min(self._burst, left + (now - then) * self._rate)


def room_for_connections(wanted: int) -> int:
    """How many connections can be open, of `wanted` (0: as many as can be).

    Raises the process's soft limit of open files as far as it is needed and allowed. Accepting beyond it would leave
    connections in the kernel's queue, where they delay everyone's.
    """
    soft, hard = (
        sys.maxsize if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    needed = min(hard, (wanted or hard) + _SPARE_DESCRIPTORS)
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        soft = needed
    room = max(soft - _SPARE_DESCRIPTORS, soft // 2)
    return min(wanted or room, room)


def _decrement(counts: dict[str, int], key: str) -> None:
    left = counts[key] - 1
    if left:
        counts[key] = left
    else:
        del counts[key]
