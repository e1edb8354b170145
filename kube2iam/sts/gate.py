"""Who may call STS now: at most 64 at once, waiting pods first, slow roles held back, within the node's rate."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Hashable

from kube2iam.sts.breaker import Breaker
from kube2iam.sts.errors import Fault, Kind
from kube2iam.sts.rate import Rate
from kube2iam.sts.turn import Change, Priority, Turn

CALLS = 64
"""Calls to STS at once."""
LONG_CALLS = CALLS // 2
"""Of these, calls that may take longer than `SHORT` seconds."""
LONG = 5.0
"""Seconds that a call may take."""
LONGEST_SPACING, SPACED = 1.0, 200.0
"""Seconds between two refreshes that are in no hurry, and those in which all sessions have one, if they are many."""
HURRIED = 5
"""Refreshes of sessions that pass the promised life go this many times as fast as others."""
SHORT = 1.0
"""Seconds after which a call is given up and asked again as a slow one, where `LONG_CALLS` others are out already."""


class Gate:
    """The one way to STS. `admit` before each call, `leave` after it; nothing goes out before `open`."""

    def __init__(
        self,
        *,
        sessions: Callable[[], int] = lambda: 1,
        monotonic: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
        rate: Rate | None = None,
    ) -> None:
        """`sessions` says how many there are to be kept fresh."""
        self._sessions = sessions
        self._monotonic = monotonic
        self._spread = spread
        self._rate = rate or Rate()
        self._breaker = Breaker()
        self._lanes: dict[Priority, deque[Turn]] = {priority: deque() for priority in Priority}
        self._calls: set[Turn] = set()
        self._opened = False
        self._next_refresh = {True: 0.0, False: 0.0}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Calls that are out."""
        return len(self._calls)

    @property
    def rate(self) -> float:
        """Calls a second that the node allows itself at present."""
        return self._rate.value(self._monotonic())

    @property
    def fault(self) -> Fault | None:
        """What the last call met while STS is away as a whole, else None."""
        return self._breaker.fault

    @property
    def trouble(self) -> Fault | None:
        """What the last calls met, if STS answered nothing since."""
        return self._breaker.trouble

    def refuses(self, turn: Turn) -> Fault | None:
        """Why `turn` need not be waited for: STS is away, and was tried for it."""
        return self._breaker.fault if not turn.out and self._breaker.knows(turn.key) else None

    def open(self) -> None:
        """The source is ready."""
        self._opened = True
        self._pump()

    def close(self) -> None:
        """Let nothing more out."""
        self._opened = False
        if self._timer:
            self._timer.cancel()

    async def admit(self, turn: Turn) -> None:
        """Wait for `turn`; then `turn.patience` says how long its call may take."""
        turn.admitted = asyncio.get_running_loop().create_future()
        self._lanes[turn.priority].append(turn)
        self._pump()
        try:
            await turn.admitted
        except asyncio.CancelledError:
            if turn.out:
                self.leave(turn, None, counts=False)
            else:
                self._lanes[turn.priority].remove(turn)
            raise

    def promote(self, turn: Turn, priority: Priority) -> None:
        """Somebody more urgent wants what `turn` is for."""
        if priority < turn.priority:
            if turn in self._lanes[turn.priority]:
                self._lanes[turn.priority].remove(turn)
                self._lanes[priority].append(turn)
            turn.priority = priority
            self._pump()

    def leave(self, turn: Turn, fault: Fault | None, *, counts: bool = True) -> Change:
        """The call of `turn` ended with `fault`, or well; one that was given up early `counts` neither way."""
        self._calls.discard(turn)
        turn.patience = 0.0
        change = self._judge(turn, fault) if counts else Change.NONE
        self._pump()
        return change

    def start_slowly(self) -> None:
        """Much has become due at once: let it out at the steady rate, not as a burst."""
        self._rate.start_slowly(self._monotonic())

    def is_own_trouble(self, key: Hashable) -> bool:
        """Whether `key` fails although most others are answered."""
        return self._breaker.is_own(key)

    def forget(self, key: Hashable) -> None:
        """Nobody asks for `key` any more."""
        self._breaker.forget(key)

    def _judge(self, turn: Turn, fault: Fault | None) -> Change:
        now = self._monotonic()
        if fault is None or fault.kind.permanent:
            away = self._breaker.fault is not None
            over = self._breaker.answered(turn.key)
            if away:
                self._rate.start_slowly(now)
            return Change.BACK if over else Change.NONE
        if fault.kind is Kind.THROTTLED:
            self._rate.throttled(now)
        opened = self._breaker.failed(turn.key, fault, began=turn.since, now=now, spread=self._spread())
        return Change.AWAY if opened else Change.NONE

    def _pump(self) -> None:
        """Let out all that may go now, and wake up when the next may."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._opened and len(self._calls) < CALLS:
            now = self._monotonic()
            turn, wait = self._choose(now)
            if turn is not None:
                wait = self._rate.take(now)
            if wait > 0:
                self._timer = asyncio.get_running_loop().call_later(wait, self._pump)
            if turn is None or wait > 0:
                return
            self._let_out(turn, now)

    def _choose(self, now: float) -> tuple[Turn | None, float]:
        """The next to go, or None and the seconds until there may be one (0: not before something else happens)."""
        if self._breaker.fault is not None:
            return self._choose_probe(now)
        long_free = self._long_calls() < LONG_CALLS
        later = 0.0
        for priority, lane in self._lanes.items():
            may_go = (turn for turn in lane if long_free or not turn.slow)
            if priority is Priority.REFRESH:
                turn, later = self._choose_refresh(sorted(may_go, key=lambda turn: turn.calm_until), now)
            else:
                turn = next(may_go, None)
            if turn is not None:
                return turn, 0.0
        return None, later

    def _choose_refresh(self, by_need: list[Turn], now: float) -> tuple[Turn | None, float]:
        """As `_choose`, of refreshes: each in its own second; those that are in a hurry at a pace of their own."""
        later = float("inf")
        for calm in (False, True):
            turn = next((turn for turn in by_need if (now < turn.calm_until) is calm), None)
            if turn is not None:
                at = min(self._next_refresh[calm], turn.calm_until if calm else turn.urgent_from)
                if at <= now:
                    return turn, 0.0
                later = min(later, at - now)
        return None, later if by_need else 0.0

    def _choose_probe(self, now: float) -> tuple[Turn | None, float]:
        """As `_choose`, while STS is away: at once for a pod whose request was not tried yet, else one at a time.

        Whatever was tried least recently is tried next, be it urgent or not: what nobody has an answer for may hang by
        itself, and must not keep from STS those who would show that it is well.
        """
        if len(self._calls) < LONG_CALLS:
            untried = next((turn for turn in self._lanes[Priority.WAITING] if self._is_untried(turn)), None)
            if untried is not None:
                return untried, 0.0
        queued = [turn for lane in self._lanes.values() for turn in lane]
        if self._calls or not queued:
            return None, 0.0
        if now < self._breaker.probe_at:
            return None, self._breaker.probe_at - now
        return min(queued, key=lambda turn: (self._breaker.is_suspect(turn.key), turn.since)), 0.0

    def _is_untried(self, turn: Turn) -> bool:
        return not (turn.slow or self._breaker.knows(turn.key) or self._breaker.is_suspect(turn.key))

    def _let_out(self, turn: Turn, now: float) -> None:
        self._lanes[turn.priority].remove(turn)
        if turn.priority is Priority.REFRESH:
            calm = now < turn.calm_until
            spacing = min(LONGEST_SPACING, SPACED / max(1, self._sessions()))
            self._next_refresh[calm] = now + spacing / (1 if calm else HURRIED)
        turn.since = now
        turn.patience = LONG if self._long_calls() < LONG_CALLS else SHORT
        self._calls.add(turn)
        if turn.admitted is not None:
            turn.admitted.set_result(None)

    def _long_calls(self) -> int:
        return sum(turn.patience == LONG for turn in self._calls)
