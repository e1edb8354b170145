"""The credential cache: every session that this node's pods use, obtained once and kept fresh."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from kube2iam.domain.errors import Denial, Reason, RefusedError, refused
from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.durations import Durations
from kube2iam.sts.entry import NEVER, Entry, EntryState, state
from kube2iam.sts.errors import Fault
from kube2iam.sts.flight import CredentialSource, Flights, StsMeter, Unmetered
from kube2iam.sts.freshness import Session
from kube2iam.sts.gate import Gate
from kube2iam.sts.memory import remembered
from kube2iam.sts.reports import StsReports
from kube2iam.sts.turn import Change, Priority, Turn

log = logging.getLogger(__name__)

WATCH = 30.0
"""Seconds between two looks at the clocks."""
JUMP = 2.0
"""Seconds that the clocks may drift apart between two looks before it counts as a jump."""


class CredentialCache:
    """Sessions by request. `peek`, `serves`, `start` and `want` never wait.

    Every call to STS belongs to the cache, not to a caller. `run` opens the source and owns all that goes on; before it
    nothing goes out. `error_ttl` is seconds; `chained`: the source works with a role's session; `clock` is the wall
    clock, `monotonic` the one that nobody sets; `spread` gives random numbers in [0, 1).
    """

    def __init__(
        self,
        source: CredentialSource,
        *,
        error_ttl: float = 10.0,
        chained: bool = False,
        meter: StsMeter | None = None,
        failed: Callable[[AssumeRoleRequest, Denial], None] = lambda _request, _denial: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._error_ttl = error_ttl
        self._failed = failed
        self._clock = clock
        self._monotonic = monotonic
        self._spread = spread
        self._meter = meter or Unmetered()
        self._gate = Gate(sessions=lambda: len(self._entries), monotonic=monotonic, spread=spread)
        self._flights = Flights(
            source,
            self._gate,
            Durations(chained=chained, monotonic=monotonic),
            heed=self._heed,
            meter=self._meter,
            monotonic=monotonic,
            spread=spread,
        )
        self._entries: dict[AssumeRoleRequest, Entry] = {}
        self._reports = StsReports()
        self._settled = asyncio.Event()
        self.ready = asyncio.Event()
        """The source is open: calls can be made."""

    def peek(self, request: AssumeRoleRequest) -> Credentials | None:
        """Credentials with more than a minute to live, if they are here."""
        entry = self._entries.get(request)
        if entry is None or entry.session is None:
            return None
        now = self._monotonic()
        if not entry.serves(self._clock(), now):
            return None
        entry.asked = now
        entry.hit()
        return entry.session.credentials

    def serves(self, request: AssumeRoleRequest) -> bool:
        """Whether `peek` would find credentials; counts as no answer."""
        entry = self._entries.get(request)
        return entry is not None and self._serves(entry)

    def start(self, request: AssumeRoleRequest) -> None:
        """A pod will ask for this in a moment: fetch it now, unless it is here or its failure is remembered."""
        self._ask(request)

    def renew(self, request: AssumeRoleRequest) -> None:
        """AWS refuses the session that is here: serve it no more, and fetch another."""
        entry = self._entry(request)
        entry.session, entry.until_wall, entry.until_monotonic = None, NEVER, NEVER
        self._ask(request)

    async def get(self, request: AssumeRoleRequest, deadline: float) -> Credentials:
        """Credentials with more than a minute to live, by `deadline` (the loop's time).

        Raises RefusedError: STS_PENDING while the call is still out, else what came of it. A caller that gives up
        ends nothing but its own waiting.
        """
        entry = self._ask(request)
        outcome = self._known(entry)
        if outcome is None:
            outcome = await self._wait(entry, deadline)
        if isinstance(outcome, Fault):
            raise RefusedError(outcome.denial)
        entry.asked = self._monotonic()
        return outcome

    def want(self, requests: Iterable[AssumeRoleRequest]) -> None:
        """The requests that live pods may use, all of them: what is new is fetched, what is gone is soon dropped."""
        wanted = dict.fromkeys(requests)
        now = self._monotonic()
        for request in wanted:
            entry = self._entry(request)
            entry.wanted = True
            if not self._serves(entry) and not entry.remembers(now):
                self._launch(entry, Priority.PREFETCH)
        for request, entry in self._entries.items():
            if entry.wanted and request not in wanted:
                entry.wanted = False
                entry.left = now
        self._settled.set()

    def missing(self) -> list[AssumeRoleRequest]:
        """What is wanted and may come, but is not here yet."""
        return [
            entry.request
            for entry in self._entries.values()
            if entry.wanted and not self._serves(entry) and not (entry.fault and entry.fault.kind.permanent)
        ]

    async def warm(self, timeout: float) -> list[AssumeRoleRequest]:  # noqa: ASYNC109 - passing it is no failure
        """Wait until nothing is missing, for `timeout` seconds at most; returns what still is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.missing():
                    self._settled.clear()
                    await self._settled.wait()
        return self.missing()

    @property
    def in_flight(self) -> int:
        """Calls to STS that are out."""
        return self._gate.in_flight

    @property
    def rate(self) -> float:
        """Calls a second that the node allows itself; falls when STS throttles."""
        return self._gate.rate

    @property
    def trouble(self) -> Denial | None:
        """What keeps the whole node from obtaining credentials, if anything does: nothing was answered since."""
        return self._gate.trouble.denial if self._gate.trouble else None

    def fault(self, request: AssumeRoleRequest) -> Fault | None:
        """What the last flight for `request` met, until one succeeds."""
        entry = self._entries.get(request)
        return entry.fault if entry is not None else None

    def entries(self) -> list[EntryState]:
        """All requests, as values without secrets."""
        return [state(entry) for entry in self._entries.values()]

    async def run(self) -> None:
        """Open the source, then keep sessions fresh for ever."""
        try:
            await self._source.open()
            self.ready.set()
            self._gate.open()
            await self._watch_clocks()
        finally:
            self._gate.close()
            for entry in self._entries.values():
                entry.stop()

    def _entry(self, request: AssumeRoleRequest) -> Entry:
        entry = self._entries.get(request)
        if entry is None:
            entry = self._entries[request] = Entry(request, self._meter.hit(str(request.arn)))
        return entry

    def _serves(self, entry: Entry) -> bool:
        return entry.serves(self._clock(), self._monotonic())

    def _ask(self, request: AssumeRoleRequest) -> Entry:
        entry = self._entry(request)
        entry.asked = self._monotonic()
        if not self._serves(entry) and not entry.remembers(entry.asked):
            self._launch(entry, Priority.WAITING)
        return entry

    def _known(self, entry: Entry) -> Credentials | Fault | None:
        """What can be said at once: a session, a remembered failure, or that STS is away."""
        if entry.session is not None and self._serves(entry):
            return entry.session.credentials
        return entry.remembers(self._monotonic()) or (self._gate.refuses(entry.turn) if entry.turn else None)

    async def _wait(self, entry: Entry, deadline: float) -> Credentials | Fault:
        waiter: asyncio.Future[Credentials | Fault] = asyncio.get_running_loop().create_future()
        entry.waiters.add(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except TimeoutError:
            said = "STS has not answered yet" if self.ready.is_set() else "the agent's STS client is not ready yet"
            raise refused(Reason.STS_PENDING, f"{said}: {entry.request.arn}") from None
        finally:
            entry.waiters.discard(waiter)

    def _launch(self, entry: Entry, priority: Priority) -> None:
        """Have a flight for `entry`, at least as urgent as `priority`."""
        if entry.turn is not None:
            self._gate.promote(entry.turn, priority)
            return
        if entry.timer:
            entry.timer.cancel()
        turn = entry.begin_turn(priority, self._clock(), self._monotonic())
        entry.flight = asyncio.get_running_loop().create_task(self._fly(entry, turn))

    async def _fly(self, entry: Entry, turn: Turn) -> None:
        """Obtain a session for `entry`, or know why not."""
        try:
            outcome = await self._flights.obtain(entry.request, turn)
        finally:
            entry.flight = entry.turn = None
        entry.slow, entry.tried = turn.slow, turn.since
        if isinstance(outcome, Fault):
            self._remember(entry, outcome)
            entry.tell(outcome)
        else:
            self._keep(entry, outcome)
            entry.tell(outcome.credentials)
        self._plan(entry)
        self._settled.set()

    def _keep(self, entry: Entry, session: Session) -> None:
        self._reports.obtained(entry.request, session)
        entry.session = session
        entry.until_wall, entry.until_monotonic = session.served_until
        entry.fault, entry.failures = None, 0

    def _remember(self, entry: Entry, outcome: Fault) -> None:
        self._reports.failed(entry.request, outcome, away=self._gate.fault is not None)
        entry.fault = outcome
        entry.failures += 1
        self._failed(entry.request, outcome.denial)
        kept = remembered(outcome.kind, entry.failures, error_ttl=self._error_ttl, spread=self._spread())
        entry.fault_until = self._monotonic() + kept

    def _heed(self, change: Change) -> None:
        """STS as a whole went away, or came back."""
        if change is Change.AWAY and self._gate.fault:
            self._reports.away(self._gate.fault)
            for entry in self._entries.values():
                known = self._gate.refuses(entry.turn) if entry.turn else None
                if known is not None:
                    entry.tell(known)
        elif change is Change.BACK:
            self._reports.back()
            for entry in self._entries.values():
                if entry.fault and not entry.fault.kind.permanent and not self._gate.is_own_trouble(entry.request):
                    entry.fault_until = self._monotonic()
                    self._plan(entry)

    def _plan(self, entry: Entry) -> None:
        """Set the timer for what comes next: a refresh at half life, another attempt, or nothing."""
        if entry.timer:
            entry.timer.cancel()
            entry.timer = None
        if entry.turn is None and self._entries.get(entry.request) is entry:
            delay = entry.delay(self._clock(), self._monotonic())
            if delay is not None:
                entry.timer = asyncio.get_running_loop().call_later(delay, self._due, entry)

    def _due(self, entry: Entry) -> None:
        entry.timer = None
        if entry.lives(self._monotonic()):
            self._launch(entry, Priority.REFRESH if self._serves(entry) else Priority.PREFETCH)
        elif entry.session is not None and entry.session.provisional:
            entry.session = entry.session.kept()
            self._plan(entry)
        else:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        """Forget `entry`, unless its call is out: that ends in a moment."""
        if entry.turn is None or not entry.turn.out:
            entry.stop()
            del self._entries[entry.request]
            self._reports.forget(entry.request)
            self._gate.forget(entry.request)

    async def _watch_clocks(self) -> None:
        """Notice when the wall clock jumps: what is due by it is fetched soon, but never all at once."""
        offset = self._clock() - self._monotonic()
        while True:
            await asyncio.sleep(WATCH)
            before, offset = offset, self._clock() - self._monotonic()
            if abs(offset - before) > JUMP:
                log.warning("the clock jumped", extra={"clock.seconds": round(offset - before, 1)})
                self._gate.start_slowly()
                for entry in self._entries.values():
                    self._plan(entry)
            self._sweep()

    def _sweep(self) -> None:
        wall, monotonic = self._clock(), self._monotonic()
        unwanted = [entry for entry in self._entries.values() if not entry.wanted]
        for entry in unwanted:
            if entry.idle(wall, monotonic):
                self._drop(entry)
