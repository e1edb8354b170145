"""What the agent asks about its own node."""

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from kube2iam.sts.discover import LATE, DiscoveryError, discover_base_arn, discover_default_role, discover_region
from tests.fakes.exact_time import exact_time

ACCOUNT = "123456789012"
ABSENT = LookupError("the metadata service has no meta-data/iam/info")
AWAY = TimeoutError("the metadata service took over 0.75 s")


@dataclass
class Metadata:
    """Answers from a script of texts and errors; the last one repeats."""

    region: list[str | Exception] = field(default_factory=lambda: ["eu-west-1"])
    profile: list[str | Exception] = field(default_factory=lambda: [f"arn:aws:iam::{ACCOUNT}:instance-profile/nodes"])
    role: list[str | Exception] = field(default_factory=lambda: ["nodes"])

    async def text(self, path: str) -> str:
        assert path == "meta-data/placement/region"
        return _next(self.region)

    async def node_profile_arn(self) -> str:
        return _next(self.profile)

    async def node_role_name(self) -> str:
        return _next(self.role)


def _next(script: list[str | Exception]) -> str:
    answer = script.pop(0) if len(script) > 1 else script[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


async def nobody() -> str:
    raise OSError("STS is away")


async def node() -> str:
    return f"arn:aws-cn:sts::{ACCOUNT}:assumed-role/workers/i-0123456789abcdef0"


@exact_time
async def test_the_region_is_what_the_metadata_service_says() -> None:
    assert await discover_region(Metadata(region=["us-gov-east-1"])) == "us-gov-east-1"


@pytest.mark.parametrize(
    ("said", "reason"),
    [(OSError("refused"), "refused"), ("", "''"), ("<html>", "<html>"), ("eu-west-1a", "eu-west-1a")],
)
@exact_time
async def test_a_region_that_it_does_not_say_is_not_guessed(said: str | Exception, reason: str) -> None:
    with pytest.raises(DiscoveryError, match=f"set --region or AWS_REGION.*{reason}"):
        await discover_region(Metadata(region=[said]))


@pytest.mark.parametrize(
    ("profile", "base"),
    [
        (f"arn:aws:iam::{ACCOUNT}:instance-profile/nodes", f"arn:aws:iam::{ACCOUNT}:role/"),
        (f"arn:aws:iam::{ACCOUNT}:instance-profile/team/nodes", f"arn:aws:iam::{ACCOUNT}:role/"),
        (f"arn:aws-cn:iam::{ACCOUNT}:instance-profile/a/b/c", f"arn:aws-cn:iam::{ACCOUNT}:role/"),
        (f"arn:aws-us-gov:iam::{ACCOUNT}:instance-profile/x", f"arn:aws-us-gov:iam::{ACCOUNT}:role/"),
    ],
)
@exact_time
async def test_the_base_arn_is_that_of_the_nodes_account_and_partition(profile: str, base: str) -> None:
    assert str(await discover_base_arn(Metadata(profile=[profile]), nobody)) == base


@exact_time
async def test_where_the_node_has_no_profile_sts_knows_the_account_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert str(await discover_base_arn(Metadata(profile=[ABSENT]), node)) == f"arn:aws-cn:iam::{ACCOUNT}:role/"
    assert asyncio.get_running_loop().time() == 0
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert vars(record)["identity"] == await node()


@pytest.mark.parametrize("error", [AWAY, ConnectionRefusedError(), RuntimeError("the metadata service answered 503")])
@exact_time
async def test_a_metadata_service_that_is_late_is_waited_for(error: Exception) -> None:
    """Another account would be wrong for every pod: the node's own is worth half a minute."""
    metadata = Metadata(profile=[*[error] * 6, "arn:aws:iam::999999999999:instance-profile/nodes"])
    assert str(await discover_base_arn(metadata, node)) == "arn:aws:iam::999999999999:role/"
    metadata = Metadata(role=[*[error] * 6, "nodes"])
    assert str(await discover_default_role(metadata, node)) == f"arn:aws:iam::{ACCOUNT}:role/nodes"


@exact_time
async def test_one_that_stays_away_is_replaced_by_the_agents_identity_which_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    began = asyncio.get_running_loop().time()
    assert str(await discover_base_arn(Metadata(profile=[AWAY]), node)) == f"arn:aws-cn:iam::{ACCOUNT}:role/"
    assert LATE <= asyncio.get_running_loop().time() - began < LATE + 10
    first, second = caplog.records
    assert "no base role ARN yet" in first.message
    assert "does not answer" in second.message
    assert vars(second)["identity"] == await node()
    assert "0.75 s" in vars(second)["error"]


@exact_time
async def test_where_neither_knows_it_is_tried_again() -> None:
    metadata = Metadata(profile=[*[AWAY] * 20, f"arn:aws:iam::{ACCOUNT}:instance-profile/nodes"])
    assert str(await discover_base_arn(metadata, nobody)) == f"arn:aws:iam::{ACCOUNT}:role/"
    assert asyncio.get_running_loop().time() > LATE


@pytest.mark.parametrize(
    ("profile", "role", "arn", "warns"),
    [
        ("nodes", "nodes", "role/nodes", False),
        ("team/nodes", "nodes", "role/team/nodes", True),
        ("profile-of-kops", "nodes", "role/nodes", False),
        ("team/profile", "nodes", "role/nodes", True),
    ],
)
@exact_time
async def test_the_default_role_and_its_path_where_it_can_be_known(
    caplog: pytest.LogCaptureFixture, profile: str, role: str, arn: str, warns: bool
) -> None:
    metadata = Metadata(profile=[f"arn:aws:iam::{ACCOUNT}:instance-profile/{profile}"], role=[role])
    with caplog.at_level(logging.WARNING):
        assert str(await discover_default_role(metadata, nobody)) == f"arn:aws:iam::{ACCOUNT}:{arn}"
    assert [vars(record)["role"].endswith(f":{arn}") for record in caplog.records] == [True] * warns


@pytest.mark.parametrize(("error", "at_once"), [(ABSENT, True), (AWAY, False)])
@exact_time
async def test_without_a_role_of_the_node_the_agents_own_is_the_default_role(error: Exception, at_once: bool) -> None:
    assert str(await discover_default_role(Metadata(role=[error]), node)) == f"arn:aws-cn:iam::{ACCOUNT}:role/workers"
    assert (asyncio.get_running_loop().time() == 0) is at_once


@exact_time
async def test_an_identity_that_is_no_role_is_said(caplog: pytest.LogCaptureFixture) -> None:
    asked = 0

    async def caller() -> str:
        nonlocal asked
        asked += 1
        return f"arn:aws:iam::{ACCOUNT}:user/alice" if asked < 3 else await node()

    assert (await discover_default_role(Metadata(role=[ABSENT]), caller)).name == "workers"
    (reason,) = [vars(record)["error"] for record in caplog.records if "no default role yet" in record.message]
    assert f"arn:aws:iam::{ACCOUNT}:user/alice is no role" in reason
