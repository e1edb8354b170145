"""All that the cache knows of one request, and the rules about it that need no I/O."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from kube2iam.domain.errors import Denial
from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.errors import Fault
from kube2iam.sts.freshness import PROMISED, Session
from kube2iam.sts.turn import Priority, Turn

LINGER = 300.0
"""Seconds that a request is kept after the last pod that used it has gone: the next job often uses it again."""
FORGET = 120.0
"""Seconds after which a request without a session is forgotten, if nobody asks."""
REFUSED_REFRESH = 60.0
"""Seconds between attempts to renew a session that STS refuses while the old one still serves."""
SOONEST = 30.0
"""Seconds between a session and the next, however little life the node's clock leaves it: the clock may be wrong."""
CALM_ABOVE, URGENT_BELOW = PROMISED + 60.0, 600.0
"""Seconds of life above which a refresh is in no hurry, and below which it does not wait for others."""
NEVER = float("-inf")


@dataclass(slots=True, eq=False)
class Entry:
    """One request. Times are monotonic seconds, but for `until_wall`."""

    request: AssumeRoleRequest
    hit: Callable[[], None]
    """Counts an answer from the cache."""
    session: Session | None = None
    until_wall: float = NEVER
    until_monotonic: float = NEVER
    fault: Fault | None = None
    """What the last flight met; None after a success."""
    fault_until: float = NEVER
    """Until then `fault` answers for STS."""
    failures: int = 0
    turn: Turn | None = None
    """The flight's place in the queue; None while there is no flight."""
    flight: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    waiters: set[asyncio.Future[Credentials | Fault]] = field(default_factory=set)
    slow: bool = False
    """The last call took more than a second."""
    tried: float = 0.0
    """When the last call went out."""
    wanted: bool = False
    """A live pod may use it."""
    left: float = NEVER
    """When the last such pod had gone."""
    asked: float = NEVER
    """When a pod last asked for it or was given it."""

    def serves(self, wall: float, monotonic: float) -> bool:
        """Whether there are credentials with more than a minute to live."""
        return monotonic < self.until_monotonic and wall < self.until_wall

    def remembers(self, now: float) -> Fault | None:
        """The failure that answers for STS at present."""
        return self.fault if now < self.fault_until else None

    def lives(self, now: float) -> bool:
        """Whether it is worth another call: a live pod may use it, or somebody used it since it was last fetched."""
        used = self.session is not None and self.asked > self.session.since
        return self.wanted or (self.asked > self.left and (used or now - self.asked < FORGET))

    def idle(self, wall: float, monotonic: float) -> bool:
        """Whether what nobody wants can be dropped: no pod asked lately, and none to come has a use for it."""
        if monotonic - self.asked < FORGET:
            return False
        return not self.serves(wall, monotonic) or (self.left >= self.asked and monotonic - self.left >= LINGER)

    def delay(self, wall: float, monotonic: float) -> float | None:
        """Seconds until it is to be fetched again without anybody asking; None if it is not."""
        if self.fault is None:
            session = self.session
            if session is None:
                return None
            due = session.remaining(wall, monotonic) - session.refresh_below
            return max(0.0, due, session.since + SOONEST - monotonic)
        again = self.fault_until - monotonic
        if self.fault.kind.permanent:
            return max(REFUSED_REFRESH, again) if self.serves(wall, monotonic) else None
        return max(0.0, again)

    def begin_turn(self, priority: Priority, wall: float, monotonic: float) -> Turn:
        """Queue for STS: the less life a session has left, the greater the hurry to renew it."""
        self.turn = turn = Turn(self.request, priority, slow=self.slow, since=self.tried)
        if self.session is not None:
            turn.urgent_from = monotonic + self.session.remaining(wall, monotonic) - URGENT_BELOW
            # A wall clock that jumps is no reason to hurry: it may be wrong, and then haste would never end.
            turn.calm_until = min(self.session.since + self.session.life - CALM_ABOVE, turn.urgent_from)
        return turn

    def tell(self, outcome: Credentials | Fault) -> None:
        """Answer those who wait."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(outcome)

    def stop(self) -> None:
        """Cancel all that goes on for it."""
        if self.timer:
            self.timer.cancel()
        if self.flight:
            self.flight.cancel()


@dataclass(frozen=True, slots=True)
class EntryState:
    """What the health detail and the metrics show of one request; no secret is in it."""

    request: AssumeRoleRequest
    wanted: bool
    """A live pod may use it."""
    expiration: int | None
    """Of the session that is here, be it over; seconds since the epoch."""
    keeps_promise: bool
    """Its sessions are long enough for the 25 minutes that SDKs want."""
    denial: Denial | None
    """The last failure, until a call succeeds."""


def state(entry: Entry) -> EntryState:
    """What may be shown of `entry`."""
    session = entry.session
    return EntryState(
        request=entry.request,
        wanted=entry.wanted,
        expiration=session.credentials.expiration if session else None,
        keeps_promise=session is None or session.keeps_promise,
        denial=entry.fault.denial if entry.fault else None,
    )
