"""Who is served in which turn of the loop."""

import asyncio
from functools import partial

from kube2iam.imds.turns import _NEXT_SHARE, _SHARE, Turns


async def turn() -> None:
    await asyncio.sleep(0)


async def test_a_party_has_a_share_of_a_turn_and_others_theirs() -> None:
    turns = Turns()
    assert [turns.take("greedy") for _ in range(_SHARE + 5)] == [True] * _SHARE + [False] * 5
    assert turns.take("other")
    await turn()
    assert turns.take("greedy")


async def test_what_waits_is_served_later_in_order_and_leaves_room() -> None:
    turns, served = Turns(), list[int]()
    while turns.take("greedy"):
        pass
    for number in range(2 * _NEXT_SHARE + 1):
        turns.wait("greedy", partial(served.append, number))
    for count in (_NEXT_SHARE, 2 * _NEXT_SHARE):
        await turn()
        assert served == list(range(count))
        assert not turns.take("greedy")
        assert turns.take("other")
    await turn()
    assert len(served) == 2 * _NEXT_SHARE + 1
    assert turns.take("greedy")


async def test_a_step_may_wait_again() -> None:
    turns, served = Turns(), list[str]()

    def step() -> None:
        served.append("x")
        if len(served) < 100:
            turns.wait("greedy", step)

    turns.wait("greedy", step)
    turns.wait("other", partial(served.append, "other"))
    await turn()
    assert served == ["x"] * _NEXT_SHARE + ["other"]
    for _ in range(100):
        await turn()
    assert len(served) == 100
    assert turns._waiting == {}


async def test_nothing_is_kept_of_parties_that_went() -> None:
    turns = Turns()
    for number in range(100):
        turns.take(str(number))
    turns.forget()
    assert turns._had == {}


async def test_a_new_turn_begins_afresh_unless_somebody_waits() -> None:
    turns, served = Turns(), list[str]()
    for _ in range(3):
        assert all(turns.take("busy") for _ in range(_SHARE))
        turns.end()
    while turns.take("busy"):
        pass
    turns.wait("busy", partial(served.append, "late"))
    turns.end()
    assert not turns.take("busy")
    await turn()
    assert served == ["late"]
