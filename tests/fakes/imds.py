"""A metadata service that forgives every spelling and is full of canaries: what a careless agent would let out.

It reads a target as the most helpful server imaginable would: decoded three times, any case, `\\` as `/`, parameters
after `;` dropped, dot segments and double slashes resolved. All that it is asked for is kept for the test to look at.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

NODE_ROLE = "canary-node-role"
CANARIES = (
    NODE_ROLE,
    "ASIACANARYNODEKEY",
    "canary/secret",
    "canary-session-token",
    "canary-profile",
    "canary-user-data",
    "ASIACANARYIDENTITY",
    "canary-pkcs7",
    "canary-signature",
    "canary-rsa2048",
    "canary-dsa2048",
    "canary-ssh",
    "canary-tag",
    "canary-upstream-token",
    "canary-error-page",
)
"""Texts of which a pod may see none."""

_KEYS = (
    '{"Code" : "Success", "Type" : "AWS-HMAC", "AccessKeyId" : "ASIACANARYNODEKEY", '
    '"SecretAccessKey" : "canary/secret", "Token" : "canary-session-token"}'
)
DOCUMENT = '{"accountId" : "111122223333", "instanceId" : "i-0abc", "region" : "eu-west-1"}'
TREE: Mapping[str, str] = {
    "dynamic/instance-identity/document": DOCUMENT,
    "dynamic/instance-identity/dsa2048": "canary-dsa2048",
    "dynamic/instance-identity/pkcs7": "canary-pkcs7",
    "dynamic/instance-identity/rsa2048": "canary-rsa2048",
    "dynamic/instance-identity/signature": "canary-signature",
    "meta-data/ami-id": "ami-0abc",
    "meta-data/block-device-mapping/root": "/dev/xvda",
    "meta-data/events/maintenance/scheduled": "[]",
    "meta-data/hostname": "ip-10-0-0-1.eu-west-1.compute.internal",
    "meta-data/iam/info": '{"Code" : "Success", "InstanceProfileArn" : '
    '"arn:aws:iam::111122223333:instance-profile/canary-profile"}',
    f"meta-data/iam/security-credentials/{NODE_ROLE}": _KEYS,
    "meta-data/identity-credentials/ec2/info": '{"AccountId" : "ASIACANARYIDENTITY"}',
    "meta-data/identity-credentials/ec2/security-credentials/ec2-instance": '{"AccessKeyId" : "ASIACANARYIDENTITY"}',
    "meta-data/instance-id": "i-0abc",
    "meta-data/instance-type": "m5.large",
    "meta-data/mac": "02:00:00:00:00:01",
    "meta-data/managed-ssh-keys/signer-cert": "canary-ssh",
    "meta-data/network/interfaces/macs/02:00:00:00:00:01/device-number": "0",
    "meta-data/placement/availability-zone": "eu-west-1a",
    "meta-data/placement/region": "eu-west-1",
    "meta-data/public-keys/0/openssh-key": "canary-ssh",
    "meta-data/security-groups": "default\niam",
    "meta-data/services/partition": "aws",
    "meta-data/tags/instance/Name": "canary-tag",
    "user-data": "canary-user-data",
}


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(slots=True)
class ForgivingImds:
    """What the service does next. Change the fields while it runs."""

    tokens: str = "optional"
    """`required`, `optional`, or `absent`: an old service, where a PUT is answered 405."""
    delay: float = 0.0
    status: int = 200
    """Of every GET; anything but 200 comes with an error page that a pod may not see."""
    page: bytes = b"canary-error-page"
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further paths of the tree."""
    valid: set[str] = field(default_factory=set)
    received: list[Received] = field(default_factory=list)
    address: str = ""
    token_delay: float = 0.0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first request."""

    def paths(self, method: str = "GET") -> list[str]:
        """The targets asked for, as they came."""
        return [request.target for request in self.received if request.method == method]

    def answer(self, request: Received) -> tuple[int, bytes]:
        """Status and body."""
        if request.method == "PUT":
            return self._token()
        token = request.headers.get("x-aws-ec2-metadata-token")
        if (token is None and self.tokens == "required") or (token is not None and token not in self.valid):
            return 401, b"canary-error-page"
        if self.status != 200:
            return self.status, self.page
        found = lookup(request.target, {**TREE, **self.extra})
        return (404, b"canary-error-page") if found is None else (200, found.encode())

    def _token(self) -> tuple[int, bytes]:
        if self.tokens == "absent":
            return 405, b"canary-error-page"
        token = f"canary-upstream-token-{len(self.valid)}"
        self.valid.add(token)
        return 200, token.encode()


def understood(target: str) -> str:
    """How the most forgiving server reads `target`: below the version, lower-case, without slashes at either end."""
    for _ in range(3):
        target = unquote(target, errors="replace")
    segments: list[str] = []
    for segment in target.partition("?")[0].replace("\\", "/").lower().split("/"):
        name = segment.partition(";")[0].strip()
        if name == "..":
            del segments[-1:]
        elif name not in {"", "."}:
            segments.append(name)
    return "/".join(segments[1:])


def lookup(target: str, tree: Mapping[str, str]) -> str | None:
    """The value or the listing at `target`, or None. A query that asks for recursion gets all that is below."""
    path = understood(target)
    values = {name.lower(): value for name, value in tree.items()}
    if path in values:
        return values[path]
    prefix = f"{path}/" if path else ""
    below = sorted(name.removeprefix(prefix) for name in values if name.startswith(prefix))
    if "recursive" in target:
        return "\n".join(values[f"{prefix}{name}"] for name in below)
    entries = dict.fromkeys(name.partition("/")[0] + "/" * ("/" in name) for name in below)
    return "\n".join(entries) or None


@asynccontextmanager
async def forgiving_imds() -> AsyncIterator[ForgivingImds]:
    """The service, listening on a free port of 127.0.0.1."""
    imds = ForgivingImds()
    serving: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_serve(imds, reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    imds.address = f"{host}:{port}"
    try:
        yield imds
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await server.wait_closed()


async def _serve(imds: ForgivingImds, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while (request := await _receive(reader)) is not None:
            imds.received.append(request)
            imds.arrived.set()
            await asyncio.sleep(imds.token_delay if request.method == "PUT" else imds.delay)
            status, body = imds.answer(request)
            head = (
                f"HTTP/1.1 {status} Whatever\r\nServer: EC2ws\r\nContent-Type: text/plain\r\nX-Canary: canary-tag\r\n"
            )
            location = "Location: http://127.0.0.1/latest/user-data\r\n" if 300 <= status < 400 else ""
            writer.write(f"{head}{location}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _receive(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.removesuffix(b"\r\n\r\n").decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, rest.rpartition(" ")[0], headers, body)
