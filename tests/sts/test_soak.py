"""Thirty days of a full node in the loop's own time: faults, throttles, outages, hung roles, restarts, new pods."""

import asyncio
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from kube2iam.domain.errors import RefusedError
from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import Fault, fault
from kube2iam.sts.freshness import PROMISED, SERVED_ABOVE
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import EPOCH, ScriptedSts, request, running

DAYS = 30
DAY = 86_400.0
ROLES = 110
HANGING = 6
"""Further roles that STS never answers for, half an hour a day."""
HALF_LIFE = 1800.0
LOOK = 600.0
"""Seconds between two looks of every pod."""
RECOVERY = 60.0
"""Seconds after an outage in which refreshes that were due catch up."""
STRAY = ("ServiceUnavailable", "Throttling", "InternalFailure", "ConnectionClosedError", "Timeout")
WARMING = 5.0
HOLD = 1.6
"""Seconds for which a pod that begins waits in all."""
PROBE = 3.0
"""Seconds between two calls during an outage, on average at least."""
TO_NOTICE = 150
"""Calls that an outage may cost beyond that: all that is due when it begins, tried again twice."""


@dataclass
class Weather:
    """What STS does over time: outages and throttled spells at random times, stray faults and slow answers always."""

    numbers: random.Random
    bad: list[tuple[float, float, str]]
    calls_in_spells: int = 0

    @classmethod
    def of(cls, seed: int) -> "Weather":
        numbers = random.Random(seed)
        return cls(numbers, list(_spells(numbers)))

    def spell(self, now: float) -> str | None:
        return next((code for begin, end, code in self.bad if begin <= now < end), None)

    def good(self, since: float, until: float) -> bool:
        return not any(begin <= until and since < end + RECOVERY for begin, end, _code in self.bad)

    def __call__(self, _request: AssumeRoleRequest) -> Fault | None:
        code = self.spell(asyncio.get_running_loop().time())
        self.calls_in_spells += code is not None
        if code is None and self.numbers.random() < 0.02:
            code = self.numbers.choice(STRAY)
        return fault(code) if code else None

    def delay(self, asked: AssumeRoleRequest) -> float:
        if asked.arn.name.startswith("hanging"):
            return 60.0
        return 2.0 if self.numbers.random() < 0.01 else self.numbers.uniform(0.03, 0.3)


def _spells(numbers: random.Random) -> Iterator[tuple[float, float, str]]:
    """Two a day, from a minute to an hour and a half."""
    for day in range(DAYS):
        for half in range(2):
            begin = (2 * day + half) * 43_200 + numbers.uniform(4_000, 30_000)
            length = numbers.choice([60, 300, 1_500, 3_000, 5_400])
            yield begin, begin + length, numbers.choice(["EndpointConnectionError", "Throttling", "ExpiredToken"])


@dataclass
class Node:
    """The node's pods, a role each; new ones with new roles come all the time."""

    born: int = 0
    roles: deque[AssumeRoleRequest] = field(default_factory=deque)

    def replace(self, count: int) -> None:
        for _pod in range(count):
            self.roles.append(request(f"role-{self.born}"))
            self.born += 1
        while len(self.roles) > ROLES:
            self.roles.popleft()

    def wanted(self, now: float) -> list[AssumeRoleRequest]:
        hanging = now % DAY < 1_800
        return [*self.roles, *(request(f"hanging-{number}") for number in range(HANGING if hanging else 0))]


@dataclass
class Pods:
    """What the pods saw."""

    served: int = 0
    refused_in_good_weather: int = 0
    shortest: float = 3_600.0
    """Life of the shortest-lived credentials given out while STS worked."""
    dying: int = 0

    async def look(self, cache: CredentialCache, role: AssumeRoleRequest, *, good: bool) -> None:
        loop = asyncio.get_running_loop()
        try:
            credentials = cache.peek(role) or await cache.get(role, loop.time() + HOLD)
        except RefusedError:
            self.refused_in_good_weather += good
            return
        life = credentials.expiration - EPOCH - loop.time()
        self.served += 1
        self.dying += life <= SERVED_ABOVE - 1
        if good:
            self.shortest = min(self.shortest, life)


@exact_time
async def test_thirty_days_of_a_full_node() -> None:
    loop = asyncio.get_running_loop()
    weather = Weather.of(seed=20)
    sts = ScriptedSts(script=weather, delay=weather.delay)
    node, pods = Node(), Pods()
    node.replace(ROLES)
    restarts = at_restarts = good_restarts = 0
    while loop.time() < DAYS * DAY:
        async with running(sts, seed=restarts) as cache:
            restarts += 1
            begun, before = loop.time(), sum(sts.granted.values())
            sts.clock.jumped = weather.numbers.uniform(-60, 60)
            cache.want(node.wanted(begun))
            await cache.warm(WARMING)
            if weather.good(begun, loop.time()):
                good_restarts += 1
                at_restarts += sum(sts.granted.values()) - before
            until = begun + weather.numbers.uniform(20_000, 300_000)
            while loop.time() < min(until, DAYS * DAY):
                good = weather.good(loop.time() - WARMING, loop.time())
                for role in node.roles:
                    await pods.look(cache, role, good=good)
                await asyncio.sleep(LOOK)
                node.replace(weather.numbers.choice([0, 0, 0, 0, 1, 5]))
                cache.want(node.wanted(loop.time()))
                await cache.warm(WARMING)
    assert good_restarts > 5
    assert at_restarts <= good_restarts * ROLES * 1.1
    assert pods.served > DAYS * DAY / LOOK * ROLES * 0.9
    assert pods.shortest >= PROMISED
    assert pods.dying == 0
    assert pods.refused_in_good_weather == 0
    expected = ROLES * (loop.time() / HALF_LIFE + restarts) + node.born
    assert sum(sts.granted.values()) <= expected * 1.1
    in_outages = sum(end - begin for begin, end, _code in weather.bad)
    assert weather.calls_in_spells <= in_outages / PROBE + TO_NOTICE * len(weather.bad)
    assert not any("hanging" in asked.arn.name for asked in sts.granted)
