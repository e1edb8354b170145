"""What every pod gets: boto3, the AWS CLI and plain HTTP, each run in the pod's own place with the pod's own means."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kube2iam.demo.aws import ENDPOINT, REGION
from kube2iam.demo.cast import PodSpec
from kube2iam.demo.places import Place
from kube2iam.demo.probes import LISTING, ask, leaks
from kube2iam.demo.processes import output_of

PROGRAM = Path(__file__).with_name("pod_program.py")
KEY = "hello.txt"


@dataclass(frozen=True, slots=True)
class Visit:
    """One pod's findings."""

    spec: PodSpec
    boto3: Mapping[str, Any]
    """What the pod's program printed: milliseconds, and source, identity, object or error."""
    cli_identity: str
    cli_object: str
    cli_error: str
    status: int
    refusal: str
    """The short reason in the answer to the role listing, empty if a role was named."""
    leaked: tuple[str, ...]

    @property
    def identity(self) -> str:
        """The session's ARN that boto3 saw, or nothing."""
        return str(self.boto3.get("identity", ""))

    @property
    def faults(self) -> list[str]:
        """Everything that differs from what this pod should have got."""
        return [*self._credential_faults(), *(f"the node leaked its {leak}" for leak in self.leaked)]

    def _credential_faults(self) -> list[str]:
        if not self.spec.identity:
            found = [f"{who} got {what}" for who, what in self._identities() if what]
            return found if self.refusal == self.spec.refusal else [*found, f"refused as {self.refusal or self.status}"]
        right = f"::{self.spec.identity}/"
        faults = [f"{who} got {what or 'nothing'}" for who, what in self._identities() if right not in what]
        if self.boto3.get("source") != "iam-role":
            faults.append(f"boto3 took its credentials from {self.boto3.get('source')}")
        objects = (("boto3", self.boto3.get("object")), ("the AWS CLI", self.cli_object))
        return faults + [f"{who} read {what!r} from S3" for who, what in objects if what != self.spec.full_name]

    def _identities(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return ("boto3", self.identity), ("the AWS CLI", self.cli_identity)


def pod_environment(home: Path) -> dict[str, str]:
    """All that a pod is told: a region and where AWS is."""
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": ENDPOINT,
    }


async def visit(
    spec: PodSpec, place: Place, env: Mapping[str, str], *, canaries: Mapping[str, str], cores: asyncio.Semaphore
) -> Visit:
    """Run everything in one pod. `cores` bounds how many programs of all pods run at once."""
    async with cores:
        boto3 = await _boto3(spec, place, env)
    async with cores:
        identity, error = await _cli(place, env, "sts", "get-caller-identity", "--query", "Arn", "--output", "text")
    copy = ""
    if spec.bucket and identity:
        async with cores:
            copy, error = await _cli(place, env, "s3", "cp", f"s3://{spec.bucket}/{KEY}", "-")
    listing = await asyncio.to_thread(ask, place, LISTING)
    return Visit(
        spec=spec,
        boto3=boto3,
        cli_identity=identity,
        cli_object=copy,
        cli_error=error,
        status=listing.status,
        refusal=listing.headers.get("x-kube2iam-denied", ""),
        leaked=tuple(await asyncio.to_thread(leaks, place, canaries)),
    )


async def _boto3(spec: PodSpec, place: Place, env: Mapping[str, str]) -> Mapping[str, Any]:
    program = (sys.executable, "-P", str(PROGRAM), spec.bucket, KEY, spec.full_name)
    _, out, err = await output_of(place.command(*program), env=env)
    try:
        told = json.loads(out)
    except ValueError:
        told = {"error": err.strip()[-500:]}
    return told if isinstance(told, dict) else {}


async def _cli(place: Place, env: Mapping[str, str], *arguments: str) -> tuple[str, str]:
    """What the AWS CLI printed on its output and on its error output."""
    aws = str(Path(sys.executable).with_name("aws"))
    _, out, err = await output_of(place.command(aws, *arguments), env=env)
    return out.strip(), err.strip()
