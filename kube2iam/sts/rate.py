"""How fast this node may call STS: a token bucket whose rate falls when STS throttles. Pure: times are handed in.

STS allows some 600 calls a second for each account and region, shared by all of its nodes.
"""

NODE_RATE = 25.0
"""Calls a second that one node may sustain."""
NODE_BURST = 128.0
"""Calls that it may make at once after a quiet time: every role of a full node."""
_FLOOR = 0.5
_RECOVERY = 0.5
"""Calls a second by which the rate rises each second after a throttle."""


class Rate:
    """The node's budget of calls."""

    def __init__(self, *, ceiling: float = NODE_RATE, burst: float = NODE_BURST) -> None:
        self._ceiling = ceiling
        self._burst = burst
        self._rate = ceiling
        self._tokens = burst
        self._at = 0.0
        self._lowered = float("-inf")

    def value(self, now: float) -> float:
        """Calls a second at present."""
        self._refill(now)
        return self._rate

    def take(self, now: float) -> float:
        """Take one call from the budget and return 0, or return the seconds until there is one."""
        self._refill(now)
        if self._tokens >= 1 - 1e-6:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    def throttled(self, now: float) -> None:
        """STS throttled a call: halve the rate (once a second, whatever herd was on its way) and empty the bucket."""
        self.start_slowly(now)
        if now - self._lowered >= 1:
            self._lowered = now
            self._rate = max(_FLOOR, self._rate / 2)

    def start_slowly(self, now: float) -> None:
        """Forget the burst that was saved up: what waits goes out at the steady rate."""
        self._refill(now)
        self._tokens = min(self._tokens, 1.0)

    def _refill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = now
        self._tokens = min(self._burst, self._tokens + passed * self._rate)
        self._rate = min(self._ceiling, self._rate + passed * _RECOVERY)
