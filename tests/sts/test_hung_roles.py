"""Roles for which STS never answers, while it does for all others: their trouble is nobody else's."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from kube2iam.domain.errors import Reason, RefusedError
from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import Fault, fault
from kube2iam.sts.freshness import PROMISED
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import EPOCH, ScriptedSts, request, requests, running

HOLD = 0.8
FOR_EVER = 60.0


def now() -> float:
    return asyncio.get_running_loop().time()


def hung(count: int) -> list[AssumeRoleRequest]:
    return [request(f"hung-{number}") for number in range(count)]


def sts_that_hangs_for(roles: list[AssumeRoleRequest]) -> ScriptedSts:
    return ScriptedSts(delay=lambda asked: FOR_EVER if asked in roles else 0.1)


@dataclass
class Pod:
    """What a pod that asks again and again was given."""

    lives: list[float] = field(default_factory=list)
    refusals: list[Reason] = field(default_factory=list)

    async def ask(self, cache: CredentialCache, role: AssumeRoleRequest, every: float) -> None:
        while True:
            try:
                given = await cache.get(role, now() + HOLD)
            except RefusedError as error:
                self.refusals.append(error.denial.reason)
            else:
                self.lives.append(given.expiration - EPOCH - now())
            await asyncio.sleep(every)


@asynccontextmanager
async def asking(cache: CredentialCache, roles: list[AssumeRoleRequest], every: float) -> AsyncIterator[list[Pod]]:
    """A pod of each role that asks `every` so many seconds."""
    pods = [Pod() for _role in roles]
    tasks = [asyncio.create_task(pod.ask(cache, role, every)) for pod, role in zip(pods, roles, strict=True)]
    try:
        yield pods
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)


@pytest.mark.parametrize("count", [1, 4, 5, 8])
@exact_time
async def test_they_keep_no_other_role_from_being_refreshed_nor_are_they_the_fault_of_sts(count: int) -> None:
    bad, good = hung(count), requests(20)
    sts = sts_that_hangs_for(bad)
    async with running(sts) as cache:
        cache.want(bad + good)
        async with asking(cache, bad, 1.0), asking(cache, good, 300.0) as pods:
            await asyncio.sleep(3600)
            for _look in range(3600):
                await asyncio.sleep(1)
                assert cache.trouble is None, "once half of the roles were refreshed, it is clear whose trouble it is"
        assert [pod.refusals for pod in pods] == [[]] * 20
        assert min(min(pod.lives) for pod in pods) >= PROMISED


@exact_time
async def test_a_new_role_is_served_at_once_beside_200_of_them() -> None:
    sts = sts_that_hangs_for(hung(200))
    async with running(sts) as cache:
        cache.want(hung(200))
        await asyncio.sleep(8)
        for role in requests(100):
            begun = now()
            await cache.get(role, begun + HOLD)
            assert now() - begun < 0.2
            await asyncio.sleep(1)


@pytest.mark.parametrize("count", [3, 4])
@exact_time
async def test_after_an_outage_everyone_else_is_back_within_15_seconds(count: int) -> None:
    bad, good = hung(count), requests(110)
    sts = sts_that_hangs_for(bad)
    async with running(sts) as cache:
        cache.want(bad + good)
        async with asking(cache, bad + good, 3.0):
            await asyncio.sleep(1800)
            sts.script = lambda _request: fault("ServiceUnavailable")
            await asyncio.sleep(65 * 60)
            assert not any(cache.peek(role) for role in good)
            sts.script = lambda _request: None
            await asyncio.sleep(15)
            assert all(cache.peek(role) for role in good)


@pytest.mark.parametrize(
    ("code", "reason"),
    [("ServiceUnavailable", Reason.STS_UNAVAILABLE), ("ExpiredToken", Reason.NODE_CREDENTIALS)],
)
@pytest.mark.parametrize("lucky", [1, 5])
@exact_time
async def test_lucky_answers_in_an_outage_do_not_hide_it(code: str, reason: Reason, lucky: int) -> None:
    answered = 0

    def script(_request: AssumeRoleRequest) -> Fault | None:
        nonlocal answered
        if now() > 70 * 60 and answered < lucky:
            answered += 1
            return None
        return fault(code)

    sts = ScriptedSts()
    async with running(sts) as cache:
        cache.want(requests(110))
        await cache.warm(5)
        sts.script = script
        await asyncio.sleep(80 * 60)
        assert answered == lucky
        assert cache.trouble is not None
        assert cache.trouble.reason is reason
        begun = len(sts.calls)
        await asyncio.sleep(600)
        assert len(sts.calls) - begun <= 150, "a probe every four to six seconds"


@exact_time
async def test_refused_renewals_do_not_delay_the_others() -> None:
    roles = requests(250)
    refused, healthy = set(roles[:200]), roles[200:]
    numbers = random.Random(5)
    sts = ScriptedSts()

    def script(asked: AssumeRoleRequest) -> Fault | None:
        if asked in refused:
            return fault("AccessDenied")
        return fault("ServiceUnavailable") if numbers.random() < 0.05 else None

    async with running(sts) as cache:
        cache.want(roles)
        await cache.warm(20)
        sts.script = script
        for _look in range(2000):
            await asyncio.sleep(7)
            given = [cache.peek(role) for role in healthy]
            assert all(one and one.expiration - EPOCH - now() >= PROMISED for one in given)


@pytest.mark.parametrize("minutes", [36, 44])
@exact_time
async def test_soon_after_a_long_outage_everyone_has_the_promised_life_again(minutes: int) -> None:
    roles = requests(110)
    sts = ScriptedSts()
    async with running(sts) as cache:
        cache.want(roles)
        await cache.warm(5)
        sts.script = lambda _request: fault("EndpointConnectionError")
        await asyncio.sleep(minutes * 60)
        assert all(cache.peek(role) for role in roles)
        sts.script = lambda _request: None
        begun = len(sts.calls)
        await asyncio.sleep(40)
        given = [cache.peek(role) for role in roles]
        assert all(one and one.expiration - EPOCH - now() >= PROMISED for one in given)
        assert len(sts.calls) - begun <= 115
        assert max(_in_one_second(sts.times[begun:])) <= 7


def _in_one_second(times: list[float]) -> list[int]:
    return [sum(begin <= time < begin + 1 for time in times) for begin in times]
