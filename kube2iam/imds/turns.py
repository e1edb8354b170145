"""Whose turn it is: while one pod asks for more than its share of the loop's turn, everyone else goes first."""

import asyncio
from collections import deque
from collections.abc import Callable

_SHARE = 32
"""Requests of one party in one turn of the loop: about a millisecond of work."""
_NEXT_SHARE = 16
"""The same in the turns that follow, as long as it wants more than that: everyone else waits for their ends."""


class Turns:
    """Shares the loop's turns between parties. To be used inside a running loop.

    Costs next to nothing while nobody asks for much: nothing is scheduled before a party has had its share.
    """

    def __init__(self) -> None:
        self._had: dict[str, int] = {}
        self._waiting: dict[str, deque[Callable[[], None]]] = {}
        self._scheduled = False

    def take(self, party: str) -> bool:
        """Whether `party` may be served now; if not, it is to `wait`."""
        had = self._had.get(party, 0)
        if had >= _SHARE:
            self._schedule()
            return False
        self._had[party] = had + 1
        return True

    def wait(self, party: str, step: Callable[[], None]) -> None:
        """Call `step`, which serves `party` once, in one of the next turns."""
        self._waiting.setdefault(party, deque()).append(step)
        self._schedule()

    def end(self) -> None:
        """The turn is over. Everyone begins the next one afresh, unless somebody still waits."""
        if not self._waiting:
            self._had.clear()

    def forget(self) -> None:
        """Forget who has had what; to be called now and then, because parties come and go."""
        self._had.clear()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._scheduled = False
        self._had = dict.fromkeys(self._waiting, _SHARE - _NEXT_SHARE)
        for party, steps in list(self._waiting.items()):
            while steps and self.take(party):
                steps.popleft()()
            if not steps:
                del self._waiting[party]
        if self._waiting:
            self._schedule()
