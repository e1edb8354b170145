"""How long a role session is good for, by two clocks. Pure: every time is handed in.

The wall clock knows when AWS ends the session, the monotonic clock how long ago it began. Each may be wrong where the
other is right (suspend, a stepped NTP clock), so the shorter answer counts.
"""

from dataclasses import dataclass, replace

from kube2iam.domain.roles import Credentials

SERVED_ABOVE = 60.0
"""Seconds of life below which credentials are not given to pods any more."""
PROMISED = 25 * 60.0
"""Seconds of life that a pod's credentials have while STS works: the greediest SDK extends what has less than that."""
_EARLIEST, _LATEST = 0.45, 0.55
_PROVISIONAL = 60.0, 90.0
"""Seconds after which a session is renewed for which a longer one may be had."""


@dataclass(frozen=True, slots=True)
class Session:
    """Credentials with the moment (monotonic seconds) STS was asked for them and the life (seconds) they had then."""

    credentials: Credentials
    since: float
    life: float
    refresh_below: float
    """Seconds of remaining life at which they are to be renewed: half, give or take a tenth; if the session is
    provisional, all but a minute."""
    provisional: bool = False
    """A longer session may be had: how long STS allows it to be is still being found out."""

    @property
    def served_until(self) -> tuple[float, float]:
        """(wall clock, monotonic clock) of the last moment at which a pod may be given them; both must be ahead."""
        return self.credentials.expiration - SERVED_ABOVE, self.since + self.life - SERVED_ABOVE

    @property
    def keeps_promise(self) -> bool:
        """Whether pods can always be given `PROMISED` seconds of this life."""
        return self.life * (1 - _LATEST) >= PROMISED

    def remaining(self, wall: float, monotonic: float) -> float:
        """Seconds of life left by the clock that leaves less."""
        return min(self.credentials.remaining(wall), self.since + self.life - monotonic)

    def kept(self) -> "Session":
        """The same, to be renewed at half life although a longer one may be had: nobody uses it at present."""
        return replace(self, provisional=False, refresh_below=self.life / 2)


def begin(
    credentials: Credentials, *, duration: float, since: float, spread: float, provisional: bool = False
) -> Session:
    """The session of `credentials` just obtained for `duration` seconds at most; `spread` is random in [0, 1)."""
    life = min(float(duration), credentials.remaining(credentials.issued))
    age = life * _between(_EARLIEST, _LATEST, spread)
    if provisional:
        age = min(age, _between(*_PROVISIONAL, spread))
    return Session(credentials, since, life, life - age, provisional)


def _between(low: float, high: float, spread: float) -> float:
    return low + (high - low) * spread
