"""The agent's own keys, with a chain that a test holds in its hand."""

import asyncio
import subprocess
import sys
import threading

import pytest

from kube2iam.sts.errors import StsError, fault
from kube2iam.sts.keys import Keys, OwnKeys

OLD, NEW = Keys("AKIAOLD", "made-up"), Keys("AKIANEW", "made-up")


class Chain:
    """Yields `answer` when the gate is open."""

    def __init__(self) -> None:
        self.answer: Keys | StsError = OLD
        self.open = threading.Event()
        self.open.set()
        self.loads: list[bool] = []

    def __call__(self, anew: bool) -> Keys:
        self.loads.append(anew)
        assert self.open.wait(10)
        if isinstance(self.answer, StsError):
            raise self.answer
        return self.answer


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
    chain.open.clear()
    assert await own.keys() == OLD
    chain.open.set()
    while await own.keys() == OLD:
        await asyncio.sleep(0)


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
            await OwnKeys(lambda anew: threading.Event().wait(600)).keys()

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


def test_secrets_do_not_show() -> None:
    assert "made-up" not in repr(Keys("AKIA", "made-up", "made-up"))
