import json
import shlex
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from kube2iam.demo import isolation, report, world
from kube2iam.demo.aws import SessionKeys
from kube2iam.demo.cast import PODS, PodSpec
from kube2iam.demo.failure import DemoError
from kube2iam.demo.metadata import NODE_ROLE, TOKEN_HEADER, TTL_HEADER, MetadataServer, Secrets, canaries
from kube2iam.demo.visits import Visit

KEYS = SessionKeys("ASIANODE", "node-secret", "node-token", "2030-01-01T00:00:00Z")
GRANTED, DENIED = PODS[0], PODS[3]
SESSION = f"arn:aws:sts::{GRANTED.identity}/n1"


def visited(spec: PodSpec = GRANTED, **changes: Any) -> Visit:
    told: dict[str, Any] = {
        "milliseconds": 12.3,
        "source": "iam-role",
        "identity": SESSION,
        "object": spec.full_name,
    }
    if not spec.identity:
        told = {"milliseconds": 2.0, "error": "Unable to locate credentials"}
    values: dict[str, Any] = {
        "boto3": told,
        "cli_identity": SESSION if spec.identity else "",
        "cli_object": spec.full_name if spec.identity else "",
        "cli_error": "",
        "status": 200 if spec.identity else 403,
        "refusal": spec.refusal,
        "leaked": (),
    }
    return Visit(spec=spec, **(values | changes))


def outcome(*visits: Visit, **checks: bool) -> report.Outcome:
    return report.Outcome(visits, {DENIED.full_name: "its namespace allows only guest-*"}, checks, 9.87)


async def test_the_real_service_speaks_both_versions() -> None:
    own = Secrets.fresh()
    async with TestClient(TestServer(MetadataServer(KEYS, own).app())) as client:
        listing = "/latest/meta-data/iam/security-credentials/"
        assert await (await client.get(listing)).text() == NODE_ROLE
        assert "node-secret" in await (await client.get(listing + NODE_ROLE)).text()
        assert await (await client.get("/2021-03-23/user-data")).text() == own.user_data
        assert "latest" in await (await client.get("/")).text()
        assert (await client.get("/latest/meta-data/nothing")).status == 404
        assert (await client.get("/latest/user-data", headers={TOKEN_HEADER: "made-up"})).status == 401
        token = await (await client.put("/latest/api/token", headers={TTL_HEADER: "60"})).text()
        assert (await client.get("/latest/user-data", headers={TOKEN_HEADER: token})).status == 200
        assert (await client.put("/latest/api/token", headers={TTL_HEADER: "0"})).status == 400
        forwarded = {TTL_HEADER: "60", "X-Forwarded-For": "10.0.0.1"}
        assert (await client.put("/latest/api/token", headers=forwarded)).status == 403


async def test_every_canary_can_be_read_from_the_real_service() -> None:
    own = Secrets.fresh()
    paths = ("user-data", "dynamic/instance-identity/pkcs7", "meta-data/iam/security-credentials/" + NODE_ROLE)
    identity = "meta-data/identity-credentials/ec2/security-credentials/ec2-instance"
    async with TestClient(TestServer(MetadataServer(KEYS, own).app())) as client:
        texts = [await (await client.get(f"/latest/{path}")).text() for path in (*paths, identity)]
        texts.append(await (await client.get("/latest/meta-data/iam/security-credentials/")).text())
    for name, canary in canaries(KEYS, own).items():
        assert any(canary in text for text in texts), name


def test_a_pod_that_got_what_it_should_has_no_fault() -> None:
    assert visited().faults == []
    assert visited(DENIED).faults == []


@pytest.mark.parametrize(
    ("visit", "fault"),
    [
        (visited(cli_identity=""), "the AWS CLI got nothing"),
        (visited(cli_identity=SESSION.replace("reports", "payroll")), "the AWS CLI got arn:aws:sts::"),
        (visited(cli_object="something else"), "read 'something else' from S3"),
        (visited(boto3={"source": "env", "identity": SESSION, "object": GRANTED.full_name}), "credentials from env"),
        (visited(leaked=("user-data by /",)), "leaked its user-data by /"),
        (visited(DENIED, cli_identity=SESSION), f"the AWS CLI got {SESSION}"),
        (visited(DENIED, refusal=""), "refused as 403"),
        (visited(DENIED, refusal="no-role"), "refused as no-role"),
    ],
)
def test_whatever_differs_is_a_fault(visit: Visit, fault: str) -> None:
    assert any(fault in found for found in visit.faults)
    assert not outcome(visit).right


def test_one_broken_check_is_a_failure() -> None:
    assert outcome(visited(), fine=True).right
    assert not outcome(visited(), fine=True, broken=False).right


def test_json_names_everything() -> None:
    told = json.loads(report.as_json(outcome(visited(), visited(DENIED), fine=True)))
    assert told["ok"] is True
    assert told["checks"] == {"fine": True}
    assert [pod["pod"] for pod in told["pods"]] == ["shop/reports", "guest/curious"]
    assert told["pods"][0]["aws_cli"] == SESSION
    assert told["pods"][1]["why"] == "its namespace allows only guest-*"
    assert told["pods"][1]["errors"] == ["Unable to locate credentials"]


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_table_fits(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = report.table(outcome(visited(), visited(DENIED, leaked=("secret",)), broken=False))
    assert max(map(len, text.splitlines())) <= max(columns, 100)
    words = " ".join(text.split())
    assert "its namespace allows only guest-*" in words
    assert "NOT broken" in words
    assert "NOT guest/curious: the node leaked its secret" in words


def test_things_to_try_are_shell_commands() -> None:
    text = report.things_to_try(
        pods={"shop/reports": 11, "shop/plain": 12}, node=10, sts=13, api="http://127.0.0.1:6443", token="t"
    )
    commands = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.startswith("   ")]
    assert any({"nsenter", "11", "curl"} <= set(command) for command in commands)
    assert [command[-2:] for command in commands][-2:] == [["-STOP", "13"], ["-CONT", "13"]]
    patch = next(command for command in commands if "PATCH" in command)
    assert json.loads(patch[-1])["metadata"]["annotations"] == {"iam.amazonaws.com/role": "reports"}


def test_the_inner_part_refuses_the_machines_own_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert world.inside([]) == 1
    assert world.inside([f"--outside={isolation.network_namespace()}"]) == 1
    assert capsys.readouterr().err.count("run it as `kube2iam demo`") == 2


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(isolation, "PROGRAMS", {"no-such-program": "its-package"})
    with pytest.raises(DemoError, match="apt-get install its-package") as caught:
        isolation.enter([])
    assert "\n" not in str(caught.value)
