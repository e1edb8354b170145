"""Session lengths that a role, or the caller, is not allowed."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from kube2iam.domain.errors import RefusedError
from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.durations import LEASE, LOOK_AGAIN, MOST_ROLES, Durations
from kube2iam.sts.errors import CHAINED, Fault, fault
from kube2iam.sts.flight import Unmetered
from kube2iam.sts.gate import CALLS
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import EPOCH, ScriptedSts, request, requests, running

TOO_LONG = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
TOO_LONG_CHAINED = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"
OF_ROLE = "STS allows shorter sessions of this role than asked for"
OF_ALL = "STS allows shorter sessions than asked for, of every role: the agent itself works with a role's session"
HALF_DAY = 43_200


def of_pod(number: int, duration: int = HALF_DAY) -> AssumeRoleRequest:
    return replace(request(duration=duration), session_name=f"pod-{number}")


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[int]:
    return [vars(record)["sts.allowed"] for record in caplog.records if record.message == message]


@dataclass
class Asked:
    """STS with one limit, asked as flights ask it: as chosen, and once more where that is too long."""

    longest: int
    chained: bool = False
    known: bool = False
    now: float = 0.0
    calls: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.durations = Durations(chained=self.known, monotonic=lambda: self.now)

    def fly(self, asked: AssumeRoleRequest) -> tuple[int, bool]:
        """One flight: the session's length, 0 if it is refused, and whether a longer one may be had."""
        for choose in (self.durations.choose, self.durations.known):
            length = choose(asked)
            answer = self.call(asked, length)
            if answer is not None:
                return length, answer
        return 0, False

    def call(self, asked: AssumeRoleRequest, length: int) -> bool | None:
        """One call: None if it is refused, else whether a longer session may be had."""
        assert length <= asked.duration
        self.calls.append(length)
        if length <= self.longest:
            return self.durations.granted(asked, length)
        self.durations.refused(asked, length, CHAINED if self.chained else 0)
        return None

    def search(self, asked: AssumeRoleRequest) -> list[int]:
        """The sessions' lengths until no longer one may be had."""
        found, longer = [], True
        while longer:
            length, longer = self.fly(asked)
            found.append(length)
            self.now += 75
        return found


class TestSearch:
    @pytest.mark.parametrize("wanted", [3660, 3700, 5399, HALF_DAY])
    @pytest.mark.parametrize("longest", [3600, 3661, 5400, 7200, 14_400, 28_800, 42_000])
    def test_the_longest_allowed_one_is_found_used_and_remembered(self, longest: int, wanted: int) -> None:
        sts, most = Asked(longest), min(wanted, longest)
        found = sts.search(request(duration=wanted))
        assert most - 60 < found[-1] <= most
        assert min(found) >= 3600
        assert len(found) <= 11
        asked = len(sts.calls)
        assert sts.fly(request(duration=wanted)) == (found[-1], False)
        assert len(sts.calls) == asked + 1

    def test_it_is_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = Asked(7200)
        for number in range(5):
            sts.search(of_pod(number))
        (allowed,) = said(caplog, OF_ROLE)
        assert 7140 < allowed <= 7200

    def test_what_is_allowed_is_asked_for_as_it_is(self) -> None:
        sts = Asked(7200)
        assert sts.search(request(duration=7200)) == [7200]
        assert sts.search(request(duration=HALF_DAY))[-1] == 7200
        assert sts.search(request(duration=900)) == [900]

    def test_a_role_that_allows_less_than_before_is_searched_anew(self) -> None:
        sts = Asked(14_400)
        sts.search(request(duration=HALF_DAY))
        sts.longest = 7200
        found = sts.search(request(duration=HALF_DAY))
        assert found[0] == 3600
        assert 7140 < found[-1] <= 7200

    @pytest.mark.parametrize("longest", [900, 1800, 3540])
    def test_a_service_that_allows_less_than_an_hour_is_understood(self, longest: int) -> None:
        sts = Asked(longest)
        assert sts.fly(request(duration=HALF_DAY)) == (0, False)
        assert longest - 60 < sts.search(request(duration=HALF_DAY))[-1] <= longest
        assert Asked(longest).search(request())[0] == 900

    def test_the_shortest_one_refused_teaches_nothing(self) -> None:
        sts = Asked(0)
        assert sts.fly(request(duration=900)) == (0, False)
        assert sts.durations.known(request(duration=900)) == 900
        sts.longest = 3600
        assert sts.search(request()) == [3600]

    def test_the_roles_that_are_remembered_have_a_bound(self) -> None:
        sts = Asked(3600)
        for asked in requests(MOST_ROLES + 5):
            sts.fly(asked)
        assert len(sts.durations._roles) == MOST_ROLES


class TestRaised:
    def test_once_a_day_a_raised_maximum_is_found(self) -> None:
        sts = Asked(7200)
        sts.search(request(duration=HALF_DAY))
        sts.longest = 28_800
        assert sts.fly(request(duration=HALF_DAY)) == (7200, False)
        sts.now += LOOK_AGAIN
        assert 28_740 < sts.search(request(duration=HALF_DAY))[-1] <= 28_800

    def test_a_look_that_sts_did_not_answer_is_made_again(self) -> None:
        sts = Asked(7200)
        sts.search(request(duration=HALF_DAY))
        sts.longest = 28_800
        sts.now += LOOK_AGAIN
        assert sts.durations.choose(request(duration=HALF_DAY)) == 7260
        assert sts.search(request(duration=HALF_DAY))[-1] > 28_740

    def test_a_maximum_that_stays_costs_one_more_call_a_day_and_is_not_said_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        sts = Asked(7200)
        sts.search(request(duration=HALF_DAY))
        begun, refreshes = len(sts.calls), 0
        for _hour in range(24 * 7):
            sts.now += 3600
            assert sts.fly(request(duration=HALF_DAY)) == (7200, False)
            refreshes += 1
        assert len(sts.calls) - begun - refreshes in {6, 7}
        assert len(said(caplog, OF_ROLE)) == 1


class TestManyOfOneRole:
    def test_one_request_searches_and_the_others_use_what_is_known(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = Asked(14_400)
        assert [sts.fly(of_pod(number)) for number in range(30)] == [(3600, True), *[(3600, False)] * 29]
        assert sts.calls == [HALF_DAY, *[3600] * 30]
        sts.search(of_pod(0))
        assert len(sts.calls) <= 31 + 20
        assert {sts.fly(of_pod(number)) for number in range(30)} == {(14_400, False)}
        assert len(said(caplog, OF_ROLE)) == 1

    def test_who_asks_for_less_than_was_refused_tries_it(self) -> None:
        sts = Asked(14_400)
        assert sts.fly(of_pod(0)) == (3600, True)
        assert sts.fly(of_pod(1, 14_000)) == (14_000, False)
        assert sts.fly(of_pod(2, 15_000)) == (14_000, False)

    def test_when_the_one_that_searches_is_gone_another_goes_on(self) -> None:
        sts = Asked(14_400)
        assert sts.fly(of_pod(0)) == (3600, True)
        assert sts.search(of_pod(1)) == [3600]
        sts.now += LEASE
        assert sts.search(of_pod(1))[-1] == 14_400


class TestChained:
    def test_the_limit_of_the_caller_is_learnt_once_for_all_roles(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = Asked(3600, chained=True)
        for number in range(50):
            assert sts.search(request(f"role-{number}", duration=HALF_DAY)) == [3600]
        assert len(sts.calls) == 51
        assert said(caplog, OF_ALL) == [3600]
        assert said(caplog, OF_ROLE) == []

    def test_where_it_is_known_it_is_never_tried(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = Asked(3600, chained=True, known=True)
        for _day in range(3):
            assert sts.search(request(duration=HALF_DAY)) == [3600]
            assert sts.search(request(duration=1800)) == [1800]
            sts.now += 2 * LOOK_AGAIN
        assert len(sts.calls) == 6
        assert said(caplog, OF_ALL) == [3600]

    def test_nothing_is_said_where_nobody_asks_for_more(self, caplog: pytest.LogCaptureFixture) -> None:
        assert Asked(3600, chained=True, known=True).fly(request()) == (3600, False)
        assert caplog.records == []

    def test_a_caller_that_is_no_role_session_any_more_is_noticed_within_a_day(self) -> None:
        sts = Asked(3600, chained=True)
        sts.fly(request(duration=HALF_DAY))
        sts.longest = HALF_DAY
        sts.now += LOOK_AGAIN
        assert sts.search(request(duration=HALF_DAY)) == [3660, HALF_DAY]

    def test_a_caller_that_stays_one_costs_a_call_a_day_whatever_the_roles(self) -> None:
        sts = Asked(3600, chained=True)
        for _day in range(3):
            for number in range(10):
                assert sts.search(request(f"role-{number}", duration=HALF_DAY)) == [3600]
            sts.now += LOOK_AGAIN
        assert len(sts.calls) == 33


Answers = Callable[[AssumeRoleRequest], Fault | None]


def allowing(longest: int, message: str = TOO_LONG) -> Answers:
    def script(asked: AssumeRoleRequest) -> Fault | None:
        return fault("ValidationError", status=400, message=message) if asked.duration > longest else None

    return script


@dataclass
class Meter(Unmetered):
    """Counts calls by what came of them."""

    codes: Counter[str] = field(default_factory=Counter)

    def fetched(self, role: str, code: str, seconds: float) -> None:
        assert role
        assert seconds < 5
        self.codes[code] += 1


def life(cache: CredentialCache, asked: AssumeRoleRequest) -> int:
    credentials = cache.peek(asked)
    assert credentials is not None
    return credentials.expiration - credentials.issued


class TestInTheCache:
    """Every call goes through the gate, counts, and is paced."""

    @exact_time
    async def test_a_pod_waits_for_two_calls_at_most(self) -> None:
        sts, meter = ScriptedSts(script=allowing(14_400), delay=lambda _request: 0.3), Meter()
        async with running(sts, meter=meter) as cache:
            loop = asyncio.get_running_loop()
            await cache.get(request(duration=HALF_DAY), loop.time() + 0.8)
            assert loop.time() == pytest.approx(0.6)
            assert meter.codes == {"ValidationError": 1, "Success": 1}
            assert cache.trouble is None

    @exact_time
    async def test_both_calls_are_within_the_rate(self) -> None:
        sts = ScriptedSts(script=allowing(14_400))
        async with running(sts) as cache:
            cache.want(request(f"role-{number}", duration=HALF_DAY) for number in range(128))
            await asyncio.sleep(1)
            assert 128 + 25 <= len(sts.calls) <= 128 + 26

    @exact_time
    async def test_any_other_refusal_is_passed_on(self) -> None:
        sts = ScriptedSts(script=lambda _request: fault("AccessDenied"))
        async with running(sts) as cache:
            with pytest.raises(RefusedError, match="AccessDenied"):
                await cache.get(request(duration=HALF_DAY), asyncio.get_running_loop().time() + 0.8)
            assert len(sts.calls) == 1

    @exact_time
    async def test_trouble_between_the_two_calls_is_borne(self) -> None:
        sts = ScriptedSts()
        faults = iter([fault("ServiceUnavailable")])
        sts.script = lambda asked: allowing(14_400)(asked) or next(faults, None)
        async with running(sts) as cache:
            await cache.get(request(duration=HALF_DAY), asyncio.get_running_loop().time() + 0.8)
            assert life(cache, request(duration=HALF_DAY)) == 3600
            assert len(sts.calls) == 4

    @exact_time
    async def test_trouble_in_the_search_costs_no_session_that_was_granted(self) -> None:
        sts, asked = ScriptedSts(script=allowing(14_400)), request(duration=HALF_DAY)
        async with running(sts) as cache:
            cache.want([asked])
            assert await cache.warm(5) == []
            sts.script = lambda asked: allowing(14_400)(asked) or fault("Throttling")
            while sts.calls[-1][0] < 60:
                await asyncio.sleep(1)
                assert cache.peek(asked) is not None
            sts.script = allowing(14_400)
            await asyncio.sleep(1800)
            assert life(cache, asked) == 14_400

    @exact_time
    async def test_the_search_takes_minutes_and_then_it_is_over(self, caplog: pytest.LogCaptureFixture) -> None:
        sts, asked = ScriptedSts(script=allowing(14_400)), request(duration=HALF_DAY)
        async with running(sts) as cache:
            cache.want([asked])
            assert await cache.warm(5) == []
            assert len(sts.calls) == 2
            await asyncio.sleep(1200)
            assert life(cache, asked) == 14_400
            begun = len(sts.calls)
            assert begun <= 22
            await asyncio.sleep(4800)
            assert len(sts.calls) == begun
        assert max(Counter(time // 60 for time in sts.times).values()) <= 2
        assert len(said(caplog, OF_ROLE)) == 1

    @exact_time
    async def test_110_roles_search_without_a_burst(self) -> None:
        sts = ScriptedSts(script=allowing(14_400))
        wanted = [request(f"role-{number}", duration=HALF_DAY) for number in range(110)]
        async with running(sts) as cache:
            cache.want(wanted)
            assert await cache.warm(10) == []
            begun = len(sts.calls)
            assert begun == 220
            await asyncio.sleep(3000)
            assert len(sts.calls) <= 110 * 22
            assert {life(cache, asked) for asked in wanted} == {14_400}
        assert max(Counter(int(time) for time in sts.times[begun:]).values()) <= 6

    @exact_time
    async def test_30_sessions_of_a_role_cost_one_search(self) -> None:
        sts = ScriptedSts(script=allowing(14_400))
        wanted = [of_pod(number) for number in range(30)]
        async with running(sts) as cache:
            cache.want(wanted)
            assert await cache.warm(5) == []
            begun = len(sts.calls)
            assert begun <= 60
            await asyncio.sleep(3600)
            assert len(sts.calls) <= begun + 20 + 30
            assert {life(cache, asked) for asked in wanted} == {14_400}

    @exact_time
    async def test_more_sessions_of_a_role_than_may_be_asked_for_at_once(self) -> None:
        """Those that are out when the first is refused are refused too; the others use what is known by then."""
        sts = ScriptedSts(script=allowing(3600))
        async with running(sts) as cache:
            cache.want(of_pod(number) for number in range(110))
            assert await cache.warm(10) == []
        assert Counter(asked.duration for _time, asked in sts.calls) == {HALF_DAY: CALLS, 3600: 110}

    @exact_time
    async def test_a_service_that_refuses_the_shortest_one_is_asked_once(self) -> None:
        sts = ScriptedSts(script=allowing(0))
        async with running(sts) as cache:
            with pytest.raises(RefusedError, match="ValidationError"):
                await cache.get(request(duration=900), asyncio.get_running_loop().time() + 0.8)
            assert len(sts.calls) == 1

    @exact_time
    async def test_where_the_length_is_allowed_nobody_asks_twice(self) -> None:
        sts = ScriptedSts()
        wanted = [of_pod(number) for number in range(30)]
        async with running(sts) as cache:
            cache.want(wanted)
            assert await cache.warm(5) == []
            assert {life(cache, asked) for asked in wanted} == {HALF_DAY}
            assert len(sts.calls) == 30

    @exact_time
    async def test_a_chained_agent_never_tries(self) -> None:
        sts = ScriptedSts(script=allowing(3600, TOO_LONG_CHAINED))
        async with running(sts, chained=True) as cache:
            await cache.get(request(duration=HALF_DAY), asyncio.get_running_loop().time() + 0.8)
            assert len(sts.calls) == 1

    @exact_time
    async def test_who_asked_once_keeps_the_session_that_was_found_by_then(self) -> None:
        sts, asked = ScriptedSts(script=allowing(14_400)), request(duration=HALF_DAY)
        async with running(sts) as cache:
            await cache.get(asked, asyncio.get_running_loop().time() + 0.8)
            await asyncio.sleep(1200)
            credentials = cache.peek(asked)
            assert credentials is not None
            assert credentials.expiration - EPOCH > 1800
            assert len(sts.calls) <= 8
