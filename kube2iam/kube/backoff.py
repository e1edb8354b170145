"""How long to wait before the next try."""

import random
from collections.abc import Callable


class Backoff:
    """Doubling delays with jitter: each is 50 to 100 % of `first`, twice `first`, … up to `most` seconds."""

    def __init__(
        self,
        *,
        first: float = 0.8,
        most: float = 30.0,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._most = most
        self._random = random
        self._delay = first

    def next(self, *, at_least: float = 0.0) -> float:
        """Seconds to wait now, never less than `at_least` (a server's `Retry-After`)."""
        delay, self._delay = self._delay, min(self._most, self._delay * 2)
        return max(at_least, delay * (0.5 + 0.5 * self._random()))

    def reset(self) -> None:
        """Begin anew: the other side works."""
        self._delay = self._first
