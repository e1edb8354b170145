"""Session lengths that a role does not allow."""

import logging

import pytest

from kube2iam.domain.roles import AssumeRoleRequest
from kube2iam.sts.durations import FittedDurations
from kube2iam.sts.errors import Fault, StsError, fault
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import ScriptedSts, request

TOO_LONG = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
CHAINED = "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"


def role_that_allows(longest: int, message: str = TOO_LONG) -> ScriptedSts:
    def script(asked: AssumeRoleRequest) -> Fault | None:
        return fault("ValidationError", status=400, message=message) if asked.duration > longest else None

    return ScriptedSts(script=script, delay=lambda _request: 0.02)


async def life(source: FittedDurations, asked: AssumeRoleRequest) -> int:
    credentials = await source.fetch(asked, 5)
    return credentials.expiration - credentials.issued


@pytest.mark.parametrize("longest", [3600, 5400, 7200, 14_400, 28_800, 42_000])
@exact_time
async def test_the_longest_allowed_one_is_found_used_and_remembered(longest: int) -> None:
    sts = role_that_allows(longest)
    source = FittedDurations(sts)
    assert longest - 60 < await life(source, request(duration=43_200)) <= longest
    asked = len(sts.calls)
    assert asked < 14
    assert longest - 60 < await life(source, request(duration=43_200)) <= longest
    assert len(sts.calls) == asked + 1


@exact_time
async def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    source = FittedDurations(role_that_allows(7200))
    with caplog.at_level(logging.WARNING):
        for _refresh in range(5):
            await life(source, request(duration=43_200))
    (record,) = caplog.records
    assert 7140 < vars(record)["sts.allowed"] <= 7200


@exact_time
async def test_role_chaining_names_its_limit_and_costs_one_call() -> None:
    sts = role_that_allows(3600, CHAINED)
    assert await life(FittedDurations(sts), request(duration=43_200)) == 3600
    assert len(sts.calls) == 2


@exact_time
async def test_what_is_allowed_is_asked_for_as_it_is() -> None:
    sts = role_that_allows(7200)
    source = FittedDurations(sts)
    assert await life(source, request(duration=7200)) == 7200
    await life(source, request(duration=43_200))
    assert await life(source, request(duration=900)) == 900


@exact_time
async def test_a_slow_search_ends_in_time_and_gives_what_is_known() -> None:
    sts = role_that_allows(14_400)
    sts.delay = lambda _request: 1.0
    assert await life(FittedDurations(sts), request(duration=43_200)) >= 3600
    assert sts.times[-1] <= 4


@exact_time
async def test_a_slow_search_goes_on_at_the_next_refresh_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    sts = role_that_allows(14_400)
    sts.delay = lambda _request: 1.0
    source = FittedDurations(sts)
    with caplog.at_level(logging.WARNING):
        lives = [await life(source, request(duration=43_200)) for _refresh in range(8)]
    assert 14_340 < lives[-1] <= 14_400
    (record,) = caplog.records
    assert vars(record)["sts.allowed"] == lives[-1]


@exact_time
async def test_a_role_that_allows_less_than_before_is_searched_anew() -> None:
    sts = role_that_allows(14_400)
    source = FittedDurations(sts)
    await life(source, request(duration=43_200))
    sts.script = role_that_allows(7200).script
    assert 7140 < await life(source, request(duration=43_200)) <= 7200


@exact_time
async def test_any_other_refusal_is_passed_on() -> None:
    source = FittedDurations(ScriptedSts(script=lambda _request: fault("AccessDenied")))
    with pytest.raises(StsError, match="AccessDenied"):
        await source.fetch(request(duration=43_200), 5)


@exact_time
async def test_trouble_in_the_middle_of_the_search_is_passed_on() -> None:
    sts = role_that_allows(7200)
    refuse = sts.script
    sts.script = lambda asked: refuse(asked) if len(sts.calls) < 3 else fault("ServiceUnavailable")
    with pytest.raises(StsError, match="ServiceUnavailable"):
        await FittedDurations(sts).fetch(request(duration=43_200), 5)
