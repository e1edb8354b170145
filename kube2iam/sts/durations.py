"""Session lengths that a role does not allow: the longest allowed one is found, used and remembered.

A role's MaxSessionDuration is 3,600 to 43,200 seconds, and STS does not say it when it refuses more:
https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html (DurationSeconds)
"""

import asyncio
import logging
from dataclasses import dataclass, replace

from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.errors import CHAINED, Fault, StsError
from kube2iam.sts.flight import CredentialSource

log = logging.getLogger(__name__)

ALWAYS_ALLOWED = CHAINED
"""Seconds: no role can be made to allow less."""
STEP = 60
"""Seconds within which the longest allowed length is found."""


@dataclass(slots=True)
class _Limits:
    """What is known of a role: a length that it allows, and one that it refuses (seconds)."""

    allowed: int
    refused: int

    @property
    def found(self) -> bool:
        return self.refused - self.allowed <= STEP


class FittedDurations:
    """A source that asks for no more than each role allows."""

    def __init__(self, source: CredentialSource) -> None:
        self._source = source
        self._limits: dict[str, _Limits] = {}

    async def open(self) -> None:
        """Make the source ready."""
        await self._source.open()

    async def fetch(self, request: AssumeRoleRequest, patience: float) -> Credentials:
        """As the source, for the longest session up to `request.duration` that the role allows."""
        limits = self._limits.get(str(request.arn))
        if limits is not None and limits.found and request.duration > limits.allowed:
            request = replace(request, duration=limits.allowed)
        try:
            return await self._source.fetch(request, patience)
        except StsError as error:
            if not _too_long(error.fault, request):
                raise
            return await self._search(request, error.fault, patience)

    async def _search(self, request: AssumeRoleRequest, fault: Fault, patience: float) -> Credentials:
        """Halve what lies between allowed and refused; when `patience` runs out, what is known must do for now.

        The next refresh goes on from there.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience / 2
        known = self._limits.get(str(request.arn), _Limits(ALWAYS_ALLOWED, request.duration))
        allowed = known.allowed if known.allowed < request.duration else ALWAYS_ALLOWED
        limits = _narrow(_Limits(allowed, min(known.refused, request.duration)), fault)
        self._limits[str(request.arn)] = limits
        best: Credentials | None = None
        while not limits.found and loop.time() < give_up:
            length = (limits.allowed + limits.refused) // 2 // STEP * STEP
            try:
                best = await self._source.fetch(replace(request, duration=length), patience)
                limits.allowed = length
            except StsError as error:
                if not _too_long(error.fault, request):
                    raise
                limits.refused = length
        if limits.found:
            _say(request, limits)
        return best or await self._source.fetch(replace(request, duration=limits.allowed), patience)


def _too_long(fault: Fault, request: AssumeRoleRequest) -> bool:
    return fault.longest is not None and request.duration > ALWAYS_ALLOWED


def _narrow(limits: _Limits, fault: Fault) -> _Limits:
    """Take STS at its word where it names a number."""
    if fault.longest and ALWAYS_ALLOWED <= fault.longest < limits.refused:
        return _Limits(fault.longest, fault.longest + 1)
    return limits


def _say(request: AssumeRoleRequest, limits: _Limits) -> None:
    log.warning(
        "STS allows shorter sessions of this role than asked for",
        extra={"pod.iam.role": str(request.arn), "sts.asked": request.duration, "sts.allowed": limits.allowed},
    )
