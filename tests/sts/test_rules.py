"""The pure parts: freshness, memory, rate, breaker, the table of errors."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube2iam.domain.errors import Reason
from kube2iam.domain.roles import Credentials
from kube2iam.sts.breaker import TRIP, Breaker
from kube2iam.sts.errors import TABLE, Kind, fault
from kube2iam.sts.freshness import PROMISED, SERVED_ABOVE, begin
from kube2iam.sts.memory import remembered
from kube2iam.sts.rate import NODE_BURST, NODE_RATE, Rate

UNIT = st.floats(0, 1, exclude_max=True)
ISSUED = 1_900_000_000


def credentials(life: int) -> Credentials:
    return Credentials("ASIA", "made-up", "made-up", ISSUED + life, ISSUED)


class TestFreshness:
    @given(life=st.integers(900, 43_200), spread=UNIT)
    def test_refreshed_around_half_life(self, life: int, spread: float) -> None:
        session = begin(credentials(life), duration=life, since=0, spread=spread)
        assert 0.449 * life <= session.refresh_below <= 0.551 * life

    @given(spread=UNIT)
    def test_an_hour_keeps_the_promise_with_time_to_spare(self, spread: float) -> None:
        session = begin(credentials(3600), duration=3600, since=0, spread=spread)
        assert session.keeps_promise
        assert session.refresh_below >= PROMISED + 110

    @pytest.mark.parametrize(
        ("life", "keeps"), [(900, False), (1800, False), (3000, False), (3600, True), (43_200, True)]
    )
    def test_which_lives_are_long_enough(self, life: int, keeps: bool) -> None:
        assert begin(credentials(life), duration=life, since=0, spread=0.5).keeps_promise is keeps

    @given(jump=st.integers(-100_000, 100_000), passed=st.floats(0, 5_000))
    def test_the_shorter_clock_counts(self, jump: int, passed: float) -> None:
        session = begin(credentials(3600), duration=3600, since=500, spread=0)
        left = session.remaining(ISSUED + passed + jump, 500 + passed)
        assert left == pytest.approx(min(3600 - passed, 3600 - passed - jump), abs=1e-3)
        wall, monotonic = session.served_until
        served = ISSUED + passed + jump < wall and 500 + passed < monotonic
        assert not served or left > SERVED_ABOVE - 1e-3

    def test_what_sts_grants_beyond_what_was_asked_is_not_counted_on(self) -> None:
        assert begin(credentials(7200), duration=3600, since=0, spread=0).life == 3600


class TestMemory:
    @given(failures=st.integers(1, 1_000), spread=UNIT, kind=st.sampled_from(Kind), ttl=st.floats(0, 60))
    def test_bounds(self, failures: int, spread: float, kind: Kind, ttl: float) -> None:
        kept = remembered(kind, failures, error_ttl=ttl, spread=spread)
        if kind.permanent:
            assert min(ttl, 60) <= kept <= 60
        else:
            assert 0.75 <= kept <= 10

    @pytest.mark.parametrize(
        ("ttl", "expected"), [(10, [10, 20, 40, 60, 60]), (0, [0, 0, 0]), (45, [45, 60, 60]), (300, [300, 300])]
    )
    def test_a_permanent_error_by_its_ttl(self, ttl: float, expected: list[float]) -> None:
        kept = [remembered(Kind.REFUSED, 1 + n, error_ttl=ttl, spread=0) for n in range(len(expected))]
        assert kept == expected


class TestRate:
    def test_a_full_node_goes_out_at_once_and_then_the_rate_holds(self) -> None:
        rate = Rate()
        assert [rate.take(0) for _call in range(int(NODE_BURST))] == [0] * int(NODE_BURST)
        assert rate.take(0) == pytest.approx(1 / NODE_RATE)

    @given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60))
    def test_never_more_than_burst_and_rate_allow(self, steps: list[tuple[float, bool]]) -> None:
        rate, now, taken = Rate(), 0.0, 0
        for pause, throttled in steps:
            now += pause
            if throttled:
                rate.throttled(now)
            while rate.take(now) == 0:
                taken += 1
            assert 0.5 <= rate.value(now) <= NODE_RATE
        assert taken <= NODE_BURST + NODE_RATE * now + 1

    def test_a_herd_of_throttles_halves_it_once(self) -> None:
        rate = Rate()
        for _call in range(64):
            rate.throttled(100)
        assert rate.value(100) == NODE_RATE / 2
        assert rate.take(100) == 0
        assert rate.take(100) > 0, "the burst is gone"

    def test_it_recovers_with_time(self) -> None:
        rate = Rate()
        for second in range(30):
            rate.throttled(second)
        assert rate.value(30) < 1.5
        assert rate.value(100) == NODE_RATE


class TestBreaker:
    FAULT = fault("EndpointConnectionError")

    def fail(self, breaker: Breaker, key: str, now: float = 0.0) -> bool:
        return breaker.failed(key, self.FAULT, began=now, now=now, spread=0)

    def test_it_opens_when_different_requests_fail_in_a_row(self) -> None:
        breaker = Breaker()
        opened = [self.fail(breaker, f"role-{n}") for n in range(TRIP)]
        assert opened == [False] * (TRIP - 1) + [True]
        assert breaker.fault == self.FAULT

    def test_one_request_never_opens_it(self) -> None:
        breaker = Breaker()
        assert not any(self.fail(breaker, "role") for _call in range(100))

    def test_an_answer_ends_it_and_says_so(self) -> None:
        breaker = Breaker()
        for n in range(TRIP):
            self.fail(breaker, f"role-{n}")
        assert breaker.answered("role-0")
        assert breaker.fault is None
        assert not breaker.answered("role-0"), "there is no trouble left to end"

    def ill(self, *, answers: int, well: int) -> tuple[Breaker, list[str]]:
        """A breaker and what fails there, one less than opens it; then `well` others are given `answers`."""
        breaker = Breaker()
        keys = [f"ill-{n}" for n in range(TRIP - 1)]
        for key in keys:
            self.fail(breaker, key)
        for number in range(answers):
            breaker.answered(f"well-{number % well}")
        return breaker, keys

    def test_who_fails_while_others_are_answered_has_trouble_of_its_own(self) -> None:
        breaker, keys = self.ill(answers=20, well=10)
        for _again in range(3):
            assert not any(self.fail(breaker, key) for key in [*keys, "ill-too"])
        assert all(breaker.is_own(key) for key in keys)
        assert not breaker.is_own("ill-too"), "nobody was answered since"
        breaker.answered("ill-0")
        assert not breaker.is_own("ill-0")
        assert breaker.trouble is None

    def test_one_answer_to_others_may_be_luck(self) -> None:
        breaker, keys = self.ill(answers=1, well=1)
        opened = [self.fail(breaker, key) for key in [*keys, "another"]]
        assert opened == [False] * (TRIP - 1) + [True]

    def test_trouble_is_everyones_where_most_are_ill(self) -> None:
        breaker, keys = self.ill(answers=30, well=3)
        opened = [self.fail(breaker, key) for key in [*keys, "another"]]
        assert opened == [False] * (TRIP - 1) + [True]
        assert all(breaker.is_suspect(key) for key in keys)

    def test_trouble_is_named_from_the_first_failure_to_the_next_answer(self) -> None:
        breaker = Breaker()
        troubles = [breaker.trouble]
        self.fail(breaker, "role")
        troubles.append(breaker.trouble)
        breaker.answered("other")
        troubles.append(breaker.trouble)
        assert troubles == [None, self.FAULT, None]

    def test_trouble_ends_with_the_request_that_met_it(self) -> None:
        breaker = Breaker()
        self.fail(breaker, "role")
        breaker.forget("role")
        assert breaker.trouble is None

    def test_probes_come_soon_and_then_at_most_six_seconds_apart(self) -> None:
        breaker, now = Breaker(), 0.0
        gaps = []
        for n in range(40):
            self.fail(breaker, f"role-{n}", now)
            if breaker.fault:
                gaps.append(breaker.probe_at - now)
                now = breaker.probe_at
        assert gaps[0] < 2
        assert gaps == sorted(gaps)
        assert gaps[-1] == 6

    def test_a_probe_that_hangs_is_followed_by_the_next_at_once(self) -> None:
        breaker = Breaker()
        for n in range(TRIP):
            breaker.failed(n, self.FAULT, began=0, now=5, spread=random.Random(1).random())
        assert breaker.probe_at == 5.5


class TestTable:
    def test_no_code_stands_in_two_rows(self) -> None:
        codes = [code for row in TABLE for code in row.codes]
        assert sorted(codes) == sorted(set(codes))

    @pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row.codes[0]))
    def test_each_row_says_something(self, row: object) -> None:
        assert row in TABLE
        known = [fault(code) for code in getattr(row, "codes")]  # noqa: B009 - a row of the table
        assert all(found.explanation and found.denial.reason.status in {403, 500} for found in known)

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("AccessDenied", Reason.STS_REFUSED),
            ("ValidationError", Reason.STS_REFUSED),
            ("MalformedPolicyDocument", Reason.STS_REFUSED),
            ("PackedPolicyTooLarge", Reason.STS_REFUSED),
            ("RegionDisabledException", Reason.STS_REFUSED),
            ("ExpiredToken", Reason.NODE_CREDENTIALS),
            ("InvalidClientTokenId", Reason.NODE_CREDENTIALS),
            ("NoCredentialsError", Reason.NODE_CREDENTIALS),
            ("SignatureDoesNotMatch", Reason.NODE_CREDENTIALS),
            ("Throttling", Reason.STS_UNAVAILABLE),
            ("ServiceUnavailable", Reason.STS_UNAVAILABLE),
            ("Timeout", Reason.STS_UNAVAILABLE),
            ("NameResolutionError", Reason.STS_UNAVAILABLE),
            ("SSLError", Reason.STS_UNAVAILABLE),
        ],
    )
    def test_what_the_pod_is_told(self, code: str, reason: Reason) -> None:
        assert fault(code).denial.reason is reason

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, Kind.REFUSED),
            (403, Kind.REFUSED),
            (408, Kind.UNAVAILABLE),
            (429, Kind.THROTTLED),
            (0, Kind.UNAVAILABLE),
            (500, Kind.UNAVAILABLE),
            (503, Kind.UNAVAILABLE),
        ],
    )
    def test_an_unknown_code_is_judged_by_its_status(self, status: int, kind: Kind) -> None:
        assert fault("Novel", status=status).kind is kind

    @given(st.text(max_size=300))
    def test_a_code_makes_a_bounded_label(self, code: str) -> None:
        shown = fault(code).code
        assert 1 <= len(shown) <= 64
        assert shown.isascii()

    @pytest.mark.parametrize(
        ("message", "longest"),
        [
            ("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining", 3600),
            ("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", 0),
            (
                "'durationSeconds' failed to satisfy constraint: Member must have value less than or equal to 43200",
                43_200,
            ),
            ("1 validation error detected: Value 'x' at 'roleArn' failed to satisfy constraint", None),
        ],
    )
    def test_refused_lengths_are_told_apart(self, message: str, longest: int | None) -> None:
        assert fault("ValidationError", status=400, message=message).longest == longest

    @pytest.mark.parametrize("code", ["AccessDenied", "ValidationError"])
    def test_the_name_of_a_role_is_no_length(self, code: str) -> None:
        message = "not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::123456789012:role/"
        for name in ("durationseconds-chain", "DurationSeconds=exceeds", "MaxSessionDuration"):
            assert fault(code, status=403, message=f"{message}{name}").longest is None

    def test_kinds_are_told_apart(self) -> None:
        assert all(one is not other for one, other in itertools.combinations(Kind, 2))
        assert len(Kind) == 4
