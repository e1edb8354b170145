"""The node's real metadata service, with a role and secrets that no pod may ever see. Speaks IMDSv1 and v2.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from kube2iam.demo.aws import ACCOUNT, REGION, SessionKeys

INSTANCE = "i-0c0ffee0c0ffee000"
NODE_ROLE = "node-instance-role"
NODE_ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/{NODE_ROLE}"
TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105  # a header's name
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"


@dataclass(frozen=True, slots=True)
class Secrets:
    """What belongs to the node alone; every text here is unlike anything else, so that a leak can be recognised."""

    user_data: str
    signature: str
    identity_key: str

    @classmethod
    def fresh(cls) -> "Secrets":
        """New ones for this run."""
        return cls(
            user_data=f"#!/bin/sh\njoin-cluster --bootstrap-token {secrets.token_hex(12)}\n",
            signature=secrets.token_urlsafe(96),
            identity_key=secrets.token_urlsafe(30),
        )


def canaries(node: SessionKeys, own: Secrets) -> Mapping[str, str]:
    """What must never reach a pod: name of the secret to a text that gives it away."""
    return {
        "node role": NODE_ROLE,
        "node access key": node.access_key_id,
        "node secret key": node.secret_access_key,
        "node session token": node.token,
        "user-data": own.user_data.split()[-1],
        "identity signature": own.signature,
        "identity credentials": own.identity_key,
    }


class MetadataServer:
    """The instance's documents over HTTP. Tokens are optional, as on a node that still allows IMDSv1."""

    def __init__(self, node: SessionKeys, own: Secrets) -> None:
        self._documents = _documents(node, own)
        self._tokens: set[str] = set()

    def app(self) -> web.Application:
        """The application, to be served where the real service would be."""
        app = web.Application()
        app.router.add_put("/latest/api/token", self._token)
        app.router.add_get("/{path:.*}", self._get)
        return app

    async def _token(self, request: web.Request) -> web.Response:
        ttl = request.headers.get(TTL_HEADER, "")
        if "X-Forwarded-For" in request.headers:
            return web.Response(status=403)
        if not ttl.isdecimal() or not 1 <= int(ttl) <= 21600:
            return web.Response(status=400)
        token = secrets.token_urlsafe(42)
        self._tokens.add(token)
        return web.Response(text=token, headers={"Server": "EC2ws", TTL_HEADER: ttl})

    async def _get(self, request: web.Request) -> web.Response:
        token = request.headers.get(TOKEN_HEADER)
        if token is not None and token not in self._tokens:
            return web.Response(status=401, headers={"Server": "EC2ws"})
        version, _, path = request.match_info["path"].strip("/").partition("/")
        text = self._document(path) if version else "2021-07-15\nlatest"
        if text is None:
            return web.Response(status=404, headers={"Server": "EC2ws"})
        return web.Response(text=text, headers={"Server": "EC2ws"})

    def _document(self, path: str) -> str | None:
        """A document, or the listing of what lies below a path."""
        if path in self._documents:
            return self._documents[path]
        below = [name.removeprefix(f"{path}/" if path else "") for name in self._documents if name.startswith(path)]
        entries = dict.fromkeys(name.partition("/")[0] + ("/" if "/" in name else "") for name in below)
        return "\n".join(entries) or None


def _documents(node: SessionKeys, own: Secrets) -> dict[str, str]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {"accountId": ACCOUNT, "instanceId": INSTANCE, "region": REGION, "version": "2017-09-30"}
    keys = {
        "Code": "Success",
        "LastUpdated": now,
        "Type": "AWS-HMAC",
        "AccessKeyId": node.access_key_id,
        "SecretAccessKey": node.secret_access_key,
        "Token": node.token,
        "Expiration": node.expiration,
    }
    identity = keys | {"SecretAccessKey": own.identity_key}
    profile = f"arn:aws:iam::{ACCOUNT}:instance-profile/{NODE_ROLE}"
    info = {"Code": "Success", "LastUpdated": now, "InstanceProfileArn": profile, "InstanceProfileId": "AIPADEMO"}
    return {
        "user-data": own.user_data,
        "meta-data/ami-id": "ami-0c0ffee0c0ffee000",
        "meta-data/instance-id": INSTANCE,
        "meta-data/instance-type": "m7i.large",
        "meta-data/local-ipv4": "172.31.16.10",
        "meta-data/placement/availability-zone": f"{REGION}a",
        "meta-data/placement/region": REGION,
        "meta-data/iam/info": json.dumps(info, indent=2),
        f"meta-data/iam/security-credentials/{NODE_ROLE}": json.dumps(keys, indent=2),
        "meta-data/identity-credentials/ec2/security-credentials/ec2-instance": json.dumps(identity, indent=2),
        "dynamic/instance-identity/document": json.dumps(document, indent=2),
        "dynamic/instance-identity/pkcs7": own.signature,
        "dynamic/instance-identity/signature": own.signature,
    }
