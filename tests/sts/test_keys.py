"""The agent's own keys, with a chain that a test holds in its hand."""

import asyncio
import subprocess
import sys
import threading

import pytest

from kube2iam.domain.errors import Reason
from kube2iam.sts.errors import StsError, fault
from kube2iam.sts.keys import Keys, OwnKeys, Provider

OLD, NEW = Keys("AKIAOLD", "made-up"), Keys("AKIANEW", "made-up")


class Chain:
    """Yields `answer` as it is when asked, once `open` is set. `loads` says of each load whether it began anew."""

    def __init__(self) -> None:
        self.answer: Keys | StsError = OLD
        self.open = threading.Event()
        self.open.set()
        self.loads: list[bool] = []

    def __call__(self) -> Provider:
        """Find the source of the keys, which is slow only when it yields them."""
        anew = [True]
        return lambda: self.load(anew=anew.pop() if anew else False)

    def load(self, *, anew: bool) -> Keys:
        self.loads.append(anew)
        answer, is_open = self.answer, self.open
        assert is_open.wait(10)
        if isinstance(answer, StsError):
            raise answer
        return answer

    def hang(self) -> threading.Event:
        """What is asked from now on hangs until the event is set; what is asked after `run_on` does not."""
        self.open = threading.Event()
        return self.open

    def run_on(self) -> None:
        self.open = threading.Event()
        self.open.set()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def becomes_new(own: OwnKeys) -> None:
    """Ask until the new keys are here: while there are old ones, a load that takes long is not waited for."""
    async with asyncio.timeout(5):
        while await own.keys() == OLD:
            await asyncio.sleep(0)


async def begun(chain: Chain, loads: int) -> None:
    while len(chain.loads) < loads:
        await asyncio.sleep(0)


@pytest.fixture
def chain() -> Chain:
    return Chain()


async def test_concurrent_callers_share_one_load(chain: Chain) -> None:
    own = OwnKeys(chain)
    assert await asyncio.gather(*(own.keys() for _call in range(50))) == [OLD] * 50
    assert chain.loads == [True]
    assert await own.keys() == OLD
    assert chain.loads == [True, False], "the chain is gone through once"


async def test_a_slow_refresh_delays_nobody(chain: Chain) -> None:
    own = OwnKeys(chain)
    await own.keys()
    chain.answer = NEW
    slow = chain.hang()
    assert await own.keys() == OLD
    slow.set()
    await becomes_new(own)


async def test_a_refresh_that_was_slow_for_one_is_not_waited_for_by_the_next(chain: Chain) -> None:
    clock = Clock()
    own = OwnKeys(chain, monotonic=clock)
    await own.keys()
    slow = chain.hang()
    assert await own.keys() == OLD
    clock.now += 1
    before = asyncio.get_running_loop().time()
    assert await own.keys() == OLD
    assert asyncio.get_running_loop().time() - before < 0.2
    slow.set()


async def test_a_refresh_that_fails_takes_nothing_away(chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    own = OwnKeys(chain)
    await own.keys()
    chain.answer = StsError(fault("CredentialRetrievalError"))
    assert [await own.keys() for _call in range(3)] == [OLD] * 3
    assert chain.loads == [True, False, False, False]
    chain.answer = NEW
    await becomes_new(own)
    assert [(record.levelname, vars(record).get("sts.kept")) for record in caplog.records] == [
        ("WARNING", True),
        ("INFO", None),
    ], "each change is said once"


async def test_keys_that_aws_refuses_are_not_used_where_no_others_can_be_had(chain: Chain) -> None:
    own = OwnKeys(chain)
    await own.keys()
    chain.answer = StsError(fault("CredentialRetrievalError"))
    assert own.distrust(await own.keys())
    with pytest.raises(StsError, match="CredentialRetrievalError"):
        await own.keys()


async def test_the_first_load_is_waited_for(chain: Chain) -> None:
    chain.open.clear()
    own = OwnKeys(chain)
    waiting = asyncio.create_task(own.keys())
    await asyncio.wait({waiting}, timeout=0.01)
    assert not waiting.done()
    chain.open.set()
    assert await waiting == OLD


async def test_a_caller_that_gives_up_ends_nothing(chain: Chain) -> None:
    chain.open.clear()
    own = OwnKeys(chain)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await own.keys()
    chain.open.set()
    assert await own.keys() == OLD
    assert chain.loads[0] is True


def test_a_chain_that_hangs_delays_no_exit() -> None:
    code = """
import asyncio, contextlib, threading
from kube2iam.sts.keys import OwnKeys

async def main():
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await OwnKeys(lambda: threading.Event().wait(600)).keys()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""


async def test_failure_is_told_and_tried_again(chain: Chain) -> None:
    chain.answer = StsError(fault("NoCredentialsError"))
    own = OwnKeys(chain)
    with pytest.raises(StsError, match="NoCredentialsError"):
        await own.keys()
    chain.answer = OLD
    assert await own.keys() == OLD


async def test_distrust_loads_anew_but_not_for_every_call(chain: Chain) -> None:
    now = 100.0
    own = OwnKeys(chain, monotonic=lambda: now)
    await own.keys()
    assert own.distrust(OLD)
    assert own.distrust(OLD), "these keys are no longer in use: ask again"
    chain.answer = NEW
    assert await own.keys() == NEW
    assert chain.loads == [True, True]
    assert not own.distrust(NEW), "too soon after the last time"
    now += 6
    assert own.distrust(NEW)


async def test_what_was_begun_before_aws_refused_the_keys_does_not_count(chain: Chain) -> None:
    clock = Clock()
    own = OwnKeys(chain, monotonic=clock)
    await own.keys()
    slow = chain.hang()
    assert await own.keys() == OLD
    chain.run_on()
    chain.answer = NEW
    assert own.distrust(OLD)
    assert await own.keys() == NEW
    assert chain.loads == [True, False, True]
    slow.set()
    await ended(own)
    chain.answer = StsError(fault("CredentialRetrievalError"))
    assert await own.keys() == NEW, "what came late with the old keys is ignored"


async def test_who_waits_for_what_aws_has_refused_since_gets_the_next(chain: Chain) -> None:
    own = OwnKeys(chain)
    await own.keys()
    slow = chain.hang()
    waiting = asyncio.create_task(own.keys())
    await begun(chain, 2)
    chain.run_on()
    chain.answer = NEW
    assert own.distrust(OLD)
    assert await waiting == NEW
    slow.set()


async def ended(own: OwnKeys) -> None:
    """All threads have told what they found."""
    while own._out:
        await asyncio.sleep(0)


class TestAChainThatHangs:
    async def test_is_asked_anew_after_half_a_minute(self, chain: Chain, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        hung = chain.hang()
        own = OwnKeys(chain, monotonic=clock)
        first = asyncio.create_task(own.keys())
        await begun(chain, 1)
        chain.run_on()
        clock.now += 29
        second = asyncio.create_task(own.keys())
        await asyncio.wait({second}, timeout=0.01)
        assert len(chain.loads) == 1
        clock.now += 1
        assert await own.keys() == OLD
        assert await first == await second == OLD
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        hung.set()

    async def test_also_while_there_are_keys_from_before(self, chain: Chain) -> None:
        clock = Clock()
        own = OwnKeys(chain, monotonic=clock)
        await own.keys()
        hung = chain.hang()
        assert await own.keys() == OLD
        chain.run_on()
        chain.answer = NEW
        clock.now += 30
        await becomes_new(own)
        hung.set()

    async def test_counts_after_all_when_it_brings_keys(self, chain: Chain) -> None:
        clock = Clock()
        own = OwnKeys(chain, monotonic=clock)
        slow = chain.hang()
        first = asyncio.create_task(own.keys())
        await begun(chain, 1)
        hung = chain.hang()
        clock.now += 31
        second = asyncio.create_task(own.keys())
        await begun(chain, 2)
        slow.set()
        assert await asyncio.wait_for(own.keys(), 5) == OLD
        hung.set()
        assert [await first, await second] == [OLD, OLD]

    async def test_takes_eight_threads_and_no_more(self, chain: Chain) -> None:
        clock = Clock()
        hung = chain.hang()
        own = OwnKeys(chain, monotonic=clock)
        for _ask in range(3000):
            clock.now += 5
            asking = asyncio.create_task(own.keys())
            await asyncio.sleep(0)
            asking.cancel()
        await begun(chain, 8)
        hung.set()
        await ended(own)
        assert len(chain.loads) == 8
        assert await own.keys() == OLD

    async def test_is_said_where_no_thread_is_left(self, chain: Chain) -> None:
        own = OwnKeys(chain, threads=1)
        await own.keys()
        hung = chain.hang()
        assert own.distrust(await own.keys())
        with pytest.raises(StsError, match="does not answer") as raised:
            await own.keys()
        assert raised.value.fault.denial.reason is Reason.NODE_CREDENTIALS
        hung.set()


def test_secrets_do_not_show() -> None:
    assert "made-up" not in repr(Keys("AKIA", "made-up", "made-up"))
