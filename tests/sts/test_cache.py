"""The cache in the loop's own time: one flight, freshness, errors, outages, clocks, who goes first."""

import asyncio
import random
from collections import Counter

import pytest

from kube2iam.admin.metrics import Metrics
from kube2iam.domain.errors import Reason, RefusedError
from kube2iam.domain.roles import AssumeRoleRequest, Credentials
from kube2iam.sts.cache import CredentialCache
from kube2iam.sts.errors import Fault, fault
from kube2iam.sts.freshness import PROMISED
from kube2iam.sts.gate import CALLS, LONG_CALLS
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import EPOCH, ScriptedSts, request, requests, running

HOLD = 0.8
APP = request()


async def ask(cache: CredentialCache, asked: AssumeRoleRequest = APP, *, hold: float = HOLD) -> Credentials:
    return await cache.get(asked, asyncio.get_running_loop().time() + hold)


async def reason(cache: CredentialCache, asked: AssumeRoleRequest = APP, *, hold: float = HOLD) -> Reason:
    with pytest.raises(RefusedError) as refusal:
        await ask(cache, asked, hold=hold)
    return refusal.value.denial.reason


def now() -> float:
    return asyncio.get_running_loop().time()


class TestOneFlight:
    @exact_time
    async def test_a_herd_on_one_role_is_one_call(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            given = await asyncio.gather(*(ask(cache) for _ in range(500)))
        assert len(sts.calls) == 1
        assert len({credentials.access_key_id for credentials in given}) == 1

    @exact_time
    async def test_whatever_changes_the_answer_is_another_call(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            one = await ask(cache, request(external_id="one"))
            two = await ask(cache, request(external_id="two"))
        assert one.access_key_id != two.access_key_id
        assert len(sts.calls) == 2

    @exact_time
    async def test_a_caller_that_hangs_up_cancels_only_itself(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 0.5)
        async with running(sts) as cache:
            first = asyncio.create_task(ask(cache))
            other = asyncio.create_task(ask(cache))
            await asyncio.sleep(0.1)
            first.cancel()
            assert (await other).access_key_id
        assert len(sts.calls) == 1

    @exact_time
    async def test_what_comes_after_the_deadline_serves_the_next_request(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 1.5)
        async with running(sts) as cache:
            cache.start(APP)
            assert await reason(cache) is Reason.STS_PENDING
            assert now() == pytest.approx(0.8)
            await ask(cache)
            assert now() == pytest.approx(1.5)
        assert len(sts.calls) == 1

    @exact_time
    async def test_nothing_goes_out_before_the_source_is_open(self) -> None:
        sts = ScriptedSts()
        cache = CredentialCache(sts, clock=sts.clock, monotonic=asyncio.get_running_loop().time)
        assert await reason(cache) is Reason.STS_PENDING
        assert sts.calls == []
        task = asyncio.create_task(cache.run())
        assert (await ask(cache)).token
        task.cancel()
        await asyncio.wait({task})

    @exact_time
    async def test_no_secret_shows_in_any_representation(self) -> None:
        async with running(ScriptedSts()) as cache:
            credentials = await ask(cache)
            assert "made-up" not in repr((credentials, cache.entries()))


class TestFreshness:
    @exact_time
    async def test_110_roles_that_began_together_are_never_refreshed_in_one_second(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want(requests(110))
            assert await cache.warm(5) == []
            begun = len(sts.calls)
            await asyncio.sleep(4 * 3600)
        refreshes = Counter(int(time) for time in sts.times[begun:])
        assert begun == 110
        assert max(refreshes.values()) <= 2
        assert 7 * 110 <= len(sts.calls) - begun <= 9 * 110

    @exact_time
    async def test_whatever_is_given_has_25_minutes_left(self) -> None:
        async with running(ScriptedSts()) as cache:
            cache.want([APP])
            await cache.warm(5)
            for _minute in range(600):
                credentials = cache.peek(APP)
                assert credentials is not None
                assert credentials.expiration - EPOCH - now() >= PROMISED
                await asyncio.sleep(60)

    @exact_time
    async def test_a_role_that_cannot_reach_25_minutes_is_named_once(self, caplog: pytest.LogCaptureFixture) -> None:
        async with running(ScriptedSts()) as cache:
            cache.want([request(duration=900), APP])
            await asyncio.sleep(3600)
        (said,) = [vars(record) for record in caplog.records if "too short for SDKs" in record.message]
        assert said["sts.duration"] == 900

    @exact_time
    async def test_given_a_session_ttl_it_is_refreshed_then(self) -> None:
        """`--iam-role-session-ttl 15m` asks for twice that, so half of the life is the TTL."""
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want([request(duration=1800)])
            await asyncio.sleep(0.9 * 900)
            assert len(sts.calls) == 1
            await asyncio.sleep(0.21 * 900)
            assert len(sts.calls) == 2

    @exact_time
    async def test_a_refresh_blocks_nobody(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want([APP])
            await cache.warm(5)
            sts.delay = lambda _request: 5.0
            while len(sts.calls) == 1:
                await asyncio.sleep(0.5)
            assert cache.in_flight == 1
            assert cache.peek(APP) is not None

    @exact_time
    async def test_credentials_are_served_until_a_minute_before_their_end(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want([APP])
            await cache.warm(5)
            sts.script = lambda _request: fault("ServiceUnavailable")
            await asyncio.sleep(3539 - now())
            assert cache.peek(APP) is not None
            await asyncio.sleep(2)
            assert cache.peek(APP) is None
            assert await reason(cache) is Reason.STS_UNAVAILABLE

    @exact_time
    async def test_what_stopped_being_allowed_is_served_while_it_lives(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want([APP])
            await cache.warm(5)
            sts.script = lambda _request: fault("AccessDenied")
            await asyncio.sleep(3000)
            assert (await ask(cache)).token
            assert len(sts.calls) <= 1 + 3000 / 60
            await asyncio.sleep(600)
            assert await reason(cache) is Reason.STS_REFUSED


class TestUse:
    @exact_time
    async def test_without_prefetch_a_role_that_is_used_stays_fresh(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            for _ask in range(20):
                credentials = await ask(cache)
                assert credentials.expiration - EPOCH - now() >= PROMISED
                await asyncio.sleep(1500)
        assert len(sts.calls) <= 1.1 * 20 * 1500 / 1800 + 2

    @exact_time
    async def test_without_prefetch_a_role_that_nobody_asks_for_again_is_dropped_when_a_refresh_is_due(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            await ask(cache)
            await asyncio.sleep(2 * 3600)
            assert cache.entries() == []
        assert len(sts.calls) == 2, "one refresh, for the pod that asked; then nobody had asked"

    @exact_time
    async def test_what_the_last_pod_left_is_kept_for_the_next_job_and_then_dropped(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want([APP])
            await cache.warm(5)
            cache.want([])
            await asyncio.sleep(240)
            cache.want([APP])
            assert cache.peek(APP) is not None
            cache.want([])
            await asyncio.sleep(400)
            assert cache.entries() == []
            await asyncio.sleep(7200)
        assert len(sts.calls) == 1

    @exact_time
    async def test_what_nobody_uses_is_not_refreshed_even_if_its_half_life_comes_first(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want([APP])
            await asyncio.sleep(1600)
            cache.want([])
            await asyncio.sleep(7200)
            assert cache.entries() == []
        assert len(sts.calls) == 1

    @exact_time
    async def test_a_pod_that_prefetch_does_not_know_yet_keeps_its_request_alive(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            for _minute in range(90):
                cache.want([request("other")])
                assert (await ask(cache)).token
                await asyncio.sleep(60)
        assert sts.count(APP) == 4

    @exact_time
    async def test_a_flight_that_waits_for_its_turn_is_withdrawn_when_nobody_wants_it(self) -> None:
        sts = ScriptedSts(script=lambda _request: fault("EndpointConnectionError"))
        async with running(sts) as cache:
            cache.want(requests(50))
            await asyncio.sleep(60)
            cache.want([])
            await asyncio.sleep(400)
            assert cache.entries() == []
            calls = len(sts.calls)
            await asyncio.sleep(3600)
        assert len(sts.calls) == calls

    @exact_time
    async def test_warming_says_what_is_missing_and_does_not_wait_for_what_is_refused(self) -> None:
        sts = ScriptedSts(delay=lambda asked: 60 if asked == request("role-7") else 0.1)
        sts.script = lambda asked: fault("AccessDenied") if asked == request("role-3") else None
        async with running(sts) as cache:
            cache.want(requests(110))
            assert await cache.warm(5) == [request("role-7")]
            assert now() == pytest.approx(5)
            sts.delay = lambda _request: 0.1
            assert await cache.warm(60) == []


class TestErrors:
    @exact_time
    async def test_a_permanent_error_is_remembered_for_its_time_growing_to_a_minute(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 0.0, script=lambda _request: fault("AccessDenied"))
        async with running(sts) as cache:
            for _ask in range(400):
                assert await reason(cache) is Reason.STS_REFUSED
                await asyncio.sleep(1)
        gaps = [round(later - earlier) for earlier, later in zip(sts.times, sts.times[1:], strict=False)]
        assert gaps[:6] == pytest.approx([10, 20, 40, 60, 60, 60], abs=1)

    @exact_time
    async def test_a_ttl_of_zero_remembers_nothing(self) -> None:
        sts = ScriptedSts(script=lambda _request: fault("AccessDenied"))
        async with running(sts, error_ttl=0) as cache:
            for _ask in range(5):
                assert await reason(cache) is Reason.STS_REFUSED
        assert len(sts.calls) == 5

    @exact_time
    async def test_a_changed_request_ends_the_memory(self) -> None:
        sts = ScriptedSts(script=lambda asked: None if asked.external_id else fault("AccessDenied"))
        async with running(sts) as cache:
            assert await reason(cache) is Reason.STS_REFUSED
            assert (await ask(cache, request(external_id="right"))).token

    @exact_time
    async def test_a_transient_error_is_remembered_for_ten_seconds_at_most(self) -> None:
        sts = ScriptedSts(script=lambda _request: fault("InternalFailure"))
        async with running(sts) as cache:
            for _ask in range(3000):
                assert await reason(cache) is Reason.STS_UNAVAILABLE
                await asyncio.sleep(0.1)
        flights = [later - earlier for earlier, later in zip(sts.times, sts.times[1:], strict=False)]
        assert max(flights) <= 10.2
        assert len(sts.calls) < 3 * 300 / 7

    @exact_time
    async def test_one_stray_fault_is_not_seen_by_the_pod_that_waits(self) -> None:
        sts = ScriptedSts()
        sts.script = lambda _request: fault("ServiceUnavailable") if len(sts.calls) == 1 else None
        async with running(sts) as cache:
            assert (await ask(cache)).token
        assert len(sts.calls) == 2

    @exact_time
    async def test_the_nodes_own_trouble_is_named_as_such(self, caplog: pytest.LogCaptureFixture) -> None:
        sts = ScriptedSts(script=lambda _request: fault("ExpiredToken"))
        async with running(sts) as cache:
            cache.want(requests(10))
            await asyncio.sleep(1)
            assert await reason(cache, request("role-1")) is Reason.NODE_CREDENTIALS
            assert cache.trouble is not None
            assert cache.trouble.reason is Reason.NODE_CREDENTIALS
            sts.script = lambda _request: None
            await asyncio.sleep(15)
            assert cache.trouble is None
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("ERROR", "the agent's own credentials cannot be used")
        ]

    @exact_time
    async def test_the_nodes_own_trouble_is_named_where_one_role_is_all_there_is(self) -> None:
        sts = ScriptedSts(script=lambda _request: fault("ExpiredToken"))
        async with running(sts) as cache:
            cache.want([APP])
            await asyncio.sleep(1)
            assert cache.trouble is not None
            assert cache.trouble.reason is Reason.NODE_CREDENTIALS
            sts.script = lambda _request: None
            await asyncio.sleep(11)
            assert cache.trouble is None

    @exact_time
    async def test_what_no_table_foresees_is_told_and_tried_again(self) -> None:
        class Odd(ScriptedSts):
            async def fetch(self, request: AssumeRoleRequest, patience: float) -> Credentials:
                if len(self.calls) < 3:
                    self.calls.append((now(), request))
                    raise RuntimeError("never seen before")
                return await super().fetch(request, patience)

        async with running(Odd()) as cache:
            cache.want([APP])
            assert await reason(cache) is Reason.STS_UNAVAILABLE
            await asyncio.sleep(11)
            assert cache.peek(APP) is not None

    @exact_time
    async def test_one_roles_trouble_is_not_everybodys(self) -> None:
        bad = requests(20)
        sts = ScriptedSts(script=lambda asked: fault("InternalFailure") if asked in bad else None)
        async with running(sts) as cache:
            cache.want(bad)
            for number in range(200):
                assert (await ask(cache, request(f"good-{number}"), hold=4)).token
                await asyncio.sleep(1)
            quick = [await timed(cache, request(f"late-{number}")) for number in range(50)]
        assert max(quick) < 0.1


async def timed(cache: CredentialCache, asked: AssumeRoleRequest) -> float:
    begun = now()
    await ask(cache, asked)
    return now() - begun


class TestOutage:
    @staticmethod
    def away(code: str, delay: float, sts: ScriptedSts) -> None:
        sts.script = lambda _request: fault(code)
        sts.delay = lambda _request: delay

    @staticmethod
    def back(sts: ScriptedSts) -> None:
        sts.script = lambda _request: None
        sts.delay = lambda _request: 0.1

    @exact_time
    async def test_29_minutes_just_after_a_refresh_and_no_pod_notices(self) -> None:
        sts = ScriptedSts()
        roles = requests(110)
        async with running(sts) as cache:
            cache.want(roles)
            await cache.warm(5)
            self.away("EndpointConnectionError", 0.01, sts)
            for _second in range(29 * 60):
                assert all(cache.peek(role) for role in roles)
                await asyncio.sleep(1)
            self.back(sts)
            await asyncio.sleep(600)
            assert all(cache.peek(role) for role in roles)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(
        ("code", "delay"), [("EndpointConnectionError", 0.001), ("ServiceUnavailable", 0.1), ("Timeout", 9.0)]
    )
    @exact_time
    async def test_an_hour_and_everyone_is_back_within_15_seconds_without_a_storm(
        self, code: str, delay: float, seed: int
    ) -> None:
        sts = ScriptedSts()
        roles = requests(110)
        async with running(sts, seed=seed) as cache:
            cache.want(roles)
            await cache.warm(5)
            self.away(code, delay, sts)
            await asyncio.sleep(3500)
            assert all(cache.peek(role) for role in roles)
            await asyncio.sleep(200 + random.Random(seed).uniform(0, 10))
            assert not any(cache.peek(role) for role in roles)
            assert await reason(cache, roles[0]) is Reason.STS_UNAVAILABLE
            self.back(sts)
            begun = len(sts.calls)
            await asyncio.sleep(15)
            assert all(cache.peek(role) for role in roles)
        rush = Counter(int(time) for time in sts.times[begun:])
        assert len(sts.calls) - begun <= 115
        assert max(rush.values()) <= 30

    @exact_time
    async def test_without_prefetch_pods_that_keep_asking_are_back_within_15_seconds(self) -> None:
        sts = ScriptedSts()
        roles = requests(110)
        async with running(sts) as cache:
            self.away("EndpointConnectionError", 0.01, sts)
            for _second in range(100):
                for role in roles:
                    assert await reason(cache, role, hold=0.001) in {Reason.STS_UNAVAILABLE, Reason.STS_PENDING}
                await asyncio.sleep(0.9)
            self.back(sts)
            await asyncio.sleep(15)
            assert all(cache.peek(role) for role in roles)

    @exact_time
    async def test_while_sts_is_away_nobody_is_held(self) -> None:
        sts = ScriptedSts(script=lambda _request: fault("EndpointConnectionError"), delay=lambda _request: 0.01)
        async with running(sts) as cache:
            cache.want(requests(20))
            await asyncio.sleep(10)
            begun = now()
            assert await reason(cache, request("new")) is Reason.STS_UNAVAILABLE
            assert now() - begun < 0.1

    @exact_time
    async def test_an_outage_costs_few_calls(self) -> None:
        sts = ScriptedSts(script=lambda _request: fault("EndpointConnectionError"), delay=lambda _request: 0.01)
        async with running(sts) as cache:
            cache.want(requests(110))
            await asyncio.sleep(3600)
        assert len(sts.calls) < 64 + 3600 / 3


class TestThrottling:
    @exact_time
    async def test_a_throttled_node_slows_down_and_everyone_is_served_in_the_end(self) -> None:
        """STS takes five calls a second from us."""
        sts = ScriptedSts()

        def script(_request: AssumeRoleRequest) -> Fault | None:
            lately = sum(time > now() - 1 for time in sts.times)
            return fault("Throttling") if lately > 5 else None

        sts.script = script
        roles = requests(110)
        async with running(sts) as cache:
            cache.want(roles)
            await asyncio.sleep(10)
            assert cache.rate < 25
            await cache.warm(120)
            assert cache.missing() == []
            await asyncio.sleep(60)
            assert cache.rate == 25
        assert len(sts.calls) < 600


class TestWhoGoesFirst:
    @exact_time
    async def test_never_more_than_64_calls_at_once(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 0.5)
        async with running(sts) as cache:
            await asyncio.gather(*(ask(cache, role, hold=20) for role in requests(300)))
        assert sts.most_out == CALLS

    @exact_time
    async def test_waiting_pods_go_before_prefetches(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 0.3)
        async with running(sts) as cache:
            cache.want(requests(120))
            await asyncio.sleep(0)
            assert await timed(cache, APP) <= 0.61
            assert sum(sts.granted.values()) <= 64 + 64

    @exact_time
    async def test_a_prefetch_that_a_pod_asks_for_is_promoted(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 0.3)
        async with running(sts) as cache:
            roles = requests(300)
            cache.want(roles)
            await asyncio.sleep(0)
            assert await timed(cache, roles[-1]) <= 0.61
        assert sts.count(roles[-1]) == 1

    @exact_time
    async def test_slow_roles_never_delay_quick_ones_longer_than_they_need_to_be_known_as_slow(self) -> None:
        slow = [request(f"slow-{number}") for number in range(200)]
        sts = ScriptedSts(delay=lambda asked: 4.0 if asked in slow else 0.1)
        async with running(sts) as cache:
            cache.want(slow)
            await asyncio.sleep(8)
            assert cache.in_flight <= CALLS
            waits = [await timed(cache, request(f"quick-{number}")) for number in range(100)]
            assert max(waits) <= 0.11
            assert sum(sts.granted[role] for role in slow) >= LONG_CALLS
            await cache.warm(60)
            assert cache.missing() == []

    @exact_time
    async def test_calls_over_a_second_hold_at_most_half(self) -> None:
        slow = requests(64)
        sts = ScriptedSts(delay=lambda _request: 4.0)
        async with running(sts) as cache:
            cache.want(slow)
            await asyncio.sleep(1.01)
            assert sts.out == LONG_CALLS

    @exact_time
    async def test_sts_at_one_and_a_half_seconds_serves_whoever_asks_twice(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 1.5)
        async with running(sts) as cache:
            roles = requests(LONG_CALLS)
            for role in roles:
                cache.start(role)
            await asyncio.sleep(HOLD)
            await asyncio.gather(*(ask(cache, role) for role in roles))
        assert len(sts.calls) == LONG_CALLS

    @exact_time
    async def test_a_cold_herd_of_110_roles_is_served_in_two_rounds(self) -> None:
        sts = ScriptedSts(delay=lambda _request: 0.1)
        async with running(sts) as cache:
            waits = await asyncio.gather(*(timed(cache, role) for role in requests(110)))
        assert max(waits) <= 0.21


class TestClocks:
    @exact_time
    async def test_a_jump_forward_serves_nothing_dead_and_refreshes_little_by_little(self) -> None:
        sts = ScriptedSts()
        roles = requests(110)
        async with running(sts) as cache:
            cache.want(roles)
            await cache.warm(5)
            sts.clock.jumped = 40 * 60
            assert all(cache.peek(role) for role in roles), "20 minutes left by either clock"
            begun = len(sts.calls)
            await asyncio.sleep(180)
            refreshes = Counter(int(time) for time in sts.times[begun:])
            assert len(sts.calls) - begun >= 100
            assert max(refreshes.values()) <= 2

    @exact_time
    async def test_after_a_suspension_nothing_dead_is_served(self) -> None:
        """The wall clock went on while the monotonic one stood still."""
        sts = ScriptedSts()
        roles = requests(110)
        async with running(sts) as cache:
            cache.want(roles)
            await cache.warm(5)
            sts.clock.jumped = 3 * 3600
            assert not any(cache.peek(role) for role in roles)

    @exact_time
    async def test_a_jump_back_serves_nothing_dead(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want([APP])
            await cache.warm(5)
            sts.clock.jumped = -2 * 3600
            sts.script = lambda _request: fault("ServiceUnavailable")
            await asyncio.sleep(3545)
            assert cache.peek(APP) is None

    @exact_time
    async def test_a_jump_back_and_forth_causes_no_calls(self) -> None:
        sts = ScriptedSts()
        async with running(sts) as cache:
            cache.want(requests(20))
            await cache.warm(5)
            for jump in (-3600, 0, -60, 0, 5, 0):
                sts.clock.jumped = jump
                await asyncio.sleep(60)
        assert len(sts.calls) == 20

    @pytest.mark.parametrize(("duration", "ahead"), [(900, 480), (900, 850), (1800, 880)])
    @exact_time
    async def test_a_wrong_clock_and_short_sessions_are_no_storm(self, duration: int, ahead: int) -> None:
        """AWS bears a clock that is up to 15 minutes wrong."""
        sts = ScriptedSts()
        sts.clock.jumped = ahead
        async with running(sts) as cache:
            cache.want([request(duration=duration)])
            await asyncio.sleep(1800)
        assert len(sts.calls) <= 61

    @exact_time
    async def test_what_sts_gives_with_no_life_left_is_an_error_that_names_the_clock(self) -> None:
        class Hasty(ScriptedSts):
            async def fetch(self, request: AssumeRoleRequest, patience: float) -> Credentials:
                given = await super().fetch(request, patience)
                return Credentials(given.access_key_id, "made-up", "made-up", given.issued + 30, given.issued)

        async with running(Hasty()) as cache:
            with pytest.raises(RefusedError, match="clock right") as refusal:
                await ask(cache)
        assert refusal.value.denial.reason is Reason.STS_UNAVAILABLE


class TestWhatOperatorsSee:
    @exact_time
    async def test_hits_are_counted_by_role(self) -> None:
        metrics = Metrics()
        async with running(ScriptedSts(), meter=metrics) as cache:
            await ask(cache)
            for _ask in range(3):
                cache.peek(APP)
            assert cache.serves(APP)
            assert not cache.serves(request("never-asked"))
        shown = metrics.render().decode()
        assert f'kube2iam_iam_cache_hits_total{{role_arn="{APP.arn}"}} 3.0' in shown

    @exact_time
    async def test_entries_show_state_and_the_last_failure(self) -> None:
        sts = ScriptedSts(script=lambda asked: fault("AccessDenied") if asked == APP else None)
        async with running(sts) as cache:
            cache.want([APP, request("good")])
            await cache.warm(1)
            bad, good = cache.entries()
            assert bad.denial is not None
            assert (bad.denial.reason, bad.expiration) == (Reason.STS_REFUSED, None)
            assert (good.denial, good.wanted) == (None, True)
            assert good.expiration == EPOCH + 3600
