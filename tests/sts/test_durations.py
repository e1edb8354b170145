"""Session lengths that a role, or the caller, is not allowed."""

import asyncio
from collections import Counter
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import pytest

from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.durations import LEASE, LOOK_AGAIN, MOST_ROLES, FittedDurations
from kube2iam.sts.errors import Fault, StsError, fault
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import EPOCH, ScriptedSts, request, running

TOO_LONG = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
CHAINED = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"
OF_ROLE = "STS allows shorter sessions of this role than asked for"
OF_ALL = "STS allows shorter sessions than asked for, of every role: the agent itself works with a role's session"
HALF_DAY = 43_200


def allows(longest: int, message: str = TOO_LONG) -> ScriptedSts:
    def script(asked: AssumeRoleRequest) -> Fault | None:
        return fault("ValidationError", status=400, message=message) if asked.duration > longest else None

    return ScriptedSts(script=script, delay=lambda _request: 0.02)


def fitted(sts: ScriptedSts, *, chained: bool = False) -> FittedDurations:
    return FittedDurations(sts, chained=chained, monotonic=asyncio.get_running_loop().time)


async def life(source: FittedDurations, asked: AssumeRoleRequest) -> int:
    credentials = await source.fetch(asked, 5)
    return credentials.expiration - credentials.issued


async def lives(source: FittedDurations, asked: AssumeRoleRequest) -> list[int]:
    """The life of each session until no longer one may be had."""
    found = []
    while True:
        credentials = await source.fetch(asked, 5)
        found.append(credentials.expiration - credentials.issued)
        if not credentials.provisional:
            return found


def of_pod(number: int, duration: int = HALF_DAY) -> AssumeRoleRequest:
    return replace(request(duration=duration), session_name=f"pod-{number}")


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[int]:
    return [vars(record)["sts.allowed"] for record in caplog.records if record.message == message]


def fitted_cache(sts: ScriptedSts, *, chained: bool = False) -> AbstractAsyncContextManager[CredentialCache]:
    return running(sts, through=fitted(sts, chained=chained))


class TestSearch:
    @pytest.mark.parametrize("wanted", [3660, 3700, 5399, HALF_DAY])
    @pytest.mark.parametrize("longest", [3600, 3661, 5400, 7200, 14_400, 28_800, 42_000])
    @exact_time
    async def test_the_longest_allowed_one_is_found_used_and_remembered(self, longest: int, wanted: int) -> None:
        sts, most = allows(longest), min(wanted, longest)
        source = fitted(sts)
        found = await lives(source, request(duration=wanted))
        assert most - 60 < found[-1] <= most
        assert min(found) >= 3600
        assert len(found) <= 11
        assert len(sts.calls) <= 2 * len(found)
        asked = len(sts.calls)
        assert await life(source, request(duration=wanted)) == found[-1]
        assert len(sts.calls) == asked + 1

    @exact_time
    async def test_a_flight_is_two_calls_at_most_and_they_share_its_patience(self) -> None:
        sts, patience = allows(14_400), []
        fetch = sts.fetch

        async def note(asked: AssumeRoleRequest, seconds: float) -> object:
            patience.append(round(seconds, 2))
            return await fetch(asked, seconds)

        sts.fetch = note  # type: ignore[method-assign,assignment]
        sts.delay = lambda _request: 2.0
        source = fitted(sts)
        await source.fetch(request(duration=HALF_DAY), 5)
        assert patience == [5.0, 3.0]
        for _refresh in range(12):
            before = len(sts.calls)
            await source.fetch(request(duration=HALF_DAY), 5)
            assert len(sts.calls) - before <= 2

    @exact_time
    async def test_it_is_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        source = fitted(allows(7200))
        for number in range(5):
            await lives(source, of_pod(number))
        (allowed,) = said(caplog, OF_ROLE)
        assert 7140 < allowed <= 7200

    @exact_time
    async def test_what_is_allowed_is_asked_for_as_it_is(self) -> None:
        sts = allows(7200)
        source = fitted(sts)
        assert await lives(source, request(duration=7200)) == [7200]
        assert (await lives(source, request(duration=HALF_DAY)))[-1] == 7200
        assert await lives(source, request(duration=900)) == [900]

    @exact_time
    async def test_a_role_that_allows_less_than_before_is_searched_anew(self) -> None:
        sts = allows(14_400)
        source = fitted(sts)
        await lives(source, request(duration=HALF_DAY))
        sts.script = allows(7200).script
        assert 7140 < (await lives(source, request(duration=HALF_DAY)))[-1] <= 7200

    @pytest.mark.parametrize("longest", [900, 1800, 3540])
    @exact_time
    async def test_a_service_that_allows_less_than_an_hour_is_understood(self, longest: int) -> None:
        source = fitted(allows(longest))
        with pytest.raises(StsError, match="ValidationError"):
            await source.fetch(request(duration=HALF_DAY), 5)
        assert longest - 60 < (await lives(source, request(duration=HALF_DAY)))[-1] <= longest
        assert (await lives(fitted(allows(longest)), request()))[0] == 900

    @exact_time
    async def test_the_roles_that_are_remembered_have_a_bound(self) -> None:
        source = fitted(allows(3600))
        for number in range(MOST_ROLES + 5):
            await life(source, request(f"role-{number}"))
        assert len(source._roles) == MOST_ROLES


class TestRaised:
    @exact_time
    async def test_once_a_day_a_raised_maximum_is_found(self) -> None:
        sts = allows(7200)
        source = fitted(sts)
        await lives(source, request(duration=HALF_DAY))
        sts.script = allows(28_800).script
        assert await life(source, request(duration=HALF_DAY)) == 7200
        await asyncio.sleep(LOOK_AGAIN)
        assert 28_740 < (await lives(source, request(duration=HALF_DAY)))[-1] <= 28_800

    @exact_time
    async def test_a_look_that_sts_did_not_answer_is_made_again(self) -> None:
        sts = allows(7200)
        source = fitted(sts)
        await lives(source, request(duration=HALF_DAY))
        await asyncio.sleep(LOOK_AGAIN)
        sts.script = lambda _request: fault("Throttling")
        with pytest.raises(StsError):
            await source.fetch(request(duration=HALF_DAY), 5)
        sts.script = allows(28_800).script
        assert (await lives(source, request(duration=HALF_DAY)))[-1] > 28_740

    @exact_time
    async def test_a_maximum_that_stays_costs_one_more_call_a_day_and_is_not_said_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        sts = allows(7200)
        source = fitted(sts)
        await lives(source, request(duration=HALF_DAY))
        begun, refreshes = len(sts.calls), 0
        for _hour in range(24 * 7):
            await asyncio.sleep(3600)
            assert len(await lives(source, request(duration=HALF_DAY))) == 1
            refreshes += 1
        assert len(sts.calls) - begun - refreshes in {6, 7}
        assert len(said(caplog, OF_ROLE)) == 1


class TestManyOfOneRole:
    @exact_time
    async def test_one_request_tries_and_the_others_use_what_is_known(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = allows(14_400)
        source = fitted(sts)
        await asyncio.gather(*(life(source, of_pod(number)) for number in range(30)))
        assert len(sts.calls) == 31
        await lives(source, of_pod(0))
        assert len(sts.calls) <= 31 + 20
        assert {await life(source, of_pod(number)) for number in range(30)} == {14_400}
        assert len(said(caplog, OF_ROLE)) == 1

    @exact_time
    async def test_where_the_length_is_allowed_nobody_asks_twice(self) -> None:
        sts = allows(HALF_DAY)
        source = fitted(sts)
        found = await asyncio.gather(*(life(source, of_pod(number)) for number in range(30)))
        assert set(found) == {HALF_DAY}
        assert len(sts.calls) == 30

    @exact_time
    async def test_who_waits_for_the_first_one_waits_no_longer_than_half_its_time(self) -> None:
        sts = allows(14_400)
        sts.delay = lambda asked: 4.0 if asked.duration == HALF_DAY else 0.1
        source = fitted(sts)
        first = asyncio.create_task(life(source, of_pod(0)))
        await asyncio.sleep(0)
        assert await life(source, of_pod(1)) == 3600
        assert asyncio.get_running_loop().time() == pytest.approx(2.6)
        assert await first == 3600

    @exact_time
    async def test_when_the_one_that_searches_is_gone_another_goes_on(self) -> None:
        source = fitted(allows(14_400))
        await life(source, of_pod(0))
        assert await lives(source, of_pod(1)) == [3600]
        await asyncio.sleep(LEASE)
        assert (await lives(source, of_pod(1)))[-1] == 14_400

    @exact_time
    async def test_a_first_try_that_is_given_up_holds_nobody(self) -> None:
        sts = allows(HALF_DAY)
        sts.delay = lambda asked: 60.0 if asked.session_name == "pod-0" else 0.1
        source = fitted(sts)
        first = asyncio.create_task(life(source, of_pod(0)))
        await asyncio.sleep(0.5)
        first.cancel()
        assert await life(source, of_pod(1)) == HALF_DAY
        assert asyncio.get_running_loop().time() == pytest.approx(0.6)


class TestChained:
    @exact_time
    async def test_the_limit_of_the_caller_is_learnt_once_for_all_roles(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = allows(3600, CHAINED)
        source = fitted(sts)
        for number in range(50):
            assert await lives(source, request(f"role-{number}", duration=HALF_DAY)) == [3600]
        assert len(sts.calls) == 51
        assert said(caplog, OF_ALL) == [3600]
        assert said(caplog, OF_ROLE) == []

    @exact_time
    async def test_where_it_is_known_it_is_never_tried(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = allows(3600, CHAINED)
        source = fitted(sts, chained=True)
        for _day in range(3):
            assert await lives(source, request(duration=HALF_DAY)) == [3600]
            assert await lives(source, request(duration=1800)) == [1800]
            await asyncio.sleep(2 * LOOK_AGAIN)
        assert len(sts.calls) == 6
        assert said(caplog, OF_ALL) == [3600]

    @exact_time
    async def test_nothing_is_said_where_nobody_asks_for_more(self, caplog: pytest.LogCaptureFixture) -> None:
        await life(fitted(allows(3600, CHAINED), chained=True), request())
        assert caplog.records == []

    @exact_time
    async def test_a_caller_that_is_no_role_session_any_more_is_noticed_within_a_day(self) -> None:
        sts = allows(3600, CHAINED)
        source = fitted(sts)
        await life(source, request(duration=HALF_DAY))
        sts.script = allows(HALF_DAY).script
        await asyncio.sleep(LOOK_AGAIN)
        assert await lives(source, request(duration=HALF_DAY)) == [3660, HALF_DAY]

    @exact_time
    async def test_a_caller_that_stays_one_costs_a_call_a_day_whatever_the_roles(self) -> None:
        sts = allows(3600, CHAINED)
        source = fitted(sts)
        for _day in range(3):
            for number in range(10):
                assert await lives(source, request(f"role-{number}", duration=HALF_DAY)) == [3600]
            await asyncio.sleep(LOOK_AGAIN)
        assert len(sts.calls) == 33


class TestTrouble:
    @exact_time
    async def test_any_other_refusal_is_passed_on(self) -> None:
        source = fitted(ScriptedSts(script=lambda _request: fault("AccessDenied")))
        with pytest.raises(StsError, match="AccessDenied"):
            await source.fetch(request(duration=HALF_DAY), 5)

    @exact_time
    async def test_trouble_in_the_middle_costs_no_session_that_was_granted(self) -> None:
        sts = allows(14_400)
        refuse = sts.script
        async with fitted_cache(sts) as cache:
            asked = request(duration=HALF_DAY)
            cache.want([asked])
            assert await cache.warm(5) == []
            sts.script = lambda asked: refuse(asked) or fault("Throttling")
            while sts.calls[-1][0] < 60:
                await asyncio.sleep(1)
                assert cache.peek(asked) is not None
            sts.script = refuse
            await asyncio.sleep(1800)
            credentials = cache.peek(asked)
            assert credentials is not None
            assert credentials.expiration - credentials.issued == 14_400


class TestInTheCache:
    """The search as the gate sees it: every flight is paced, and a second call is the most that it hides."""

    @exact_time
    async def test_the_search_takes_minutes_and_then_it_is_over(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = allows(14_400)
        asked = request(duration=HALF_DAY)
        async with fitted_cache(sts) as cache:
            cache.want([asked])
            assert await cache.warm(5) == []
            assert len(sts.calls) == 2
            await asyncio.sleep(1200)
            credentials = cache.peek(asked)
            assert credentials is not None
            assert credentials.expiration - credentials.issued == 14_400
            begun = len(sts.calls)
            assert begun <= 22
            await asyncio.sleep(4800)
            assert len(sts.calls) == begun
        assert max(Counter(time // 60 for time in sts.times).values()) <= 2
        assert len(said(caplog, OF_ROLE)) == 1

    @exact_time
    async def test_110_roles_search_without_a_burst(self) -> None:
        sts = allows(14_400)
        wanted = [request(f"role-{number}", duration=HALF_DAY) for number in range(110)]
        async with fitted_cache(sts) as cache:
            cache.want(wanted)
            assert await cache.warm(5) == []
            begun = len(sts.calls)
            assert begun == 220
            await asyncio.sleep(3000)
            assert len(sts.calls) <= 110 * 22
            for asked in wanted:
                credentials = cache.peek(asked)
                assert credentials is not None
                assert credentials.expiration - credentials.issued == 14_400
        assert max(Counter(int(time) for time in sts.times[begun:]).values()) <= 6

    @exact_time
    async def test_30_sessions_of_a_role_cost_one_search(self) -> None:
        sts = allows(14_400)
        wanted = [of_pod(number) for number in range(30)]
        async with fitted_cache(sts) as cache:
            cache.want(wanted)
            assert await cache.warm(5) == []
            assert len(sts.calls) == 31
            await asyncio.sleep(3600)
            assert len(sts.calls) <= 31 + 20 + 30
            for asked in wanted:
                credentials = cache.peek(asked)
                assert credentials is not None
                assert credentials.expiration - credentials.issued == 14_400

    @exact_time
    async def test_who_asked_once_keeps_the_session_that_was_found_by_then(self) -> None:
        sts = allows(14_400)
        asked = request(duration=HALF_DAY)
        async with fitted_cache(sts) as cache:
            await cache.get(asked, asyncio.get_running_loop().time() + 0.8)
            await asyncio.sleep(1200)
            credentials = cache.peek(asked)
            assert credentials is not None
            assert credentials.expiration - EPOCH > 1800
            assert len(sts.calls) <= 8
