"""Thirty days of a full node in the loop's own time: faults, throttles, outages, restarts."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import Fault, fault
from kube2iam.sts.freshness import PROMISED, SERVED_ABOVE
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import EPOCH, ScriptedSts, requests, running

DAYS = 30
ROLES = 110
HALF_LIFE = 1800.0
LOOK = 600.0
"""Seconds between two looks of every pod."""
RECOVERY = 180.0
"""Seconds after an outage in which refreshes that were due catch up."""
STRAY = ("ServiceUnavailable", "Throttling", "InternalFailure", "ConnectionClosedError")


@dataclass
class Weather:
    """What STS does over time: outages and throttled spells at random times, stray faults all the time."""

    numbers: random.Random
    bad: list[tuple[float, float, str]]

    @classmethod
    def of(cls, seed: int) -> "Weather":
        numbers = random.Random(seed)
        return cls(numbers, list(_spells(numbers)))

    def spell(self, now: float) -> str | None:
        return next((code for begin, end, code in self.bad if begin <= now < end), None)

    def good_since(self, now: float) -> bool:
        return not any(begin <= now < end + RECOVERY for begin, end, _code in self.bad)

    def __call__(self, _request: AssumeRoleRequest) -> Fault | None:
        code = self.spell(asyncio.get_running_loop().time())
        if code is None and self.numbers.random() < 0.02:
            code = self.numbers.choice(STRAY)
        return fault(code) if code else None


def _spells(numbers: random.Random) -> Iterator[tuple[float, float, str]]:
    """Two a day, from a minute to an hour and a half."""
    for day in range(DAYS):
        for half in range(2):
            begin = (2 * day + half) * 43_200 + numbers.uniform(4_000, 30_000)
            length = numbers.choice([60, 300, 1_500, 3_000, 5_400])
            yield begin, begin + length, numbers.choice(["EndpointConnectionError", "Throttling", "ExpiredToken"])


@dataclass
class Pods:
    """What the pods saw."""

    served: int = 0
    refused_in_good_weather: int = 0
    shortest: float = 3_600.0
    """Life of the shortest-lived credentials given out while STS worked."""
    dying: int = 0

    def look(self, cache: CredentialCache, role: AssumeRoleRequest, *, good: bool) -> None:
        now = EPOCH + asyncio.get_running_loop().time()
        credentials = cache.peek(role)
        if credentials is None:
            self.refused_in_good_weather += good
            return
        life = credentials.expiration - now
        self.served += 1
        self.dying += life <= SERVED_ABOVE - 1
        if good:
            self.shortest = min(self.shortest, life)


@exact_time
async def test_thirty_days_of_a_full_node() -> None:
    loop = asyncio.get_running_loop()
    weather = Weather.of(seed=20)
    sts = ScriptedSts(script=weather, delay=lambda _request: 0.0)
    roles = requests(ROLES)
    pods = Pods()
    restarts = 0
    while loop.time() < DAYS * 86_400:
        async with running(sts, seed=restarts) as cache:
            restarts += 1
            cache.want(roles)
            await cache.warm(5)
            until = loop.time() + weather.numbers.uniform(20_000, 300_000)
            await asyncio.sleep(30)
            while loop.time() < min(until, DAYS * 86_400):
                good = weather.good_since(loop.time())
                for role in roles:
                    pods.look(cache, role, good=good)
                await asyncio.sleep(LOOK)
    assert restarts > 5
    assert pods.served > DAYS * 86_400 / LOOK * ROLES * 0.9
    assert pods.shortest >= PROMISED
    assert pods.dying == 0
    assert pods.refused_in_good_weather == 0
    expected = ROLES * (loop.time() / HALF_LIFE + restarts)
    assert sum(sts.granted.values()) <= expected * 1.1
