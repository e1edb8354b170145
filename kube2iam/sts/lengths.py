"""What is known of how long the sessions of one role may be, and which length to try next. Pure.

A role's MaxSessionDuration is 3,600 to 43,200 seconds, and STS does not say it when it refuses more:
https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html (DurationSeconds)
"""

from dataclasses import dataclass

from kube2iam.sts.errors import CHAINED

ALWAYS_ALLOWED = CHAINED
"""Seconds: no role of AWS can be made to allow less."""
SHORTEST = 900
"""Seconds: STS takes no smaller number; what is left where a service like STS refuses even `ALWAYS_ALLOWED`."""
UNKNOWN = 43_201
"""Seconds: more than can be asked for."""
STEP = 60
"""Seconds within which the longest allowed length is found."""


@dataclass(slots=True)
class Lengths:
    """A length that the role allows and one that it refuses (seconds). `allowed` is always less than `refused`."""

    allowed: int = ALWAYS_ALLOWED
    refused: int = UNKNOWN

    def next(self, wanted: int) -> int:
        """The length to ask for where `wanted` seconds are: itself while it may be allowed, then halfway there.

        Never longer than `wanted`; longer than `allowed` only while that teaches something. The halving is over whole
        minutes, so it ends after ten of them.
        """
        if wanted < self.refused:
            return wanted
        low, high = self.allowed // STEP, -(-self.refused // STEP)
        return (low + high) // 2 * STEP if high - low > 1 else self.allowed

    def settled(self, wanted: int) -> bool:
        """Whether there is no longer length to try where `wanted` seconds are."""
        return self.next(wanted) <= self.allowed

    def grant(self, length: int) -> None:
        """STS allows `length`."""
        self.allowed = max(self.allowed, length)
        if self.refused <= length:
            self.refused = UNKNOWN

    def refuse(self, length: int, named: int) -> None:
        """STS refuses `length`, and names the longest that it allows (0 where it does not)."""
        self.refused = min(self.refused, length)
        if SHORTEST <= named < length:
            self.allowed, self.refused = named, named + 1
        elif self.allowed >= length:
            self.allowed = ALWAYS_ALLOWED if length > ALWAYS_ALLOWED else SHORTEST

    @property
    def next_minute(self) -> int:
        """The length that shows whether a role allows more by now: if it is granted, the search goes on."""
        return (self.allowed // STEP + 1) * STEP
