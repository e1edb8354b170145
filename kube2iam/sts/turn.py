"""A flight's place in the queue for STS, and what its end may show. Pure."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, IntEnum


class Priority(IntEnum):
    """What goes first."""

    WAITING = 0
    """A pod waits for it."""
    REFRESH = 1
    """Pods are served, from a session that passes its half life."""
    PREFETCH = 2
    """Nobody asked yet."""


class Change(Enum):
    """What the end of a call shows of STS."""

    NONE = "none"
    AWAY = "away"
    """STS stopped answering: nothing but probes goes out until it answers."""
    BACK = "back"
    """STS answers again."""


@dataclass(slots=True, eq=False)
class Turn:
    """One flight's place in the queue, and then its ticket."""

    key: Hashable
    priority: Priority
    slow: bool = False
    """It took longer than a short call may, the last time."""
    calm_until: float = 0.0
    """Monotonic seconds until which a refresh may wait for its own second; after that it is in a hurry."""
    urgent_from: float = 0.0
    """Monotonic seconds from which a refresh waits for no other; not before `calm_until`."""
    since: float = 0.0
    """When its call went out, or one for the same key before it."""
    patience: float = 0.0
    """Seconds that its call may take; 0 while none is out."""
    admitted: asyncio.Future[None] | None = None

    @property
    def out(self) -> bool:
        """Whether its call is out."""
        return self.patience > 0
