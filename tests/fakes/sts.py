"""STS as a test scripts it: a CredentialSource in memory, with the clocks that go with it."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kube2iam.domain.arn import RoleArn
from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import TIMEOUT, Fault, StsError, fault
from kube2iam.sts.flight import StsMeter

EPOCH = 1_900_000_000
"""The wall clock at loop time 0."""


def request(role: str = "app", *, duration: int = 3600, external_id: str | None = None) -> AssumeRoleRequest:
    return AssumeRoleRequest(RoleArn("aws", "123456789012", "/", role), "node-1", duration, external_id)


def requests(count: int) -> list[AssumeRoleRequest]:
    return [request(f"role-{number}") for number in range(count)]


@dataclass
class WallClock:
    """The wall clock of the node: the loop's time plus what somebody set it to."""

    jumped: float = 0.0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def __call__(self) -> float:
        return EPOCH + self.loop.time() + self.jumped


Script = Callable[[AssumeRoleRequest], Fault | None]
"""Why a call fails, or None."""


@dataclass
class ScriptedSts:
    """Answers after `delay(request)` seconds as `script` says. AWS's own clock is never wrong."""

    delay: Callable[[AssumeRoleRequest], float] = lambda _request: 0.05
    script: Script = lambda _request: None
    clock: WallClock = field(default_factory=WallClock)
    calls: list[tuple[float, AssumeRoleRequest]] = field(default_factory=list)
    granted: Counter[AssumeRoleRequest] = field(default_factory=Counter)
    out: int = 0
    most_out: int = 0
    opened: int = 0
    key: int = 0

    async def open(self) -> None:
        self.opened += 1

    async def fetch(self, request: AssumeRoleRequest, patience: float) -> Credentials:
        loop = asyncio.get_running_loop()
        self.calls.append((loop.time(), request))
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            delay = self.delay(request)
            await asyncio.sleep(min(delay, patience))
            if delay > patience:
                raise StsError(fault(TIMEOUT))
            failure = self.script(request)
            if failure is not None:
                raise StsError(failure)
        finally:
            self.out -= 1
        self.granted[request] += 1
        self.key += 1
        now = int(EPOCH + loop.time())
        return Credentials(f"ASIA{self.key:016}", "made-up", "made-up", now + request.duration, now)

    @property
    def times(self) -> list[float]:
        """The loop's time of every call."""
        return [time for time, _request in self.calls]

    def count(self, request: AssumeRoleRequest) -> int:
        """Calls for one request, failed ones too."""
        return sum(asked == request for _time, asked in self.calls)


@asynccontextmanager
async def running(
    sts: ScriptedSts, *, chained: bool = False, seed: int = 7, error_ttl: float = 10.0, meter: StsMeter | None = None
) -> AsyncIterator[CredentialCache]:
    """A cache that runs over `sts` in the loop's own time; it is stopped at the end."""
    loop = asyncio.get_running_loop()
    spread = random.Random(seed).random
    cache = CredentialCache(
        sts,
        chained=chained,
        error_ttl=error_ttl,
        meter=meter,
        clock=sts.clock,
        monotonic=loop.time,
        spread=spread,
    )
    task = asyncio.create_task(cache.run())
    await cache.ready.wait()
    try:
        yield cache
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()
