import asyncio
import json
import logging

import pytest

from kube2iam.admin.health import Check, Health, InstanceCheck, announce


class Switch:
    """A problem that can be made and mended."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem

    def __call__(self) -> str | None:
        return self.problem


def test_ready_means_that_no_check_has_a_problem() -> None:
    cluster, sts = Switch("listing"), Switch("throttled")
    health = Health(ready=[Check("cluster", cluster)], degraded=[Check("sts", sts)])
    assert health.readyz().status == 503
    assert health.livez().status == 200
    cluster.problem = None
    assert health.readyz().body == b"ok\n"
    assert health.troubles() == {"sts": "throttled"}
    health.stopping = True
    assert health.readyz().status == 503
    assert not health.ready


def test_verbose_names_each_check() -> None:
    health = Health(
        ready=[Check("listener", Switch()), Check("cluster", Switch("401 from the API server"))],
        degraded=[Check("metadata", Switch("no answer"))],
    )
    assert health.readyz(verbose=True).body.decode().splitlines() == [
        "[+]listener ok",
        "[-]cluster failed: 401 from the API server",
        "[!]metadata degraded: no answer",
        "readyz check failed",
    ]


async def test_healthz_has_upstreams_body_and_stays_well_while_the_metadata_service_is_away() -> None:
    answers: list[str | Exception] = ["i-0123", OSError("no route to host")]

    async def fetch() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    check = InstanceCheck(fetch, host_ip="10.0.0.1")
    assert json.loads(check.healthz().body) == {"hostIP": "10.0.0.1", "instanceId": ""}
    await check.look()
    assert check.healthz().body == b'{"hostIP":"10.0.0.1","instanceId":"i-0123"}\n'
    assert check.problem is None
    await check.look()
    assert check.healthz().status == 200
    assert b"i-0123" in check.healthz().body
    assert "no route to host" in str(check.problem)


async def test_becoming_ready_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    problem = Switch("listing")
    task = asyncio.create_task(announce(Health(ready=[Check("cluster", problem)], degraded=[]), soon=0.001, calm=0.001))
    while not caplog.records:
        await asyncio.sleep(0)
    assert caplog.messages == ["not ready"]
    assert caplog.records[0].__dict__["missing"] == "cluster: listing"
    problem.problem = None
    while len(caplog.records) < 2:
        await asyncio.sleep(0)
    problem.problem = "rule is gone"
    while len(caplog.records) < 3:
        await asyncio.sleep(0)
    task.cancel()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "not ready"),
        ("INFO", "ready"),
        ("WARNING", "not ready"),
    ]
