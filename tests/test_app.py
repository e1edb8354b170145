"""The agent as operators run it: a process, its log, its ports, its exit status."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from kube2iam.app import READY_AFTER
from tests.fakes.world import BASE, EXECUTABLE, HOST_IP, NODE, ROLES, World, world

POD = "127.0.0.2"
VERBOSE = "/readyz?verbose"


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path / "state") as made:
        yield made


async def test_a_pod_gets_its_own_role_and_only_that(around: World) -> None:
    around.pod("a", POD)
    around.pod("b", "127.0.0.3", None)
    async with around.agent() as agent:
        assert (await agent.ask(POD, ROLES)).body == b"app"
        given = (await agent.credentials(POD)).json()
        assert list(given) == [
            "Code", "LastUpdated", "Type", "AccessKeyId", "SecretAccessKey", "Token", "Expiration",
        ]  # fmt: skip
        assert (await agent.credentials(POD, "other")).status == 403
        assert (await agent.ask("127.0.0.3", ROLES)).status == 404
        assert around.sts.asked[0]["RoleArn"] == f"{BASE}app"
        assert around.sts.asked[0]["RoleSessionName"] == NODE
        assert len(around.sts.asked) == 1


async def test_the_order_of_a_start_and_of_a_stop(around: World) -> None:
    around.pod("a", POD)
    async with around.agent() as agent:
        assert await agent.stop() == 0
        messages = [line["msg"] for line in agent.lines]
        order = ["starting", "listening", "STS client made", "ready", "stopping", "stopped"]
        assert [message for message in messages if message in order] == order


async def test_a_stop_in_the_middle_of_a_start_is_quiet(around: World) -> None:
    async with around.agent(ready=False) as agent:
        await agent.heard("listening")
        assert await agent.stop() == 0
        await agent.heard("(end)")
        assert not [line for line in agent.lines if line.get("logger") == "py.warnings"]


async def test_a_request_under_way_is_answered_before_the_end(around: World) -> None:
    around.pod("a", POD)
    around.sts.delay = 0.4
    async with around.agent("--prefetch=false") as agent:
        asking = asyncio.create_task(agent.credentials(POD))
        async with asyncio.timeout(5):
            while not around.sts.asked:
                await asyncio.sleep(0.01)
        assert await agent.stop() == 0
        assert (await asking).status == 200


async def test_a_pod_known_0_4_s_after_its_request_is_answered_within_1_s(around: World) -> None:
    async with around.agent() as agent:
        asking = asyncio.create_task(agent.ask(POD, ROLES))
        await asyncio.sleep(0.4)
        around.pod("a", POD)
        answer = await asking
        assert (answer.status, answer.body) == (200, b"app")
        assert 0.4 <= answer.seconds < 1


async def test_an_address_never_known_is_answered_within_1_s(around: World) -> None:
    async with around.agent() as agent:
        answer = await agent.ask("127.0.0.77", ROLES)
        assert (answer.status, answer.reason, answer.body) == (503, "unknown-address", b"")
        assert answer.headers["Retry-After"] == "1"
        assert 0.75 <= answer.seconds < 1


async def test_a_hundred_pods_of_one_role_are_one_call_to_sts(around: World) -> None:
    around.sts.delay = 0.2
    addresses = [f"127.0.1.{number}" for number in range(1, 101)]
    for address in addresses:
        around.pod(f"pod-{address}", address)
    async with around.agent("--prefetch=false") as agent:
        answers = await asyncio.gather(*(agent.credentials(address) for address in addresses))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.json()["AccessKeyId"] for answer in answers}) == 1
        assert len(around.sts.asked) == 1


async def test_two_external_ids_never_share_credentials(around: World) -> None:
    around.pod("a", POD, **{"iam.amazonaws.com/external-id": "right"})
    around.pod("b", "127.0.0.3", **{"iam.amazonaws.com/external-id": "wrong"})
    async with around.agent() as agent:
        answers = [(await agent.credentials(address)).json()["AccessKeyId"] for address in (POD, "127.0.0.3")]
        assert len(set(answers)) == 2
        assert {asked["ExternalId"] for asked in around.sts.asked} == {"right", "wrong"}


async def test_a_changed_annotation_counts_at_once(around: World) -> None:
    around.pod("a", POD)
    async with around.agent() as agent:
        assert (await agent.ask(POD, ROLES)).body == b"app"
        around.patch_pod("a", {"metadata": {"annotations": {"iam.amazonaws.com/role": "other"}}})
        async with asyncio.timeout(5):
            while (await agent.ask(POD, ROLES)).body != b"other":
                await asyncio.sleep(0.01)
        assert (await agent.credentials(POD, "app")).status == 403
        assert (await agent.credentials(POD, "other")).status == 200


async def test_an_api_server_that_is_away_at_start_is_waited_for(around: World) -> None:
    around.pod("a", POD)
    async with around.agent("--api-server=http://127.0.0.1:9", ready=False) as agent:
        await agent.heard("not ready")
        assert (await agent.page("/livez"))[0] == 200
        async with asyncio.timeout(5):
            while "[-]cluster failed: cannot connect to http://127.0.0.1:9: " not in (await agent.page(VERBOSE))[1]:
                await asyncio.sleep(0.01)
        assert (await agent.page(VERBOSE))[0] == 503
        silences = re.findall(
            r"^kube2iam_cluster_silence_seconds\S+ (\S+)$", (await agent.page("/metrics"))[1], re.MULTILINE
        )
        assert len(silences) == 2
        assert all(0 < float(silence) < 60 for silence in silences)
        answer = await agent.ask(POD, ROLES)
        assert (answer.status, answer.reason) == (503, "not-synced")


async def test_an_api_server_that_goes_away_later_changes_nothing_for_known_pods(around: World) -> None:
    around.pod("a", POD)
    async with around.agent() as agent:
        await around.cluster.close()
        async with asyncio.timeout(10):
            while 'kube2iam_degraded{cause="cluster"} 1.0' not in (await agent.page("/metrics"))[1]:
                await asyncio.sleep(0.05)
        assert (await agent.credentials(POD)).status == 200
        assert (await agent.page("/readyz"))[0] == 200


async def test_sts_away_is_not_the_agents_fault(around: World) -> None:
    around.pod("a", POD)
    around.sts.fault = (503, "ServiceUnavailable")
    async with around.agent(ready=False) as agent:
        await agent.heard("ready", within=15)
        answer = await agent.credentials(POD)
        assert (answer.status, answer.reason) == (500, "sts-unavailable")
        status, text = await agent.page(VERBOSE)
        assert status == 200
        assert "[!]credentials degraded" in text


async def test_roles_that_hang_keep_it_from_being_ready_for_5_seconds_at_most(around: World) -> None:
    around.pod("a", POD)
    around.sts.delay = 60
    async with around.agent(ready=False) as agent:
        begun = moment(await agent.heard("starting"))
        assert READY_AFTER - 0.5 < moment(await agent.heard("ready")) - begun < READY_AFTER + 0.9
        assert (await agent.heard("ready without some roles' credentials"))["roles"] == f"{BASE}app"
        assert "[!]credentials degraded" in (await agent.page(VERBOSE))[1]


async def test_it_is_not_ready_before_its_pods_credentials_are_here(around: World) -> None:
    around.pod("a", POD)
    around.sts.delay = 1.5
    async with around.agent() as agent:
        assert (await agent.credentials(POD)).seconds < 0.5
        assert len(around.sts.asked) == 1


def moment(line: dict[str, Any]) -> float:
    """When a line was logged, in seconds."""
    return datetime.fromisoformat(line["time"]).timestamp()


async def test_the_nodes_own_credentials_are_named_and_no_pod_is_blamed(around: World) -> None:
    around.pod("a", POD)
    around.sts.fault = (403, "ExpiredToken")
    async with around.agent(ready=False) as agent:
        await agent.heard("ready", within=15)
        answer = await agent.credentials(POD)
        assert (answer.status, answer.reason, answer.body) == (500, "node-credentials", b"")
        assert "[!]node-credentials degraded: ExpiredToken: the agent's own" in (await agent.page(VERBOSE))[1]
        assert 'kube2iam_degraded{cause="node-credentials"} 1.0' in (await agent.page("/metrics"))[1]
        said = await agent.heard("the agent's own credentials cannot be used")
        assert (said["level"], said["reason"]) == ("error", "ExpiredToken")
        assert not any(line["msg"] == "role session not obtained" for line in agent.lines)
        assert around.objects.list("events") == []


async def test_a_refusal_of_sts_is_told_to_the_pod_and_as_an_event(around: World) -> None:
    around.pod("a", POD)
    around.sts.fault = (403, "AccessDenied")
    async with around.agent() as agent:
        answer = await agent.credentials(POD)
        assert (answer.status, answer.reason, answer.body) == (403, "sts-refused", b"")
        assert (await agent.ask(POD, ROLES)).body == b"app"
        async with asyncio.timeout(5):
            while not around.objects.list("events"):
                await asyncio.sleep(0.01)
        (event,) = around.objects.list("events")
        assert (event["reason"], event["involvedObject"]["name"]) == ("StsRefused", "a")
        assert event["message"].startswith(f"STS refuses {BASE}app: AccessDenied: ")
        refused = await agent.heard("refused")
        assert (refused["pod.name"], refused["pod.iam.role"]) == ("a", f"{BASE}app")


async def test_only_all_roles_refused_is_the_nodes_trouble(around: World) -> None:
    around.pod("a", POD)
    around.sts.fault = (403, "AccessDenied")
    async with around.agent() as agent:
        assert "[!]" not in (await agent.page(VERBOSE))[1], "one is its owner's mistake"
        around.pod("b", "127.0.0.3", role="other")
        async with asyncio.timeout(5):
            while "[!]sts-refused degraded: STS refuses all 2 s" not in (await agent.page(VERBOSE))[1]:
                await asyncio.sleep(0.05)
        metrics = (await agent.page("/metrics"))[1]
        assert "kube2iam_credentials_refused 2.0" in metrics
        assert 'kube2iam_degraded{cause="sts-refused"} 1.0' in metrics
        assert 'kube2iam_degraded{cause="sts"} 0.0' in metrics


async def test_a_malformed_role_becomes_an_event_that_says_how_to_mend_it(around: World) -> None:
    around.pod("a", POD, "arn:aws:iam:123567989012:role/nginx-role")
    async with around.agent() as agent:
        assert (await agent.ask(POD, ROLES)).reason == "role-malformed"
        async with asyncio.timeout(5):
            while not around.objects.list("events"):
                await asyncio.sleep(0.01)
        (event,) = around.objects.list("events")
        assert "did you mean arn:aws:iam::123567989012:role/nginx-role" in event["message"]
        assert around.sts.asked == []


async def test_health_and_metrics_on_a_port_of_their_own(around: World) -> None:
    async with around.agent() as agent:
        await agent.heard("ready")
        status, text = await agent.page("/healthz")
        assert status == 200
        assert json.loads(text)["hostIP"] == HOST_IP
        assert "kube2iam_info{" in (await agent.page("/metrics"))[1]
        assert (await agent.page("/debug/store"))[0] == 404
        for path in ("/healthz", "/metrics"):
            assert (await agent.ask(POD, path)).status == 404


async def test_health_and_metrics_share_the_pods_port_as_upstream_does(around: World) -> None:
    async with around.agent() as reference:
        port = reference.port
    async with around.agent(f"--app-port={port}", f"--metrics-port={port}") as agent:
        for path in ("/healthz", "/metrics", "/readyz"):
            async with around.session.get(f"http://127.0.0.1:{port}{path}") as reply:
                assert reply.status == 200
        agent.port = port
        assert (await agent.ask(POD, "/metrics")).status == 404
        async with around.session.get(f"http://127.0.0.1:{port}/metrics") as reply:
            counted = (
                'kube2iam_http_request_duration_seconds_count{code="200",handler="healthHandler",method="GET"} 1.0'
            )
            assert counted in await reply.text()


async def test_the_store_is_shown_with_debug(around: World) -> None:
    around.pod("a", POD)
    async with around.agent("--debug") as agent:
        shown = json.loads((await agent.page("/debug/store"))[1])
        assert shown == {
            "rolesByIP": {POD: "app"},
            "namespaceByIP": {POD: "default"},
            "rolesByNamespace": {"default": None},
        }


async def test_tokens_outlive_a_restart(around: World) -> None:
    around.pod("a", POD)
    ttl = {"X_aws_ec2_metadata_token_ttl_seconds": "21600"}
    async with around.agent("--imdsv2=required") as agent:
        token = (await agent.ask(POD, "/latest/api/token", "PUT", **ttl)).body.decode()
    async with around.agent("--imdsv2=required") as agent:
        assert (await agent.ask(POD, ROLES)).status == 401
        assert (await agent.ask(POD, ROLES, X_aws_ec2_metadata_token=token)).body == b"app"


async def test_discovery_of_base_arn_and_default_role(around: World) -> None:
    around.pod("a", POD)
    around.pod("b", "127.0.0.3", None)
    around.imds.extra = {
        "meta-data/iam/info": json.dumps(
            {"Code": "Success", "InstanceProfileArn": "arn:aws:iam::999999999999:instance-profile/node-role"}
        ),
        "meta-data/iam/security-credentials": "node-role",
    }
    flags = ["--base-role-arn=", "--auto-discover-base-arn", "--auto-discover-default-role"]
    async with around.agent(*flags) as agent:
        assert (await agent.credentials(POD)).status == 200
        assert (await agent.ask("127.0.0.3", ROLES)).body == b"node-role"
        assert {asked["RoleArn"] for asked in around.sts.asked if "RoleArn" in asked} == {
            "arn:aws:iam::999999999999:role/app",
            "arn:aws:iam::999999999999:role/node-role",
        }


async def test_a_base_arn_that_is_given_stays_where_the_default_role_is_discovered(around: World) -> None:
    around.pod("a", POD)
    around.pod("b", "127.0.0.3", None)
    around.imds.extra = {
        "meta-data/iam/info": json.dumps(
            {"InstanceProfileArn": "arn:aws:iam::999999999999:instance-profile/node-role"}
        ),
        "meta-data/iam/security-credentials": "node-role",
    }
    async with around.agent("--auto-discover-default-role") as agent:
        assert (await agent.credentials(POD)).status == 200
        assert (await agent.ask("127.0.0.3", ROLES)).body == b"node-role"
        assert {asked["RoleArn"] for asked in around.sts.asked if "RoleArn" in asked} == {
            f"{BASE}app",
            "arn:aws:iam::999999999999:role/node-role",
        }


async def test_discovery_asks_who_the_agent_is_and_not_the_intermediate_role(around: World) -> None:
    around.pod("a", POD)
    around.imds.status = 404
    hub = "arn:aws:iam::888888888888:role/hub"
    async with around.agent("--base-role-arn=", "--auto-discover-base-arn", f"--assume-role-arn={hub}") as agent:
        assert (await agent.credentials(POD)).status == 200
        assert {asked["RoleArn"] for asked in around.sts.asked if "RoleArn" in asked} == {
            hub,
            "arn:aws:iam::777777777777:role/app",
        }


async def test_an_hour_is_the_most_that_is_asked_for_through_an_intermediate_role(around: World) -> None:
    around.pod("a", POD)
    async with around.agent(f"--assume-role-arn={BASE}hub", "--iam-role-session-duration=2h") as agent:
        assert (await agent.credentials(POD)).status == 200
        assert [asked["DurationSeconds"] for asked in around.sts.asked] == ["3600", "3600"]
        said = "STS allows shorter sessions than asked for, of every role: the agent itself works with a role's session"
        assert (await agent.heard(said))["sts.allowed"] == 3600


async def test_an_intermediate_role_is_assumed_first(around: World) -> None:
    around.pod("a", POD)
    async with around.agent(f"--assume-role-arn={BASE}hub") as agent:
        assert (await agent.credentials(POD)).status == 200
        assert [asked["RoleArn"] for asked in around.sts.asked] == [f"{BASE}hub", f"{BASE}app"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--kubeconfig=/nowhere/config"], "--kubeconfig=/nowhere/config"),
        (["--app-port=0x50"], "--app-port"),
        (["--app-port=18999"], "give --kubeconfig or --api-server"),
        (["--api-server=https://"], "--api-server"),
        (["--api-server=http://127.0.0.1:9", "--iptables", "--host-ip=10.0.0.1", "--redirect-backend=nft"], "nft"),
    ],
)
async def test_what_it_cannot_run_with_is_one_line_and_status_2(flags: list[str], named: str, tmp_path: Path) -> None:
    arguments = [*flags, "--node=n1", f"--state-dir={tmp_path}"]
    process = await asyncio.create_subprocess_exec(
        EXECUTABLE, *arguments, env={"PATH": "/usr/bin"}, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    lines = said.decode().splitlines()
    assert process.returncode == 2
    assert len(lines) == 1, lines
    assert named in lines[0]


async def test_a_signal_in_the_middle_of_the_start_ends_it_well(around: World) -> None:
    async with around.agent(ready=False) as agent:
        await agent.said.wait()  # the caution about --api-token: nothing else has begun
        assert await agent.stop() == 0
        assert not any("Traceback" in line["msg"] for line in agent.lines)


async def test_a_port_that_is_taken_is_named(around: World) -> None:
    async with around.agent() as agent:
        async with around.agent(f"--app-port={agent.port}", ready=False) as second:
            assert await second.process.wait() == 2
        assert any(f"--app-port={agent.port}" in line["msg"] for line in second.lines)


@pytest.mark.parametrize("flags", [[], ["--iptables", "--redirect-backend=none"]])
async def test_nothing_is_said_of_a_redirect_that_others_keep(around: World, flags: list[str]) -> None:
    around.pod("a", POD)
    async with around.agent("--host-interface=docker9", *flags) as agent:
        metrics = (await agent.page("/metrics"))[1]
        assert not re.search("^kube2iam_redirect_(present|unmatched_pods) ", metrics, re.MULTILINE)
        assert "[+]redirect ok" in (await agent.page(VERBOSE))[1]
        assert not any("redirect" in line["msg"] for line in agent.lines)
