"""When STS as a whole is away: notices it, lets one probe through at a time, and says when it is over. Pure.

A role whose calls fail while others are answered has trouble of its own, as long as most are well; that does not count
against STS.
"""

from collections.abc import Hashable

from kube2iam.sts.errors import Fault

TRIP = 5
"""Different requests that fail in a row, with no answer in between, before calls stop."""
_FIRST, _LONGEST = 1.5, 6.0
"""Seconds from one probe's start to the next one's; grows from the one to the other."""
_REST = 0.5
"""Seconds after a probe's end, however long it took."""
_OTHERS = 3
"""Answers to others since a request began to fail that make its trouble look its own; one may be luck."""


class Breaker:
    """Open while STS is away. `answered` and `failed` report each call; times are monotonic seconds."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        """What the last call met, while open."""
        self.probe_at = 0.0
        """Not before this moment may the next probe go."""
        self._probes = 0
        self._answers = 0
        self._well: set[Hashable] = set()
        self._ill_since: dict[Hashable, int] = {}
        self._failing: dict[Hashable, Fault] = {}

    @property
    def trouble(self) -> Fault | None:
        """What failed last, if nothing was answered since: on a node with few requests before the breaker opens.

        None once nobody asks any more for what failed.
        """
        return next(reversed(self._failing.values()), None)

    def failed(self, key: Hashable, fault: Fault, *, began: float, now: float, spread: float) -> bool:
        """A call for `key` that `began` then failed for a transient cause; True if that opens the breaker."""
        self._well.discard(key)
        self._ill_since.setdefault(key, self._answers)
        if not self.is_own(key):
            self._failing.pop(key, None)
            self._failing[key] = fault
        was_open = self.fault is not None
        if was_open or len(self._failing) >= TRIP:
            self.fault = fault
            interval = min(_FIRST * 1.25**self._probes, _LONGEST) * (1 - spread / 4)
            self.probe_at = max(began + interval, now + _REST)
            self._probes = min(self._probes + 1, 20)
        return self.fault is not None and not was_open

    def answered(self, key: Hashable) -> bool:
        """STS answered a call for `key`; True if that ends a common trouble, and every memory of it."""
        self._answers += 1
        over = bool(self._failing) or self.fault is not None
        self._well.add(key)
        self._ill_since.pop(key, None)
        self._failing.clear()
        self._probes = 0
        self.fault = None
        return over

    def knows(self, key: Hashable) -> bool:
        """Whether `key` was tried since STS answered last. What was not may try at once: the trouble may be others'."""
        return key in self._failing

    def is_suspect(self, key: Hashable) -> bool:
        """Whether others were answered since `key` began to fail."""
        return self._answers - self._ill_since.get(key, self._answers) >= _OTHERS

    def is_own(self, key: Hashable) -> bool:
        """Whether the trouble of `key` is its own: others were answered, and no fewer are well than ill."""
        return self.is_suspect(key) and len(self._well) >= len(self._ill_since)

    def forget(self, key: Hashable) -> None:
        """Nobody asks for `key` any more."""
        self._well.discard(key)
        self._ill_since.pop(key, None)
        self._failing.pop(key, None)
