"""One flight: the attempts to obtain one session, each let out by the gate."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.durations import Durations
from kube2iam.sts.errors import TIMEOUTS, Fault, StsError, fault
from kube2iam.sts.freshness import SERVED_ABOVE, Session, begin
from kube2iam.sts.gate import SHORT, Gate
from kube2iam.sts.turn import Change, Turn

log = logging.getLogger(__name__)

PAUSES = 0.1, 0.25
"""Seconds between the attempts of one flight, half as much more or less."""


class CredentialSource(Protocol):
    """Where credentials come from."""

    async def open(self) -> None:
        """Make ready; returns once `fetch` can work, however long that takes."""

    async def fetch(self, request: AssumeRoleRequest, patience: float) -> Credentials:
        """New credentials, within `patience` seconds; raises StsError."""


class StsMeter(Protocol):
    """What is counted of calls to STS."""

    def fetched(self, role: str, code: str, seconds: float) -> None:
        """One call for the role's ARN ended: `Success`, or the fault's code."""

    def hit(self, role: str) -> Callable[[], None]:
        """What counts each answer from the cache for the role's ARN; asked for once, then kept."""


class Unmetered:
    """Counts nothing."""

    def fetched(self, role: str, code: str, seconds: float) -> None:
        """Ignore it."""

    def hit(self, role: str) -> Callable[[], None]:  # noqa: ARG002 - as above
        """Ignore them."""
        return lambda: None


class Flights:
    """Obtains sessions from `source` through `gate`. `heed` is told when STS as a whole goes away or comes back."""

    def __init__(
        self,
        source: CredentialSource,
        gate: Gate,
        durations: Durations,
        *,
        heed: Callable[[Change], None],
        meter: StsMeter,
        monotonic: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._gate = gate
        self._durations = durations
        self._heed = heed
        self._meter = meter
        self._monotonic = monotonic
        self._spread = spread

    async def obtain(self, request: AssumeRoleRequest, turn: Turn) -> Session | Fault:
        """Up to three attempts, as long as the trouble may soon pass: STS is not away, nor is it the request's own."""
        outcome = await self._fitted(request, turn)
        for pause in PAUSES:
            if not isinstance(outcome, Fault) or not outcome.passing:
                break
            if self._gate.fault or self._gate.is_own_trouble(request):
                break
            await asyncio.sleep(pause * (0.5 + self._spread()))
            outcome = await self._fitted(request, turn)
        return outcome

    async def _fitted(self, request: AssumeRoleRequest, turn: Turn) -> Session | Fault:
        """One attempt; and another, if STS refuses the session's length, with one that is known to be allowed."""
        outcome = await self._attempt(request, turn, self._durations.choose)
        too_long = isinstance(outcome, Fault) and outcome.longest is not None
        if too_long and self._durations.known(request) < request.duration:
            outcome = await self._attempt(request, turn, self._durations.known)
        return outcome

    async def _attempt(
        self, request: AssumeRoleRequest, turn: Turn, choose: Callable[[AssumeRoleRequest], int]
    ) -> Session | Fault:
        """One call; and again as a slow one, if it was cut short only because too many slow ones were out."""
        while True:
            await self._gate.admit(turn)
            patience, since = turn.patience, self._monotonic()
            try:
                outcome = await self._call(request, choose(request), patience, since)
            except BaseException:
                self._gate.leave(turn, None, counts=False)
                raise
            failed = outcome if isinstance(outcome, Fault) else None
            seconds = self._monotonic() - since
            self._meter.fetched(str(request.arn), failed.code if failed else "Success", seconds)
            cut = failed is not None and failed.code in TIMEOUTS and patience <= SHORT
            turn.slow = cut or seconds > SHORT
            self._heed(self._gate.leave(turn, failed, counts=not cut))
            if not cut:
                return outcome

    async def _call(self, request: AssumeRoleRequest, length: int, patience: float, since: float) -> Session | Fault:
        try:
            credentials = await self._source.fetch(replace(request, duration=length), patience)
        except StsError as error:
            if error.fault.longest is not None:
                self._durations.refused(request, length, error.fault.longest)
            return error.fault
        except Exception as error:  # whatever it is, those who wait are told and the request is tried again
            log.exception("a call to STS failed unexpectedly", extra={"pod.iam.role": str(request.arn)})
            return fault(type(error).__name__)
        longer = self._durations.granted(request, length)
        session = begin(credentials, duration=length, since=since, spread=self._spread(), provisional=longer)
        if session.life <= SERVED_ABOVE:
            return fault("MalformedResponse", detail="the session has expired already: is the node's clock right?")
        return session
