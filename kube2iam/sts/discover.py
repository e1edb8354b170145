"""What the agent asks about its own node: region, base ARN, default role. Retried, never guessed in silence."""

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from kube2iam.domain.arn import PARTITION, BaseArn, RoleArn
from kube2iam.sts.retry import until_it_works

log = logging.getLogger(__name__)

_REGION = re.compile(r"[a-z]{2,8}(?:-[a-z]{2,12}){1,3}-\d{1,2}")
_PROFILE = re.compile(rf"arn:({PARTITION}):iam::(\d{{12}}):instance-profile(/(?:[!-~]*/)?)([\w+=,.@-]+)", re.ASCII)
_CALLER = re.compile(rf"arn:({PARTITION}):(?:iam|sts)::(\d{{12}}):(?:assumed-role/([\w+=,.@-]+)/)?.+", re.ASCII)


class DiscoveryError(Exception):
    """The node does not say what was asked; the message says what it said and how to do without."""


class NodeMetadata(Protocol):
    """The real metadata service, asked by the agent for itself. Each raises where it has no answer."""

    async def text(self, path: str) -> str:
        """The value at a path below `/latest/`."""

    async def node_profile_arn(self) -> str:
        """The ARN of the node's instance profile."""

    async def node_role_name(self) -> str:
        """The bare name of the node's role."""


Caller = Callable[[], Awaitable[str]]
"""sts:GetCallerIdentity: the ARN of the agent's own identity."""


async def discover_region(metadata: NodeMetadata) -> str:
    """The region of this instance, asked until the metadata service says it."""

    async def ask() -> str:
        region = await metadata.text("meta-data/placement/region")
        if not _REGION.fullmatch(region):
            raise DiscoveryError(f"meta-data/placement/region is {region[:60]!r}; set --region")
        return region

    return await until_it_works("no region yet: set --region or AWS_REGION where there is no metadata service", ask)


async def discover_base_arn(metadata: NodeMetadata, caller: Caller) -> BaseArn:
    """`role/` of the node's own account, asked until it is known.

    Without a path, whatever path the node's instance profile has: that is the profile's, not that of the pods' roles.
    """
    return await until_it_works(
        "no base role ARN yet: it can be set with --base-role-arn", lambda: _base(metadata, caller)
    )


async def discover_default_role(metadata: NodeMetadata, caller: Caller) -> RoleArn:
    """The node's own role, asked until it is known.

    Neither the metadata service nor STS tells a role's path. A profile that was made for one role bears its name and
    has its path; for any other the path is taken to be `/`, and a warning says so if that may be wrong.
    """
    return await until_it_works(
        "no default role yet: it can be set with --default-role", lambda: _role(metadata, caller)
    )


async def _base(metadata: NodeMetadata, caller: Caller) -> BaseArn:
    try:
        profile = await metadata.node_profile_arn()
    except Exception as error:  # noqa: BLE001 - the node may have keys from elsewhere; STS knows its account too
        log.debug("no instance profile", extra={"reason": str(error)})
        match = _match(_CALLER, await caller())
    else:
        match = _match(_PROFILE, profile)
    return BaseArn(match[1], match[2])


async def _role(metadata: NodeMetadata, caller: Caller) -> RoleArn:
    try:
        name = await metadata.node_role_name()
        profile = _match(_PROFILE, await metadata.node_profile_arn())
    except DiscoveryError:
        raise
    except Exception as error:
        identity = _match(_CALLER, await caller())
        if not identity[3]:
            raise DiscoveryError(
                f"the agent's identity is no role, and the node has no instance profile: {error}"
            ) from error
        return RoleArn.parse(f"{BaseArn(identity[1], identity[2])}{identity[3]}")
    path = profile[3] if profile[4] == name else "/"
    if path != profile[3]:
        log.warning(
            "the node's role may have a path that cannot be known: if so, set --default-role",
            extra={"role": name, "profile": profile[0]},
        )
    return RoleArn.parse(f"{BaseArn(profile[1], profile[2], path)}{name}")


def _match(pattern: re.Pattern[str], arn: str) -> re.Match[str]:
    match = pattern.fullmatch(arn)
    if match is None:
        raise DiscoveryError(f"{arn[:200]!r} is no ARN of the expected form")
    return match
