"""AWS for the demo: moto's server with IAM enforced, so that keys, session tokens, policies and trust really count.

The roles get the same two policies that the README tells users to write.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from kube2iam.demo.failure import DemoError
from kube2iam.demo.network import AWS
from kube2iam.demo.places import Place
from kube2iam.demo.processes import Child, Children

ACCOUNT = "123456789012"
REGION = "eu-west-1"
ENDPOINT = f"http://{AWS}"

API_VERSIONS = {"iam": "2010-05-08", "sts": "2011-06-15"}
START_TIMEOUT = 60.0
"""Seconds that moto may take to import itself, on a slow machine with cold disks."""


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """A role session's keys, as the metadata service hands them to its node."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(repr=False)
    expiration: str


@dataclass(frozen=True, slots=True)
class Role:
    """A role to create: what it may do and who may assume it."""

    arn: str
    allow: Mapping[str, Sequence[str]]
    """Action to the resources it is allowed on."""
    trust: Mapping[str, Sequence[str]]
    """Kind of principal (`AWS`, `Service`) to the principals that may assume it."""

    @property
    def account(self) -> str:
        """The account it is in."""
        return self.arn.split(":")[4]

    @property
    def name(self) -> str:
        """Its bare name."""
        return self.arn.rpartition("/")[2]


class Aws:
    """The running server, asked over HTTP before it begins to ask who is calling."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def create_role(self, role: Role) -> None:
        """Create a role with its trust and its one policy."""
        trust = _policy({"Principal": dict(role.trust), "Action": "sts:AssumeRole"})
        allow = _policy(*({"Action": action, "Resource": list(on)} for action, on in role.allow.items()))
        name = {"RoleName": role.name}
        await self._call("iam", role.account, Action="CreateRole", AssumeRolePolicyDocument=trust, **name)
        if role.allow:
            await self._call(
                "iam", role.account, Action="PutRolePolicy", PolicyName="demo", PolicyDocument=allow, **name
            )

    async def create_bucket(self, name: str, account: str) -> None:
        """Create an S3 bucket."""
        headers = _headers("s3", account)
        body = (
            '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
        )
        async with self._http.put(f"{ENDPOINT}/{name}", headers=headers, data=body) as response:
            await _succeeded(response, f"create bucket {name}")

    async def assume(self, role: Role, session: str, duration: int) -> SessionKeys:
        """A session of a role, as EC2 itself takes one for an instance; `duration` in seconds."""
        answer = await self._call(
            "sts",
            role.account,
            Action="AssumeRole",
            ContentType="JSON",
            RoleArn=role.arn,
            RoleSessionName=session,
            DurationSeconds=str(duration),
        )
        keys = json.loads(answer)["AssumeRoleResponse"]["AssumeRoleResult"]["Credentials"]
        return SessionKeys(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], str(keys["Expiration"]))

    async def enforce(self) -> None:
        """From now on every request needs a valid signature and a policy that allows it."""
        headers = {"Content-Type": "text/plain"}
        async with self._http.post(f"{ENDPOINT}/moto-api/reset-auth", headers=headers, data="0") as response:
            await _succeeded(response, "enforce IAM")

    async def _call(self, service: str, account: str, **form: str) -> str:
        form["Version"] = API_VERSIONS[service]
        async with self._http.post(ENDPOINT, headers=_headers(service, account), data=form) as response:
            return await _succeeded(response, form["Action"])


async def start(children: Children, place: Place, http: aiohttp.ClientSession) -> Child:
    """Start moto in AWS's place and wait until it answers."""
    command = [sys.executable, "-P", "-m", "moto.server", "--host", AWS, "--port", "80"]
    moto = await children.start("moto", place.command(*command))
    end = time.monotonic() + START_TIMEOUT
    while moto.running and time.monotonic() < end:
        try:
            async with http.get(f"{ENDPOINT}/moto-api/data.json"):
                return moto
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.05)
    raise DemoError(f"moto did not start:\n{moto.tail()}")


def _headers(service: str, account: str) -> dict[str, str]:
    """What makes moto route a request to a service and an account."""
    scope = f"Credential=AKIADEMOSETUP/20260101/us-east-1/{service}/aws4_request"
    return {
        "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=none",
        "x-moto-account-id": account,
    }


def _policy(*statements: Mapping[str, object]) -> str:
    return json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement} for statement in statements]}
    )


async def _succeeded(response: aiohttp.ClientResponse, what: str) -> str:
    text = await response.text()
    if response.status >= 300:
        raise DemoError(f"moto refused to {what}: {response.status} {text[:300]}")
    return text
