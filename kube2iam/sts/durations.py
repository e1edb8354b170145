"""Sessions as long as STS allows where it refuses the length asked for: found, used, remembered, and said once.

The search never holds anybody up: each flight asks at most twice, the second time for a length that is known to be
allowed. While there is a longer one to try the credentials say so, and the cache comes back for it in about a minute,
through the gate like any other refresh.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.errors import CHAINED, Fault, StsError
from kube2iam.sts.flight import CredentialSource
from kube2iam.sts.lengths import SHORTEST, STEP, UNKNOWN, Lengths

log = logging.getLogger(__name__)

LEASE = 600.0
"""Seconds after which another request of a role may search, if the one that began does not come back."""
LOOK_AGAIN = 86_400.0
"""Seconds after which a maximum that was found is looked at again: somebody may have raised it."""
MOST_ROLES = 1000
"""Roles that are remembered: there is no end of roles that annotations can name."""
_LEAST = 0.5
"""Seconds that a second call gets, however long the first one took."""


@dataclass(slots=True)
class _Role:
    """One role's lengths, and which of its requests looks for the longest."""

    lengths: Lengths = field(default_factory=Lengths)
    searcher: AssumeRoleRequest | None = None
    lease_until: float = 0.0
    trial: asyncio.Event | None = None
    """While a longer length is asked for: set once STS has answered."""
    look_again: float = float("inf")
    """When it is to be seen whether the role allows more by now."""
    said: int = 0
    """The longest length that the log has been told."""


class FittedDurations:
    """A source that asks for no longer sessions than STS allows, by role and for the caller as a whole.

    `chained`: the caller is known to be a role's session, for which one hour is the most. Where it is not known, the
    first refusal tells. `monotonic` is the clock that nobody sets.
    """

    def __init__(
        self, source: CredentialSource, *, chained: bool = False, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._monotonic = monotonic
        self._roles: dict[str, _Role] = {}
        self._cap = CHAINED if chained else UNKNOWN
        self._cap_doubted = float("inf")
        self._cap_said = False

    async def open(self) -> None:
        """Make the source ready."""
        await self._source.open()

    async def fetch(self, request: AssumeRoleRequest, patience: float) -> Credentials:
        """As the source, for the longest session up to `request.duration` that is known to be allowed.

        Two calls to STS at most. The credentials' `provisional` says that a longer one may be had in a while.
        """
        give_up = self._monotonic() + patience
        role = self._role(request)
        await self._heed_trial(role, request, patience / 2)
        length = self._choose(role, request)
        try:
            credentials = await self._ask(role, request, length, give_up)
        except StsError as error:
            if not _too_long(error, length):
                raise
            length = min(role.lengths.allowed, self._cap)
            credentials = await self._ask(role, request, length, give_up)
        return self._take(role, request, length, credentials)

    def _role(self, request: AssumeRoleRequest) -> _Role:
        arn = str(request.arn)
        if arn not in self._roles and len(self._roles) >= MOST_ROLES:
            del self._roles[next(iter(self._roles))]
        return self._roles.setdefault(arn, _Role())

    async def _heed_trial(self, role: _Role, request: AssumeRoleRequest, seconds: float) -> None:
        """Where the length that `request` needs is being tried by another of the role, wait for what comes of it."""
        wanted = min(request.duration, self._cap)
        if role.trial is not None and role.lengths.next(wanted) == wanted > role.lengths.allowed:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await role.trial.wait()

    def _choose(self, role: _Role, request: AssumeRoleRequest) -> int:
        """The length to ask for now: one that is known to be allowed, but for the one request that may search."""
        now, lengths = self._monotonic(), role.lengths
        wanted = self._capped(request.duration, now)
        if wanted <= lengths.allowed:
            return wanted
        if not self._may_search(role, request):
            return lengths.allowed
        length = lengths.next(wanted)
        if now >= role.look_again and length <= lengths.allowed:
            length = min(wanted, lengths.next_minute)
        if length > lengths.allowed:
            self._lead(role, request)
        return length

    def _may_search(self, role: _Role, request: AssumeRoleRequest) -> bool:
        return role.searcher in {None, request} or self._monotonic() >= role.lease_until

    def _lead(self, role: _Role, request: AssumeRoleRequest) -> None:
        role.searcher, role.lease_until = request, self._monotonic() + LEASE

    def _capped(self, duration: int, now: float) -> int:
        """`duration`, or what the caller may ask for; once a day a minute more than that, until it is answered."""
        if duration <= self._cap:
            return duration
        self._say_chained(duration)
        return min(duration, self._cap + STEP) if now >= self._cap_doubted else self._cap

    async def _ask(self, role: _Role, request: AssumeRoleRequest, length: int, give_up: float) -> Credentials:
        """One call. Learns from a refusal; the other requests of the role wait for what it says of a longer length."""
        trial = asyncio.Event()
        if length > role.lengths.allowed:
            role.trial = trial
        try:
            patience = max(_LEAST, give_up - self._monotonic())
            return await self._source.fetch(replace(request, duration=length), patience)
        except StsError as error:
            if _too_long(error, length):
                self._learn(role, length, error.fault)
                if self._may_search(role, request):  # what it had been given until now may be refused
                    self._lead(role, request)
            else:
                self._release(role, request)
            raise
        except BaseException:
            self._release(role, request)
            raise
        finally:
            trial.set()
            if role.trial is trial:
                role.trial = None

    def _learn(self, role: _Role, length: int, fault: Fault) -> None:
        """STS refuses `length`. What it says of role chaining is about the caller, whatever the role."""
        tomorrow = self._monotonic() + LOOK_AGAIN
        if fault.longest == CHAINED < length:
            self._cap, self._cap_doubted = CHAINED, tomorrow
        else:
            role.lengths.refuse(length, fault.longest or 0)
            role.look_again = tomorrow

    def _take(self, role: _Role, request: AssumeRoleRequest, length: int, credentials: Credentials) -> Credentials:
        """STS allows `length`."""
        if length > role.lengths.allowed:
            role.look_again = float("inf")
        role.lengths.grant(length)
        if length > self._cap:
            self._cap = UNKNOWN
        wanted = min(request.duration, self._cap)
        if role.searcher == request and not role.lengths.settled(wanted):
            return replace(credentials, provisional=True)
        if self._cap < request.duration:
            self._say_chained(request.duration)
        elif length < wanted and role.lengths.settled(wanted):
            role.look_again = min(role.look_again, self._monotonic() + LOOK_AGAIN)
            self._say(role, request)
        self._release(role, request)
        return credentials

    def _release(self, role: _Role, request: AssumeRoleRequest) -> None:
        if role.searcher == request:
            role.searcher = None

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


def _too_long(error: StsError, length: int) -> bool:
    """Whether STS refuses because of the length, and a shorter one can be asked for."""
    return error.fault.longest is not None and length > SHORTEST
