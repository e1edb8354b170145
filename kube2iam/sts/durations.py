"""Sessions as long as STS allows where it refuses the length asked for: found, used, remembered, and said once. No I/O.

Whatever is wanted is asked for while STS has not refused it. After a refusal one request of the role at a time searches
for the longest allowed length: it gets one that is known to be allowed, and comes back for the next try in about a
minute, like any other refresh. The others use what is known by then.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.errors import CHAINED
from kube2iam.sts.lengths import SHORTEST, STEP, UNKNOWN, Lengths

log = logging.getLogger(__name__)

LEASE = 600.0
"""Seconds after which another request of a role may search, if the one that does so does not come back."""
LOOK_AGAIN = 86_400.0
"""Seconds after which a maximum that was found is looked at again: somebody may have raised it."""
MOST_ROLES = 1000
"""Roles that are remembered: there is no end of roles that annotations can name."""
_NEVER = float("inf")


@dataclass(slots=True)
class _Role:
    """One role's lengths, and which of its requests looks for the longest."""

    lengths: Lengths = field(default_factory=Lengths)
    searcher: AssumeRoleRequest | None = None
    lease_until: float = 0.0
    look_again: float = _NEVER
    """When it is to be seen whether the role allows more by now."""
    said: int = 0
    """The longest length that the log has been told."""

    def may_search(self, request: AssumeRoleRequest, now: float) -> bool:
        """Whether no other request of the role does."""
        return self.searcher in {None, request} or now >= self.lease_until

    def lead(self, request: AssumeRoleRequest, now: float) -> bool:
        """Let `request` search, if no other does."""
        if not self.may_search(request, now):
            return False
        self.searcher, self.lease_until = request, now + LEASE
        return True


class Durations:
    """The lengths that sessions are asked for, by role and for the caller as a whole. All are seconds.

    `chained`: the caller is known to be a role's session, for which one hour is the most. Where it is not known, the
    first refusal tells. `monotonic` is the clock that nobody sets.
    """

    def __init__(self, *, chained: bool = False, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._roles: dict[str, _Role] = {}
        self._cap = CHAINED if chained else UNKNOWN
        self._cap_doubted = _NEVER
        self._cap_said = False

    def choose(self, request: AssumeRoleRequest) -> int:
        """The length to ask for now, `request.duration` at most."""
        role, now = self._role(request), self._monotonic()
        lengths, wanted = role.lengths, self._capped(request.duration, now)
        length = lengths.next(wanted)
        if length == wanted:
            return wanted
        if not role.may_search(request, now):
            return lengths.allowed
        if length <= lengths.allowed and now >= role.look_again:
            return min(wanted, lengths.next_minute)
        return length

    def known(self, request: AssumeRoleRequest) -> int:
        """The length to ask for at once after a refusal: the longest that is known to be allowed."""
        return min(request.duration, self._role(request).lengths.allowed, self._cap)

    def granted(self, request: AssumeRoleRequest, length: int) -> bool:
        """STS allows `length`. Whether `request` is to ask again in a while, because a longer one may be had."""
        role, now = self._role(request), self._monotonic()
        if length > role.lengths.allowed:
            role.look_again = _NEVER
        role.lengths.grant(length)
        if length > self._cap:
            self._cap = UNKNOWN
        wanted = min(request.duration, self._cap)
        if not role.lengths.settled(wanted):
            return role.lead(request, now)
        if role.searcher == request:
            role.searcher = None
        if self._cap < request.duration:
            self._say_chained(request.duration)
        elif length < wanted:
            role.look_again = min(role.look_again, now + LOOK_AGAIN)
            self._say(role, request)
        return False

    def refused(self, request: AssumeRoleRequest, length: int, named: int) -> None:
        """STS refuses `length`, and names the longest that it allows (0 where it does not).

        What it says of role chaining is about the caller, whatever the role.
        """
        now = self._monotonic()
        tomorrow = now + LOOK_AGAIN
        if named == CHAINED < length:
            self._cap, self._cap_doubted = CHAINED, tomorrow
        elif length > SHORTEST:
            role = self._role(request)
            role.lengths.refuse(length, named)
            role.look_again = tomorrow
            role.lead(request, now)

    def _role(self, request: AssumeRoleRequest) -> _Role:
        arn = str(request.arn)
        if arn not in self._roles and len(self._roles) >= MOST_ROLES:
            del self._roles[next(iter(self._roles))]
        return self._roles.setdefault(arn, _Role())

    def _capped(self, duration: int, now: float) -> int:
        """`duration`, or what the caller may ask for; once a day a minute more than that, until it is answered."""
        if duration <= self._cap:
            return duration
        self._say_chained(duration)
        return min(duration, self._cap + STEP) if now >= self._cap_doubted else self._cap

    def _say(self, role: _Role, request: AssumeRoleRequest) -> None:
        if role.said == role.lengths.allowed:
            return
        role.said = role.lengths.allowed
        log.warning(
            "STS allows shorter sessions of this role than asked for",
            extra={"pod.iam.role": str(request.arn), "sts.asked": request.duration, "sts.allowed": role.said},
        )

    def _say_chained(self, asked: int) -> None:
        if self._cap_said:
            return
        self._cap_said = True
        log.warning(
            "STS allows shorter sessions than asked for, of every role: the agent itself works with a role's session",
            extra={"sts.asked": asked, "sts.allowed": self._cap},
        )
