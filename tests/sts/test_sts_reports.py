"""What the log is told of role sessions."""

import pytest

from kube2iam.domain.roles import Credentials
from kube2iam.sts.errors import fault
from kube2iam.sts.freshness import Session, begin
from kube2iam.sts.reports import StsReports
from tests.fakes.exact_time import exact_time
from tests.fakes.sts import ScriptedSts, request, requests, running

APP, OTHER = request(), request("other")
KEYS, AWAY = "the agent's own credentials cannot be used", "STS cannot be used"
BACK, AGAIN = "STS can be used again", "role session obtained again"


def session(life: int = 3600) -> Session:
    return begin(Credentials("ASIA", "made-up", "made-up", life, 0), duration=life, since=0, spread=0.5)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.message) for record in caplog.records]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")


def test_a_roles_trouble_is_said_when_it_begins_changes_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    reports = StsReports()
    for code in ("AccessDenied", "AccessDenied", "ValidationError"):
        reports.failed(APP, fault(code), away=False)
    reports.obtained(APP, session())
    reports.obtained(APP, session())
    told = [("WARNING", "role session not obtained")] * 2 + [("INFO", AGAIN)]
    assert lines(caplog) == told
    first = vars(caplog.records[0])
    assert (first["pod.iam.role"], first["reason"]) == (str(APP.arn), "AccessDenied")
    assert "trust policy" in first["error"]


def test_what_is_common_to_all_roles_is_one_line_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    reports = StsReports()
    reports.away(fault("Timeout"))
    for number, asked in enumerate(requests(110)):
        reports.failed(asked, fault("Timeout" if number % 2 else "Throttling"), away=True)
    reports.back()
    for asked in requests(110):
        reports.obtained(asked, session())
    assert lines(caplog) == [("ERROR", AWAY), ("INFO", BACK)]


def test_the_nodes_own_trouble_needs_no_five_roles_to_be_seen(caplog: pytest.LogCaptureFixture) -> None:
    reports = StsReports()
    for asked in (APP, OTHER):
        reports.failed(asked, fault("ExpiredToken"), away=False)
    reports.obtained(APP, session())
    assert lines(caplog) == [("ERROR", KEYS), ("INFO", BACK)]
    assert vars(caplog.records[0])["reason"] == "ExpiredToken"


def test_one_trouble_after_another_is_said_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    reports = StsReports()
    reports.away(fault("Timeout"))
    reports.failed(APP, fault("ExpiredToken"), away=True)
    assert lines(caplog) == [("ERROR", AWAY), ("ERROR", KEYS)]


def test_short_sessions_are_said_once_for_a_request_that_is_used(caplog: pytest.LogCaptureFixture) -> None:
    reports = StsReports()
    for _renewal in range(3):
        reports.obtained(APP, session(900))
    reports.forget(APP)
    reports.obtained(APP, session(900))
    assert [level for level, _message in lines(caplog)] == ["WARNING", "WARNING"]


@exact_time
async def test_an_outage_on_a_full_node_is_a_handful_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    sts = ScriptedSts(script=lambda _request: fault("ServiceUnavailable"))
    async with running(sts) as cache:
        cache.want(requests(110))
        await cache.warm(60)
        sts.script = lambda _request: None
        assert await cache.warm(30) == []
    told = [message for _level, message in lines(caplog)]
    assert (told.count(AWAY), told.count(BACK)) == (1, 1)
    assert len(told) <= 12
