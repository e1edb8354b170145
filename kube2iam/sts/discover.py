"""What the agent asks about its own node: region, base ARN, default role. Retried, never guessed in silence."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from kube2iam.domain.arn import PARTITION, BaseArn, RoleArn
from kube2iam.flags import REGION
from kube2iam.sts.retry import until_it_works

log = logging.getLogger(__name__)

_PROFILE = re.compile(rf"arn:({PARTITION}):iam::(\d{{12}}):instance-profile(/(?:[!-~]*/)?)([\w+=,.@-]+)", re.ASCII)
_CALLER = re.compile(rf"arn:({PARTITION}):(?:iam|sts)::(\d{{12}}):(?:assumed-role/([\w+=,.@-]+)/)?.+", re.ASCII)

LATE = 30.0
"""Seconds for which the metadata service is asked again before the agent's own identity is taken for the node's."""


class DiscoveryError(Exception):
    """The node does not say what was asked; the message says what it said and how to do without."""


class NodeMetadata(Protocol):
    """The real metadata service, asked by the agent for itself.

    Each raises LookupError where it says that there is no such thing, and another exception where it does not answer.
    """

    async def text(self, path: str) -> str:
        """The value at a path below `/latest/`."""

    async def node_profile_arn(self) -> str:
        """The ARN of the node's instance profile."""

    async def node_role_name(self) -> str:
        """The bare name of the node's role."""


Caller = Callable[[], Awaitable[str]]
"""sts:GetCallerIdentity: the ARN of the agent's own identity."""


async def discover_region(metadata: NodeMetadata) -> str:
    """The region of this instance. Raises DiscoveryError where the metadata service does not say it."""
    said = "the metadata service does not say the region (set --region or AWS_REGION)"
    try:
        region = await metadata.text("meta-data/placement/region")
    except Exception as error:
        raise DiscoveryError(f"{said}: {error}") from error
    try:
        return REGION.parse(region)
    except ValueError:
        raise DiscoveryError(f"{said}: meta-data/placement/region is {region[:60]!r}") from None


async def discover_base_arn(metadata: NodeMetadata, caller: Caller) -> BaseArn:
    """`role/` of the node's own account, asked until it is known.

    The agent's own identity tells it where the node has no instance profile, or does not say so for `LATE` seconds.
    Without a path, whatever path the node's instance profile has: that is the profile's, not that of the pods' roles.
    """
    instead = _Identity(caller)
    return await until_it_works(
        "no base role ARN yet: it can be set with --base-role-arn", lambda: _base(metadata, instead)
    )


async def discover_default_role(metadata: NodeMetadata, caller: Caller) -> RoleArn:
    """The node's own role, asked until it is known.

    It is that of the agent's own identity where the node has none, or does not say so for `LATE` seconds. Neither the
    metadata service nor STS tells a role's path. A profile that was made for one role bears its name and has its path;
    for any other the path is taken to be `/`. A warning says so where the profile has a path.
    """
    instead = _Identity(caller)
    return await until_it_works(
        "no default role yet: it can be set with --default-role", lambda: _role(metadata, instead)
    )


class _Identity:
    """The agent's own identity, for what the metadata service does not have, or does not say for too long."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._since = asyncio.get_running_loop().time()
        self._said = ""

    async def instead_of(self, error: Exception) -> re.Match[str]:
        """The identity, said in the log; raises `error` again while the metadata service may only be late."""
        absent = isinstance(error, LookupError)
        if not absent and asyncio.get_running_loop().time() - self._since < LATE:
            raise error
        identity = _match(_CALLER, await self._caller())
        if identity[0] != self._said:
            self._said = identity[0]
            log.log(
                logging.INFO if absent else logging.WARNING,
                "the agent's own identity is taken for the node's: the metadata service %s",
                "names no role of the node" if absent else "does not answer",
                extra={"identity": identity[0], "error": str(error)},
            )
        return identity


async def _base(metadata: NodeMetadata, instead: _Identity) -> BaseArn:
    try:
        profile = await metadata.node_profile_arn()
    except Exception as error:  # noqa: BLE001 - whatever it is, `instead` judges it
        match = await instead.instead_of(error)
    else:
        match = _match(_PROFILE, profile)
    return BaseArn(match[1], match[2])


async def _role(metadata: NodeMetadata, instead: _Identity) -> RoleArn:
    try:
        name = await metadata.node_role_name()
        profile = _match(_PROFILE, await metadata.node_profile_arn())
    except DiscoveryError:
        raise
    except Exception as error:
        identity = await instead.instead_of(error)
        if not identity[3]:
            raise DiscoveryError(f"the agent's identity {identity[0]} is no role, and the node's: {error}") from error
        return RoleArn.parse(f"{BaseArn(identity[1], identity[2])}{identity[3]}")
    path = profile[3] if profile[4] == name else "/"
    role = RoleArn.parse(f"{BaseArn(profile[1], profile[2], path)}{name}")
    if profile[3] != "/":
        log.warning(
            "the path of the node's role cannot be known: if it is not this one, set --default-role",
            extra={"role": str(role), "profile": profile[0]},
        )
    return role


def _match(pattern: re.Pattern[str], arn: str) -> re.Match[str]:
    match = pattern.fullmatch(arn)
    if match is None:
        raise DiscoveryError(f"{arn[:200]!r} is no ARN of the expected form")
    return match
